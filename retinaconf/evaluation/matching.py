"""Which detection finds which object, on COCO's protocol, at many IoU thresholds at once.

Per image and class, the 100 best detections in descending score each take the free object with the largest IoU of at
least the threshold. A detection left over that lies on a crowd region (intersection over the detection's own area) is
ignored: neither right nor wrong. For AP by size, objects of other sizes are ignored too, and what lies on them.
hotcoco computes the metrics; these matches are for what it does not give: bootstrap intervals, duplicates, calibration
against IoU.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np

from retinaconf.data.ground_truth import GroundTruth
from retinaconf.detections import Detections
from retinaconf.evaluation.overlaps import class_pairs, iou

COCO_THRESHOLDS = np.linspace(0.5, 0.95, 10)
MAX_PER_CLASS = 100  # COCO's cut, an image and class
SIZE_AREAS = ((0.0, 32.0**2), (32.0**2, 96.0**2), (96.0**2, 1e10))  # small, medium, large; both ends belong to each


@dataclass(frozen=True)
class MatchedDetections:
    """M considered detections of D, in descending score (ties by image id, then in their order), T thresholds."""

    row: np.ndarray  # (M,) int64: the detection's row
    image_index: np.ndarray  # (M,) int64
    labels: np.ndarray  # (M,) int64
    scores: np.ndarray  # (M,) float64
    matched: np.ndarray  # (M, T) int32: the object's row in the ground truth, or -1
    iou: np.ndarray  # (M, T) float64: with that object, 0 where there is none
    ignored: np.ndarray  # (M, T) bool: lies on a crowd region, or belongs to another size
    duplicate: np.ndarray  # (M, T) bool: not matched, yet its IoU with an object of its class reaches the threshold
    objects: np.ndarray  # (B,) bool: the ground-truth boxes that are to be found

    def within(self, images: np.ndarray) -> MatchedDetections:
        """The detections of some images only, (n,) image rows."""
        rows = np.isin(self.image_index, images)
        columns = {name: column[rows] for name, column in vars(self).items() if name != "objects"}
        return replace(self, **columns)


def match_detections(
    detections: Detections,
    ground_truth: GroundTruth,
    iou_thresholds: np.ndarray = COCO_THRESHOLDS,
    areas: tuple[float, float] | None = None,
) -> MatchedDetections:
    """Match D detections to the ground truth at T IoU thresholds > 0.

    With `areas`, objects whose area is not between the two, both included, are ignored. A detection that is left over
    and then fits such an object, or has such an area itself, is ignored too.
    """
    objects = ~ground_truth.crowd
    if areas is not None:
        objects &= _between(ground_truth.areas, areas)
    image_id = ground_truth.image_ids[detections.image_index]
    by_id = np.argsort(image_id, kind="stable")  # the evaluation's order of images
    by_score = by_id[descending(detections.scores[by_id])]
    group = (detections.image_index * len(ground_truth.classes) + detections.labels)[by_score]
    order = ascending(group)
    starts = np.flatnonzero(np.diff(group[order], prepend=-1))
    rank = np.empty(len(detections), dtype=np.int64)  # within image and class
    rank[order] = np.arange(len(order)) - np.repeat(starts, np.diff(starts, append=len(order)))
    considered = rank < MAX_PER_CLASS
    row, rank = by_score[considered], rank[considered]
    place_of = np.full(len(detections), -1, dtype=np.int64)
    place_of[row] = np.arange(len(row))

    box, target, overlap = _close_pairs(detections, ground_truth, float(iou_thresholds.min()))
    box = place_of[box]  # from here on a box is its place in `row`
    box, target, overlap = box[box >= 0], target[box >= 0], overlap[box >= 0]
    shape = (len(row), len(iou_thresholds))
    matched = np.full(shape, -1, dtype=np.int32)
    matched_iou = np.zeros(shape)
    free = np.ones((len(ground_truth.boxes), len(iou_thresholds)), dtype=bool)
    thresholds = np.minimum(iou_thresholds, 1 - 1e-10)  # as pycocotools

    def rounds(pairs: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
        """One detection of every image and class a round, the best first: box, target and overlap of its pairs."""
        b, g, o = box[pairs], target[pairs], overlap[pairs]
        by_round = np.lexsort((g, b, rank[b]))
        b, g, o = b[by_round], g[by_round], o[by_round]
        for start, end in pairwise(np.searchsorted(rank[b], np.arange(MAX_PER_CLASS + 1))):
            if start < end:
                yield b[start:end], g[start:end], o[start:end]

    to_find = objects[target]
    for b, g, o in rounds(to_find):
        boxes, chosen, best = _best_allowed(b, g, o, free[g] & (o[:, None] >= thresholds))
        matched[boxes], matched_iou[boxes] = chosen, best
        free[chosen[chosen >= 0], np.nonzero(chosen >= 0)[1]] = False
    # What is left over takes an ignored object: each of these once, but a crowd region any number of times.
    on_ignored = np.zeros(shape, dtype=bool)
    for b, g, o in rounds(~to_find):
        allowed = (matched[b] < 0) & (free[g] | ground_truth.crowd[g][:, None]) & (o[:, None] >= thresholds)
        boxes, chosen, _ = _best_allowed(b, g, o, allowed)
        on_ignored[boxes] = chosen >= 0
        free[chosen[chosen >= 0], np.nonzero(chosen >= 0)[1]] = False
    if areas is not None:
        sides = detections.boxes[:, 2:] - detections.boxes[:, :2]
        on_ignored |= ~_between(sides.prod(axis=1)[row], areas)[:, None]

    reached = np.zeros(shape, dtype=bool)
    starts = np.flatnonzero(np.diff(box[to_find], prepend=-1))
    close = overlap[to_find][:, None] >= thresholds
    reached[box[to_find][starts]] = np.logical_or.reduceat(close, starts, axis=0)
    unmatched = matched < 0
    return MatchedDetections(
        row=row,
        image_index=detections.image_index[row],
        labels=detections.labels[row],
        scores=detections.scores[row],
        matched=matched,
        iou=matched_iou,
        ignored=unmatched & on_ignored,
        duplicate=unmatched & reached & ~on_ignored,
        objects=objects,
    )


def _between(values: np.ndarray, ends: tuple[float, float]) -> np.ndarray:
    return (values >= ends[0]) & (values <= ends[1])


def _close_pairs(
    detections: Detections, ground_truth: GroundTruth, threshold: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(P,) detection, object and overlap of the pairs of one class that reach the threshold."""
    found: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []
    areas = (detections.boxes[:, 2] - detections.boxes[:, 0]) * (detections.boxes[:, 3] - detections.boxes[:, 1])
    for box, target in class_pairs(detections, ground_truth):
        overlap = iou(detections.boxes.take(box, axis=0), ground_truth.boxes.take(target, axis=0))
        crowd = ground_truth.crowd[target]
        if crowd.any():
            overlap[crowd] = _share_inside(
                detections.boxes[box[crowd]], ground_truth.boxes[target[crowd]], areas[box[crowd]]
            )
        close = overlap >= min(threshold, 1 - 1e-10)
        found.append((box[close], target[close], overlap[close]))
    if not found:
        return np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros(0)
    box, target, overlap = (np.concatenate(column) for column in zip(*found))
    return box, target, overlap


