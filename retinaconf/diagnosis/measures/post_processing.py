"""From candidates to detections, as the detector's last step does it."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from retinaconf.config import SOFT_NMS_SIGMA, VOTE_SIGMA
from retinaconf.detections import Detections
from retinaconf.diagnosis.measures.nms import best_kept, image_blocks, top_per_image
from retinaconf.errors import InputError
from retinaconf.evaluation.overlaps import iou, pairs
from retinaconf.progress import ProgressCallback, silent
from retinaconf.threads import in_threads


@dataclass(frozen=True)
class PostProcessing:
    """Keep score > `score_threshold`, NMS per class at `nms_iou`, the best `max_detections` of an image; then, if they
    are set, `soft_nms`, which may bring scores down to the threshold, and `vote`.

    Raises:
        InputError: `score_threshold` is not in [0, 1), `nms_iou` not in [0, 1], or `max_detections` below 1.
    """

    score_threshold: float = 0.0
    nms_iou: float = 0.5
    max_detections: int = 100
    vote: bool = False
    soft_nms: bool = False

    def __post_init__(self) -> None:
        if not 0 <= self.score_threshold < 1:  # also NaN
            raise InputError(f"score threshold {self.score_threshold:g}: give one from 0 to below 1")
        if not 0 <= self.nms_iou <= 1:
            raise InputError(f"NMS IoU {self.nms_iou:g}: give one from 0 to 1")
        if self.max_detections < 1:
            raise InputError(f"{self.max_detections} detections an image: give at least 1")

    def __call__(self, candidates: Detections, progress: ProgressCallback = silent) -> Detections:
        """The detections that `candidates` give."""
        if self.score_threshold > 0:
            candidates = candidates[candidates.scores > self.score_threshold]
        columns = (candidates.image_index, candidates.labels, candidates.boxes, candidates.scores)
        return self._chosen(candidates, best_kept(*columns, self.nms_iou, self.max_detections, progress))

    def best(self, candidates: Detections, suppressor: np.ndarray) -> Detections:
        """The detections, for a suppression (D,) that `nms` already found."""
        kept = np.flatnonzero(suppressor < 0)
        top = top_per_image(candidates.image_index[kept], candidates.scores[kept], self.max_detections)
        return self._chosen(candidates, kept[top])

    def _chosen(self, candidates: Detections, rows: np.ndarray) -> Detections:
        detections = candidates[rows]
        if self.soft_nms:
            detections = soft_nms(detections)
            detections = detections[detections.scores > self.score_threshold]
        return vote(detections, candidates) if self.vote else detections


def soft_nms(detections: Detections, sigma: float = SOFT_NMS_SIGMA) -> Detections:
    """Soft-NMS: a score falls by exp(-IoU^2 / sigma) for each better box of its image and class.

    Equal scores count in their order, and a larger sigma leaves more (Bodla et al., "Soft-NMS: Improving Object
    Detection With One Line of Code", ICCV 2017, equation 3, for all boxes at once).
    """
    if len(detections) == 0:
        return detections
    group = detections.image_index * (detections.labels.max() + 1) + detections.labels
    order = np.lexsort((np.arange(len(group)), -detections.scores, group))  # by group, best first
    _, starts, group = np.unique(group[order], return_index=True, return_inverse=True)
    lost = np.zeros(len(order))
    for place, better in pairs(group, np.append(starts, len(order))):
        place, better = place[better < place], better[better < place]
        overlap = iou(detections.boxes.take(order[place], axis=0), detections.boxes.take(order[better], axis=0))
        lost += np.bincount(place, weights=overlap**2, minlength=len(order))
    scores = detections.scores.copy()
    scores[order] *= np.exp(-lost / sigma)
    return replace(detections, scores=scores)


def vote(detections: Detections, candidates: Detections) -> Detections:
    """Score voting: each detection becomes a mean of the candidates of its image and class that overlap it.

    Candidate j weighs score_j exp(-(1 - IoU_j)^2 / sigma) where IoU_j > 0 (Kim and Lee, "Probabilistic Anchor
    Assignment with IoU Prediction for Object Detection", ECCV 2020). Scores stay.

    Args:
        detections: what NMS keeps of the candidates.
        candidates: all that NMS is given.
    """

    def voted(rows: slice) -> np.ndarray:
        ends = np.searchsorted(detections.image_index, candidates.image_index[[rows.start, rows.stop - 1]] + [0, 1])
        return _voted(detections[slice(*ends)], candidates[rows])

    parts = [np.zeros((0, 4)), *in_threads(voted, image_blocks(candidates.image_index))]
    return replace(detections, boxes=np.concatenate(parts))


def _voted(detections: Detections, candidates: Detections) -> np.ndarray:
    """(D, 4) the boxes of `vote`."""
    num_classes = candidates.labels.max() + 1
    group, of_detection = (found.image_index * num_classes + found.labels for found in (candidates, detections))
    voters = np.argsort(group, kind="stable")
    groups, starts = np.unique(group[voters], return_index=True)
    by_group = np.argsort(of_detection, kind="stable")
    boxes = detections.boxes.copy()
    for place, voter in pairs(np.searchsorted(groups, of_detection[by_group]), np.append(starts, len(group))):
        row, voter = by_group[place], voters[voter]
        own, others = detections.boxes.take(row, axis=0), candidates.boxes.take(voter, axis=0)
        overlap = iou(own, others)
        weight = candidates.scores[voter] * np.exp(-((1 - overlap) ** 2) / VOTE_SIGMA) * (overlap > 0)
        first = np.flatnonzero(np.diff(place, prepend=-1))  # of each detection's pairs
        total = np.add.reduceat(weight, first)[:, None]
        shifts = np.add.reduceat(weight[:, None] * (others - own), first)
        boxes[row[first]] += np.divide(shifts, total, out=np.zeros_like(shifts), where=total > 0)
    return boxes
