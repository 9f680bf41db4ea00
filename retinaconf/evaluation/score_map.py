"""A map from a detector's score to the IoU to expect: fitted, and measured on images it has not seen.

Within a class the map ascends, so that calibrated scores rank boxes as the raw ones do and AP stays what it was.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from retinaconf.data.ground_truth import GroundTruth
from retinaconf.detections import Detections
from retinaconf.errors import InputError
from retinaconf.evaluation.average_precision import image_draws
from retinaconf.evaluation.calibration import ANY_OVERLAP, BINS, Calibration, bin_of, calibrate
from retinaconf.evaluation.gains import REPLICATES, halves
from retinaconf.evaluation.matching import MatchedDetections, match_detections

GROUPS = 100  # of detections, at most: more knots follow the noise
OWN_MAP = 100  # objects from which a class has a map of its own; docs/diagnosis.md has the measurement
RAW_WEIGHT = 0.001  # share of the raw score in the calibrated one: where the map is level, the raw order stays


@dataclass(frozen=True)
class Curve:
    """The expected IoU of a score, linear between n knots and level beyond: `np.interp(score, scores, ious)`."""

    scores: np.ndarray  # (n,) ascending
    ious: np.ndarray  # (n,) ascending


def fit_curve(scores: np.ndarray, ious: np.ndarray) -> Curve:
    """Isotonic regression (Zadrozny and Elkan, KDD 2002) of D > 0 IoUs, (D,), on their scores, (D,).

    Up to GROUPS groups of about equally many detections, equal scores in one group, are made to ascend by weighted
    least squares. Each block of equal values becomes one knot at the mean of its scores.
    """
    _, place, count = np.unique(scores, return_inverse=True, return_counts=True)
    group = ((np.cumsum(count) - count / 2) * GROUPS / len(scores)).astype(np.int64)[place]
    size = np.bincount(group)
    filled = size > 0
    size, score, iou = (np.bincount(group, weights)[filled] for weights in (None, scores, ious))
    starts, values = isotonic(iou / size, size)
    means = np.add.reduceat(score, starts) / np.add.reduceat(size, starts)
    return Curve(np.maximum.accumulate(means), values)  # means of nearly equal scores are rounded


def isotonic(values: np.ndarray, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Where the blocks (b,) begin, and their values (b,), of the ascending fit to `values` (n,) by weighted squares.

    Pool adjacent violators: neighbours that descend share their mean. scipy has it, too, and would add half again to
    the size of an installation without torch.
    """
    blocks: list[tuple[float, float, int]] = []  # value, weight, first row
    for row, (value, weight) in enumerate(zip(values.tolist(), weights.tolist())):
        blocks.append((value, weight, row))
        while len(blocks) > 1 and blocks[-2][0] >= blocks[-1][0]:
            (a, u, first), (b, w, _) = blocks[-2:]
            blocks[-2:] = [((a * u + b * w) / (u + w), u + w, first)]
    fitted, _, starts = zip(*blocks)
    return np.array(starts), np.array(fitted)


@dataclass(frozen=True)
class ScoreMap:
    """One curve for all classes, and one for each class with enough objects."""

    common: Curve
    by_class: dict[int, Curve]  # by category id
    classes: dict[int, str]  # names of all classes that are known, by category id

    def __call__(self, category_ids: np.ndarray, scores: np.ndarray) -> np.ndarray:
        """Calibrated scores, (D,) in [0, 1], of D raw ones in [0, 1] and their categories, (D,).

        Within a category two raw scores that differ stay different, and in their order.
        """
        calibrated = np.empty(len(scores))
        for category in np.unique(category_ids):
            rows = np.flatnonzero(category_ids == category)
            curve = self.by_class.get(int(category), self.common)
            values, place = np.unique(scores[rows], return_inverse=True)
            mapped = (1 - RAW_WEIGHT) * np.interp(values, curve.scores, curve.ious) + RAW_WEIGHT * values
            calibrated[rows] = _strictly_ascending(mapped)[place]
        return calibrated


def _strictly_ascending(values: np.ndarray) -> np.ndarray:
    """Ascending values in [0, 1], (n,): equal ones, or some that rounding swapped, move on by single floats."""
    step = np.arange(len(values))
    # As integers, the bits of floats from 0 on have the order of the floats, and neighbours differ by 1.
    bits = np.minimum(values.view(np.int64), np.float64(1).view(np.int64) - step[::-1])
    return (np.maximum.accumulate(bits - step) + step).view(np.float64)


def fit(detections: Detections, ground_truth: GroundTruth) -> ScoreMap:
    """The map of D detections of all images of the ground truth.

    A class has a curve of its own from OWN_MAP objects on, if it has detections.

    Raises:
        InputError: no detection counts, or there are no objects.
    """
    if ground_truth.crowd.all():
        raise InputError(f"{ground_truth.source}: no objects in it; give ground truth with annotated objects")
    if len(detections) == 0:
        raise InputError(f"{detections.source}: no detections in it, so there is nothing to fit")
    fitted = fit_matches(match_detections(detections, ground_truth, np.array([ANY_OVERLAP])), 0, ground_truth)
    if fitted is None:
        raise InputError(f"{detections.source}: all detections lie on crowd regions, so there is nothing to fit")
    return fitted


