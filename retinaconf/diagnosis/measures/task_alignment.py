"""TOOD's figures of alignment (Feng et al., "TOOD: Task-aligned One-stage Object Detection", ICCV 2021, Table 6).

Section 4.3 defines them so: "Without NMS, we calculate a Pearson Correlation Coefficient (PCC) between the rankings of
classification and localization by selecting top-50 confident predictions for each instance, and a mean IoU of the
top-10 confident predictions, averaged over instances"; and with NMS the numbers of correct boxes (IoU >= 0.5),
redundant boxes (IoU >= 0.5) and error boxes (0.1 < IoU < 0.5).

It does not say which predictions are an instance's. Here they are the boxes of its class that fit no other object
better, with an IoU above 0.1, from where on the paper counts a box as a wrong one of an object.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from retinaconf.diagnosis.measures.correlation import spearman
from retinaconf.evaluation.calibration import finite_mean
from retinaconf.evaluation.matching import ascending, descending
from retinaconf.evaluation.overlaps import Overlaps

BEST, TOP = 50, 10  # of an object
CORRECT_IOU = 0.5
ERROR_IOU = 0.1  # from here on a box is a wrong one of an object


@dataclass(frozen=True)
class ObjectRankings:
    """How well an object's best boxes are ranked and placed, averaged over objects; NaN where there is none."""

    pcc: float  # of the ranks of score and IoU, the best 50 by score; ties at their mean rank
    pcc_objects: int  # those with two boxes that differ in score and IoU
    iou: float  # of the best 10 by score
    iou_objects: int  # those with a box


@dataclass(frozen=True)
class BoxCounts:
    """What boxes are, all images together. Boxes with IoU 0.1 and less are none of these."""

    correct: int  # the object's first box with IoU >= 0.5
    redundant: int  # another one with IoU >= 0.5
    error: int  # IoU above 0.1 and below 0.5


# Table 6, with ResNet-50 on COCO: ATSS (parallel head) and TOOD (T-head and TAL).
PUBLISHED = {
    "ATSS": {"pcc": 0.408, "iou": 0.637, "correct": 30_261, "redundant": 25_428, "error": 92_677},
    "TOOD": {"pcc": 0.452, "iou": 0.661, "correct": 30_734, "redundant": 15_242, "error": 69_013},
}


def best_of_objects(scores: np.ndarray, overlaps: Overlaps, object_iou: float = 0.5, best: int = BEST) -> np.ndarray:
    """Ascending rows, among D boxes with these scores (D,), of each object's `best` by score.

    An object's boxes are those of its class that fit it best and have IoU >= `object_iou` with it. Which these are
    depends on the order of the scores and not on their scale, as long as no score threshold cuts them.
    """
    rows = np.flatnonzero(overlaps.same_iou >= object_iou)
    order = rows[descending(scores[rows])]
    order = order[ascending(overlaps.same_object[order])]
    starts = np.flatnonzero(np.diff(overlaps.same_object[order], prepend=-1))
    rank = np.arange(len(order)) - np.repeat(starts, np.diff(starts, append=len(order)))
    return np.sort(order[rank < best])


def rank_objects(scores: np.ndarray, overlaps: Overlaps, num_objects: int) -> ObjectRankings:
    """Of D boxes before NMS, with these scores (D,); `num_objects`: rows of the ground truth."""
    above = float(np.nextafter(ERROR_IOU, 1))
    on = best_of_objects(scores, overlaps, above, BEST)
    scores, best = scores[on], overlaps.take(on)
    pcc = spearman(scores, best.same_iou, best.same_object, num_objects)
    top = best.take(best_of_objects(scores, best, above, TOP))
    count = np.bincount(top.same_object, minlength=num_objects)
    total = np.bincount(top.same_object, weights=top.same_iou, minlength=num_objects)
    has = count > 0
    return ObjectRankings(
        pcc=finite_mean(pcc),
        pcc_objects=int(np.isfinite(pcc).sum()),
        iou=finite_mean(total[has] / count[has]),
        iou_objects=int(has.sum()),
    )


def count_boxes(overlaps: Overlaps) -> BoxCounts:
    """Of D boxes after NMS."""
    right = overlaps.same_iou >= CORRECT_IOU
    correct = len(np.unique(overlaps.same_object[right]))
    error = (overlaps.same_iou > ERROR_IOU) & ~right
    return BoxCounts(correct, int(right.sum()) - correct, int(error.sum()))