def _share_inside(boxes: np.ndarray, regions: np.ndarray, areas: np.ndarray) -> np.ndarray:
    """(P,) the share of each box's area that lies in its region: COCO's overlap with a crowd."""
    width = np.minimum(boxes[:, 2], regions[:, 2]) - np.maximum(boxes[:, 0], regions[:, 0])
    height = np.minimum(boxes[:, 3], regions[:, 3]) - np.maximum(boxes[:, 1], regions[:, 1])
    inside = np.maximum(width, 0) * np.maximum(height, 0)
    return np.divide(inside, areas, out=np.zeros_like(inside), where=areas > 0)


def _best_allowed(
    box: np.ndarray, target: np.ndarray, overlap: np.ndarray, allowed: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Each box's best target among the allowed (P, T) of its pairs: the boxes, (boxes, T) target or -1, and overlap.

    `box` is grouped, its targets ascending, and no two boxes compete for a target.
    """
    starts = np.flatnonzero(np.diff(box, prepend=-1))
    sizes = np.diff(starts, append=len(box))
    allowed_overlap = np.where(allowed, overlap[:, None], 0.0)
    best = np.maximum.reduceat(allowed_overlap, starts, axis=0)
    is_best = (allowed_overlap > 0) & (allowed_overlap == np.repeat(best, sizes, axis=0))
    # Of equals the last, as pycocotools.
    return box[starts], np.maximum.reduceat(np.where(is_best, target[:, None], -1), starts, axis=0), best


def descending(scores: np.ndarray, group: np.ndarray | None = None) -> np.ndarray:
    """(D,) int64: rows by descending score, equal scores in their order; by ascending `group` first, if there is one.

    NumPy sorts whole numbers several times faster than it ranks floats. So one number holds the group, how far the
    score lies below the highest, and the row. Where its bits cannot tell two scores apart, the scores are ranked.

    Args:
        scores: (D,) float.
        group: (D,) int, from 0. Its largest times D^2 must fit 63 bits.
    """
    count = len(scores)
    if count == 0:
        return np.zeros(0, dtype=np.int64)
    scores = scores.astype(np.float64, copy=False)
    group = np.zeros(count, dtype=np.int64) if group is None else group
    row_bits = count.bit_length()
    score_bits = min(52, 63 - row_bits - int(group.max()).bit_length())  # of a float 52 are exact
    highest = scores.max()
    fall = (highest - scores) / ((highest - scores.min()) or 1)
    fall = (fall * ((1 << score_bits) - 1)).astype(np.int64)
    order = np.sort((((group << score_bits) | fall) << row_bits) | np.arange(count)) & ((1 << row_bits) - 1)
    ranked, in_order = scores.take(order), group.take(order)
    if ((ranked[1:] > ranked[:-1]) & (in_order[1:] == in_order[:-1])).any():
        return ascending(group * count + descending_rank(scores))
    return order


def descending_rank(scores: np.ndarray) -> np.ndarray:
    """(D,) int64: 0 for the highest score, equal for equal ones.

    The stable sort of floats is several times slower than NumPy's vectorised unstable one. So that one ranks the
    scores, and the vectorised sort of whole numbers (`ascending`) then breaks the ties by row.
    """
    count = len(scores)
    order = np.argsort(-scores)
    ranked = scores[order]
    rank = np.empty(count, dtype=np.int64)
    rank[order] = np.cumsum(np.concatenate([[0], ranked[1:] != ranked[:-1]])[:count])
    return rank


def ascending(numbers: np.ndarray) -> np.ndarray:
    """(D,) int64: rows by ascending whole number, equal ones in their order, also by NumPy's vectorised sort."""
    count = len(numbers)
    return np.sort(numbers * count + np.arange(count)) % max(count, 1)
