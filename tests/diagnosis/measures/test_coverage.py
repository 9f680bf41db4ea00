"""Anchor coverage against a look at every anchor."""

from __future__ import annotations

import numpy as np
import pytest
from planted import truth

from retinaconf.cell_anchors import CellAnchors
from retinaconf.data.anchor_iou import best_anchor_iou
from retinaconf.data.ground_truth import GroundTruth
from retinaconf.diagnosis.measures.coverage import anchor_coverage
from retinaconf.evaluation.overlaps import iou

SIZE = np.array([224, 320])  # P6 has four rows, P7 two: 56 and 112 pixels apart if they share out the height
KINDS = {
    "default": CellAnchors(),
    "whole pixels": CellAnchors(whole_pixels=True),
    "others": CellAnchors((0.25, 1.0, 3.0, 6.0), (2.0, 5.0)),
}


def all_anchors(size: np.ndarray, cell_anchors: CellAnchors) -> np.ndarray:
    anchors = []
    for stride in (8, 16, 32, 64, 128):
        rows, columns = -(-size // stride)
        down, right = (size[0] // rows, size[1] // columns) if cell_anchors.whole_pixels else (stride, stride)
        for y in range(rows):
            for x in range(columns):
                for w, h in cell_anchors.sides(stride):
                    anchors.append((x * right - w / 2, y * down - h / 2, x * right + w / 2, y * down + h / 2))
    return np.array(anchors)


def random_truth(seed: int, images: int = 8) -> GroundTruth:
    rng = np.random.default_rng(seed)
    boxes = []
    for _ in range(images):
        low = rng.uniform(-20, 280, (6, 2))
        boxes.append(np.concatenate([low, low + np.exp(rng.uniform(0, 5.7, (6, 2)))], axis=1).tolist())
    return truth(boxes, crowd=[[0, 0, 0, 0, 1, 0]] * images)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("factor", [1.0, 0.5])
@pytest.mark.parametrize("kind", KINDS)
def test_equals_a_look_at_every_anchor(seed: int, factor: float, kind: str) -> None:
    ground_truth = random_truth(seed)
    images = len(ground_truth)
    coverage = anchor_coverage(ground_truth, np.full((images, 2), factor), np.tile(SIZE, (images, 1)), KINDS[kind])
    anchors = all_anchors(SIZE, KINDS[kind])
    for image in range(images):
        rows = np.arange(*ground_truth.offsets[image : image + 2])
        rows = rows[~ground_truth.crowd[rows]]
        boxes = (ground_truth.boxes[rows] * factor).clip(0)  # nothing lies beyond the right and lower edge
        overlap = np.stack([iou(anchors, np.broadcast_to(box, anchors.shape)) for box in boxes], axis=1)
        overlap[:, (boxes[:, 2:] - boxes[:, :2]).min(axis=1) < 1] = 0  # no targets
        owner = np.where(overlap.max(1) >= 0.5, overlap.argmax(1), -1)
        for place in range(len(rows)):
            best = overlap[:, place].max()
            owner[(overlap[:, place] == best) & (best > 0)] = place
        for place, row in enumerate(rows):
            assert coverage.positives[row] == (owner == place).sum()
            assert coverage.over_threshold[row] == ((owner == place) & (overlap[:, place] >= 0.5)).sum()
            assert coverage.best_iou[row] == pytest.approx(overlap[:, place].max())
        assert coverage.positive_anchors[image] == (overlap > 0.5).any(1).sum()
    assert coverage.positives[ground_truth.crowd].tolist() == [0] * images


@pytest.mark.parametrize("kind", KINDS)
def test_the_best_overlap_is_the_one_that_the_check_of_a_data_set_measures(kind: str) -> None:
    ground_truth = random_truth(3)
    coverage = anchor_coverage(ground_truth, np.ones((8, 2)), np.tile(SIZE, (8, 1)), KINDS[kind])
    rows = ~ground_truth.crowd
    boxes = ground_truth.boxes.clip(0)
    rows &= (boxes[:, 2:] - boxes[:, :2]).min(axis=1) >= 1
    expected = best_anchor_iou(boxes[rows], np.tile(SIZE, (rows.sum(), 1)), KINDS[kind])
    assert coverage.best_iou[rows] == pytest.approx(expected)


def test_an_object_outside_the_anchors_is_never_positive() -> None:
    ground_truth = truth([[[5000, 5000, 5010, 5010], [32, 32, 64, 64]], []])
    coverage = anchor_coverage(ground_truth, np.ones((2, 2)), np.tile(SIZE, (2, 1)), CellAnchors())
    assert coverage.positives[0] == 0
    assert coverage.best_iou[1] == pytest.approx(1)
    counts = coverage.of(np.ones(2, bool))
    assert (counts["objects"], counts["never_positive"], counts["over_threshold"]) == (2, 1, 1)
    assert coverage.positive_anchors[1] == 0


def test_an_object_that_training_leaves_out_is_never_positive() -> None:
    """Half a pixel wide at the network's input, or in the image; the third is cut at the edge as training cuts it."""
    ground_truth = truth([[[32, 32, 33, 64], [-9.5, 32, 0.5, 64], [-40, 0, 40, 40]]])
    coverage = anchor_coverage(ground_truth, np.full((1, 2), 0.5), SIZE[None], CellAnchors())
    assert coverage.positives[:2].tolist() == [0, 0]
    assert coverage.best_iou[:2].tolist() == [0, 0]
    inside = best_anchor_iou(np.array([[0.0, 0, 20, 20]]), SIZE[None], CellAnchors())
    assert coverage.best_iou[2] == inside[0]


def test_the_grid_is_retinanets() -> None:
    shapes = np.stack([CellAnchors().sides(stride) for stride in (8, 16, 32, 64, 128)])
    assert shapes.prod(-1)[0] == pytest.approx(np.tile([32**2, (32 * 2 ** (1 / 3)) ** 2, (32 * 2 ** (2 / 3)) ** 2], 3))
    assert sorted(set(np.round(shapes[..., 1] / shapes[..., 0], 6).ravel())) == [0.5, 1, 2]
