"""Which alpha ranks a detector's boxes best, from one pass over a validation split, and whether that is a sure gain."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from retinaconf.data.ground_truth import GroundTruth
from retinaconf.evaluation.alpha_sweep import AlphaSweep, compare_alphas
from retinaconf.evaluation.average_precision import curves_of
from retinaconf.evaluation.coco import CocoEvaluator, Metrics
from retinaconf.inference.detector import Detector
from retinaconf.inference.joint_score import sweep


class AlphaChoice(NamedTuple):
    """The alpha with the best AP on all images; of equals the smallest."""

    alpha: float
    metrics: Metrics  # at that alpha
    compared: AlphaSweep  # also with an alpha that only half of the images chose

    def findings(self, images: int) -> list[str]:
        """The choice in sentences, for `images` images of val."""
        compared = self.compared
        lines = [
            f"val, {images} images: AP {compared.AP[0]:.3f} at alpha 0, {compared.AP.max():.3f} at alpha "
            f"{self.alpha:g}, the best of {len(compared.alphas)} on these very images"
        ]
        low, high = (100 * bound for bound in compared.over_class_score.interval)
        if low != low:
            return [*lines, "too few images to say whether that is a gain"]
        chance = "" if low > 0 or high < 0 else ": no sure change"
        return [
            *lines,
            f"chosen on one half of them, alpha {compared.best_alpha:g} changes AP on the other by "
            f"{100 * compared.over_class_score.points:+.1f} points, 95% interval {low:+.1f} to {high:+.1f}{chance}",
        ]


def choose_alpha(detector: Detector, val_set: GroundTruth, done: Callable[[int], None]) -> AlphaChoice:
    """Choose among the alphas of `evaluate --sweep`; `done` is told how many images each batch had."""
    joints = {joint.alpha: joint for joint in sweep() if joint.alpha is not None}
    tables = detector.detect(val_set, detector.config.inference, list(joints.values()), done=done)
    (own,) = curves_of(tables[:1], val_set)  # its own score is the class score, alpha 0
    compared = compare_alphas(curves_of(tables, val_set), own, val_set, tuple(joints))
    best = int(compared.AP.argmax())
    return AlphaChoice(compared.alphas[best], CocoEvaluator(val_set)(tables[best]), compared)
