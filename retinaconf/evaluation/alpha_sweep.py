"""What a quality score changes: AP at every alpha of the joint score, without running the network again."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np

from retinaconf.data.ground_truth import GroundTruth
from retinaconf.detections import Detections
from retinaconf.evaluation.average_precision import AveragePrecision, curve_of
from retinaconf.evaluation.gains import REPLICATES, Gain, choose
from retinaconf.progress import ProgressCallback, silent
from retinaconf.threads import in_threads

ALPHAS = tuple(round(0.1 * step, 1) for step in range(11))


@dataclass(frozen=True)
class AlphaSweep:
    """AP over all images at each alpha; the best alpha chosen on one half of them, its worth measured on the other.

    It is compared there with two scores: with the class score alone, and with the score that the detector itself ranks
    by.
    """

    alphas: tuple[float, ...]
    AP: np.ndarray  # (n,) COCO's, to 1e-12
    AP50: np.ndarray  # (n,)
    AP75: np.ndarray  # (n,)
    best_alpha: float
    over_class_score: Gain  # of the best alpha over alpha = 0, the class score alone
    over_own: Gain  # over the detector's own score
    chosen_on: np.ndarray  # image rows of the first half, ascending
    reported_on: np.ndarray  # of the second


def sweep_alpha(
    candidates: Detections,
    own: AveragePrecision,
    ground_truth: GroundTruth,
    post_process: Callable[[Detections], Detections],
    alphas: tuple[float, ...] = ALPHAS,
    replicates: int = REPLICATES,
    seed: int = 0,
    progress: ProgressCallback = silent,
) -> AlphaSweep:
    """Rank the same boxes by quality^alpha * class_score^(1 - alpha), eq. (11), at each alpha.

    Args:
        candidates: with quality; D candidates before NMS, or detections, which are then re-ranked only.
        own: the AP of what `post_process` makes of the candidates, by the detector's own score.
        ground_truth: I images.
        post_process: makes detections of candidates; the identity for detections.
        alphas: must hold 0, the baseline. Of equally good ones the smallest is best.
        replicates: bootstrap draws.
        seed: of the halves and of the draws.
        progress: told after each alpha and block of draws.
    """

    def curve_at(alpha: float) -> AveragePrecision:
        ranked = candidates.rescored(alpha)
        if np.array_equal(ranked.scores, candidates.scores):
            return own  # a detector that ranks by its class score does so at alpha 0
        return curve_of(post_process(ranked), ground_truth)

    return compare_alphas(in_threads(curve_at, alphas), own, ground_truth, alphas, replicates, seed, progress)


def compare_alphas(
    curves: Iterable[AveragePrecision],
    own: AveragePrecision,
    ground_truth: GroundTruth,
    alphas: tuple[float, ...],
    replicates: int = REPLICATES,
    seed: int = 0,
    progress: ProgressCallback = silent,
) -> AlphaSweep:
    """The same from the AP at each of `alphas`, for a detector that makes its detections itself."""
    known: list[AveragePrecision] = []
    for curve in curves:
        known.append(curve)
        progress("AP at every alpha", len(known), len(alphas))
    everywhere = np.ones(len(ground_truth))
    levels = np.array(list(in_threads(lambda curve: curve(everywhere), known)))  # (n, T)
    choice = choose(known, [known[alphas.index(0)], own], ground_truth, replicates, seed, progress)
    over_class_score, over_own = choice.gains
    return AlphaSweep(
        alphas=tuple(alphas),
        AP=levels.mean(axis=1),
        AP50=levels[:, 0],
        AP75=levels[:, 5],
        best_alpha=alphas[choice.best],
        over_class_score=over_class_score,
        over_own=over_own,
        chosen_on=choice.chosen_on,
        reported_on=choice.reported_on,
    )
