"""A run epoch by epoch, and `metrics.csv`: a row an epoch, for spreadsheets and the like.

All but the speed is from `metrics.jsonl`, which is the same however often a run was stopped; the speed is kept in the
table alone.
"""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any, NamedTuple

from retinaconf.evaluation.coco import METRICS
from retinaconf.files import write_aside
from retinaconf.run_folder import METRICS_LOG, METRICS_TABLE, read_metrics

SPEED = "images_per_second"
NO_LOSS = ("kind", "step", "epoch", "lr")


class Epoch(NamedTuple):
    """An epoch, or the part of one in which a run was ended."""

    epoch: float  # passes over the images at its end
    step: int
    lr: float  # of its last step
    losses: dict[str, float | None]  # `loss`, which is the total, and its parts: means over its steps
    speed: float | None  # images a second in its steps; None where it is not known
    metrics: dict[str, float | None]  # COCO's, overall; empty without a validation
    per_class: dict[str, float | None]  # AP by class


def read_epochs(run: Path) -> list[Epoch]:
    """The epochs that a run has logged."""
    speeds = _speeds(run / METRICS_TABLE)
    records = read_metrics(run / METRICS_LOG)
    validations = {record["step"]: record for record in records if record["kind"] == "val"}
    lines = [record for record in records if record["kind"] == "train"]
    epochs: list[Epoch] = []
    begun, before = 0, 0  # the first line and the last step before it
    for n, line in enumerate(lines, 1):
        if line["epoch"] % 1 and n < len(lines):
            continue
        steps = [line["step"] for line in lines[begun:n]]
        weights = [step - earlier for step, earlier in zip(steps, [before, *steps])]
        losses = {name: _mean([one[name] for one in lines[begun:n]], weights) for name in line if name not in NO_LOSS}
        validation = validations.get(line["step"], {})
        metrics = {name: validation[name] for name in METRICS if name in validation}
        of = (losses, speeds.get(line["step"]), metrics, validation.get("per_class", {}))
        epochs.append(Epoch(line["epoch"], line["step"], line["lr"], *of))
        begun, before = n, line["step"]
    return epochs


def write_epoch(run: Path, speed: float | None) -> list[Epoch]:
    """Write `metrics.csv` again, with the `speed` of the last epoch; returns all epochs."""
    epochs = read_epochs(run)
    if speed is not None:
        epochs[-1:] = [one._replace(speed=speed) for one in epochs[-1:]]
    rows = [_row(one) for one in epochs]

    def write(aside: Path) -> None:
        with aside.open("w", newline="") as file:
            table = csv.DictWriter(file, list(dict.fromkeys(name for row in rows for name in row)))
            table.writeheader()
            table.writerows(rows)

    write_aside(run / METRICS_TABLE, write)
    return epochs


def _row(one: Epoch) -> dict[str, Any]:
    speed = None if one.speed is None else round(one.speed, 2)
    return {"epoch": one.epoch, "step": one.step, "lr": one.lr, **one.losses, SPEED: speed, **one.metrics}


def _mean(values: list[float | None], weights: list[int]) -> float | None:
    known = [value for value in values if value is not None]
    if len(known) < len(values):
        return None
    return sum(value * weight for value, weight in zip(known, weights)) / sum(weights)


def _speeds(table: Path) -> dict[int, float]:
    """By the last step of each epoch, as far as the table can be read."""
    speeds = {}
    try:
        with table.open(newline="") as file:
            for row in csv.DictReader(file):
                if row.get(SPEED):
                    speeds[int(row["step"])] = float(row[SPEED])
    except (OSError, ValueError, KeyError, TypeError, csv.Error):
        return {}
    return speeds
