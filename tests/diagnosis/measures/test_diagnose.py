"""The whole diagnosis: invariance, edge cases, documents, figures, and the real COCO files."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from as_coco import as_coco
from planted import random_set, truth

from retinaconf.cell_anchors import CellAnchors
from retinaconf.cli import main
from retinaconf.data.ground_truth import GroundTruth, read_coco
from retinaconf.detections import Detections, read_detections
from retinaconf.diagnosis.inputs import diagnose_files, read_truth
from retinaconf.diagnosis.measures.coverage import anchor_coverage
from retinaconf.diagnosis.measures.diagnose import Diagnosis, diagnose
from retinaconf.diagnosis.measures.post_processing import PostProcessing
from retinaconf.diagnosis.report.document import to_json
from retinaconf.diagnosis.report.figures import save_figures
from retinaconf.diagnosis.report.summary import summarize
from retinaconf.errors import InputError
from retinaconf.evaluation.coco import CocoEvaluator

SEEDS = [0, *(pytest.param(seed, marks=pytest.mark.slow) for seed in (1, 2, 3))]
NOTHING = Detections(np.zeros(0, int), np.zeros(0, int), np.zeros((0, 4)), np.zeros(0))


def with_quality(seed: int, **options: Any) -> tuple[GroundTruth, Detections]:
    rng = np.random.default_rng(seed)
    ground_truth, boxes = random_set(rng, **options)
    return ground_truth, replace(boxes, quality=rng.random(len(boxes)), class_scores=boxes.scores)


def numbers(diagnosis: Diagnosis) -> dict[str, Any]:
    """The document without what names rows or lists images in their order."""
    document = json.loads(json.dumps(to_json(diagnosis), allow_nan=False))
    for reading in ("same_class", "any_class"):
        for stage in document["paper"][reading].values():
            if stage:
                del stage["per_image"]
    del document["paper"]["image_ids"]
    for worst in document["casualties"]["worst"]:
        del worst["object"], worst["best_candidate"], worst["kept_candidate"]
    document["casualties"]["worst"].sort(key=lambda worst: (worst["image_id"], worst["box"]))
    return document


def close(a: Any, b: Any) -> bool:
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(close(a[key], b[key]) for key in a)
    if isinstance(a, list):
        return len(a) == len(b) and all(map(close, a, b))
    return a == pytest.approx(b, abs=1e-9) if isinstance(a, float) else a == b


def test_the_order_of_images_and_boxes_changes_nothing() -> None:
    ground_truth, candidates = with_quality(0, ties=False)
    rng = np.random.default_rng(1)
    images = rng.permutation(len(ground_truth))
    new_row = np.argsort(images)
    shuffled = rng.permutation(len(candidates))
    shuffled = shuffled[np.argsort(new_row[candidates.image_index[shuffled]], kind="stable")]
    moved = candidates[shuffled]
    moved = replace(moved, image_index=new_row[moved.image_index])
    before = numbers(diagnose(ground_truth, candidates=candidates, replicates=20))
    after = numbers(diagnose(ground_truth.subset(images), candidates=moved, replicates=20))
    for key in before:
        assert close(before[key], after[key]), key


@pytest.mark.parametrize("seed", SEEDS)
def test_the_ladder_does_not_fall_where_theory_says_so(seed: int) -> None:
    ground_truth, boxes = random_set(np.random.default_rng(seed))
    for diagnosis in (diagnose(ground_truth, boxes), diagnose(ground_truth, candidates=boxes)):
        ladder = {rung.name: rung for rung in diagnosis.oracles}
        for name, over in (("no_duplicates", "as_is"), ("score_is_iou_no_duplicates", "score_is_iou")):
            for metric in ("AP", "AP50", "AP75"):
                assert getattr(ladder[name], metric) >= getattr(ladder[over], metric) - 1e-12
        assert pytest.approx(diagnosis.metrics.overall["AP"], abs=1e-12) == ladder["as_is"].AP


@pytest.mark.parametrize("seed", SEEDS)
def test_ranking_by_iou_helps_objects_that_do_not_compete(seed: int) -> None:
    """Detections, so that no NMS follows, on objects far apart: at no threshold does AP fall."""
    rng = np.random.default_rng(seed)
    row = [[400.0 * i, 0, 400.0 * i + 100, 100] for i in range(4)]
    ground_truth = truth([row] * 6)
    target = rng.integers(0, 24, 200)
    target.sort()
    boxes = ground_truth.boxes[target] + rng.normal(0, 12, (200, 4))
    image = ground_truth.image_index[target]
    diagnosis = diagnose(ground_truth, Detections(image, np.zeros(200, int), boxes, rng.random(200)))
    ladder = {rung.name: rung for rung in diagnosis.oracles}
    for metric in ("AP", "AP50", "AP75"):
        assert getattr(ladder["ranked_by_iou"], metric) >= getattr(ladder["as_is"], metric) - 1e-12


@pytest.mark.parametrize("case", ["no images", "no objects", "no boxes", "only crowds", "one box", "no overlap"])
@pytest.mark.parametrize("as_candidates", [True, False])
def test_where_there_is_little_to_see_nothing_breaks(tmp_path: Path, case: str, as_candidates: bool) -> None:
    ground_truth = truth([[[0, 0, 50, 50]], []])
    boxes = Detections(np.zeros(1, int), np.zeros(1, int), np.array([[0.0, 0, 50, 40]]), np.array([0.5]))
    if case == "no images":
        ground_truth, boxes = ground_truth.subset([]), NOTHING
    elif case == "no objects":
        ground_truth = truth([[], []])
    elif case == "no boxes":
        boxes = NOTHING
    elif case == "only crowds":
        ground_truth = truth([[[0, 0, 50, 50]], []], crowd=[[1], []])
    elif case == "no overlap":
        boxes = replace(boxes, boxes=boxes.boxes + 500)
    boxes = replace(boxes, quality=boxes.scores)
    shape = (len(ground_truth), 2)
    coverage = anchor_coverage(ground_truth, np.ones(shape), np.full(shape, 64), CellAnchors())
    given = {"candidates" if as_candidates else "detections": boxes}
    diagnosis = diagnose(ground_truth, **given, coverage=coverage, replicates=5)
    json.dumps(to_json(diagnosis), allow_nan=False)
    summary = summarize(diagnosis)
    assert summary
    assert not any("nan" in sentence for sentence in summary), summary
    if as_candidates:  # has all figures
        save_figures(diagnosis, tmp_path)


def test_nothing_given_is_said() -> None:
    with pytest.raises(InputError, match="nothing to diagnose"):
        diagnose(truth([[]]))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"nms_iou": float("nan")}, "NMS IoU nan: give one from 0 to 1"),
        ({"nms_iou": 2.0}, "NMS IoU 2"),
        ({"nms_iou": -0.1}, "NMS IoU -0.1"),
        ({"score_threshold": float("nan")}, "score threshold nan"),
        ({"score_threshold": 1.0}, "score threshold 1"),
        ({"max_detections": 0}, "0 detections an image"),
        ({"object_iou": float("nan")}, "object IoU nan"),
        ({"object_iou": 0.0}, "object IoU 0"),
    ],
)
def test_settings_that_mean_nothing_are_refused(options: dict[str, Any], words: str) -> None:
    ground_truth, boxes = random_set(np.random.default_rng(0))
    object_iou = options.pop("object_iou", 0.5)
    with pytest.raises(InputError, match=words):
        diagnose(ground_truth, candidates=boxes, post_processing=PostProcessing(**options), object_iou=object_iou)


@pytest.mark.parametrize(
    "option", [("--nms-iou", "nan"), ("--nms-iou", "2"), ("--score-threshold", "nan"), ("--score-threshold", "-1")]
)
def test_the_command_refuses_them_in_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], option: tuple[str, str]
) -> None:
    (tmp_path / "gt.json").write_text(json.dumps(as_coco(truth([[[0, 0, 10, 10]]]))))
    (tmp_path / "dt.json").write_text("[]")
    files = ["diagnose", "--candidates", str(tmp_path / "dt.json"), "--ground-truth", str(tmp_path / "gt.json")]
    with pytest.raises(SystemExit) as done:
        main([*files, *option])
    out, err = capsys.readouterr()
    assert (done.value.code, out, err.count("\n")) == (1, "", 1)
    assert f"{option[1]}: give one from 0" in err


@pytest.mark.parametrize("suffix", ["json", "npz"])
@pytest.mark.parametrize("kind", [np.int64, np.uint64])
def test_ids_above_2_to_the_53_are_told_apart(tmp_path: Path, suffix: str, kind: type) -> None:
    """As floats each of these would be its neighbour; whole floats beside them must not make them so."""
    ids = [2**53, 2**53 + 1, 2**53 + 2, 2**62 + 1, 2**63 - 1, 7]
    ground_truth = truth([[[10.0 * n, 0, 10 * n + 50, 50]] for n in range(6)], image_ids=ids)
    ground_truth = replace(ground_truth, category_ids=(2**53, 2**53 + 1), labels=np.arange(6) % 2)
    boxes = np.array([[10.0 * n, 0, 50, 50] for n in range(6)])
    columns = {
        "image_id": np.array(ids, kind),
        "category_id": np.array(ground_truth.category_ids, kind)[ground_truth.labels],
        "bbox": boxes,
        "score": np.full(6, 0.5),
    }
    path = tmp_path / f"detections.{suffix}"
    if suffix == "npz":
        np.savez(path, version=1, **columns)
    else:
        records = [
            dict(zip(columns, values)) for values in zip(*(column.tolist() for column in columns.values()), strict=True)
        ]
        records[-1]["image_id"] = 7.0
        path.write_text(json.dumps(records))
    read = read_detections(path, ground_truth)
    assert read.image_index.tolist() == list(range(6))
    assert diagnose(ground_truth, read).metrics.overall["AP"] == pytest.approx(1)


def test_crowds_are_no_objects() -> None:
    ground_truth = truth([[[0, 0, 100, 100], [0, 0, 400, 400]]], crowd=[[0, 1]])
    boxes = np.array([[0.0, 0, 100, 100], [0, 0, 400, 400], [200, 200, 250, 250]])
    candidates = Detections(np.zeros(3, int), np.zeros(3, int), boxes, np.array([0.9, 0.8, 0.7]))
    diagnosis = diagnose(ground_truth, candidates=candidates)
    assert diagnosis.metrics.overall["AP"] == pytest.approx(1)  # what lies on the crowd is neither right nor wrong
    assert diagnosis.before.overlaps.same_iou.tolist() == [1, 1 / 16, 0]
    assert diagnosis.casualties.best_candidate.tolist() == [0, -1]
    assert to_json(diagnosis)["data"]["objects"] == 1


def test_a_record_given_twice_counts_twice() -> None:
    ground_truth = truth([[[0, 0, 100, 100], [500, 0, 600, 100]]])
    boxes = ground_truth.boxes[[0, 0, 1]]
    twice = diagnose(ground_truth, Detections(np.zeros(3, int), np.zeros(3, int), boxes, np.array([0.9, 0.9, 0.5])))
    assert twice.metrics.overall["AP"] == pytest.approx((51 + 50 * 2 / 3) / 101)


def test_boxes_out_of_the_image_are_used_as_given_and_noted() -> None:
    ground_truth = truth([[[3950, 0, 4050, 100]]])  # images are 4000 x 4000
    detections = Detections(np.zeros(1, int), np.zeros(1, int), ground_truth.boxes, np.array([0.9]))
    diagnosis = diagnose(ground_truth, detections)
    assert diagnosis.after.overlaps.same_iou[0] == 1
    assert any("reach out of their image" in note for note in diagnosis.notes)


def test_candidates_given_as_detections_are_noticed() -> None:
    ground_truth, boxes = random_set(np.random.default_rng(0), per_image=200)
    assert any("candidates before NMS" in note for note in diagnose(ground_truth, boxes).notes)


@pytest.mark.ci
def test_the_score_threshold_cuts_candidates_and_each_joint_score() -> None:
    ground_truth, candidates = with_quality(2)
    process = PostProcessing(score_threshold=0.4)
    diagnosis = diagnose(ground_truth, candidates=candidates, post_processing=process, replicates=2)
    assert diagnosis.before.boxes.scores.min() > 0.4
    for place, alpha in ((0, 0.0), (5, 0.5)):  # at 0 by the detector's own score
        cut = CocoEvaluator(ground_truth)(process(candidates.rescored(alpha)))
        assert diagnosis.quality.AP[place] == pytest.approx(cut.overall["AP"], abs=1e-12)


def test_the_document_keeps_its_keys() -> None:
    ground_truth, candidates = with_quality(0)
    document = to_json(diagnose(ground_truth, candidates=candidates, replicates=2))
    assert list(document) == [
        "version", "settings", "data", "own_score", "summary", "advice", "metrics", "metrics_per_class", "paper",
        "correlation", "task_alignment", "density", "casualties", "oracles", "quality", "calibration", "remedies",
        "coverage",
    ]  # fmt: skip
    assert document["version"] == 1
    docs = (Path(__file__).parents[3] / "docs" / "diagnosis.md").read_text(encoding="utf-8")

    def keys(value: Any, path: str = "") -> set[str]:
        if isinstance(value, list):
            return set().union(*(keys(item, path) for item in value[:1]))
        if not isinstance(value, dict):
            return set()
        free = path.split(".")[-1] in ("per_class", "metrics_per_class")  # keyed by class names
        inner = [keys(item, f"{path}.{'*' if free else key}") for key, item in value.items()]
        return set().union(*inner, set() if free else set(value))

    assert not {key for key in keys(document) if f"`{key}`" not in docs}


def test_the_command_writes_every_number(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "gt.json").write_text(json.dumps(as_coco(truth([[[0, 0, 10, 10]]]))))
    (tmp_path / "dt.json").write_text('[{"image_id": 1, "category_id": 10, "bbox": [0, 0, 10, 10], "score": 0.5}]')
    files = ["diagnose", "--detections", str(tmp_path / "dt.json"), "--ground-truth", str(tmp_path / "gt.json")]
    with pytest.raises(SystemExit) as done:
        main([*files, "--json", str(tmp_path / "r.json"), "--report", str(tmp_path / "r.html")])
    assert done.value.code == 0
    assert "oracle ladder ..." in capsys.readouterr().err
    assert json.loads((tmp_path / "r.json").read_text())["metrics"]["AP"] == pytest.approx(1)
    assert "<html" in (tmp_path / "r.html").read_text()
    (tmp_path / "file").write_text("")
    with pytest.raises(SystemExit) as done:
        main([*files, "--json", str(tmp_path / "file" / "r.json")])
    assert done.value.code == 1
    assert "cannot be written" in capsys.readouterr().err


@pytest.mark.ci
def test_json_files_need_neither_torch_nor_matplotlib(tmp_path: Path) -> None:
    (tmp_path / "gt.json").write_text(json.dumps(as_coco(truth([[[0, 0, 10, 10]]]))))
    (tmp_path / "dt.json").write_text('[{"image_id": 1, "category_id": 10, "bbox": [0, 0, 10, 10], "score": 0.5}]')
    code = (
        "import sys; from retinaconf.api import diagnose;"
        "from retinaconf.diagnosis.report.document import to_json;"
        f"(d,) = diagnose(ground_truth={str(tmp_path / 'gt.json')!r}, detections=[{str(tmp_path / 'dt.json')!r}]);"
        "to_json(d); print(*({'torch', 'matplotlib', 'pandas'} & set(sys.modules)))"
    )
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert shown.stdout.strip() == ""


@pytest.mark.ci
def test_on_real_coco_files(shared_data: Path, tmp_path: Path) -> None:
    """Crowds, polygons, 80 classes: the metrics are pycocotools', and every part has numbers."""
    annotations = shared_data / "coco-mini" / "annotations" / "instances_val2017.json"
    ground_truth = read_coco(annotations)
    rng = np.random.default_rng(0)
    each = rng.integers(5, 20, len(ground_truth.boxes))
    target = np.repeat(np.arange(len(each)), each)
    side = np.tile(ground_truth.boxes[target, 2:] - ground_truth.boxes[target, :2], 2)
    noise = rng.uniform(0.01, 0.15, (len(target), 1))
    boxes = ground_truth.boxes[target] + rng.normal(0, 1, (len(target), 4)) * noise * side
    low, high = np.minimum(boxes[:, :2], boxes[:, 2:]), np.maximum(boxes[:, :2], boxes[:, 2:])
    scores = np.clip(0.6 - 2 * noise[:, 0] + rng.normal(0, 0.1, len(target)), 0, 1)
    records = [
        {
            "image_id": int(ground_truth.image_ids[ground_truth.image_index[row]]),
            "category_id": ground_truth.category_ids[ground_truth.labels[row]],
            "bbox": [*a.tolist(), *(b - a).tolist()],
            "score": float(score),
        }
        for row, a, b, score in zip(target, low, high, scores)
    ]
    path = tmp_path / "candidates.json"
    path.write_text(json.dumps(records))
    (diagnosis,) = diagnose_files(read_truth(annotations, None), candidates=[path])
    document = to_json(diagnosis)
    assert document["data"]["images"] == 100
    assert document["data"]["crowd_regions"] == ground_truth.crowd.sum() > 0
    assert 0 < document["metrics"]["AP"] < 1
    assert 0 < document["correlation"]["before_nms"]["within_object"]["kendall"] < 1
    assert document["casualties"]["overall"]["mean_lost_iou"] > 0
    gains = {rung["name"]: rung["gain"] for rung in document["oracles"]}
    assert gains["ranked_by_iou"] > 0.02
    assert 0 < document["calibration"]["laece_0"] < 1

    coco = pytest.importorskip("pycocotools.coco")
    from pycocotools.cocoeval import COCOeval

    kept = diagnosis.after.boxes
    results = [
        {
            "image_id": int(ground_truth.image_ids[image]),
            "category_id": ground_truth.category_ids[label],
            "bbox": [*box[:2].tolist(), *(box[2:] - box[:2]).tolist()],
            "score": float(score),
        }
        for image, label, box, score in zip(kept.image_index, kept.labels, kept.boxes, kept.scores)
    ]
    reference = coco.COCO(str(annotations))
    evaluation = COCOeval(reference, reference.loadRes(results), "bbox")
    evaluation.evaluate()
    evaluation.accumulate()
    evaluation.summarize()
    assert document["metrics"]["AP"] == pytest.approx(evaluation.stats[0], abs=1e-9)
    assert document["metrics"]["AP_S"] == pytest.approx(evaluation.stats[3], abs=1e-9)
