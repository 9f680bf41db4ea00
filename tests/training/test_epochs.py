import csv
from pathlib import Path
from typing import Any

import pytest

from retinaconf.run_folder import metrics_line
from retinaconf.training.epochs import read_epochs, write_epoch


def log(run: Path, *records: dict[str, Any]) -> None:
    (run / "metrics.jsonl").write_text("".join(map(metrics_line, records)))


def train(step: int, epoch: float, loss: float, **more: Any) -> dict[str, Any]:
    return {"kind": "train", "step": step, "epoch": epoch, "lr": 0.1 / step, "loss": loss, "class": loss / 2, **more}


def test_lines_become_epochs_whose_losses_are_means_over_steps(tmp_path: Path):
    val = {"kind": "val", "step": 12, "epoch": 1.0, "AP": 0.5, "AP_S": float("nan"), "per_class": {"cat": 0.5}}
    log(tmp_path, train(10, 10 / 12, 3.0), train(12, 1.0, 1.5), val, train(18, 1.5, 1.0))
    first, part = read_epochs(tmp_path)
    assert (first.epoch, first.step, first.lr) == (1, 12, 0.1 / 12)
    assert first.losses == pytest.approx({"loss": (10 * 3.0 + 2 * 1.5) / 12, "class": (10 * 1.5 + 2 * 0.75) / 12})
    assert (first.metrics, first.per_class) == ({"AP": 0.5, "AP_S": None}, {"cat": 0.5})
    assert (part.epoch, part.step, part.losses, part.metrics) == (1.5, 18, {"loss": 1.0, "class": 0.5}, {})


def test_the_table_keeps_the_speed_of_epochs_before(tmp_path: Path):
    log(tmp_path, train(4, 1.0, 3.0))
    assert [one.speed for one in write_epoch(tmp_path, 12.345)] == [12.345]
    log(tmp_path, train(4, 1.0, 3.0), train(8, 2.0, 2.0), {"kind": "val", "step": 8, "epoch": 2.0, "AP": 0.25})
    assert [one.speed for one in write_epoch(tmp_path, 20.0)] == [12.35, 20.0]
    write_epoch(tmp_path, None)  # validated again by a resumed run, which has taken no step
    with (tmp_path / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [(row["epoch"], row["step"], row["loss"], row["images_per_second"], row["AP"]) for row in rows] == [
        ("1.0", "4", "3.0", "12.35", ""),
        ("2.0", "8", "2.0", "20.0", "0.25"),
    ]


def test_a_table_that_cannot_be_read_is_written_again(tmp_path: Path):
    log(tmp_path, train(4, 1.0, 3.0))
    (tmp_path / "metrics.csv").write_bytes(b"step,images_per_second\nfour,many\n\xff")
    assert [one.speed for one in write_epoch(tmp_path, 2.0)] == [2.0]
