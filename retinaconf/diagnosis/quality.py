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

ALPHAS = tuple(round(0.1 * step, 1) for step in range(11))
REPLICATES = 1000


@dataclass(frozen=True)
class AlphaSweep:
    """AP over all images at each alpha; the best alpha chosen on one half of them, its worth measured on the other.

    The gain is AP(best alpha) - AP(alpha = 0, the class score alone) on the second half; the interval its 95%
    percentile interval from a paired bootstrap over that half's images. NaN where there are too few images.
    """

    alphas: tuple[float, ...]
    AP: np.ndarray  # (n,)
    AP50: np.ndarray  # (n,)
    AP75: np.ndarray  # (n,)
    best_alpha: float
    AP_baseline: float  # at alpha = 0, second half
    AP_best: float  # at the best alpha, second half
    interval: tuple[float, float]
    chosen_on: np.ndarray  # image rows of the first half, ascending
    reported_on: np.ndarray  # of the second
    replicates: int

    @property
    def gain(self) -> float:
        """What the best alpha is worth, on images it was not chosen on."""
        return self.AP_best - self.AP_baseline


def sweep_alpha(
    candidates: Candidates,
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
        ground_truth: I images.
        post_process: makes detections of candidates; the identity for detections.
        alphas: must hold 0, the baseline. Of equally good ones the smallest is best.
        replicates: bootstrap draws.
        seed: of the halves and of the draws.
        progress: told after each alpha and draw.
    """
    detections = (post_process(candidates.rescored(alpha)) for alpha in alphas)
    return compare_alphas(detections, ground_truth, alphas, replicates, seed, progress)


def compare_alphas(
    detections: Iterable[Candidates],
    ground_truth: GroundTruth,
    alphas: tuple[float, ...],
    replicates: int = REPLICATES,
    seed: int = 0,
    progress: Progress = silent,
) -> AlphaSweep:
    """The same from the detections at each of `alphas`, for a detector that makes them itself."""
    everywhere = np.ones(len(ground_truth))
    curves: list[AveragePrecision] = []
    for done, found in enumerate(detections, start=1):
        curves.append(AveragePrecision(match_detections(found, ground_truth), ground_truth))
        progress("AP at every alpha", done, len(alphas))
    levels = np.array([curve(everywhere) for curve in curves])

    shuffled = np.random.default_rng(seed).permutation(np.argsort(ground_truth.image_ids, kind="stable"))
    half = (len(shuffled) + 1) // 2
    first, second = shuffled[:half], shuffled[half:]
    on_first = np.array([curve.within(first)(everywhere).mean() for curve in curves])
    best = int(np.nanargmax(on_first)) if np.isfinite(on_first).any() else 0
    base = alphas.index(0)
    baseline, chosen = curves[base].within(second), curves[best].within(second)
    on_second = [float(curve(everywhere).mean()) for curve in (baseline, chosen)]

    gains = []
    if len(second) > 1 and np.isfinite(on_second).all():
        for done, draw in enumerate(image_draws(second, len(ground_truth), replicates, seed), start=1):
            gains.append(chosen(draw).mean() - baseline(draw).mean() if best != base else 0.0)
            progress("bootstrap over images", done, replicates)
    gains = [gain for gain in gains if np.isfinite(gain)]  # a draw without any object says nothing
    low, high = np.quantile(gains, [0.025, 0.975]) if gains else (np.nan, np.nan)
    return AlphaSweep(
        alphas=tuple(alphas),
        AP=levels.mean(1),
        AP50=levels[:, 0],
        AP75=levels[:, 5],
        best_alpha=alphas[best],
        AP_baseline=on_second[0],
        AP_best=on_second[1],
        interval=(float(low), float(high)),
        chosen_on=np.sort(first),
        reported_on=np.sort(second),
        replicates=len(gains),
    )
