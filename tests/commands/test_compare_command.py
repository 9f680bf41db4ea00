"""`compare`: files and runs, the sentence, the JSON, the report, and mistakes in one line."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from as_coco import as_coco
from planted import spread_objects

from retinaconf.detections import write_detections
from retinaconf.diagnosis.inputs import diagnose_run
from retinaconf.diagnosis.measures import comparison
from retinaconf.diagnosis.measures.comparison import Measured
from retinaconf.diagnosis.report.comparison import LABELS, better, notes, sentence
from retinaconf.evaluation.compare import Difference
from retinaconf.inference.evaluate import evaluate
from retinaconf.run_folder import CONFIG, MODEL, read_weights, write_config, write_weights


@pytest.fixture(autouse=True)
def few_draws(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(comparison, "DRAWS", 30)


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """`gt.json` of 120 objects in 40 images; `good.json` places boxes better than `bad.json`; all in the folder."""
    truth = spread_objects(images=40, per_image=3)
    document = as_coco(truth)
    (tmp_path / "gt.json").write_text(json.dumps(document))
    for name, largest in (("good", 12), ("bad", 30), ("good1", 13), ("bad1", 32)):
        random = np.random.default_rng(len(name))
        results = []
        for annotation in document["annotations"]:
            x, y, w, h = annotation["bbox"]
            box = [x + random.uniform(0, largest), y, w, h]
            record = {"image_id": annotation["image_id"], "category_id": annotation["category_id"], "bbox": box}
            results.append(record | {"score": random.random()})
        (tmp_path / f"{name}.json").write_text(json.dumps(results))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_two_files(files: Path, run_cli: Callable[..., Any]):
    words = ("compare", "--ground-truth", "gt.json", "--json", "found.json")
    result = run_cli(*words, "--detections", "bad.json", "good.json")
    assert result.code == 0, result.err
    first, a, b, *rest = result.out.splitlines()
    found = json.loads((files / "found.json").read_text())
    assert first == found["sentence"]
    assert first.startswith("B is better: +")
    assert first.endswith("; 40 images")
    assert (a, b) == ("A: bad.json", "B: good.json")
    compared = {key: label for key, label in LABELS.items() if key != "confidence_laece_0"}  # neither is tuned
    for label in (*compared.values(), "class 0"):
        assert any(label in line for line in rest), label
    assert (found["a"], found["b"], found["better"]) == (["bad.json"], ["good.json"], "B")
    assert (found["images"], found["objects"]) == (40, 120)
    AP = found["differences"]["AP"]
    assert AP["difference"] == pytest.approx(AP["b"] - AP["a"])
    assert 0 < AP["low"] < AP["difference"] < AP["high"]
    assert set(found["differences"]) == set(compared)
    assert found["per_class"]["class 1"]["difference"] is None  # no object of it

    swapped = run_cli(*words, "--detections", "good.json", "bad.json").out.splitlines()[0]
    assert swapped == first.replace("B is", "A is")


def test_a_file_against_its_copy(files: Path, run_cli: Callable[..., Any]):
    shutil.copy("good.json", "copy.json")
    result = run_cli("compare", "--detections", "good.json", "copy.json", "--ground-truth", "gt.json")
    assert result.out.startswith("no difference: A and B have the same AP, also on every draw of the images; 40 images")


def test_npz_a_data_set_and_several_trainings(files: Path, run_cli: Callable[..., Any]):
    """All ways to give the same give the same."""
    records = json.loads((files / "good.json").read_text())
    images = [
        {
            "image_id": record["image_id"],
            "category_ids": np.array([record["category_id"]]),
            "boxes": np.array([[x, y, x + w, y + h]]),
            "scores": np.array([record["score"]]),
        }
        for record in records
        for x, y, w, h in [record["bbox"]]
    ]
    write_detections(files / "good.npz", images)
    (files / "data/images").mkdir(parents=True)
    shutil.copy("gt.json", "data/val.json")
    shutil.copy("gt.json", "data/train.json")
    outputs = []
    for detections, truth in (("good.json", ["--ground-truth", "gt.json"]), ("good.npz", ["--data", "data"])):
        result = run_cli("compare", "--detections", "bad.json", detections, *truth, "--json", "found.json")
        assert result.code == 0, result.err
        outputs.append(json.loads((files / "found.json").read_text())["differences"])
    for key in ("AP", "AP_L", "laece_0"):
        one, other = ({name: found[key][name] for name in ("a", "b", "low", "high")} for found in outputs)
        assert one == pytest.approx(other)

    sides = ["--detections", "bad.json", "bad1.json", "--against", "good.json", "good1.json"]
    result = run_cli("compare", *sides, "--ground-truth", "gt.json", "--json", "found.json")
    assert "; 40 images, 2 trainings of each" in result.out.splitlines()[0]
    assert len(json.loads((files / "found.json").read_text())["differences"]["AP"]["trainings"]) == 2


def test_the_report_shows_both_and_changes_nothing(files: Path, run_cli: Callable[..., Any]):
    words = ["compare", "--detections", "bad.json", "good.json", "--ground-truth", "gt.json", "--json", "found.json"]
    documents = []
    for report in ([], ["--report", "both.html"]):
        assert run_cli(*words, *report).code == 0
        documents.append((files / "found.json").read_text())
    assert documents[0] == documents[1]
    page = (files / "both.html").read_text()
    assert "bad" in page
    assert "good" in page


MISTAKES = {
    "the same file": ("bad.json ./bad.json", "is given twice; give two different detectors"),
    "no boxes": ("bad.json none.json", "none.json: no boxes on these 40 images"),
    "another split": ("bad.json other.json", "names image 99999, which gt.json does not list; give the ground truth"),
    "another class": ("bad.json class.json", "category_id 77, which gt.json does not list"),
    "unequal sides": ("bad.json bad1.json --against good.json", "2 on side A and 1 on side B; give as many of each"),
    "no such file": ("bad.json gone.json", "gone.json: no such file"),
    "no objects": ("bad.json good.json --ground-truth empty.json", "empty.json: no objects in it"),
}


@pytest.mark.parametrize(("words", "message"), MISTAKES.values(), ids=MISTAKES)
def test_a_mistake_is_one_line(files: Path, run_cli: Callable[..., Any], words: str, message: str):
    record = json.loads((files / "bad.json").read_text())[0]
    (files / "none.json").write_text("[]")
    (files / "other.json").write_text(json.dumps([record | {"image_id": 99999}]))
    (files / "class.json").write_text(json.dumps([record | {"category_id": 77}]))
    (files / "empty.json").write_text(json.dumps(json.loads((files / "gt.json").read_text()) | {"annotations": []}))
    truth = [] if "--ground-truth" in words else ["--ground-truth", "gt.json"]
    result = run_cli("compare", "--detections", *words.split(), *truth)
    assert (result.code, result.out) == (1, "")
    last = result.err.splitlines()[-1]  # after the lines of progress
    assert last.startswith("retinaconf: ")
    assert message in last


# --- runs ----------------------------------------------------------------------------------------------------------


def with_alpha(run: Path, folder: Path, alpha: float) -> Path:
    """A copy of a run with another alpha."""
    weights = read_weights(run)
    config = weights.config.changed(**{"inference.alpha": alpha})
    folder.mkdir()
    write_config(folder / CONFIG, config)
    write_weights(folder / MODEL, weights.state, config, weights.classes, weights.category_ids)
    return folder


@pytest.mark.ci
def test_two_runs(trained: Any, tmp_path: Path, run_cli: Callable[..., Any]):
    """The numbers are those of `evaluate` and `diagnose`; the report is of both."""
    other = with_alpha(trained.run, tmp_path / "other", 0.9)
    words = [trained.run, other, "--data", trained.data, "--device", "cpu", "--json", tmp_path / "found.json"]
    result = run_cli("compare", *words, "--report", tmp_path / "both.html")
    assert result.code == 0, result.err
    found = json.loads((tmp_path / "found.json").read_text())
    assert "other" in (tmp_path / "both.html").read_text()
    differences = found["differences"]
    for side, run in (("a", trained.run), ("b", other)):
        metrics = evaluate(run, trained.data, "val", device="cpu")["metrics"]
        assert {key: differences[key][side] for key in ("AP", "AP50", "AP75", "AP_M")} == pytest.approx(
            {key: metrics[key] for key in ("AP", "AP50", "AP75", "AP_M")}
        )
        diagnosis = diagnose_run(run, trained.data, device="cpu", replicates=2)
        assert differences["laece_0"][side] == pytest.approx(diagnosis.calibration.mean_laece_0)
        assert differences["concordance"][side] == pytest.approx(diagnosis.before.alignment.within.concordance)
    assert found["better"] == "undecided"  # four images
    assert "are too few, it takes at least 100 objects in 20 images" in found["sentence"]


def test_runs_of_other_classes_are_refused(
    trained: Any, write_run: Callable[..., Path], tmp_path: Path, run_cli: Callable[..., Any]
):
    other = write_run(tmp_path / "other", classes={3: "red", 8: "dog"})
    result = run_cli("compare", trained.run, other, "--data", trained.data, "--device", "cpu")
    assert (result.code, result.out) == (1, "")
    where = "category 8 is 'dog' here and 'green' there"
    assert f"{other}: its classes are not those of {trained.run} ({where}); compare runs that were" in result.err


# --- words ---------------------------------------------------------------------------------------------------------


def worded(low: float, mean: float, high: float, objects: int = 3) -> Any:
    truth = spread_objects(images=40, per_image=objects)
    each = Measured("x", dict.fromkeys(LABELS, 0.5), {}, {}, np.zeros((0, 2)), 400, 40, 5.0)
    AP = Difference((mean,), mean, low, high, float("nan"), 0.01)
    return comparison.Comparison((each,), (each,), truth, dict.fromkeys(LABELS, AP), {})


@pytest.mark.parametrize(
    ("numbers", "side", "words"),
    [
        ((0.004, 0.018, 0.031), "B", "B is better: +1.8 AP, 95% interval +0.4 to +3.1; 40 images"),
        ((-0.031, -0.018, -0.004), "A", "A is better: +1.8 AP, 95% interval +0.4 to +3.1; 40 images"),
        ((-0.004, 0.018, 0.031), "undecided", "undecided: B - A is +1.8 AP, 95% interval -0.4 to +3.1; 40 images"),
        ((np.nan, np.nan, np.nan), "undecided", "undecided: B - A is +nan AP"),
    ],
)
def test_the_sentence(numbers: tuple[float, float, float], side: str, words: str):
    found = worded(*numbers)
    assert better(found) == side
    assert sentence(found).startswith(words)


def test_few_objects_decide_nothing():
    found = worded(0.1, 0.2, 0.3, objects=1)
    assert better(found) == "undecided"
    least = "40 objects in 40 images are too few, it takes at least 100 objects in 20 images"
    assert sentence(found) == f"undecided: {least}; on these B - A is +20.0 AP, 95% interval +10.0 to +30.0"


def test_what_must_not_be_compared_is_said():
    found = worded(0.1, 0.2, 0.3)
    assert len(notes(found)) == 1  # one training of each
    half = replace(found, b=(replace(found.b[0], images=20, boxes=200, boxes_of_object=2.0),))
    text = " ".join(notes(half))
    assert "A has boxes on 40 and B on 20 of the 40 images" in text
    assert "Do not compare the order within objects" in text
    assert "Do not compare calibration" in text
