"""`retinaconf evaluate`: COCO's numbers of a run on a split."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table
from tyro.conf import Positional

from retinaconf.commands.options import Device, LayoutKey
from retinaconf.files import write_json
from retinaconf.outputs import check_outputs

RECORDS_SHOWN = 10  # of those left out; the JSON has all


def evaluate(
    run: Positional[Path],
    /,
    data: Path,
    split: str = "val",
    alpha: float | None = None,
    sweep: bool = False,
    json: Path | None = None,
    detections: Path | None = None,
    layout: LayoutKey | None = None,
    val_fraction: float | None = None,
    device: Device = "auto",
) -> None:
    """Measure COCO's ten metrics of a run on a split, overall and by class.

    Args:
        run: the run folder.
        data: the data set's folder.
        split: train, val or test.
        alpha: exponent of the quality in the joint score, instead of the run's own.
        sweep: also evaluate every alpha from 0.0 to 0.9 and every joint method, in one pass of the network.
        json: also write the numbers to this file.
        detections: also write the detections to this file, as COCO results with the data set's image ids.
        layout: of the data set's folder. Without it, the folder's content decides.
        val_fraction: share of the images that is val, if neither data set nor run says which. Without it, the run's.
        device: where to compute.
    """
    from retinaconf.inference.evaluate import evaluate as measure

    check_outputs([json, detections], [run, data, data / f"{split}.json"])
    report = measure(
        run,
        data,
        split,
        alpha=alpha,
        sweep=sweep,
        detections=detections,
        layout=layout,
        val_fraction=val_fraction,
        device=device,
    )
    print_report(report)
    if json is not None:
        write_json(json, report)


def print_report(report: dict[str, Any]) -> None:
    """The report as tables."""
    from retinaconf.data.ground_truth import LeftOut

    console = Console(width=max(Console().width, 104))  # the ten numbers need it, where there is no terminal too
    console.print(report["found"], markup=False, highlight=False, soft_wrap=True)
    left_out = LeftOut(**report["left_out"])
    for record in left_out.records[:RECORDS_SHOWN]:
        console.print(f"{record}; dropped", markup=False, highlight=False, soft_wrap=True)
    if len(left_out.records) > RECORDS_SHOWN:
        console.print(f"... and {len(left_out.records) - RECORDS_SHOWN:,} more; --json lists all")
    title = f"{report['split']}, {report['images']} images" + (str(left_out) and f"; {left_out}")
    rows = [(report["joint"], report["metrics"])]
    console.print(_table(title, "joint score", rows))
    classes = Table("class", "AP", title="AP by class", box=SIMPLE)
    for name, value in report["per_class"].items():
        classes.add_row(name, _cell(value))
    console.print(classes)
    if "tuned" in report:
        _print_tuning(console, report["tuned"])
    if "sweep" in report:
        rows = [(row["joint"], row["metrics"]) for row in report["sweep"]]
        console.print(_table("joint scores, from one pass of the network", "joint score", rows))


def _print_tuning(console: Console, tuned: dict[str, Any]) -> None:
    error = tuned["laece_0"]
    console.print(
        f"tuned: LaECE_0 is {_cell(error['score'])} of the score and {_cell(error['confidence'])} of the confidence, "
        f"which ranks with AP {_cell(tuned['AP_by_confidence'])}",
        markup=False,
        highlight=False,
        soft_wrap=True,
    )
    table = Table("class", "precision", "95%", "recall", "95%", title=f"thresholds: {tuned['goal']}", box=SIMPLE)
    for name, row in tuned["shown"].items():
        table.add_row(name, *share_cells(row, "precision"), *share_cells(row, "recall"))
    console.print(table)


def share_cells(row: dict[str, Any], key: str) -> tuple[str, str]:
    """A share and its interval as two cells."""
    if row.get(key) is None or row[key] != row[key]:
        return "-", "-"
    low, high = row[f"{key}_interval"]
    return f"{row[key]:.2f}", f"{low:.2f} to {high:.2f}"


def _table(title: str, first: str, rows: list[tuple[str, dict[str, float | None]]]) -> Table:
    from retinaconf.evaluation.coco import METRICS

    table = Table(first, title=title, box=SIMPLE)
    for name in METRICS:
        table.add_column(name, justify="right")
    best = max((metrics["AP"] or 0 for _, metrics in rows), default=0)
    for name, metrics in rows:
        table.add_row(
            name,
            *(_cell(metrics[key]) for key in METRICS),
            style="bold" if len(rows) > 1 and metrics["AP"] == best else "",
        )
    return table


def _cell(value: float | None) -> str:
    return "-" if value is None or value != value else f"{value:.3f}"
