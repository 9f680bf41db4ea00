"""What one setting gains over another in AP, with an interval, and which of several settings is the best.

A setting that is chosen and measured on the same images looks better than it is. So it is chosen on one half of the
images, and its gain is measured on the other.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from retinaconf.data.ground_truth import GroundTruth
from retinaconf.evaluation.average_precision import AveragePrecision, image_draws
from retinaconf.progress import ProgressCallback, silent
from retinaconf.threads import in_threads

REPLICATES = 1000
ROUGH_REPLICATES = 200  # where many gains are measured: an interval's ends are good to a tenth of its width


@dataclass(frozen=True)
class Gain:
    """AP before and after a change, on the same images; NaN where these have no objects."""

    before: float
    after: float
    interval: tuple[float, float]  # of the difference, 95%; NaN for fewer than two images
    replicates: int

    @property
    def points(self) -> float:
        """After - before, a fraction."""
        return self.after - self.before


def measure_gains(
    curves: Sequence[AveragePrecision],
    pairs: Sequence[tuple[int, int]],
    images: np.ndarray,
    num_images: int,
    replicates: int = REPLICATES,
    seed: int = 0,
    progress: ProgressCallback = silent,
) -> list[Gain]:
    """The gain of each pair (before, after) of `curves`, measured on `images`, (n,) rows of I.

    The interval is a percentile bootstrap over the images (Efron, 1979), paired: all curves see the same draws.
    """
    different = list(dict.fromkeys(curves))  # the best setting is often one of its rivals
    place = np.array([different.index(curve) for curve in curves])[np.array(pairs).reshape(-1, 2)]
    different = [curve.within(images) for curve in different]

    def measured(weights: np.ndarray) -> np.ndarray:  # (I,) or (B, I) -> (..., pairs, 2)
        return np.stack([curve(weights).mean(axis=-1) for curve in different], axis=-1)[..., place]

    draws = np.zeros((0, len(pairs), 2))
    if len(images) > 1:
        for block in in_threads(measured, image_draws(images, num_images, replicates, seed)):
            draws = np.concatenate([draws, block])
            progress("bootstrap over images", len(draws), replicates)
    differences = draws[..., 1] - draws[..., 0]
    differences = differences[np.isfinite(differences).all(1)]  # a draw without any object says nothing
    ends = np.quantile(differences, [0.025, 0.975], axis=0) if len(differences) else np.full((2, len(pairs)), np.nan)
    everywhere = np.zeros(num_images)
    everywhere[images] = 1
    return [
        Gain(float(before), float(after), (float(low), float(high)), len(differences))
        for (before, after), low, high in zip(measured(everywhere), *ends)
    ]


@dataclass(frozen=True)
class Choice:
    """Of n settings the one with the best AP on one half of the images."""

    best: int  # of equals the first
    gains: list[Gain]  # of the best over each rival, measured on the other half
    chosen_on: np.ndarray  # image rows of the first half, ascending
    reported_on: np.ndarray  # of the second


def halves(ground_truth: GroundTruth, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Image rows to choose on and to report on, at random; the order of the images in their file does not matter."""
    shuffled = np.random.default_rng(seed).permutation(np.argsort(ground_truth.image_ids, kind="stable"))
    half = (len(shuffled) + 1) // 2
    return shuffled[:half], shuffled[half:]


def choose(
    settings: Sequence[AveragePrecision],
    rivals: Sequence[AveragePrecision],
    ground_truth: GroundTruth,
    replicates: int = REPLICATES,
    seed: int = 0,
    progress: ProgressCallback = silent,
) -> Choice:
    """Choose the best of `settings` and measure its gain over each of `rivals`.

    Args:
        settings: the AP of each setting, in the order of preference among equals.
        rivals: the AP of what to compare with.
        ground_truth: I images.
        replicates: bootstrap draws.
        seed: of the halves and of the draws.
        progress: told after each block of draws.
    """
    first, second = halves(ground_truth, seed)
    everywhere = np.ones(len(ground_truth))
    on_first = np.array(list(in_threads(lambda setting: setting.within(first)(everywhere).mean(), settings)))
    best = int(np.nanargmax(on_first)) if np.isfinite(on_first).any() else 0
    curves = [settings[best], *rivals]
    pairs = [(1 + rival, 0) for rival in range(len(rivals))]
    return Choice(
        best=best,
        gains=measure_gains(curves, pairs, second, len(ground_truth), replicates, seed, progress),
        chosen_on=np.sort(first),
        reported_on=np.sort(second),
    )
