"""The measurements in `studies/`, on tiny data: what each says against `evaluate` or a case that is known."""

from __future__ import annotations

import importlib.util
import json
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import retinaconf
from retinaconf.data.layouts import load_split
from retinaconf.detections import Detections
from retinaconf.evaluation import compare
from retinaconf.inference.evaluate import evaluate
from retinaconf.paper.quality_statistics import class_ranked
from retinaconf.training.run import train_run

pytestmark = pytest.mark.slow

PLAIN = {"model.quality": "none", "inference.alpha": 0.0, "loss.quality": "l2", "inference.joint": "cls"}


def study(name: str) -> Any:
    spec = importlib.util.spec_from_file_location(f"studies_{name}", Path(__file__).parents[1] / f"studies/{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def main(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """`main("retrofit", ...)` runs a study and gives what it printed."""
    monkeypatch.setattr(compare, "DRAWS", 10)
    monkeypatch.syspath_prepend(Path(__file__).parents[1] / "studies")  # as for a script; one study imports another

    def run(name: str, *words: Any) -> str:
        monkeypatch.setattr(sys, "argv", [name, *map(str, words)])
        capsys.readouterr()
        study(name).main()
        return capsys.readouterr().out

    return run


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory, trained: Any, tiny_config: Any) -> Path:
    """A RetinaNet on the data of `trained`."""
    run = tmp_path_factory.mktemp("studies") / "plain"
    train_run(tiny_config(**PLAIN), trained.data, run, device="cpu")
    return run


def ap(run: Path, data: Path, alpha: float | None = None) -> float:
    metrics: dict[str, float] = evaluate(run, data, "val", alpha=alpha, device="cpu")["metrics"]
    return metrics["AP"]


def test_retrofit(main: Callable[..., str], trained: Any, plain: Path, tmp_path: Path) -> None:
    words = ("--data", trained.data, "--out", tmp_path, "--seeds", 1, "--towers", "classification", "--split", "val")
    printed = main("retrofit", plain, *words, "--json", tmp_path / "found.json")
    (((found,),),) = json.loads((tmp_path / "found.json").read_text()).values()
    run = tmp_path / "plain-classification-0"
    assert found["AP"] == [ap(plain, trained.data), ap(run, trained.data)]  # alpha 0 is the RetinaNet
    assert found["alpha"] == retinaconf.load(run, "cpu").config.inference.alpha
    assert len(found["gains"]) == 10
    before, after = found["AP"]
    assert f"classification: {100 * (after - before):+.2f} points of AP" in printed


def test_frozen_losses(main: Callable[..., str], trained: Any, plain: Path, tmp_path: Path) -> None:
    main("frozen_losses", plain, "--data", trained.data, "--out", tmp_path, "--split", "val")
    document = json.loads((tmp_path / "val.json").read_text())
    base = ap(plain, trained.data)
    at_alpha = []
    for loss, (result,) in document["losses"].items():
        rows = {row["joint"]: row["AP"] for row in result["rows"]}
        assert rows["product(0)"] == base  # the detector does not move
        assert document["gains"][loss]["product(0)"] == {"gain": [0, 0, 0], "on CE": [0, 0, 0]}
        assert document["gains"][loss]["product(0.6)"]["gain"][0] == pytest.approx(
            rows["product(0.6)"] - base, abs=1e-5
        )
        at_alpha.append(tuple(rows.values()))
        words = "".join(letter if letter.isalnum() else "-" for letter in loss.lower())
        assert ap(tmp_path / f"{words}-plain", trained.data, 0.4) == rows["product(0.4)"]
    assert document["gains"]["CE"]["product(0.6)"]["on CE"] == [0, 0, 0]
    assert len(set(at_alpha)) > 1  # the losses differ


def test_predictable_quality(main: Callable[..., str], trained: Any, tmp_path: Path) -> None:
    pytest.importorskip("sklearn")
    module, truth = study("predictable_quality"), load_split(trained.data, "val")
    detector = retinaconf.load(trained.run, "cpu")
    boxes, features = module.boxes_and_features(detector, truth)
    theirs = class_ranked(detector, truth)
    assert len(boxes) == len(theirs) == len(features) > 0
    np.testing.assert_allclose(boxes.scores, theirs.scores, rtol=1e-5)
    np.testing.assert_allclose(boxes.boxes.sum(axis=0), theirs.boxes.sum(axis=0), rtol=1e-4)
    # Trees find a quality that is one of the features, on images that they have not seen; and none in noise.
    rng = np.random.default_rng(0)
    known, image = rng.uniform(size=(600, 4)), np.arange(600) % 12
    said = module.predicted(known, known[:, 2], image)
    assert np.abs(said - known[:, 2]).mean() < 0.03
    assert abs(np.corrcoef(module.predicted(known, rng.uniform(size=600), image), known[:, 2])[0, 1]) < 0.3
    printed = main("predictable_quality", trained.run, "--data", trained.data, "--json", tmp_path / "found.json")
    (found,) = json.loads((tmp_path / "found.json").read_text())
    assert f"{found['boxes']:,} boxes" in printed


def test_fine_tuning(monkeypatch: pytest.MonkeyPatch, make_data: Callable[..., Path], tmp_path: Path) -> None:
    monkeypatch.setattr(compare, "DRAWS", 10)
    module = study("fine_tuning")
    small = module.SMALL | {"data.short_side": 64, "data.long_side": 128}
    for name, value in (("SMALL", small), ("FIRST_EPOCHS", 1), ("IMAGES_SEEN", 8)):
        monkeypatch.setattr(module, name, value)
    found = tmp_path / "found"
    words = ("--data", make_data(tmp_path / "data", train=16), "--out", found, "--new", "red", "--pictures", 4)
    ways = ("detector", "detector, backbone frozen", "detector, augment strong")
    monkeypatch.setattr(sys, "argv", ["", *map(str, words), "--seeds", "2", "--device", "cpu", "--ways", *ways])
    module.main()
    rows = {row["way"]: row for row in json.loads((found / "fine-tuning.json").read_text())}
    assert [*rows] == ["ImageNet", *ways]
    assert [[*row["over"]] for row in rows.values()] == [[], ["ImageNet"], *[["ImageNet", "detector"]] * 2]
    of_strong = rows["detector, augment strong"]
    assert of_strong["over"]["detector"]["difference"] == pytest.approx(of_strong["mean"] - rows["detector"]["mean"])
    settings = [
        json.loads((found / f"{way}-4-0/config.json").read_text()) for way in ("ImageNet", "detector-augment-strong")
    ]
    assert [one["data.augment"] for one in settings] == ["flip", "strong"]
    assert [one["model.weights"] for one in settings] == ["imagenet", str(found / "first")]
    measured = (found / "measured.jsonl").read_text()
    module.main()  # trains nothing again
    assert (found / "measured.jsonl").read_text() == measured


@pytest.fixture
def photographed_twice(tmp_path: Path) -> Path:
    """A field photographed twice, 16 pixels lower and 24 to the left, annotated twice; and another field."""
    rng = np.random.default_rng(0)
    field, other = (
        Image.fromarray(rng.integers(0, 256, (40, 50), dtype=np.uint8)).resize((400, 320)) for _ in range(2)
    )
    (tmp_path / "images").mkdir()
    annotations = {"train": [[60, 70, 40, 40]], "val": [[38, 54, 40, 40], [200, 100, 20, 20]]}
    for split, left, top in (("train", 0, 16), ("val", 24, 32)):
        field.crop((left, top, left + 320, top + 240)).convert("RGB").save(tmp_path / f"images/{split}-0.png")
        other.crop((0, 0, 320, 240)).rotate(180 * (split == "val")).convert("RGB").save(
            tmp_path / f"images/{split}-1.png"
        )
        (tmp_path / f"{split}.json").write_text(
            json.dumps(
                {
                    "images": [
                        {"id": n, "file_name": f"{split}-{n}.png", "width": 320, "height": 240} for n in range(2)
                    ],
                    "annotations": [
                        {"id": n, "image_id": 0, "category_id": 1, "bbox": box, "area": box[2] * box[3], "iscrowd": 0}
                        for n, box in enumerate(annotations[split], 1)
                    ],
                    "categories": [{"id": 1, "name": "cell"}],
                }
            )
        )
    return tmp_path


def test_second_annotation(main: Callable[..., str], photographed_twice: Path, tmp_path: Path) -> None:
    main("second_annotation", "--data", photographed_twice, "--json", tmp_path / "found.json")
    found = json.loads((tmp_path / "found.json").read_text())
    assert found["pairs"] == [["train", "train-0.png", "val", "val-0.png", -16, -24, 1.0]]
    assert found["across_splits"] == {"train": 1, "val": 1}
    # The object of train is at (36, 54) of val's frame, whose box begins 2 pixels further: IoU 38 / 42.
    assert found["agreement"] == {"iou": {"cell": [round(38 / 42, 4)]}, "other_class": 0, "once": 1}


def test_a_person_and_a_detector_are_measured_alike(
    main: Callable[..., str], photographed_twice: Path, write_run: Callable[..., Path], tmp_path: Path
) -> None:
    """The one object of val that is annotated twice: the person's box has IoU 38 / 42 with the reference, 0.905."""
    run = write_run(tmp_path / "run", {1: "cell"})  # untrained: it finds nothing above the score threshold
    data = ("--data", photographed_twice)
    printed = main("person_as_detector", *data, run, run, "--json", tmp_path / "found.json")
    assert "1 objects in 1 photographs, mean of the runs" in printed
    found = json.loads((tmp_path / "found.json").read_text())
    assert found["found"] == [0, 0]
    assert found["ap"]["person"] == pytest.approx([0.9] * 3)  # right at 9 of the 10 thresholds
    assert found["ap"]["difference"] == pytest.approx([-0.9] * 3)


@pytest.mark.usefixtures("main")
def test_a_detector_beside_a_person_by_hand(photographed_twice: Path) -> None:
    """The object's best-scored box counts, and not the one that fits best; a box on nothing costs AP."""
    person_as_detector = study("person_as_detector")
    whole = load_split(photographed_twice, "val")
    first = replace(whole, boxes=np.array([[0.0, 0, 10, 10], [50, 0, 60, 10]]), labels=np.array([0, 0]))
    first = replace(first, offsets=np.array([0, 2, 2]), areas=np.full(2, 100.0), crowd=np.zeros(2, dtype=bool))
    second = replace(first, boxes=np.array([[0.0, 0, 10, 7], [50, 0, 60, 9]]))
    boxes = np.array([[0.0, 0, 10, 6.2], [0, 0, 10, 10], [100, 100, 110, 110]])
    found = Detections(np.zeros(3, int), np.zeros(3, int), boxes, np.array([0.5, 0.4, 0.9]))
    measured = person_as_detector.measure(replace(found, classes=first.classes, category_ids=(1,)), first, second)
    assert measured.found == 1
    assert measured.iou[0] == pytest.approx(0.62)
    assert measured.person_iou[0] == pytest.approx(0.7)  # of the object that the detector finds
    # One of two objects is found, behind one wrong box at three thresholds and behind two at seven.
    assert measured.ap[0] == pytest.approx(51 / 101 * (3 / 2 + 7 / 3) / 10, abs=1e-3)


def test_own_map_sees_that_a_class_differs(shared_data: Path) -> None:
    """A class with scores of its own is read better by its own map, and on YOLOX-nano no class needs one."""
    from retinaconf.data.ground_truth import read_coco
    from retinaconf.detections import read_detections
    from retinaconf.diagnosis.measures.post_processing import PostProcessing
    from retinaconf.evaluation.calibration import ANY_OVERLAP
    from retinaconf.evaluation.matching import match_detections

    truth = read_coco(shared_data / "coco-mini" / "annotations" / "instances_val2017.json")
    candidates = read_detections(shared_data / "yolox-nano" / "candidates-val2017.npz", truth)
    matches = match_detections(PostProcessing(nms_iou=0.65)(candidates), truth, np.array([ANY_OVERLAP]))
    own_map = study("own_map")
    alike, differ = (own_map.compare(truth, matches, 3, differ) for differ in (False, True))
    few, many = min(alike), max(alike)
    assert alike[few][1] < alike[few][2]
    assert differ[many][2] < differ[many][1]
    assert alike[many][2] == pytest.approx(differ[many][2], rel=0.02)  # an own map undoes the square root


def test_thresholds_reach_a_precision_where_scores_tell_right_from_wrong(
    tmp_path: Path, main: Callable[..., str]
) -> None:
    """Each of 8 images has a right box of "a" at 0.9 and a wrong one at 0.5, and a wrong one of "b" at 0.7."""
    ids = range(1, 9)
    truth = {
        "images": [{"id": n, "file_name": f"{n}.png", "width": 90, "height": 90} for n in ids],
        "categories": [{"id": n, "name": name} for n, name in enumerate("ab")],
        "annotations": [
            {"id": 2 * n + kind, "image_id": n, "category_id": kind, "bbox": [0, 50 * kind, 40, 40]}
            for n in ids
            for kind in (0, 1)
        ],
    }
    found = [
        {"image_id": n, "category_id": kind, "bbox": [left, 0, 40, 40], "score": score}
        for n in ids
        for kind, left, score in ((0, 0, 0.9), (0, 45, 0.5), (1, 45, 0.7))
    ]
    (tmp_path / "truth.json").write_text(json.dumps(truth))
    (tmp_path / "found.json").write_text(json.dumps(found))
    right, wrong = main("thresholds", tmp_path / "truth.json", tmp_path / "found.json", "--divisions", 5).splitlines()
    assert right.startswith("a, 8 objects: precision 1.000, standard deviation 0.000; within 3 points of 0.9 in 0%")
    assert wrong.startswith("b, 8 objects: precision 0.000")


def test_what_soft_nms_gains(
    trained: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], shared_data: Path
) -> None:
    """AP before and after by `evaluate`, of a run with the settings changed, and by COCO's evaluation of a file."""
    from retinaconf.data.ground_truth import read_coco
    from retinaconf.detections import read_detections
    from retinaconf.diagnosis.measures.post_processing import PostProcessing
    from retinaconf.evaluation.coco import CocoEvaluator

    soft_nms = study("soft_nms")
    mini, yolox = shared_data / "coco-mini", shared_data / "yolox-nano" / "candidates-val2017.npz"
    truth = mini / "annotations" / "instances_val2017.json"
    for given in (
        ["--ground-truth", str(truth), "--nms-iou", "0.65", str(yolox)],
        ["--data", str(trained.data), str(trained.run)],
    ):
        monkeypatch.setattr(sys, "argv", ["soft_nms.py", *given])
        soft_nms.main()
    said = capsys.readouterr().out
    ground_truth = read_coco(truth)
    candidates = read_detections(yolox, ground_truth)
    evaluator = CocoEvaluator(ground_truth)
    plain = PostProcessing(nms_iou=0.65)(candidates)
    before, after = (
        100 * evaluator(found).overall["AP"]
        for found in (plain, PostProcessing(nms_iou=0.75, soft_nms=True)(candidates))
    )
    f1 = 100 * soft_nms.best_f1(plain, ground_truth)
    assert f"{yolox}: AP {before:.2f}, F1 {f1:.2f}; by Soft-NMS as in the recipes AP {after - before:+.2f} (" in said
    own = 100 * evaluate(trained.run, trained.data)["metrics"]["AP"]
    assert f"{trained.run}: AP {own:.2f}, F1 " in said
    assert said.count("| 0.75 | 0.7 |") == 2


def test_the_best_f1_by_hand(photographed_twice: Path) -> None:
    """Two objects: right at 0.9, wrong at 0.8, right at 0.7, wrong at 0.6."""
    soft_nms = study("soft_nms")
    whole = load_split(photographed_twice, "val")
    boxes = np.array([[0.0, 0, 10, 10], [50, 0, 60, 10]])
    truth = replace(whole, boxes=boxes, labels=np.array([0, 0]), offsets=np.array([0, 2, 2]))
    truth = replace(truth, areas=np.full(2, 100.0), crowd=np.zeros(2, dtype=bool))
    found = Detections(np.zeros(4, int), np.zeros(4, int), boxes[[0, 0, 1, 1]], np.array([0.9, 0.8, 0.7, 0.6]))
    assert soft_nms.best_f1(found, truth) == pytest.approx(2 * 2 / (3 + 2))
    assert soft_nms.best_f1(found[found.scores > 1], truth) == 0
