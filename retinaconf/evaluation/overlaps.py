"""How well each scored box is placed: its IoU with the ground truth of its image."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from retinaconf.data.ground_truth import GroundTruth
from retinaconf.detections import Detections
from retinaconf.progress import ProgressCallback, silent
from retinaconf.threads import in_threads

PAIRS_AT_ONCE = 1 << 18  # what fits a CPU's cache; larger is slower


@dataclass(frozen=True)
class Overlaps:
    """The best-overlapping object of each of D boxes; crowd regions are no objects.

    Ties go to the first object. IoU 0 comes with object -1.
    """

    same_iou: np.ndarray  # (D,) float64: with an object of the box's class
    same_object: np.ndarray  # (D,) int64: that object's row in the ground truth, or -1
    any_iou: np.ndarray  # (D,) float64: with an object of any class
    any_object: np.ndarray  # (D,) int64

    def take(self, rows: np.ndarray) -> Overlaps:
        """Those of the boxes chosen by a mask (D,) or by indices."""
        return Overlaps(self.same_iou[rows], self.same_object[rows], self.any_iou[rows], self.any_object[rows])


def iou(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """IoU of boxes a and b, row by row: (P, 4) and (P, 4) xyxy to (P,); 0 where both are empty."""
    width = np.minimum(a[:, 2], b[:, 2]) - np.maximum(a[:, 0], b[:, 0])
    height = np.minimum(a[:, 3], b[:, 3]) - np.maximum(a[:, 1], b[:, 1])
    intersection = np.maximum(width, 0) * np.maximum(height, 0)
    union = (a[:, 2] - a[:, 0]) * (a[:, 3] - a[:, 1]) + (b[:, 2] - b[:, 0]) * (b[:, 3] - b[:, 1]) - intersection
    return np.divide(intersection, union, out=np.zeros_like(union), where=union > 0)


def pairs(image_index: np.ndarray, object_offsets: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Every (box, object) pair of one image, some hundred thousand at a time: two (P,) int64 of rows.

    Boxes come in their order, a box's pairs together in one block, objects ascending.

    Args:
        image_index: (D,): the image of each box.
        object_offsets: (I + 1,): the objects of image i are rows `object_offsets[i]:object_offsets[i + 1]`.
    """
    per_box = np.diff(object_offsets)[image_index]
    ends = np.cumsum(per_box)
    start = 0
    while start < len(image_index):
        done = ends[start - 1] if start else 0
        stop = max(start + 1, int(np.searchsorted(ends, done + PAIRS_AT_ONCE, side="right")))
        counts = per_box[start:stop]
        box = np.repeat(np.arange(start, stop), counts)
        first_pair = ends[start:stop] - counts - done
        first_object = object_offsets[image_index[start:stop]]
        yield box, np.arange(len(box)) + np.repeat(first_object - first_pair, counts)
        start = stop


def class_pairs(boxes: Detections, ground_truth: GroundTruth) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Every (box, object) pair of one image and class, in the order and the portions of `pairs`."""
    num_classes = len(ground_truth.classes)
    of_object = ground_truth.image_index * num_classes + ground_truth.labels
    by_group = np.argsort(of_object, kind="stable")
    groups, starts = np.unique(of_object[by_group], return_index=True)
    if len(groups) == 0:
        return
    of_box = boxes.image_index * num_classes + boxes.labels
    place = np.minimum(np.searchsorted(groups, of_box), len(groups) - 1)
    rows = np.flatnonzero(groups[place] == of_box)
    for box, target in pairs(place[rows], np.append(starts, len(by_group))):
        yield rows[box], by_group[target]


def best_overlaps(candidates: Detections, ground_truth: GroundTruth, progress: ProgressCallback = silent) -> Overlaps:
    """The best-overlapping object of every box, among those of its class and among all."""
    count = len(candidates)
    best = Overlaps(
        np.zeros(count), np.full(count, -1, dtype=np.int64), np.zeros(count), np.full(count, -1, dtype=np.int64)
    )

    def keep(portion: tuple[np.ndarray, np.ndarray]) -> int:  # no box is in two portions
        box, target = portion
        overlap = iou(candidates.boxes.take(box, axis=0), ground_truth.boxes.take(target, axis=0))
        overlap[ground_truth.crowd[target]] = 0
        _keep_best(box, target, overlap, best.any_iou, best.any_object)
        same = candidates.labels[box] == ground_truth.labels[target]
        _keep_best(box[same], target[same], overlap[same], best.same_iou, best.same_object)
        return int(box[-1]) + 1

    portions = (portion for portion in pairs(candidates.image_index, ground_truth.offsets) if len(portion[0]))
    for done in in_threads(keep, portions):
        progress("overlaps with the ground truth", done, count)
    return best


def _keep_best(
    box: np.ndarray, target: np.ndarray, overlap: np.ndarray, best_iou: np.ndarray, best_object: np.ndarray
) -> None:
    """Write each box's largest overlap and its first target; `box` is ascending."""
    touching = overlap > 0
    box, target, overlap = box[touching], target[touching], overlap[touching]
    if len(box) == 0:
        return
    starts = np.flatnonzero(np.diff(box, prepend=-1))
    best = np.maximum.reduceat(overlap, starts)
    is_best = overlap == np.repeat(best, np.diff(starts, append=len(box)))
    first = np.minimum.reduceat(np.where(is_best, target, np.iinfo(np.int64).max), starts)
    best_iou[box[starts]] = best
    best_object[box[starts]] = first
