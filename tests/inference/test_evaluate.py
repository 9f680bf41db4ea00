import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from retinaconf.evaluation.coco import METRICS
from retinaconf.inference.evaluate import evaluate_run, print_report

METHODS = ["cls(obj>0.5)", "cls*obj", "cls*obj(obj>0.5)", "product(0.4)(obj>0.5)"]


@pytest.fixture(scope="module")
def report(trained: Any) -> dict[str, Any]:
    return evaluate_run(trained.run, trained.data, "val", with_sweep=True, device="cpu")


def test_the_reports_keys(report: dict[str, Any], trained: Any):
    assert list(report) == ["run", "data", "split", "images", "joint", "metrics", "per_class", "sweep"]
    assert (report["run"], report["data"]) == (str(trained.run), str(trained.data))
    assert (report["split"], report["images"], report["joint"]) == ("val", 4, "product(0.4)")
    assert list(report["metrics"]) == list(METRICS)
    assert list(report["per_class"]) == ["red", "green", "blue"]
    assert all(list(row) == ["joint", "alpha", "metrics"] for row in report["sweep"])
    assert all(list(row["metrics"]) == list(METRICS) for row in report["sweep"])


def test_the_report_is_json_without_nan(report: dict[str, Any]):
    assert json.loads(json.dumps(report, allow_nan=False)) == report
    assert report["metrics"]["AP_S"] is None  # there is no small object
    numbers = [value for value in report["metrics"].values() if value is not None]
    assert all(0 <= value <= 1 for value in numbers)
    assert 0 < report["metrics"]["AP"] <= report["metrics"]["AP50"]


def test_the_sweep_is_ten_alphas_and_the_other_methods(report: dict[str, Any]):
    rows = report["sweep"]
    assert [row["alpha"] for row in rows] == [round(0.1 * n, 1) for n in range(10)] + [None] * 4
    assert [row["joint"] for row in rows[:10]] == ["product(0)", *(f"product(0.{n})" for n in range(1, 10))]
    assert [row["joint"] for row in rows[10:]] == METHODS
    assert len({row["metrics"]["AP"] for row in rows}) > 3  # they do differ


@pytest.mark.parametrize("alpha", [0.0, 0.4, 0.9])
def test_a_row_of_the_sweep_is_what_evaluation_with_its_alpha_gives(report: dict[str, Any], trained: Any, alpha: float):
    alone = evaluate_run(trained.run, trained.data, "val", alpha=alpha, device="cpu")
    (row,) = [row for row in report["sweep"] if row["alpha"] == alpha]
    assert alone["metrics"] == row["metrics"]
    assert alone["joint"] == row["joint"]
    assert "sweep" not in alone


def test_the_runs_own_joint_score_is_the_reports(report: dict[str, Any], trained: Any):
    own = evaluate_run(trained.run, trained.data, "val", device="cpu")
    assert own == {key: value for key, value in report.items() if key != "sweep"}
    (row,) = [row for row in report["sweep"] if row["joint"] == report["joint"]]
    assert row["metrics"] == report["metrics"]


def test_the_numbers_are_those_of_the_last_validation_of_the_kept_weights(report: dict[str, Any], trained: Any):
    lines = [json.loads(line) for line in (trained.run / "metrics.jsonl").read_text().splitlines()]
    best = max(line["AP"] for line in lines if line["kind"] == "val")
    assert report["metrics"]["AP"] == pytest.approx(best, abs=1e-6)


def test_any_split(trained: Any):
    train = evaluate_run(trained.run, trained.data, "train", device="cpu")
    assert (train["split"], train["images"]) == ("train", 20)


def test_an_untrained_detector_and_one_that_finds_nothing(write_run: Callable[..., Path], trained: Any, tmp_path: Path):
    # Class scores start at 0.01, below the threshold.
    changes = {"model.quality": "none", "inference.alpha": 0.0}
    nothing = evaluate_run(write_run(tmp_path / "nothing", **changes), trained.data, "val", device="cpu")
    assert nothing["metrics"]["AP"] == nothing["metrics"]["AR"] == 0
    changes |= {"inference.score_threshold": 0.0}
    chance = evaluate_run(write_run(tmp_path / "chance", **changes), trained.data, "val", device="cpu")
    assert chance["metrics"]["AR"] > 0


def test_the_tables_show_every_number(report: dict[str, Any], capsys: pytest.CaptureFixture[str]):
    print_report(report)
    out = capsys.readouterr().out
    rows = [line.split() for line in out.splitlines()]

    def cells(metrics: dict[str, float | None]) -> list[str]:
        return ["-" if value is None else f"{value:.3f}" for value in metrics.values()]

    assert ["joint", "score", *METRICS] in rows
    assert [report["joint"], *cells(report["metrics"])] in rows
    for name, value in report["per_class"].items():
        assert [name, *cells({name: value})] in rows
    for row in report["sweep"]:
        assert [row["joint"], *cells(row["metrics"])] in rows
    assert "val, 4 images" in out
    report = {key: value for key, value in report.items() if key != "sweep"}
    print_report(report)
    assert "cls*obj" not in capsys.readouterr().out
