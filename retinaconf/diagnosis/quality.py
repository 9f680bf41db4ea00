"""What a quality score changes: AP at every alpha of the joint score, without running the network again."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np

from retinaconf.data.ground_truth import GroundTruth
from retinaconf.diagnosis.average_precision import AveragePrecision, image_draws
from retinaconf.diagnosis.candidates import Candidates
from retinaconf.diagnosis.matching import match_detections
from retinaconf.diagnosis.progress import Progress, silent
from retinaconf.evaluation.coco import CocoEvaluator

ALPHAS = tuple(round(0.1 * step, 1) for step in range(11))
REPLICATES = 1000


@dataclass(frozen=True)
class AlphaSweep:
    """AP over all images at each alpha; the best alpha chosen on one half of them, its worth measured on the other.

    It is compared with two scores on the second half: with the class score alone (alpha = 0), and with the score that
    the detector itself ranks by. Intervals are 95% percentile intervals of the difference, from a paired bootstrap over
    that half's images. NaN where there are too few images.
    """

    alphas: tuple[float, ...]
    AP: np.ndarray  # (n,) COCO's, as `CocoEvaluator` gives it
    AP50: np.ndarray  # (n,)
    AP75: np.ndarray  # (n,)
    best_alpha: float
    AP_baseline: float  # at alpha = 0, second half
    AP_own: float  # by the detector's own score, second half
    AP_best: float  # at the best alpha, second half
    interval: tuple[float, float]  # of `gain`
    interval_over_own: tuple[float, float]  # of `gain_over_own`
    chosen_on: np.ndarray  # image rows of the first half, ascending
    reported_on: np.ndarray  # of the second
    replicates: int

    @property
    def gain(self) -> float:
        """What the best alpha is worth beside the class score, on images it was not chosen on."""
        return self.AP_best - self.AP_baseline

    @property
    def gain_over_own(self) -> float:
        """What it is worth beside the detector's own score, on the same images."""
        return self.AP_best - self.AP_own


def sweep_alpha(
    candidates: Candidates,
    own: Candidates,
    ground_truth: GroundTruth,
    post_process: Callable[[Candidates], Candidates],
    alphas: tuple[float, ...] = ALPHAS,
    replicates: int = REPLICATES,
    seed: int = 0,
    progress: Progress = silent,
) -> AlphaSweep:
    """Rank the same boxes by quality^alpha * class_score^(1 - alpha), eq. (11), at each alpha.

    Args:
        candidates: with quality; D candidates before NMS, or detections, which are then re-ranked only.
        own: the detections by the detector's own score.
        ground_truth: I images.
        post_process: makes detections of candidates; the identity for detections.
        alphas: must hold 0, the baseline. Of equally good ones the smallest is best.
        replicates: bootstrap draws.
        seed: of the halves and of the draws.
        progress: told after each alpha and draw.
    """
    detections = (post_process(candidates.rescored(alpha)) for alpha in alphas)
    return compare_alphas(detections, own, ground_truth, alphas, replicates, seed, progress)


def compare_alphas(
    detections: Iterable[Candidates],
    own: Candidates,
    ground_truth: GroundTruth,
    alphas: tuple[float, ...],
    replicates: int = REPLICATES,
    seed: int = 0,
    progress: Progress = silent,
) -> AlphaSweep:
    """The same from the detections at each of `alphas`, for a detector that makes them itself."""
    everywhere = np.ones(len(ground_truth))
    evaluator = CocoEvaluator(ground_truth)
    curves: list[AveragePrecision] = []
    metrics: list[dict[str, float]] = []
    for done, found in enumerate(detections, start=1):
        curves.append(AveragePrecision(match_detections(found, ground_truth), ground_truth))
        metrics.append(evaluator(found.image_index, found.boxes, found.scores, found.labels).overall)
        progress("AP at every alpha", done, len(alphas))

    shuffled = np.random.default_rng(seed).permutation(np.argsort(ground_truth.image_ids, kind="stable"))
    half = (len(shuffled) + 1) // 2
    first, second = shuffled[:half], shuffled[half:]
    on_first = np.array([curve.within(first)(everywhere).mean() for curve in curves])
    best = int(np.nanargmax(on_first)) if np.isfinite(on_first).any() else 0
    own_curve = AveragePrecision(match_detections(own, ground_truth), ground_truth)
    compared = [curve.within(second) for curve in (curves[alphas.index(0)], own_curve, curves[best])]
    on_second = [float(curve(everywhere).mean()) for curve in compared]

    draws = []  # (R, 3)
    if len(second) > 1 and np.isfinite(on_second).all():
        for done, draw in enumerate(image_draws(second, len(ground_truth), replicates, seed), start=1):
            draws.append([curve(draw).mean() for curve in compared])
            progress("bootstrap over images", done, replicates)
    known = [draw for draw in draws if np.isfinite(draw).all()]  # a draw without any object says nothing
    intervals = [(float("nan"), float("nan"))] * 2
    if known:
        baseline, by_own, chosen = np.array(known).T
        bounds = (np.quantile(chosen - other, [0.025, 0.975]).tolist() for other in (baseline, by_own))
        intervals = [(low, high) for low, high in bounds]
    return AlphaSweep(
        alphas=tuple(alphas),
        AP=np.array([values["AP"] for values in metrics]),
        AP50=np.array([values["AP50"] for values in metrics]),
        AP75=np.array([values["AP75"] for values in metrics]),
        best_alpha=alphas[best],
        AP_baseline=on_second[0],
        AP_own=on_second[1],
        AP_best=on_second[2],
        interval=intervals[0],
        interval_over_own=intervals[1],
        chosen_on=np.sort(first),
        reported_on=np.sort(second),
        replicates=len(known),
    )