def fit_matches(
    matches: MatchedDetections, level: int, ground_truth: GroundTruth, images: np.ndarray | None = None
) -> ScoreMap | None:
    """The map on some images, (n,) rows of I, or on all; None without a detection that counts.

    `level` is the column of ANY_OVERLAP in `matches`.
    """
    if images is None:
        images = np.arange(len(ground_truth))
    rows = ~matches.ignored[:, level] & np.isin(matches.image_index, images)
    labels, scores, ious = matches.labels[rows], matches.scores[rows], matches.iou[rows, level]
    if len(scores) == 0:
        return None
    objects = num_objects(ground_truth, images)
    own = np.intersect1d(np.flatnonzero(objects >= OWN_MAP), labels)
    ids = ground_truth.category_ids
    return ScoreMap(
        common=fit_curve(scores, ious),
        by_class={ids[label]: fit_curve(scores[labels == label], ious[labels == label]) for label in own},
        classes=dict(zip(ids, ground_truth.classes)),
    )


def num_objects(ground_truth: GroundTruth, images: np.ndarray) -> np.ndarray:
    """(K,) int64: objects of each class on some images, (n,) rows of I, without crowd regions."""
    counted = ~ground_truth.crowd & np.isin(ground_truth.image_index, images)
    return np.bincount(ground_truth.labels[counted], minlength=len(ground_truth.classes))


def read_by_halves(
    detections: Detections, matches: MatchedDetections, level: int, ground_truth: GroundTruth, seed: int = 0
) -> np.ndarray | None:
    """(D,) scores on images that the map has not seen: each half of the images by the map of the other half.

    None where a half has no detections to fit a map to. `level` is as in `fit_matches`.
    """
    scores = detections.scores.copy()
    category_ids = np.array(ground_truth.category_ids, dtype=np.int64)[detections.labels]
    first, second = halves(ground_truth, seed)
    for fitted_on, read_on in ((first, second), (second, first)):
        score_map = fit_matches(matches, level, ground_truth, fitted_on)
        if score_map is None:
            return None
        rows = np.isin(detections.image_index, read_on)
        scores[rows] = score_map(category_ids[rows], scores[rows])
    return scores


@dataclass(frozen=True)
class Unseen:
    """Calibration before and after, each half of the images with the map of the other half."""

    before: Calibration
    after: Calibration
    interval: tuple[float, float]  # 95%, of the change of the pooled error; a bootstrap over the images


def measure_unseen(
    detections: Detections, ground_truth: GroundTruth, replicates: int = REPLICATES, seed: int = 0
) -> Unseen | None:
    """What a map changes on images that it has not seen; None where a half has no detections to fit a map to.

    Args:
        detections: D of all images of the ground truth.
        ground_truth: I images.
        replicates: bootstrap draws.
        seed: of the halves and of the draws.
    """
    matches = match_detections(detections, ground_truth, np.array([ANY_OVERLAP]))
    scores = read_by_halves(detections, matches, 0, ground_truth, seed)
    if scores is None:
        return None
    counted = ~matches.ignored[:, 0]
    row, image, iou = matches.row[counted], matches.image_index[counted], matches.iou[counted, 0]
    before, after = (_excess(read[row], iou, image, len(ground_truth)) for read in (detections.scores, scores))
    count = np.bincount(image, minlength=len(ground_truth))
    images = np.argsort(ground_truth.image_ids, kind="stable")  # whatever their order in the file
    change, detections_drawn = [], []
    for weights in image_draws(images, len(ground_truth), replicates, seed):
        change.append(np.abs(weights @ after).sum(axis=1) - np.abs(weights @ before).sum(axis=1))
        detections_drawn.append(weights @ count)
    drawn = np.concatenate(detections_drawn)
    changes = np.concatenate(change)[drawn > 0] / drawn[drawn > 0]  # a draw without any detection says nothing
    low, high = np.quantile(changes, [0.025, 0.975]) if len(changes) else (np.nan, np.nan)
    return Unseen(
        before=calibrate(detections, ground_truth),
        after=calibrate(replace(detections, scores=scores), ground_truth),
        interval=(float(low), float(high)),
    )


def _excess(scores: np.ndarray, ious: np.ndarray, image_index: np.ndarray, images: int) -> np.ndarray:
    """(I, BINS) by image and bin of score, the sum of score - IoU.

    Summed over the images, its absolute values add up to the number of detections times `Reliability.error`.
    """
    place = image_index * BINS + bin_of(scores)
    return np.bincount(place, weights=scores - ious, minlength=images * BINS).reshape(images, BINS)


def calibration_report(score_map: ScoreMap, unseen: Unseen | None) -> dict[str, Any]:
    """Plain values: which classes have a map of their own, and what the map changes on images that it has not seen.

    Keys: `own_map_from` (objects from which a class has a map of its own), `own_maps` (names), `common_map` (names of
    the others), `before` and `after` (`pooled_error`, `laece_0`, `laace_0`, `d_ece`, `mean_olrp`; null where a half of
    the images has no detections), and `pooled_error_change` (95% `interval`).
    """
    return {
        "own_map_from": OWN_MAP,
        "own_maps": [name for id_, name in score_map.classes.items() if id_ in score_map.by_class],
        "common_map": [name for id_, name in score_map.classes.items() if id_ not in score_map.by_class],
        "before": unseen and _numbers(unseen.before),
        "after": unseen and _numbers(unseen.after),
        "pooled_error_change": unseen and {"interval": unseen.interval},
    }


def _numbers(calibration: Calibration) -> dict[str, float]:
    return {
        "pooled_error": calibration.pooled_error,
        "laece_0": calibration.mean_laece_0,
        "laace_0": calibration.mean_laace_0,
        "d_ece": calibration.d_ece,
        "mean_olrp": calibration.mean_olrp,
    }
