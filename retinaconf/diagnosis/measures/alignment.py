"""Alignment of score and IoU at one stage, before or after NMS: rank correlations and the joint density."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from retinaconf.data.ground_truth import GroundTruth
from retinaconf.detections import Detections
from retinaconf.diagnosis.measures.correlation import RankCorrelation, joint_density, rank_correlation
from retinaconf.diagnosis.measures.task_alignment import ObjectRankings, best_of_objects, rank_objects
from retinaconf.evaluation.calibration import finite_mean
from retinaconf.evaluation.coco import SIZES, object_size
from retinaconf.evaluation.overlaps import Overlaps
from retinaconf.threads import in_threads


@dataclass(frozen=True)
class WithinObjects:
    """Rank correlation among the 50 best boxes of one object, averaged over objects: the ranking that NMS uses.

    Each mean is over the objects for which it is defined; NaN where there is none.
    """

    spearman: float
    kendall: float
    concordance: float  # of two of its boxes, how often the better-placed one has the higher score
    objects: int  # with two boxes that differ in score and IoU
    boxes: float  # of those objects, the mean number of boxes, at most 50
    per_object: RankCorrelation  # of each of B ground-truth boxes


@dataclass(frozen=True)
class Alignment:
    """Score against IoU with the best object of the same class.

    `everything` and `density` take the boxes above the score threshold, also those that overlap nothing, and so depend
    on the scale of the score. The others do not: they take each object's best boxes (`best_of_objects`).
    """

    everything: RankCorrelation  # one group
    on_objects: RankCorrelation  # one group
    per_class: RankCorrelation  # K groups
    per_size: RankCorrelation  # small, medium, large: the object's
    within: WithinObjects
    rankings: ObjectRankings  # TOOD's
    density: np.ndarray  # (50, 50) int64: score by IoU
    density_edges: np.ndarray  # (51,)


def measure_alignment(
    boxes: Detections,
    overlaps: Overlaps,
    ground_truth: GroundTruth,
    object_iou: float = 0.5,
    above: np.ndarray | None = None,
) -> Alignment:
    """How well the scores of D boxes rank their IoU; the mask `above` (D,) says which exceed the score threshold."""
    on = best_of_objects(boxes.scores, overlaps, object_iou)
    scores, iou = boxes.scores[on], overlaps.same_iou[on]
    target = overlaps.same_object[on]
    part = slice(None) if above is None or above.all() else above  # a slice copies nothing
    all_scores, all_iou = boxes.scores[part], overlaps.same_iou[part]
    density, edges = joint_density(all_scores, all_iou)
    size = object_size(ground_truth.areas)[target]
    work: list[Callable[[], Any]] = [  # the longest first
        lambda: rank_correlation(all_scores, all_iou),
        lambda: rank_correlation(scores, iou, boxes.labels[on], len(ground_truth.classes)),
        lambda: rank_correlation(scores, iou, size, len(SIZES)),
        lambda: rank_objects(boxes.scores, overlaps, len(ground_truth.boxes)),
        lambda: rank_correlation(scores, iou, target, len(ground_truth.boxes)),
        lambda: rank_correlation(scores, iou),
    ]
    everything, per_class, per_size, rankings, each, on_objects = in_threads(lambda measure: measure(), work)
    ranked = np.isfinite(each.kendall)
    return Alignment(
        everything=everything,
        on_objects=on_objects,
        per_class=per_class,
        per_size=per_size,
        within=WithinObjects(
            spearman=finite_mean(each.spearman),
            kendall=finite_mean(each.kendall),
            concordance=finite_mean(each.concordance),
            objects=int(ranked.sum()),
            boxes=finite_mean(each.count[ranked].astype(np.float64)),
            per_object=each,
        ),
        rankings=rankings,
        density=density,
        density_edges=edges,
    )
