"""Alignment of score and IoU at one stage, before or after NMS: rank correlations and the joint density."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from retinaconf.data.ground_truth import GroundTruth
from retinaconf.diagnosis.candidates import Candidates
from retinaconf.diagnosis.correlation import RankCorrelation, joint_density, rank_correlation
from retinaconf.diagnosis.mean import finite_mean
from retinaconf.diagnosis.overlaps import Overlaps
from retinaconf.diagnosis.sizes import SIZES, object_size


@dataclass(frozen=True)
class WithinObjects:
    """Rank correlation among the candidates of one object, averaged over objects: the ranking that NMS uses.

    Each mean is over the objects for which it is defined; NaN where there is none.
    """

    spearman: float
    kendall: float
    concordance: float  # of two of its boxes, how often the better-placed one has the higher score
    objects: int  # with two boxes that differ in score and IoU
    per_object: RankCorrelation  # of each of B ground-truth boxes


@dataclass(frozen=True)
class Alignment:
    """Score against IoU with the best object of the same class.

    `everything` takes all boxes, also those that overlap nothing; the others take boxes with IoU >= `object_iou`.
    """

    everything: RankCorrelation  # one group
    on_objects: RankCorrelation  # one group
    per_class: RankCorrelation  # K groups
    per_size: RankCorrelation  # small, medium, large: the object's
    within: WithinObjects
    density: np.ndarray  # (50, 50) int64: all boxes, score by IoU
    density_edges: np.ndarray  # (51,)


def measure_alignment(
    boxes: Candidates, overlaps: Overlaps, ground_truth: GroundTruth, object_iou: float = 0.5
) -> Alignment:
    """How well the scores of D boxes rank their IoU."""
    on = overlaps.same_iou >= object_iou
    scores, iou = boxes.scores[on], overlaps.same_iou[on]
    target = overlaps.same_object[on]
    density, edges = joint_density(boxes.scores, overlaps.same_iou)
    each = rank_correlation(scores, iou, target, len(ground_truth.boxes))
    return Alignment(
        everything=rank_correlation(boxes.scores, overlaps.same_iou),
        on_objects=rank_correlation(scores, iou),
        per_class=rank_correlation(scores, iou, boxes.labels[on], len(ground_truth.classes)),
        per_size=rank_correlation(scores, iou, object_size(ground_truth.areas)[target], len(SIZES)),
        within=WithinObjects(
            spearman=finite_mean(each.spearman),
            kendall=finite_mean(each.kendall),
            concordance=finite_mean(each.concordance),
            objects=int(np.isfinite(each.kendall).sum()),
            per_object=each,
        ),
        density=density,
        density_edges=edges,
    )
