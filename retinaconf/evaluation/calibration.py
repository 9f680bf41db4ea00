"""Is the score the IoU it should be?  Calibration errors, LRP, and reliability diagrams.

All work on `MatchedDetections`: COCO's greedy matching, detections on crowd regions left out.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from retinaconf.data.ground_truth import GroundTruth
from retinaconf.detections import Detections
from retinaconf.evaluation.matching import MatchedDetections, match_detections

BINS = 25
ANY_OVERLAP = 1e-9  # the IoU threshold 0 of LaECE_0, at which every overlap counts


@dataclass(frozen=True)
class Reliability:
    """Detections by score, in J even bins (low, high] over [0, 1], the first with 0; NaN in an empty bin."""

    edges: np.ndarray  # (J + 1,)
    count: np.ndarray  # (J,) int64
    mean_score: np.ndarray  # (J,)
    mean_iou: np.ndarray  # (J,) with the matched object, a false positive counting 0
    precision: np.ndarray  # (J,) the share that is matched

    def error(self, target: np.ndarray) -> float:
        """Expected calibration error: the mean of |mean_score - target| over the detections; NaN without any."""
        filled = self.count > 0
        if not filled.any():
            return float("nan")
        return float(np.average(np.abs(self.mean_score - target)[filled], weights=self.count[filled]))


def reliability(scores: np.ndarray, iou: np.ndarray, matched: np.ndarray, bins: int = BINS) -> Reliability:
    """Bin D detections: (D,) scores in [0, 1], (D,) IoU with the matched object or 0, (D,) bool matched."""
    edges = np.linspace(0, 1, bins + 1)
    place = bin_of(scores, bins)
    count = np.bincount(place, minlength=bins)

    def mean(values: np.ndarray) -> np.ndarray:
        total = np.bincount(place, weights=values, minlength=bins)
        return np.divide(total, count, out=np.full(bins, np.nan), where=count > 0)

    return Reliability(edges, count, mean(scores), mean(iou), mean(matched))


def bin_of(scores: np.ndarray, bins: int = BINS) -> np.ndarray:
    """(D,) int64: the bin (low, high] of each score, the first with 0."""
    return np.clip(np.searchsorted(np.linspace(0, 1, bins + 1), scores, side="left") - 1, 0, bins - 1)


def d_ece(matches: MatchedDetections, level: int, bins: int = BINS) -> float:
    """Detection ECE: sum over bins of |D_j| / |D| * |mean score - precision| (Kueppers et al., CVPRW 2020).

    `level` is the column of the IoU threshold in `matches`. NaN without detections.
    """
    table = _considered(matches, level)
    binned = reliability(*table[1:], bins=bins)
    return binned.error(binned.precision)


def la_ece(matches: MatchedDetections, level: int, num_classes: int, bins: int = BINS) -> np.ndarray:
    """Localization-aware ECE of each class, (K,); NaN for a class without detections. Their mean is LaECE.

    LaECE^c = sum over bins of |D_j^c| / |D^c| * |mean score - precision * mean IoU of the true positives| (Oksuz et
    al., CVPR 2023). The product is the mean IoU where a false positive counts 0. LaECE_0, at an IoU threshold of 0,
    is what Kuzucu et al. (ECCV 2024) recommend.
    """
    labels, scores, iou, matched = _considered(matches, level)
    errors = np.full(num_classes, np.nan)
    for label, rows in _by_class(labels, num_classes):
        binned = reliability(scores[rows], iou[rows], matched[rows], bins)
        errors[label] = binned.error(binned.mean_iou)
    return errors


def weighted_laece(
    matches: MatchedDetections, level: int, num_classes: int, bins: int = BINS
) -> Callable[[np.ndarray], float]:
    """LaECE, the mean over the classes that have detections, under any image weights (I,): what the bootstrap needs.

    Weights of 1 give the mean of `la_ece`. NaN if no detection counts.
    """
    labels, scores, iou, _ = _considered(matches, level)
    image = matches.image_index[~matches.ignored[:, level]]
    cell = labels * bins + bin_of(scores, bins)
    excess = scores - iou  # IoU 0 of a false positive

    def laece(image_weights: np.ndarray) -> float:
        weights = image_weights[image]
        count = np.bincount(labels, weights=weights, minlength=num_classes)
        off = np.bincount(cell, weights=weights * excess, minlength=num_classes * bins)
        total = np.abs(off).reshape(num_classes, bins).sum(axis=1)
        seen = count > 0
        return float((total[seen] / count[seen]).mean()) if seen.any() else float("nan")

    return laece


def la_ace(matches: MatchedDetections, level: int, num_classes: int) -> np.ndarray:
    """Localization-aware adaptive calibration error of each class, (K,), each detection being a bin of its own.

    LaACE^c = mean over the class's detections of |score - IoU|, a false positive counting 0 (Kuzucu et al., ECCV 2024,
    at an IoU threshold of 0). NaN for a class without detections. Their mean is LaACE. Noise does not average out here:
    the median of the IoUs minimizes it, not the expected IoU.
    """
    labels, scores, iou, _ = _considered(matches, level)
    errors = np.full(num_classes, np.nan)
    for label, rows in _by_class(labels, num_classes):
        errors[label] = np.abs(scores[rows] - iou[rows]).mean()
    return errors


def _by_class(labels: np.ndarray, num_classes: int) -> Iterator[tuple[int, np.ndarray]]:
    """The classes that occur in (D,) labels, each with its rows."""
    order = np.argsort(labels, kind="stable")
    ends = np.searchsorted(labels[order], np.arange(num_classes + 1))
    for label in np.unique(labels):
        yield int(label), order[ends[label] : ends[label + 1]]


def _considered(matches: MatchedDetections, level: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Label, score, IoU and matched of the detections that are not ignored."""
    rows = ~matches.ignored[:, level]
    return matches.labels[rows], matches.scores[rows], matches.iou[rows, level], matches.matched[rows, level] >= 0


