"""From which score on a detection of a class is shown: chosen by LRP, or for a wished precision or recall."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from retinaconf.data.ground_truth import GroundTruth
from retinaconf.detections import Detections
from retinaconf.evaluation.average_precision import image_draws
from retinaconf.evaluation.calibration import OperatingPoints, operating_points
from retinaconf.evaluation.gains import REPLICATES, halves
from retinaconf.evaluation.matching import MatchedDetections

RIGHT = 0.5  # IoU from which a detection is right


@dataclass(frozen=True)
class Goal:
    """What a threshold is chosen for: the least LRP, or one of the two that are wished."""

    precision: float | None = None
    recall: float | None = None

    def __str__(self) -> str:
        wished = [f"{name} {value:g}" for name, value in vars(self).items() if value is not None]
        return wished[0] if wished else "least LRP"


@dataclass(frozen=True)
class Thresholds:
    """A threshold for each class that has objects and detections, and one for all others."""

    goal: str
    common: float
    by_class: dict[int, float]  # by category id
    unreached: dict[int, float]  # by category id: the best precision or recall there is, where it is below the goal

    def of(self, category_ids: Any) -> np.ndarray:
        """(D,) thresholds of D categories."""
        return np.array([self.by_class.get(int(id_), self.common) for id_ in category_ids], dtype=np.float64)

    def keep(self, detections: Detections) -> np.ndarray:
        """(D,) bool: which detections have a score of at least their class's threshold."""
        mask: np.ndarray = detections.scores >= self.of(detections.category_ids)[detections.labels]
        return mask


def choose_thresholds(
    matches: MatchedDetections, level: int, ground_truth: GroundTruth, goal: Goal, images: np.ndarray | None = None
) -> Thresholds | None:
    """The thresholds for a goal on some images, (n,) rows of I, or on all; None without objects or detections there.

    For a precision the lowest threshold that reaches it, for a recall the highest; where none does, the highest that
    comes nearest. `level` is the column of the IoU RIGHT in `matches`.
    """
    if images is not None:
        matches, ground_truth = matches.within(images), ground_truth.subset(images)
    together = replace(ground_truth, labels=np.zeros_like(ground_truth.labels), classes=("all",))
    everything = operating_points(replace(matches, labels=np.zeros_like(matches.labels)), level, RIGHT, together)
    if not everything or len(everything[0].kept) == 1:
        return None
    objects = np.bincount(ground_truth.labels[~ground_truth.crowd], minlength=len(ground_truth.classes))
    by_class, unreached = {}, {}
    for label, points in operating_points(matches, level, RIGHT, ground_truth).items():
        if len(points.kept) > 1:
            id_ = ground_truth.category_ids[label]
            by_class[id_], best = _choose(points, int(objects[label]), goal)
            if best is not None:
                unreached[id_] = best
    common, _ = _choose(everything[0], int(objects.sum()), goal)
    return Thresholds(str(goal), common, by_class, unreached)


def _choose(points: OperatingPoints, objects: int, goal: Goal) -> tuple[float, float | None]:
    """The threshold, and the best value there is where that does not reach the goal."""
    score = points.score[1:]  # not to keep anything is no threshold
    if goal.precision is not None:
        values, wished, which = points.true[1:] / points.kept[1:], goal.precision, -1
    elif goal.recall is not None:
        values, wished, which = points.true[1:] / objects, goal.recall, 0
    else:
        return float(score[np.argmin(points.lrp[1:])]), None
    reached = np.flatnonzero(values >= wished)
    if len(reached):
        return float(score[reached[which]]), None
    return float(score[np.argmax(values)]), float(values.max())


@dataclass(frozen=True)
class Shown:
    """What thresholds show of one class, or of all together; NaN where nothing is shown, or nothing is to be found."""

    name: str
    precision: float
    precision_interval: tuple[float, float]  # 95%, a bootstrap over the images
    recall: float
    recall_interval: tuple[float, float]


def measure_shown(
    shown: np.ndarray,
    matches: MatchedDetections,
    level: int,
    ground_truth: GroundTruth,
    replicates: int = REPLICATES,
    seed: int = 0,
) -> list[Shown]:
    """Precision and recall of each class, and last of all together, of the detections `shown`, (D,) bool.

    `level` is the column of the IoU RIGHT in `matches`, whose matching serves every threshold.
    """
    rows = shown[matches.row] & ~matches.ignored[:, level]
    hit = rows & (matches.matched[:, level] >= 0)
    num_images, num_classes = len(ground_truth), len(ground_truth.classes)

    def counts(image: np.ndarray, label: np.ndarray) -> np.ndarray:
        by_class = np.bincount(image * num_classes + label, minlength=num_images * num_classes)
        by_class = by_class.reshape(num_images, num_classes)
        return np.concatenate([by_class, by_class.sum(axis=1, keepdims=True)], axis=1)  # (I, K + 1)

    real = ~ground_truth.crowd
    kept = counts(matches.image_index[rows], matches.labels[rows])
    true = counts(matches.image_index[hit], matches.labels[hit])
    objects = counts(ground_truth.image_index[real], ground_truth.labels[real])

    def rates(weights: np.ndarray) -> np.ndarray:  # (I,) or (B, I) -> (..., 2, K + 1)
        found, of = (weights @ true)[..., None, :], np.stack([weights @ kept, weights @ objects], axis=-2)
        return np.divide(found, of, out=np.full(of.shape, np.nan), where=of > 0)

    images = np.argsort(ground_truth.image_ids, kind="stable")  # whatever their order in the file
    draws = np.concatenate([rates(weights) for weights in image_draws(images, num_images, replicates, seed)])
    precision, recall = rates(np.ones(num_images))
    names = (*ground_truth.classes, "all together")
    return [
        Shown(name, float(precision[n]), _interval(draws[:, 0, n]), float(recall[n]), _interval(draws[:, 1, n]))
        for n, name in enumerate(names)
    ]


def _interval(values: np.ndarray) -> tuple[float, float]:
    values = values[np.isfinite(values)]
    low, high = np.quantile(values, [0.025, 0.975]) if len(values) else (np.nan, np.nan)
    return float(low), float(high)


def shown_by_halves(
    detections: Detections, matches: MatchedDetections, level: int, ground_truth: GroundTruth, goal: Goal, seed: int = 0
) -> np.ndarray | None:
    """(D,) bool: which detections are shown where each half of the images has the thresholds of the other half.

    None where a half has no objects or no detections. `level` is as in `choose_thresholds`.
    """
    shown = np.zeros(len(detections), dtype=bool)
    first, second = halves(ground_truth, seed)
    for chosen_on, read_on in ((first, second), (second, first)):
        thresholds = choose_thresholds(matches, level, ground_truth, goal, chosen_on)
        if thresholds is None:
            return None
        shown |= thresholds.keep(detections) & np.isin(detections.image_index, read_on)
    return shown
