"""NMS against torchvision's, and IoU against its definition."""

from __future__ import annotations

import numpy as np
import pytest
from planted import random_set

from retinaconf.diagnosis.measures import nms as nms_module
from retinaconf.diagnosis.measures.nms import best_kept, nms, top_per_image
from retinaconf.evaluation import overlaps as overlaps_module
from retinaconf.evaluation.matching import descending
from retinaconf.evaluation.overlaps import best_overlaps, iou


@pytest.mark.parametrize("threshold", [0.0, 0.3, 0.5, 0.9, 1.0])
@pytest.mark.parametrize("at_once", [1 << 17, 64])
@pytest.mark.parametrize("few_pairs", [0, 4, 1e9])  # in rounds alone, as it is, and in pairs alone
def test_keeps_what_torchvision_keeps(
    monkeypatch: pytest.MonkeyPatch, threshold: float, at_once: int, few_pairs: float
) -> None:
    torch = pytest.importorskip("torch")
    from torchvision.ops import nms as reference

    monkeypatch.setattr(nms_module, "BOXES_AT_ONCE", at_once)
    monkeypatch.setattr(nms_module, "FEW_PAIRS", few_pairs)
    _, boxes = random_set(np.random.default_rng(0), per_image=150)  # scores in tenths: ties
    suppressor = nms(boxes.image_index, boxes.labels, boxes.boxes, boxes.scores, threshold)
    for image in np.unique(boxes.image_index):
        for label in np.unique(boxes.labels):
            rows = np.flatnonzero((boxes.image_index == image) & (boxes.labels == label))
            kept = reference(torch.tensor(boxes.boxes[rows]), torch.tensor(boxes.scores[rows]), threshold).numpy()
            assert set(rows[kept]) == set(rows[suppressor[rows] < 0])
            for row in rows[suppressor[rows] >= 0]:  # removed by the best of those kept that cover it
                covers = iou(boxes.boxes[rows[kept]], boxes.boxes[[row] * len(kept)]) > threshold
                assert suppressor[row] == rows[kept[np.argmax(covers)]]
    removed = np.flatnonzero(suppressor >= 0)
    by = suppressor[removed]
    assert (suppressor[by] < 0).all()
    assert (iou(boxes.boxes[removed], boxes.boxes[by]) > threshold).all()
    assert (boxes.scores[by] >= boxes.scores[removed]).all()
    assert (boxes.labels[by] == boxes.labels[removed]).all()
    assert (boxes.image_index[by] == boxes.image_index[removed]).all()


@pytest.mark.parametrize("limit", [1, 7, 40])
@pytest.mark.parametrize("first_depth", [1, 5])
def test_the_best_kept_are_those_of_the_whole_nms(
    monkeypatch: pytest.MonkeyPatch, first_depth: int, limit: int
) -> None:
    """Images of 0 to 150 boxes, some with few kept, so that NMS looks deeper there; ties."""
    monkeypatch.setattr(nms_module, "BOXES_AT_ONCE", 64)
    monkeypatch.setattr(nms_module, "FIRST_DEPTH", first_depth)
    _, boxes = random_set(np.random.default_rng(0), per_image=150)
    boxes = boxes[np.random.default_rng(1).random(len(boxes)) < (boxes.image_index % 4) / 3]
    columns = (boxes.image_index, boxes.labels, boxes.boxes, boxes.scores)
    for threshold in (0.0, 0.3, 0.9):
        kept = np.flatnonzero(nms(*columns, threshold) < 0)
        expected = kept[top_per_image(boxes.image_index[kept], boxes.scores[kept], limit)]
        assert best_kept(*columns, threshold, limit).tolist() == expected.tolist()


def test_equal_scores_go_by_row_and_the_threshold_is_strict() -> None:
    box = np.array([[0.0, 0, 10, 10], [0, 0, 10, 10], [0, 0, 10, 5]])
    zeros = np.zeros(3, int)
    assert nms(zeros, zeros, box, np.full(3, 0.5), 0.5).tolist() == [-1, 0, -1]  # the third has IoU 0.5 exactly
    assert nms(zeros, zeros, box, np.array([0.1, 0.2, 0.3]), 0.4).tolist() == [2, 2, -1]