@dataclass(frozen=True)
class OptimalLRP:
    """Of each of K classes; NaN for a class without objects."""

    olrp: np.ndarray  # (K,) in [0, 1], lower is better
    threshold: np.ndarray  # (K,) the score at which it is reached; NaN where keeping nothing is best
    localization: np.ndarray  # (K,) mean 1 - IoU of the true positives; NaN without any
    false_positive: np.ndarray  # (K,) 1 - precision; NaN where nothing is kept
    false_negative: np.ndarray  # (K,) 1 - recall
    objects: np.ndarray  # (K,) int64


@dataclass(frozen=True)
class OperatingPoints:
    """What a class gives if its n best detections are kept, for P values of n; equal scores are kept together."""

    kept: np.ndarray  # (P,) int64, n: ascending from 0
    score: np.ndarray  # (P,) the least score that is kept; NaN where none is
    true: np.ndarray  # (P,) int64, true positives
    displaced: np.ndarray  # (P,) sum of 1 - IoU over the true positives
    lrp: np.ndarray  # (P,)


def operating_points(
    matches: MatchedDetections, level: int, iou_threshold: float, ground_truth: GroundTruth
) -> dict[int, OperatingPoints]:
    """The operating points of each class with objects, by label, with the LRP of Oksuz et al. (ECCV 2018, eq. 3).

    LRP(s) = (sum over true positives of (1 - IoU) / (1 - tau) + FP + FN) / (TP + FP + FN) for the detections with
    score >= s. Greedy matching goes by descending score, so that one matching serves every s.
    """
    labels, scores, iou, matched = _considered(matches, level)
    objects = np.bincount(ground_truth.labels[~ground_truth.crowd], minlength=len(ground_truth.classes))
    order = np.lexsort((-scores, labels))
    ends = np.searchsorted(labels[order], np.arange(len(objects) + 1))
    points = {}
    for label in np.flatnonzero(objects):
        rows = order[ends[label] : ends[label + 1]]
        score = np.concatenate([[np.nan], scores[rows]])
        kept = np.flatnonzero(np.append(score[1:] != score[:-1], True))  # the last of equal scores
        true = np.concatenate([[0], np.cumsum(matched[rows])])[kept]
        displaced = np.concatenate([[0.0], np.cumsum(np.where(matched[rows], 1 - iou[rows], 0))])[kept]
        wrong, missed = kept - true, objects[label] - true
        lrp = (displaced / (1 - iou_threshold) + wrong + missed) / (true + wrong + missed)
        points[int(label)] = OperatingPoints(kept, score[kept], true, displaced, lrp)
    return points


