import contextlib
import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from as_coco import as_coco
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from retinaconf.data.ground_truth import GroundTruth, ground_truth_from_coco, read_coco
from retinaconf.detections import Detections
from retinaconf.evaluation.coco import METRICS, CocoEvaluator, Metrics

# Our keys in the order of pycocotools' stats, of which 6 and 7 are AR with 1 and 10 detections.
STATS = ["AP", "AP50", "AP75", "AP_S", "AP_M", "AP_L", None, None, "AR", "AR_S", "AR_M", "AR_L"]


def reference(gt: GroundTruth, table: Detections) -> Metrics:
    """The same by pycocotools."""
    xywh = np.concatenate([table.boxes[:, :2], table.boxes[:, 2:] - table.boxes[:, :2]], axis=1)
    document = as_coco(gt)
    results = [
        {
            "id": row + 1,
            "image_id": int(gt.image_ids[image]),
            "category_id": gt.category_ids[label],
            "bbox": box.tolist(),
            "area": float(box[2] * box[3]),
            "score": float(score),
            "iscrowd": 0,
        }
        for row, (image, box, score, label) in enumerate(zip(table.image_index, xywh, table.scores, table.labels))
    ]
    with contextlib.redirect_stdout(io.StringIO()):
        truth, found = COCO(), COCO()
        truth.dataset, found.dataset = document, document | {"annotations": results}
        truth.createIndex()
        found.createIndex()
        evaluation = COCOeval(truth, found, "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    overall = {key: value for key, value in zip(STATS, evaluation.stats) if key}
    precision = evaluation.eval["precision"][:, :, :, 0, -1]  # IoU, recall, class; all areas, 100 detections
    per_class = {}
    for k, name in enumerate(gt.classes):
        known = precision[:, :, k][precision[:, :, k] > -1]
        per_class[name] = float(known.mean()) if len(known) else float("nan")
    return Metrics({key: value if value >= 0 else float("nan") for key, value in overall.items()}, per_class)


def assert_equal(gt: GroundTruth, table: Detections) -> Metrics:
    ours, theirs = CocoEvaluator(gt)(table), reference(gt, table)
    assert list(ours.overall) == list(METRICS)
    for key in METRICS:
        np.testing.assert_allclose(ours.overall[key], theirs.overall[key], rtol=0, atol=1e-9, err_msg=key)
    assert list(ours.per_class) == list(gt.classes)
    for name in gt.classes:
        np.testing.assert_allclose(ours.per_class[name], theirs.per_class[name], rtol=0, atol=1e-9, err_msg=name)
    return ours


def random_truth(rng: np.random.Generator, images: int = 12, classes: int = 4, crowd: float = 0.1) -> GroundTruth:
    """Boxes of all sizes; some images and the last category have none; image ids in no order."""
    annotations: list[dict[str, Any]] = []
    ids = rng.permutation(1000)[:images].tolist()
    categories = sorted(rng.permutation(90)[:classes].tolist())
    for image_id in ids:
        for _ in range(rng.integers(0, 12)):
            w, h = np.exp(rng.uniform(np.log(6), np.log(250), 2))
            x, y = rng.uniform(0, 400, 2)
            annotations.append(
                {
                    "image_id": image_id,
                    "category_id": int(rng.choice(categories[:-1])),
                    "bbox": [x, y, w, h],
                    "area": w * h * rng.uniform(0.4, 1),  # of a mask
                    "iscrowd": int(rng.random() < crowd),
                }
            )
    return ground_truth_from_coco(
        {
            "images": [{"id": i, "file_name": str(i), "height": 500, "width": 500} for i in ids],
            "annotations": annotations,
            "categories": [{"id": i, "name": f"class {i}"} for i in categories],
        },
        None,
        "test",
    )


def perturbed(
    gt: GroundTruth, rng: np.random.Generator, noise: float = 0.15, copies: int = 3, ties: int = 0
) -> Detections:
    """Detections around the ground truth, some of another class, some nowhere near; in no order."""
    image = np.tile(gt.image_index, copies)
    boxes, labels = np.tile(gt.boxes, (copies, 1)), np.tile(gt.labels, copies)
    keep = rng.random(len(image)) < 0.8
    image, boxes, labels = image[keep], boxes[keep], labels[keep]
    sides = np.tile(boxes[:, 2:] - boxes[:, :2], 2)
    boxes = boxes + rng.normal(0, noise, boxes.shape) * sides * rng.random((len(boxes), 1))
    boxes[:, 2:] = np.maximum(boxes[:, 2:], boxes[:, :2] + 1)
    labels = np.where(rng.random(len(labels)) < 0.15, rng.integers(0, len(gt.classes), len(labels)), labels)
    stray = len(image) // 5 + 3
    corner = rng.uniform(0, 300, (stray, 2))
    boxes = np.concatenate([boxes, np.concatenate([corner, corner + rng.uniform(5, 100, (stray, 2))], axis=1)])
    image = np.concatenate([image, rng.integers(0, len(gt), stray)])
    labels = np.concatenate([labels, rng.integers(0, len(gt.classes), stray)])
    scores = rng.random(len(image)).astype(np.float32)
    if ties:
        scores = (np.ceil(scores * ties) / ties).astype(np.float32)
    order = rng.permutation(len(image))
    boxes = boxes.astype(np.float32).astype(np.float64)
    return Detections(image[order], labels[order], boxes[order], scores[order])


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("ties", [0, 4, 1], ids=["no ties", "four scores", "one score"])
def test_all_numbers_are_those_of_pycocotools(seed: int, ties: int):
    rng = np.random.default_rng([seed, ties])
    gt = random_truth(rng, crowd=[0.0, 0.1, 0.5][seed % 3])
    metrics = assert_equal(gt, perturbed(gt, rng, ties=ties))
    assert 0 < metrics.overall["AP"] < 1
    assert np.isnan(metrics.per_class[gt.classes[-1]])  # it has detections, and no ground truth


def test_more_detections_in_an_image_than_count():
    rng = np.random.default_rng(0)
    gt = random_truth(rng, images=3, classes=2, crowd=0)
    table = perturbed(gt, rng, copies=60, ties=20)
    most = max(np.bincount(table.image_index[table.labels == label]).max() for label in (0, 1))
    assert most > 150
    with_all = assert_equal(gt, table)
    best = table[np.argsort(-table.scores, kind="stable")]
    fewer = np.concatenate(
        [
            np.flatnonzero((best.image_index == image) & (best.labels == label))[:100]
            for image in range(3)
            for label in (0, 1)
        ]
    )
    assert CocoEvaluator(gt)(best[fewer]).overall == with_all.overall


def hand_made(boxes: dict[int, list[list[float]]], images: int = 3, **extra: Any) -> GroundTruth:
    """Two classes, `boxes` by category id, all in the first image."""
    annotations = [
        {"image_id": 10, "category_id": category, "bbox": box} | extra
        for category, some in boxes.items()
        for box in some
    ]
    return ground_truth_from_coco(
        {
            "images": [{"id": 10 + i, "file_name": str(i), "height": 100, "width": 100} for i in range(images)],
            "annotations": annotations,
            "categories": [{"id": 3, "name": "cat"}, {"id": 8, "name": "dog"}],
        },
        None,
        "test",
    )


def table(*rows: tuple[int, list[float], float, int]) -> Detections:
    """Rows of image, xyxy, score, label."""
    image, boxes, scores, labels = zip(*rows) if rows else ((), (), (), ())
    return Detections(
        np.array(image, int), np.array(labels, int), np.array(boxes, float).reshape(-1, 4), np.array(scores, float)
    )


CAT = [10.0, 10.0, 50.0, 50.0]  # xyxy of [10, 10, 40, 40]
ONE_CAT = {3: [[10, 10, 40, 40]]}
CASES = {
    "found": (hand_made(ONE_CAT), table((0, CAT, 0.5, 0)), 1.0),
    "found in the wrong image": (hand_made(ONE_CAT), table((1, CAT, 0.5, 0)), 0.0),
    "found as the wrong class": (hand_made(ONE_CAT), table((0, CAT, 0.5, 1)), 0.0),
    "a better false alarm in an empty image": (hand_made(ONE_CAT), table((0, CAT, 0.5, 0), (2, CAT, 0.9, 0)), 0.5),
    "a worse false alarm": (hand_made(ONE_CAT), table((0, CAT, 0.5, 0), (2, CAT, 0.1, 0)), 1.0),
    "an equal false alarm in a later image": (hand_made(ONE_CAT), table((2, CAT, 0.5, 0), (0, CAT, 0.5, 0)), 1.0),
    "twice": (hand_made(ONE_CAT), table((0, CAT, 0.5, 0), (0, CAT, 0.9, 0)), 1.0),
    "nothing found": (hand_made(ONE_CAT), table(), 0.0),
    "one of two": (hand_made({3: [[10, 10, 40, 40], [60, 60, 30, 30]]}), table((0, CAT, 0.5, 0)), 51 / 101),
    "one class of two": (hand_made(ONE_CAT | {8: [[0, 0, 20, 20]]}), table((0, CAT, 0.5, 0)), 0.5),
    "no ground truth": (hand_made({}), table((0, CAT, 0.5, 0)), float("nan")),
    "no ground truth, no detections": (hand_made({}), table(), float("nan")),
    "only a crowd": (hand_made(ONE_CAT, iscrowd=1), table((0, CAT, 0.5, 0)), float("nan")),
}


@pytest.mark.parametrize(("gt", "found", "AP"), CASES.values(), ids=CASES)
def test_cases_worked_by_hand(gt: GroundTruth, found: Detections, AP: float):
    metrics = assert_equal(gt, found)
    np.testing.assert_allclose(metrics.overall["AP"], AP, atol=1e-9)


def test_a_crowd_region_forgives_what_lies_in_it():
    gt = hand_made(ONE_CAT)
    crowd = as_coco(hand_made({3: [[60, 60, 40, 40]]}, iscrowd=1))["annotations"]
    both = ground_truth_from_coco(as_coco(gt) | {"annotations": as_coco(gt)["annotations"] + crowd}, None, "test")
    inside = table((0, [60, 60, 75, 75], 0.9, 0), (0, [70, 70, 90, 90], 0.8, 0), (0, CAT, 0.5, 0))
    assert assert_equal(both, inside).overall["AP"] == pytest.approx(1)
    assert assert_equal(gt, inside).overall["AP"] < 0.5


def test_sizes_are_those_of_the_mask():
    gt = hand_made({3: [[0, 0, 50, 50]]}, area=900)  # the box is medium, the mask small
    metrics = assert_equal(gt, table((0, [0, 0, 50, 50], 0.9, 0)))
    assert metrics.overall["AP_S"] == pytest.approx(1)
    assert np.isnan(metrics.overall["AP_M"])


@pytest.mark.parametrize("ids", [[2**53, 2**53 + 1, 2**62], [-5, 0, 3], [3, 2, 1]], ids=str)
def test_any_integer_is_an_image_id(ids: list[int]):
    document = as_coco(hand_made(ONE_CAT))
    for image, image_id in zip(document["images"], ids):
        image["id"] = image_id
    document["annotations"][0]["image_id"] = ids[1]
    gt = ground_truth_from_coco(document, None, "test")
    metrics = assert_equal(gt, table((0, CAT, 0.3, 0), (1, CAT, 0.4, 0), (2, CAT, 0.3, 0)))
    assert metrics.overall["AP"] == pytest.approx(1)


@pytest.mark.parametrize("ids", [[-1, 2**62], [2**53, 2**53 + 1]], ids=str)
def test_any_integer_is_a_category_id(ids: list[int]):
    document = as_coco(hand_made(ONE_CAT))
    document["categories"] = [{"id": ids[0], "name": "cat"}, {"id": ids[1], "name": "dog"}]
    document["annotations"][0]["category_id"] = ids[1]
    gt = ground_truth_from_coco(document, None, "test")
    metrics = assert_equal(gt, table((0, CAT, 0.3, 1), (1, CAT, 0.4, 0)))
    assert metrics.per_class == {"cat": pytest.approx(np.nan, nan_ok=True), "dog": pytest.approx(1)}


def test_classes_of_one_name_are_told_apart_by_their_ids():
    document = as_coco(hand_made(ONE_CAT | {8: [[0, 0, 20, 20]]}))
    document["categories"] = [{"id": 3, "name": "cell"}, {"id": 8, "name": "cell"}]
    gt = ground_truth_from_coco(document, None, "test")
    assert CocoEvaluator(gt)(table((0, CAT, 0.5, 0))).per_class == {"cell (3)": pytest.approx(1), "cell (8)": 0}


def test_an_evaluator_serves_many_detection_sets():
    rng = np.random.default_rng(3)
    gt = random_truth(rng)
    evaluator = CocoEvaluator(gt)
    tables = [perturbed(gt, rng, noise) for noise in (0.0, 0.2)]
    first, second, again = evaluator(tables[0]), evaluator(tables[1]), evaluator(tables[0])
    assert first.overall == again.overall
    assert first.overall["AP"] > second.overall["AP"] > 0


@pytest.mark.ci
def test_real_ground_truth(shared_data: Path):
    gt = read_coco(shared_data / "coco-mini/annotations/instances_val2017.json")
    assert gt.crowd.any()
    metrics = assert_equal(gt, perturbed(gt, np.random.default_rng(0), ties=50))
    assert 0.1 < metrics.overall["AP"] < 0.9
    assert all(0 < value < 1 for value in metrics.overall.values())
