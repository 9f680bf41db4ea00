"""What a quality branch says where: on objects, near them, and on background, which equation (9) never showed it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from retinaconf.data.ground_truth import GroundTruth
from retinaconf.diagnosis.correlation import rank_correlation
from retinaconf.diagnosis.overlaps import best_overlaps
from retinaconf.inference.detector import Detector, load
from retinaconf.paper.items import Training
from retinaconf.paper.misalignment import sample
from retinaconf.paper.runs import Experiments, candidates

# Of the IoU of a box with the object of any class that it fits best.
IOU_EDGES = (0.0, 0.1, 0.3, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)
CLASS_SCORE = 0.05  # boxes below it are no detections at alpha = 0


def qualities(experiments: Experiments, training: Training, seed: int) -> dict[str, Any]:
    """`by_overlap` of a run, kept beside it."""
    return experiments.measured(training, seed, "qualities", _measure)


def _measure(experiments: Experiments, run: Path, training: Training) -> dict[str, Any]:
    truth = sample(experiments.ground_truth, np.random.default_rng(0))
    return by_overlap(load(run, None if experiments.device == "auto" else experiments.device), truth)


def by_overlap(detector: Detector, truth: GroundTruth) -> dict[str, Any]:
    """Qualities and class scores by IoU, of the boxes before NMS that plain RetinaNet would rank.

    - `images`, `boxes`: how many. `edges`: of the IoU with an object of any class.
    - `count`, `class_score`, `quality`: by bin, the last two means, null in an empty bin.
    - `class_score_rank`, `quality_rank`: Spearman's correlation with the IoU among boxes of one object (IoU >= 0.5),
      which is what NMS chooses by; the mean over objects.
    """
    config = detector.inference_config(alpha=0.0, joint="product", score_threshold=CLASS_SCORE)
    (table,) = detector.detect(truth, config, suppress=False)
    assert table.quality is not None
    overlaps = best_overlaps(candidates(table, Path("detector")), truth)
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
        "class_score": means(table.class_scores),
        "quality": means(table.quality),
        "class_score_rank": rank(table.class_scores),
        "quality_rank": rank(table.quality),
    }
