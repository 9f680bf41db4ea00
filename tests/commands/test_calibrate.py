"""`retinaconf calibrate` from the command line: fit, report, apply, and what a user gets wrong."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from as_coco import as_coco
from planted import candidates_at, spread_objects


@pytest.fixture
def files(tmp_path: Path) -> tuple[Path, Path]:
    """Scores that are half of the IoU, for 200 objects of one class in 20 images."""
    ground_truth = spread_objects(20, 10)
    ious = np.random.default_rng(0).uniform(0.3, 1, (200, 1))
    detections = candidates_at(ground_truth, ious, ious / 2)
    records = [
        {"image_id": int(image), "category_id": 10, "bbox": [x1, y1, x2 - x1, y2 - y1], "score": score}
        for image, (x1, y1, x2, y2), score in zip(
            ground_truth.image_ids[detections.image_index], detections.boxes.tolist(), detections.scores.tolist()
        )
    ]
    (tmp_path / "gt.json").write_text(json.dumps(as_coco(ground_truth)))
    (tmp_path / "dt.json").write_text(json.dumps(records))
    return tmp_path / "dt.json", tmp_path / "gt.json"


def test_scores_that_are_off_by_a_factor_are_mended(run_cli: Callable[..., Any], files: tuple[Path, Path]):
    detections, ground_truth = files
    map_, report, out = (detections.with_name(name) for name in ("map.json", "report.json", "out.json"))
    fit = ("calibrate", "--detections", detections, "--ground-truth", ground_truth, "--out", map_, "--json", report)
    done = run_cli(*fit)
    assert done.code == 0, done.err
    assert (
        "a map of its own: class 0\nthe common map: 1 classes with fewer than 100 objects or no detections" in done.out
    )
    told = json.loads(report.read_text())
    assert (told["objects"], told["own_maps"], told["common_map"]) == (200, ["class 0"], ["class 1"])
    assert told["before"]["pooled_error"] == pytest.approx(0.65 / 2, abs=0.02)
    for name in ("pooled_error", "laece_0", "laace_0"):
        assert told["after"][name] < 0.02
        assert f"{told['after'][name]:.4f}" in done.out
    low, high = told["pooled_error_change"]["interval"]
    assert low < told["after"]["pooled_error"] - told["before"]["pooled_error"] < high

    done = run_cli("calibrate", "--apply", map_, "--detections", detections, "--out", out)
    assert done.code == 0, done.err
    records = json.loads(out.read_text())
    assert [record["raw_score"] for record in records] == [r["score"] for r in json.loads(detections.read_text())]
    errors = [abs(record["score"] - 2 * record["raw_score"]) for record in records]
    assert max(errors) < 0.02
    again = run_cli("calibrate", "--apply", map_, "--detections", out, "--out", detections.with_name("twice.json"))
    assert again.code == 1
    assert "is calibrated already" in again.err


def test_calibrated_detectors_are_merged(run_cli: Callable[..., Any], files: tuple[Path, Path]):
    detections, ground_truth = files
    folder = detections.parent
    records = json.loads(detections.read_text())
    for name, part in (("a", records[::2]), ("b", records[1::2])):
        (folder / f"{name}.json").write_text(json.dumps([record | {"raw_score": 0.1} for record in part]))
    words = ("calibrate", "--merge", folder / "a.json", folder / "b.json", "--out", folder / "both.json")
    done = run_cli(*words)
    assert done.code == 0, done.err
    assert done.out == f"{folder / 'both.json'}: 200 detections of 200\n"
    both = json.loads((folder / "both.json").read_text())
    key = json.dumps
    assert sorted(key([r["image_id"], r["score"]]) for r in both) == sorted(
        key([r["image_id"], r["score"]]) for r in records
    )
    done = run_cli(*words, "--ground-truth", ground_truth, "--json", folder / "gain.json")
    assert done.code == 0, done.err
    told = json.loads((folder / "gain.json").read_text())
    assert told["best"] in told["AP"]
    assert told["gain"] == pytest.approx(told["merged_AP"] - max(told["AP"].values()))
    assert 0 < told["interval"][0] < told["gain"] < told["interval"][1]
    assert (
        f"merged: AP {100 * told['merged_AP']:.1f}, {100 * told['gain']:+.1f} points over the best of them" in done.out
    )
    done = run_cli("calibrate", "--merge", detections, folder / "b.json", "--out", folder / "both.json")
    assert f"note: {detections} has no 'raw_score'" in done.out
    assert done.out.count("note: ") == 1


def test_a_data_set_in_place_of_a_file(run_cli: Callable[..., Any], files: tuple[Path, Path]):
    detections, ground_truth = files
    root = detections.parent / "data"
    root.mkdir()
    (root / "images").mkdir()
    (root / "val.json").write_bytes(ground_truth.read_bytes())
    maps = [detections.with_name(f"{n}.json") for n in range(2)]
    for map_, truth in zip(maps, (["--ground-truth", ground_truth], ["--data", root])):
        done = run_cli("calibrate", "--detections", detections, *truth, "--out", map_)
        assert done.code == 0, done.err
    assert maps[0].read_bytes() == maps[1].read_bytes()


@pytest.mark.parametrize(
    ("words", "code", "line"),
    [
        (["--detections", "dt.json", "--out", "map.json"], 2, "give either --ground-truth GT or --data ROOT"),
        (["--detections", "dt.json", "--ground-truth", "gt.json", "--data", ".", "--out", "m.json"], 2, "give either"),
        (["--detections", "dt.json", "--ground-truth", "gt.json", "--split", "val", "--out", "m.json"], 2, "--split"),
        (["--apply", "m.json", "--detections", "dt.json", "--json", "r.json", "--out", "o.json"], 2, "--json"),
        (["--apply", "gt.json", "--detections", "dt.json", "--out", "o.json"], 1, "gt.json: not a map of scores"),
        (["--detections", "dt.json", "--ground-truth", "gt.json", "--out", "dt.json"], 1, "would be overwritten"),
        (["--out", "o.json"], 2, "give --detections DT, or --merge DT DT"),
        (["--merge", "dt.json", "--out", "o.json"], 2, "give the detections of at least two"),
        (
            ["--merge", "dt.json", "dt.json", "--apply", "m.json", "--out", "o.json"],
            2,
            "--apply: it does not go with --merge",
        ),
        (["--merge", "dt.json", "dt.json", "--json", "r.json", "--out", "o.json"], 2, "a gain needs ground truth"),
        (["--merge", "dt.json", "nan.json", "--out", "o.json"], 1, "nan.json: record 0 (image 1) has score nan"),
        (
            ["--merge", "dt.json", "other.json", "--ground-truth", "gt.json", "--out", "o.json"],
            1,
            "names image 77, which",
        ),
        (["--merge", "dt.json", "none.json", "--out", "dt.json"], 1, "would be overwritten"),
        (["--detections", "none.json", "--ground-truth", "gt.json", "--out", "m.json"], 1, "none.json: no detections"),
        (["--detections", "other.json", "--ground-truth", "gt.json", "--out", "m.json"], 1, "names image 77, which"),
        (["--detections", "nan.json", "--ground-truth", "gt.json", "--out", "m.json"], 1, "score nan; scores must be"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_mistakes_end_in_one_line(
    run_cli: Callable[..., Any],
    files: tuple[Path, Path],
    monkeypatch: pytest.MonkeyPatch,
    words: list[str],
    code: int,
    line: str,
):
    folder = files[0].parent
    monkeypatch.chdir(folder)
    record = json.loads(files[0].read_text())[0]
    for name, records in {
        "none": [],
        "other": [record | {"image_id": 77}],
        "nan": [record | {"score": float("nan")}],
    }.items():
        (folder / f"{name}.json").write_text(json.dumps(records))
    before = {path: path.read_bytes() for path in folder.iterdir()}
    done = run_cli("calibrate", *words)
    assert done.code == code, done.err
    assert line in done.err
    assert done.err.splitlines()[-1].startswith("retinaconf: ")
    assert "Traceback" not in done.err
    assert {path: path.read_bytes() for path in folder.iterdir()} == before
