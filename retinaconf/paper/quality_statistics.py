"""What a quality branch says where, and what that gives in each of the two uses of the joint score.

Equation (9) trains the branch on positive anchors alone: what it says near objects and on background, it was never
told. The score that it enters is used twice: NMS keeps the best box of those that overlap, and AP ranks the kept ones.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from retinaconf.data.ground_truth import GroundTruth
from retinaconf.detections import Detections
from retinaconf.diagnosis.measures.correlation import rank_correlation
from retinaconf.diagnosis.measures.nms import nms
from retinaconf.diagnosis.measures.post_processing import PostProcessing
from retinaconf.evaluation.average_precision import curve_of
from retinaconf.evaluation.overlaps import best_overlaps
from retinaconf.inference.detector import Detector, load
from retinaconf.paper.items import Training
from retinaconf.paper.misalignment import sample
from retinaconf.paper.runs import Experiments

# Of the IoU of a box with the object of any class that it fits best.
IOU_EDGES = (0.0, 0.1, 0.3, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)
CLASS_SCORE = 0.05  # boxes below it are no detections at alpha = 0
ALPHAS = (0.2, 0.4, 0.6, 0.8)
USES = ("both", "nms", "ranking")  # what the joint score serves; the class score serves the rest


def qualities(experiments: Experiments, training: Training, seed: int) -> dict[str, Any]:
    """`by_overlap` and `by_use` of a run, kept beside it."""
    return experiments.measured(training, seed, "qualities", _measure)


def _measure(experiments: Experiments, run: Path, training: Training) -> dict[str, Any]:
    truth = sample(experiments.ground_truth, np.random.default_rng(0))
    boxes = class_ranked(load(run, experiments.device), truth)
    return by_overlap(boxes, truth) | {"uses": by_use(boxes, truth)}


def class_ranked(detector: Detector, truth: GroundTruth) -> Detections:
    """The boxes before NMS that plain RetinaNet would rank: by the class score, from 0.05 on; with their quality."""
    config = detector.inference_config(alpha=0.0, joint="product", score_threshold=CLASS_SCORE)
    (table,) = detector.detect(truth, config, suppress=False)
    return table


def by_overlap(boxes: Detections, truth: GroundTruth) -> dict[str, Any]:
    """Qualities and class scores by IoU.

    - `images`, `boxes`: how many. `edges`: of the IoU with an object of any class.
    - `count`, `class_score`, `quality`: by bin, the last two means, null in an empty bin.
    - `class_score_rank`, `quality_rank`: Spearman's correlation with the IoU among boxes of one object (IoU >= 0.5),
      which is what NMS chooses by; the mean over objects.
    """
    assert boxes.quality is not None
    overlaps = best_overlaps(boxes, truth)
    overlap, target = overlaps.any_iou, overlaps.any_object
    bins = np.digitize(overlap, IOU_EDGES[1:-1])
    count = np.bincount(bins, minlength=len(IOU_EDGES) - 1)

    def means(values: np.ndarray) -> list[float | None]:
        sums = np.bincount(bins, weights=values, minlength=len(count))
        return [float(total / n) if n else None for total, n in zip(sums, count)]

    on_object = overlap >= 0.5

    def rank(values: np.ndarray) -> float | None:
        by_object = rank_correlation(values[on_object], overlap[on_object], target[on_object], len(truth.boxes))
        known = by_object.spearman[np.isfinite(by_object.spearman)]
        return float(known.mean()) if len(known) else None

    return {
        "images": len(truth),
        "boxes": len(overlap),
        "edges": list(IOU_EDGES),
        "count": count.tolist(),
        "class_score": means(boxes.scores),
        "quality": means(boxes.quality),
        "class_score_rank": rank(boxes.scores),
        "quality_rank": rank(boxes.quality),
    }


def by_use(boxes: Detections, truth: GroundTruth) -> dict[str, Any]:
    """AP by the class score, and what equation (11) adds to it by its use.

    - `AP`: by the class score. `alphas`: of equation (11).
    - `quality` and `perfect` (the IoU with an object of any class in its place): each `both`, `nms` (it decides which
      boxes stay, and the class score ranks them) and `ranking` (the reverse): differences of AP, one an alpha.

    Boxes are those of the class score's threshold throughout, so that only the order differs.
    """
    assert boxes.quality is not None
    AP = _average_precision(PostProcessing()(boxes), truth)
    uses: dict[str, Any] = {"AP": AP, "alphas": list(ALPHAS)}
    uses |= {name: {use: [] for use in USES} for name in ("quality", "perfect")}
    qualities = {"quality": boxes.quality, "perfect": best_overlaps(boxes, truth).any_iou}
    for name, use, detections in detections_by_use(boxes, qualities):
        uses[name][use].append(_average_precision(detections, truth) - AP)
    return uses


def detections_by_use(boxes: Detections, qualities: dict[str, np.ndarray]) -> Iterator[tuple[str, str, Detections]]:
    """What is left after NMS and the ranking when equation (11), with a quality (D,), serves both or one of them.

    Yields the quality's name, one of `USES`, and the detections; for each of `ALPHAS` in their order.
    """
    plain = boxes.scores
    kept_by_class = _suppressor(boxes, plain)
    for name, quality in qualities.items():
        for alpha in ALPHAS:
            joint = quality**alpha * plain ** (1 - alpha)
            kept = _suppressor(boxes, joint)
            for use, scores, suppressor in zip(USES, (joint, plain, joint), (kept, kept, kept_by_class)):
                yield name, use, PostProcessing().best(replace(boxes, scores=scores), suppressor)


def _suppressor(boxes: Detections, scores: np.ndarray) -> np.ndarray:
    return nms(boxes.image_index, boxes.labels, boxes.boxes, scores, PostProcessing.nms_iou)


def _average_precision(detections: Detections, truth: GroundTruth) -> float:
    return float(curve_of(detections, truth)(np.ones(len(truth))).mean())
