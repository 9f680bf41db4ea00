"""Differences between detectors, paired over seeds and images, and what they say of a claim.

A contrast is a weighted sum of APs, of which the weights add up to 0. For seed s of n and a bootstrap draw of the
images w, d_s(w) is its value when all its detectors have that seed and are evaluated on those images.

- The estimate is the mean over seeds of d_s on all images.
- Images: the mean over seeds of d_s(w_b), b = 1 ... B. One draw serves all seeds and detectors, since they are
  evaluated on the same images: seeds and images are crossed, not nested.
- Seeds: drawing them with replacement would understate a spread known from three or five of them, so that they are
  taken as normal instead. With s the standard deviation of d_1 ... d_n (n - 1 in the denominator), t_b from
  Student's t with n - 1 degrees of freedom:

      interval = 2.5 % and 97.5 % quantiles over b of   mean_s d_s(w_b) + s / sqrt(n) * t_b

With one seed there is no spread: the interval is that of the images alone, and no verdict rests on it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from retinaconf.data.ground_truth import GroundTruth
from retinaconf.detections import Detections
from retinaconf.evaluation.average_precision import curve_of, image_draws

Verdict = Literal["holds", "does not hold", "undecided"]
DRAWS = 500  # of the images, B
Z = 1.96  # 97.5 % quantile of the normal distribution


@dataclass(frozen=True)
class Difference:
    """A contrast with its 95% interval; `seeds` are its values for each seed, fractions of AP."""

    seeds: tuple[float, ...]
    mean: float
    low: float
    high: float
    seed_spread: float  # standard deviation over seeds; NaN with one
    image_spread: float  # standard deviation of the mean over draws of the images

    @property
    def known(self) -> bool:
        """Whether every detector has an AP: some object is in the images."""
        return math.isfinite(self.mean) and math.isfinite(self.low)


def bootstrap_ap(detections: Detections, ground_truth: GroundTruth) -> list[float]:
    """AP on each of the DRAWS of the images, NaN where a draw has no object; the same draws for any detector."""
    curve = curve_of(detections, ground_truth)
    draws = image_draws(np.arange(len(ground_truth)), len(ground_truth), DRAWS, seed=0)
    return [ap for block in draws for ap in curve(block).mean(axis=-1).tolist()]


def paired_difference(values: np.ndarray, draws: np.ndarray, seed: int = 0) -> Difference:
    """The difference of a contrast's values.

    Args:
        values: (S,) the contrast on all images, a seed each.
        draws: (S, B) on each bootstrap draw of the images; NaN where a draw has no object.
        seed: of the draws from Student's t.
    """
    count = len(values)
    means = draws.mean(axis=0)
    spread = float(values.std(ddof=1)) if count > 1 else math.nan
    if count > 1:
        means = means + spread / math.sqrt(count) * np.random.default_rng(seed).standard_t(count - 1, len(means))
    means = means[np.isfinite(means)]
    low, high = np.quantile(means, [0.025, 0.975]) if len(means) else (math.nan, math.nan)
    over_images = draws.mean(axis=0)
    over_images = over_images[np.isfinite(over_images)]
    image_spread = float(over_images.std(ddof=1)) if len(over_images) > 1 else math.nan
    return Difference(tuple(map(float, values)), float(values.mean()), float(low), float(high), spread, image_spread)


def verdict(difference: Difference, relation: Literal["more", "same"], margin: float) -> Verdict:
    """Whether a difference is more than `margin`, or within `margin` of 0; undecided if its interval allows both.

    With fewer than two seeds always undecided.
    """
    if not difference.known or len(difference.seeds) < 2:
        return "undecided"
    low, high = difference.low, difference.high
    if relation == "more":
        return "holds" if low > margin else "does not hold" if high < margin else "undecided"
    if -margin < low and high < margin:
        return "holds"
    return "does not hold" if low > margin or high < -margin else "undecided"


def seeds_needed(difference: Difference, relation: Literal["more", "same"], margin: float) -> int | None:
    """Seeds with which the verdict would be decided, were the mean and the spreads those seen; None: no number.

    The interval's half must be shorter than the distance of the mean to the nearest margin:
    z^2 (s^2 / n + v) < distance^2, with v the variance over images, which more seeds do not lessen; and z^2 / 2 more
    for Student's t (Guenther, 1981). Such a number is right every other time: take it as the least.

    Raises:
        ValueError: there is no spread over seeds to plan with.
    """
    if not difference.known or len(difference.seeds) < 2:
        raise ValueError("one seed has no spread")
    ends = [margin] if relation == "more" else [margin, -margin]
    distance = min(abs(difference.mean - end) for end in ends)
    room = distance**2 - (Z * difference.image_spread) ** 2
    if room <= 0:
        return None
    return max(2, math.ceil((Z * difference.seed_spread) ** 2 / room + Z**2 / 2))


def overall(verdicts: Sequence[Verdict]) -> Verdict:
    """Of a claim's parts: it does not hold if one does not, and holds if all do."""
    if "does not hold" in verdicts:
        return "does not hold"
    return "holds" if verdicts and all(each == "holds" for each in verdicts) else "undecided"