def test_empty_boxes_neither_remove_nor_are_removed() -> None:
    box = np.array([[5.0, 5, 5, 5], [5, 5, 5, 5], [0, 0, 10, 10]])
    zeros = np.zeros(3, int)
    assert nms(zeros, zeros, box, np.array([0.9, 0.8, 0.7]), 0.0).tolist() == [-1, -1, -1]
    assert nms(zeros[:0], zeros[:0], box[:0], np.zeros(0), 0.5).tolist() == []


def test_many_groups_are_sorted_without_radix() -> None:
    rng = np.random.default_rng(0)
    count = 2000
    low = rng.uniform(0, 20, (count, 2))
    boxes = np.concatenate([low, low + 20], axis=1)
    image, label, scores = np.sort(rng.integers(0, 3, count)), rng.integers(0, 2, count), rng.random(count)
    few = nms(image, label, boxes, scores, 0.5)
    assert (nms(image, label * 100_000, boxes, scores, 0.5) == few).all()


def test_the_best_of_each_image() -> None:
    image = np.array([0, 0, 0, 2, 2, 2, 2])
    scores = np.array([0.1, 0.9, 0.1, 0.5, 0.5, 0.6, 0.5])
    assert top_per_image(image, scores, 2).tolist() == [0, 1, 3, 5]
    assert top_per_image(image, scores, 9).tolist() == list(range(7))
    assert top_per_image(image[:0], scores[:0], 2).tolist() == []
    assert best_kept(image[:0], image[:0], np.zeros((0, 4)), scores[:0], 0.5, 2).tolist() == []


def test_descending_is_stable() -> None:
    rng = np.random.default_rng(0)
    for scores in (np.round(rng.random(5000), 2), np.zeros(40), np.zeros(0), rng.random(77)):
        assert descending(scores).tolist() == np.argsort(-scores, kind="stable").tolist()


@pytest.mark.parametrize("groups", [1, 3, 500, 1 << 40])
def test_descending_tells_scores_apart_that_differ_in_their_last_bit(groups: int) -> None:
    rng = np.random.default_rng(groups)
    close = 0.5 + rng.integers(0, 9, 300) * np.finfo(np.float64).epsneg
    for scores in (close, np.append(close, [0, 1]), np.append(close, -1e300), close.astype(np.float32), close * 0):
        group = rng.integers(0, groups, len(scores))
        assert descending(scores, group).tolist() == np.lexsort((-scores, group)).tolist()


@pytest.mark.parametrize("at_once", [1 << 18, 16])
def test_best_overlaps_are_the_maximum(monkeypatch: pytest.MonkeyPatch, at_once: int) -> None:
    monkeypatch.setattr(overlaps_module, "PAIRS_AT_ONCE", at_once)
    ground_truth, boxes = random_set(np.random.default_rng(1))
    overlaps = best_overlaps(boxes, ground_truth)
    for row in range(len(boxes)):
        best = {"same": (0.0, -1), "any": (0.0, -1)}
        for target in np.flatnonzero(ground_truth.image_index == boxes.image_index[row]):
            if ground_truth.crowd[target]:
                continue
            value = iou(boxes.boxes[row : row + 1], ground_truth.boxes[target : target + 1])[0]
            for kind in ("same", "any"):
                fits = kind == "any" or ground_truth.labels[target] == boxes.labels[row]
                if fits and value > best[kind][0]:
                    best[kind] = (value, target)
        assert (overlaps.same_iou[row], overlaps.same_object[row]) == best["same"]
        assert (overlaps.any_iou[row], overlaps.any_object[row]) == best["any"]


def test_iou_by_hand() -> None:
    a = np.array([[0.0, 0, 2, 2], [0, 0, 2, 2], [0, 0, 0, 0], [0, 0, 1, 1]])
    b = np.array([[1.0, 1, 3, 3], [2, 0, 4, 2], [0, 0, 0, 0], [0, 0, 1, 1]])
    assert iou(a, b).tolist() == [1 / 7, 0, 0, 1]
