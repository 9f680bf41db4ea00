"""The oracle ladder: what AP would be if one thing were right.

Each rung corrects one thing with the ground truth's help and leaves everything else, post-processing included, as it
is; the rung's gain is the most that a remedy for that thing can bring. An object's candidates are those of its class
that fit it best and have IoU >= `object_iou` with it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from retinaconf.data.ground_truth import GroundTruth
from retinaconf.detections import Detections
from retinaconf.evaluation.average_precision import AveragePrecision
from retinaconf.evaluation.gains import ROUGH_REPLICATES, Gain, measure_gains
from retinaconf.evaluation.matching import ascending, descending, match_detections
from retinaconf.evaluation.overlaps import Overlaps
from retinaconf.progress import ProgressCallback, silent
from retinaconf.threads import in_threads

DESCRIPTIONS = {
    "as_is": "as it is",
    "ranked_by_iou": "each object's candidates ranked by their true IoU, with the scores the object has",
    "quality_is_iou": "the score joined with a perfect quality score: sqrt(score x true IoU with any object)",
    "score_is_iou": "the score is the true IoU with an object of the predicted class",
    "class_right": "a candidate on an object of another class gets that object's class",
    "no_duplicates": "second and further detections of an object are removed",
    "score_is_iou_no_duplicates": "the score is the true IoU, and duplicates are removed: the most any score can give",
}


@dataclass(frozen=True)
class Rung:
    """One step of the ladder; fractions, NaN where there is no object."""

    name: str  # a key of DESCRIPTIONS
    AP: float
    AP50: float
    AP75: float
    gain: Gain  # over `as_is`


def ranked_by_iou(candidates: Detections, overlaps: Overlaps, object_iou: float) -> np.ndarray:
    """(D,) scores: each object's candidates exchange their scores so that a larger IoU has a larger score.

    Which scores an object's candidates have, and all other candidates, stay the same: only the order within an object
    is mended. Of equal IoUs the higher-scored stays ahead.
    """
    rows = np.flatnonzero(overlaps.same_iou >= object_iou)
    target, score, iou = overlaps.same_object[rows], candidates.scores[rows], overlaps.same_iou[rows]
    by_score = descending(score)
    by_iou = by_score[descending(iou[by_score])]
    by_score, by_iou = (order[ascending(target[order])] for order in (by_score, by_iou))
    scores = candidates.scores.copy()
    scores[rows[by_iou]] = score[by_score]
    return scores


def right_labels(
    candidates: Detections, overlaps: Overlaps, ground_truth: GroundTruth, object_iou: float
) -> np.ndarray:
    """(D,) labels: a candidate that fits no object of its class but one of another takes that one's class."""
    wrong = (overlaps.same_iou < object_iou) & (overlaps.any_iou >= object_iou)
    labels = candidates.labels.copy()
    labels[wrong] = ground_truth.labels[overlaps.any_object[wrong]]
    return labels


def oracle_ladder(
    candidates: Detections,
    overlaps: Overlaps,
    ground_truth: GroundTruth,
    post_process: Callable[[Detections], Detections],
    as_is: Detections,
    object_iou: float = 0.5,
    replicates: int = ROUGH_REPLICATES,
    seed: int = 0,
    progress: ProgressCallback = silent,
) -> list[Rung]:
    """Climb the ladder.

    Where it cannot fall: `no_duplicates` and `score_is_iou_no_duplicates` remove only false positives from `as_is` and
    `score_is_iou`. `ranked_by_iou` cannot fall where no NMS follows and no two objects of a class compete for a
    candidate. `class_right` can fall: a corrected box may be a better-scored duplicate of a better-placed one.

    Args:
        candidates: D candidates before NMS, or detections where there are none.
        overlaps: of the candidates.
        ground_truth: of the split.
        post_process: makes detections of candidates; the identity for detections.
        as_is: the detections as they are.
        object_iou: see the module's docstring.
        replicates: bootstrap draws for the gains' intervals.
        seed: of the draws.
        progress: told after each rung and block of draws.
    """
    corrected = {
        "ranked_by_iou": lambda: replace(candidates, scores=ranked_by_iou(candidates, overlaps, object_iou)),
        "quality_is_iou": lambda: replace(candidates, scores=np.sqrt(candidates.scores * overlaps.any_iou)),
        "score_is_iou": lambda: replace(candidates, scores=overlaps.same_iou),
        "class_right": lambda: replace(candidates, labels=right_labels(candidates, overlaps, ground_truth, object_iou)),
    }

    def measured(name: str) -> dict[str, AveragePrecision]:
        matches = match_detections(as_is if name == "as_is" else post_process(corrected[name]()), ground_truth)
        curve = {name: AveragePrecision(matches, ground_truth)}
        if name in ("as_is", "score_is_iou"):
            unique = "no_duplicates" if name == "as_is" else "score_is_iou_no_duplicates"
            curve[unique] = AveragePrecision(matches, ground_truth, matches.ignored | matches.duplicate)
        return curve

    curves: dict[str, AveragePrecision] = {}
    for done, curve in enumerate(in_threads(measured, ["as_is", *corrected]), start=1):
        curves |= curve
        progress("oracle ladder", done, 1 + len(corrected))

    in_order = [curves[name] for name in DESCRIPTIONS]  # as_is first
    images = np.argsort(ground_truth.image_ids, kind="stable")
    pairs = [(0, rung) for rung in range(len(in_order))]
    gains = measure_gains(in_order, pairs, images, len(images), replicates, seed, progress)
    levels = [curve(np.ones(len(images))) for curve in in_order]
    return [
        Rung(name, AP=gain.after, AP50=float(level[0]), AP75=float(level[5]), gain=gain)
        for name, level, gain in zip(DESCRIPTIONS, levels, gains)
    ]
