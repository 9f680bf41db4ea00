"""What the ladder measures: against the diagnosis and slow loops; and its page, made again without the runs."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image

from retinaconf.data.layouts import load_split
from retinaconf.diagnosis.inputs import diagnose_run
from retinaconf.diagnosis.report.document import to_json
from retinaconf.evaluation import compare
from retinaconf.paper import ladder, runs
from retinaconf.paper.engine import run_paper
from retinaconf.paper.items import Training
from retinaconf.run_folder import MODEL, read_weights, write_weights

RECIPE = "aligned, varifocal, slow backbone, Soft-NMS"
ROWS = ("RetinaNet", "aligned", "aligned, voting", RECIPE)


@pytest.fixture(autouse=True)
def few_draws(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compare, "DRAWS", 20)
    monkeypatch.setattr(ladder, "ROUNDS", 1)


@pytest.mark.slow
def test_some_steps_and_their_page_made_again(
    tiny_data: Path, tmp_path: Path, tiny_config: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = tiny_config(**{"model.quality": "none", "inference.alpha": 0.0})

    def go() -> tuple[dict[str, Any], str]:
        run_paper("ladder", tmp_path, tiny_data, base, "lite0", seeds=2, max_steps=2, device="cpu", rows=ROWS)
        return json.loads((tmp_path / "ladder.json").read_text()), (tmp_path / "ladder.md").read_text()

    document, page = go()
    names = sorted(path.name for path in (tmp_path / "runs").iterdir())
    assert [name.rpartition("-")[0] for name in names] == [
        f"{training}-seed{seed}"
        for training in ("aligned", "aligned-varifocal-slow-backbone", "retinanet")
        for seed in (0, 1)
    ]
    assert [row["name"] for row in document["rows"]] == list(ROWS)
    assert list(document["steps"]) == [ROWS[0], ROWS[1], RECIPE]  # voting changes the boxes after NMS alone
    for name, step in document["steps"].items():
        others = [] if name == "RetinaNet" else ["RetinaNet"]
        assert list(step["measures"]["concordance"]["over"]) == others
        assert all(len(step["measures"][measure]["seeds"]) == 2 for measure in ladder.MEASURES)
        assert step["speed"]["training"]["images_per_second"] > 0
        assert step["speed"]["inference"]["ratio"] > 0
    texts = [part["text"] for claim in document["claims"] for part in claim["parts"]]
    assert "aligned, voting > aligned" in texts
    assert " nan" not in page
    with Image.open(tmp_path / "ladder.png") as picture:
        assert np.asarray(picture.convert("L")).std() > 10

    shutil.rmtree(tmp_path / "runs")  # what was measured is enough
    monkeypatch.setattr(runs, "train_run", None)
    assert go() == (document, page)


@pytest.mark.parametrize("finish", [{}, {"vote": True, "soft_nms": True, "nms_iou": 0.75}], ids=["NMS", "Soft-NMS"])
@pytest.mark.ci
def test_measures_are_those_of_the_diagnosis(trained: Any, tmp_path: Path, finish: dict[str, Any]) -> None:
    truth = load_split(trained.data, "val")
    experiments: Any = SimpleNamespace(ground_truth=truth, device="cpu")
    found = ladder._measure(experiments, trained.run, Training("conf"), tuple(finish.items()))
    weights = read_weights(trained.run)
    config = weights.config.changed(**{f"inference.{name}": value for name, value in finish.items()})
    write_weights(tmp_path / MODEL, weights.state, config, weights.classes, weights.category_ids)
    document = to_json(diagnose_run(tmp_path / MODEL, trained.data, "val", device="cpu", replicates=2))
    gains = {rung["name"]: rung["gain"] for rung in document["oracles"]}
    expected = {
        "concordance": document["correlation"]["before_nms"]["within_object"]["concordance"],
        "lost_iou": document["casualties"]["overall"]["mean_lost_iou"],
        "oracle_gain": gains["ranked_by_iou"],
        "laece_0": document["calibration"]["laece_0"],
    }
    assert all(value for value in expected.values())  # none is 0 or unknown
    assert {name: found[name]["value"] for name in ladder.MEASURES} == pytest.approx(expected)
    assert found["task_alignment"] == document["task_alignment"]


def test_means_over_the_objects_of_drawn_images() -> None:
    truth: Any = type("Truth", (), {"image_index": np.array([0, 0, 2, 2, 2]), "__len__": lambda self: 3})()
    values = np.array([0.5, math.nan, 0.1, 0.2, 0.9])
    draws = np.array([[1, 1, 1], [2, 1, 0], [0, 3, 0], [1, 0, 2]], dtype=float)
    expected = []
    for draw in draws:
        drawn = [
            value for image, times in enumerate(draw) for value in list(values[truth.image_index == image]) * int(times)
        ]
        drawn = [value for value in drawn if not math.isnan(value)]
        expected.append(sum(drawn) / len(drawn) if drawn else math.nan)
    assert ladder.mean_over_objects(values, truth, draws) == pytest.approx(expected, nan_ok=True)
