"""Anchor coverage: which objects never get a positive anchor, by the paper's matching rule.

An anchor is positive if its IoU with an object is at least 0.5 (of several objects it goes to the best), or if it is
among an object's best anchors (any IoU > 0). The second rule comes later in MMDetection's assigner, so that it may
take an anchor from another object.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from retinaconf.cell_anchors import STRIDES, CellAnchors
from retinaconf.data.ground_truth import GroundTruth
from retinaconf.data.transforms import are_targets
from retinaconf.evaluation.overlaps import iou
from retinaconf.progress import ProgressCallback, silent


@dataclass(frozen=True)
class Coverage:
    """For each of B ground-truth boxes, on the image as the network sees it.

    Crowd regions have 0 and NaN, objects that training leaves out 0 and 0.
    """

    positives: np.ndarray  # (B,) int64: anchors that are positive for the object
    over_threshold: np.ndarray  # (B,) int64: of them, those with IoU >= 0.5
    best_iou: np.ndarray  # (B,) float64: the largest IoU of any anchor
    positive_anchors: np.ndarray  # (I,) int64: Table 1's Positive_NUM: anchors with IoU > `positive_iou` to an object

    def of(self, chosen: np.ndarray) -> dict[str, float | int]:
        """Counts over the objects that the mask (B,) chooses; the mean over none is NaN."""
        return {
            "objects": int(chosen.sum()),
            "over_threshold": int((self.over_threshold[chosen] > 0).sum()),
            "only_by_best_anchor": int(((self.over_threshold == 0) & (self.positives > 0))[chosen].sum()),
            "never_positive": int((self.positives[chosen] == 0).sum()),
            "mean_best_iou": float(self.best_iou[chosen].mean()) if chosen.any() else float("nan"),
            "mean_positives": float(self.positives[chosen].mean()) if chosen.any() else float("nan"),
        }


def anchor_coverage(
    ground_truth: GroundTruth,
    scale: np.ndarray,
    padded_size: np.ndarray,
    cell_anchors: CellAnchors,
    positive_iou: float = 0.5,
    progress: ProgressCallback = silent,
) -> Coverage:
    """Match every object to the anchors of its image.

    Only anchors that touch an object and have about its shape are looked at: a COCO image has 100,000 anchors.

    Args:
        ground_truth: I images of known sizes, B boxes in pixels of the files.
        scale: (I, 2) float: x and y factor by which the network's input is larger than the file.
        padded_size: (I, 2) int: height and width of the network's input, padding included.
        cell_anchors: of the detector.
        positive_iou: an anchor at or above it is positive.
        progress: told after each image.
    """
    count = len(ground_truth.boxes)
    positives, over = np.zeros(count, dtype=np.int64), np.zeros(count, dtype=np.int64)
    best_iou = np.full(count, np.nan)
    positive_anchors = np.zeros(len(ground_truth), dtype=np.int64)
    input_size = ground_truth.image_sizes[:, ::-1] * scale  # (I, 2): width, height
    for image in range(len(ground_truth)):
        rows = np.arange(*ground_truth.offsets[image : image + 2])
        rows = rows[~ground_truth.crowd[rows]]
        best_iou[rows] = 0
        progress("anchor coverage", image + 1, len(ground_truth))
        boxes = (ground_truth.boxes[rows] * np.tile(scale[image], 2)).clip(0, np.tile(input_size[image], 2))
        rows, boxes = rows[are_targets(boxes)], boxes[are_targets(boxes)]
        if len(rows) == 0:
            continue
        anchor, target, overlap, best = _relevant_anchors(boxes, padded_size[image], cell_anchors, positive_iou)
        best_iou[rows] = best
        positive_anchors[image] = len(np.unique(anchor[overlap > positive_iou]))

        # The best object of each anchor, the first of equals; then the best anchors of each object, later ones first.
        order = np.lexsort((target, -overlap, anchor))
        first = order[np.flatnonzero(np.diff(anchor[order], prepend=-1))]
        good = first[overlap[first] >= positive_iou]
        is_best = np.flatnonzero(overlap == best[target])
        owner = dict(zip(anchor[good].tolist(), target[good].tolist()))
        owner.update(zip(anchor[is_best].tolist(), target[is_best].tolist()))
        positives[rows] = np.bincount(np.fromiter(owner.values(), np.int64, len(owner)), minlength=len(rows))
        own = np.fromiter((owner.get(number, -1) for number in anchor.tolist()), np.int64, len(anchor)) == target
        over[rows] = np.bincount(target[own & (overlap >= positive_iou)], minlength=len(rows))
    return Coverage(positives, over, best_iou, positive_anchors)


def _relevant_anchors(
    boxes: np.ndarray, padded_size: np.ndarray, cell_anchors: CellAnchors, positive_iou: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """(P,) anchor number, object and IoU, ordered by object and anchor, of the pairs with IoU >= `positive_iou` or the
    largest > 0 of their object; (G,) that largest IoU.
    """
    per_cell = cell_anchors.count
    shapes = np.array([sides for stride in STRIDES for sides in cell_anchors.sides(stride)])  # (S, 2): width, height
    strides, padded = np.repeat(STRIDES, per_cell)[:, None], np.asarray(padded_size)[None, ::-1]
    cells = -(-padded // strides)  # (S, 2): columns, rows of each anchor shape
    steps = np.broadcast_to(cell_anchors.step(strides, padded, cells), cells.shape)
    per_level = cells[::per_cell].prod(1) * per_cell
    level_start = np.repeat(np.concatenate([[0], np.cumsum(per_level)[:-1]]), per_cell)

    def measure(target: np.ndarray, kind: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Anchor, object and IoU of all anchors of these shapes that touch these objects."""
        low, high = boxes[target, :2], boxes[target, 2:]
        step = steps[kind]
        first = np.clip(np.ceil((low - shapes[kind] / 2) / step).astype(np.int64), 0, cells[kind])
        last = np.clip(np.floor((high + shapes[kind] / 2) / step).astype(np.int64) + 1, 0, cells[kind])
        width, height = np.maximum(last - first, 0).T
        count = width * height
        each = np.repeat(np.arange(len(target)), count)
        within = np.arange(len(each)) - np.repeat(np.cumsum(count) - count, count)
        x, y = first[each, 0] + within % width[each], first[each, 1] + within // width[each]
        kind = kind[each]
        centre = np.stack([x, y], axis=1) * steps[kind]
        anchors = np.concatenate([centre - shapes[kind] / 2, centre + shapes[kind] / 2], axis=1)
        number = level_start[kind] + (y * cells[kind, 0] + x) * per_cell + kind % per_cell
        return number, target[each], iou(anchors, boxes[target[each]])

    sides = boxes[:, None, 2:] - boxes[:, None, :2]
    inside = np.minimum(sides, shapes).prod(-1)
    reachable = (
        inside / (sides.prod(-1) + shapes.prod(-1) - inside) + 1e-9
    )  # (G, S): the IoU with centres on each other
    near = measure(*np.nonzero(reachable >= positive_iou))
    best = np.zeros(len(boxes))
    np.maximum.at(best, near[1], near[2])
    # Where no anchor is good enough, shapes that cannot reach the threshold may hold the object's best anchor.
    wanting = (best < positive_iou)[:, None] & (reachable < positive_iou) & (reachable >= best[:, None])
    far = measure(*np.nonzero(wanting))
    np.maximum.at(best, far[1], far[2])
    number, target, overlap = (np.concatenate(columns) for columns in zip(near, far))
    relevant = (overlap >= positive_iou) | ((overlap == best[target]) & (overlap > 0))
    number, target, overlap = number[relevant], target[relevant], overlap[relevant]
    order = np.lexsort((number, target))
    return number[order], target[order], overlap[order], best