def optimal_lrp(matches: MatchedDetections, level: int, iou_threshold: float, ground_truth: GroundTruth) -> OptimalLRP:
    """Optimal localization-recall-precision error per class (Oksuz et al., ECCV 2018, eq. 8).

    It is the minimum of LRP(s) over s, here over every score that occurs (the authors' code tries a grid), the highest
    of equally good ones.
    """
    objects = np.bincount(ground_truth.labels[~ground_truth.crowd], minlength=len(ground_truth.classes))
    result = OptimalLRP(*(np.full(len(objects), np.nan) for _ in range(5)), objects)  # type: ignore[call-arg]
    for label, points in operating_points(matches, level, iou_threshold, ground_truth).items():
        best = int(np.argmin(points.lrp))
        kept, true = points.kept[best], points.true[best]
        result.olrp[label] = points.lrp[best]
        result.false_negative[label] = (objects[label] - true) / objects[label]
        result.threshold[label] = points.score[best]
        if kept > 0:
            result.false_positive[label] = (kept - true) / kept
        if true > 0:
            result.localization[label] = points.displaced[best] / true
    return result


@dataclass(frozen=True)
class Calibration:
    """How the detections' scores compare with what they should be; NaN where undefined."""

    d_ece: float  # at IoU 0.5
    laece: np.ndarray  # (K,) at IoU 0.5
    laece_0: np.ndarray  # (K,) at IoU 0
    laace_0: np.ndarray  # (K,) at IoU 0
    lrp: OptimalLRP  # at IoU 0.5
    reliability: Reliability  # all classes together, at IoU 0

    @property
    def mean_laece(self) -> float:
        """LaECE: the mean over the classes that have detections."""
        return finite_mean(self.laece)

    @property
    def mean_laece_0(self) -> float:
        """LaECE_0: the mean over the classes that have detections."""
        return finite_mean(self.laece_0)

    @property
    def mean_laace_0(self) -> float:
        """LaACE_0: the mean over the classes that have detections."""
        return finite_mean(self.laace_0)

    @property
    def pooled_error(self) -> float:
        """LaECE_0 of all classes together."""
        return self.reliability.error(self.reliability.mean_iou)

    @property
    def mean_olrp(self) -> float:
        """moLRP: the mean over the classes that have objects."""
        return finite_mean(self.lrp.olrp)


def calibrate(detections: Detections, ground_truth: GroundTruth) -> Calibration:
    """Measure the calibration of D detections, all of them: the errors depend on which are reported at all."""
    matches = match_detections(detections, ground_truth, np.array([0.5, ANY_OVERLAP]))
    num_classes = len(ground_truth.classes)
    return Calibration(
        d_ece=d_ece(matches, 0),
        laece=la_ece(matches, 0, num_classes),
        laece_0=la_ece(matches, 1, num_classes),
        laace_0=la_ace(matches, 1, num_classes),
        lrp=optimal_lrp(matches, 0, 0.5, ground_truth),
        reliability=reliability(*_considered(matches, 1)[1:]),
    )


def finite_mean(values: np.ndarray) -> Any:
    """Means over the last axis of the finite values; of (K,) a number. NaN, without a warning, where there is none."""
    finite = np.isfinite(values)
    total, count = np.where(finite, values, 0).sum(axis=-1), finite.sum(axis=-1)
    return np.divide(total, count, out=np.full(total.shape, np.nan), where=count > 0)[()]
