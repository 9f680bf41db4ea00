"""Verdicts on planted numbers; the paired interval against a slow loop."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from planted import random_set

from retinaconf.evaluation import compare
from retinaconf.evaluation.average_precision import image_draws
from retinaconf.evaluation.coco import CocoEvaluator
from retinaconf.evaluation.compare import (
    Difference,
    bootstrap_ap,
    overall,
    paired_difference,
    seeds_needed,
    verdict,
)


def difference(low: float, high: float, seeds: int = 3, mean: float | None = None, spread: float = 0.01) -> Difference:
    middle = (low + high) / 2 if mean is None else mean
    return Difference((middle,) * seeds, middle, low, high, spread, 0.001)


@pytest.mark.parametrize(
    ("low", "high", "relation", "margin", "expected"),
    [
        (0.001, 0.01, "more", 0.0, "holds"),
        (-0.001, 0.01, "more", 0.0, "undecided"),
        (-0.01, -0.001, "more", 0.0, "does not hold"),
        (0.001, 0.01, "more", 0.02, "does not hold"),
        (-0.001, 0.01, "more", -0.002, "holds"),
        (-0.001, 0.001, "same", 0.002, "holds"),
        (-0.001, 0.003, "same", 0.002, "undecided"),
        (0.003, 0.004, "same", 0.002, "does not hold"),
        (-0.004, -0.003, "same", 0.002, "does not hold"),
        (math.nan, math.nan, "more", 0.0, "undecided"),
    ],
)
def test_verdict(low: float, high: float, relation: Any, margin: float, expected: str):
    assert verdict(difference(low, high), relation, margin) == expected


def test_one_seed_decides_nothing():
    alone = difference(0.1, 0.2, seeds=1, spread=math.nan)
    assert verdict(alone, "more", 0.0) == "undecided"
    with pytest.raises(ValueError, match="one seed"):
        seeds_needed(alone, "more", 0.0)


@pytest.mark.parametrize(
    ("verdicts", "expected"),
    [
        (["holds", "holds"], "holds"),
        (["holds", "undecided"], "undecided"),
        (["undecided", "does not hold"], "does not hold"),
        ([], "undecided"),
    ],
)
def test_overall(verdicts: Any, expected: str):
    assert overall(verdicts) == expected


def test_paired_difference_is_the_loop_over_draws_and_seeds():
    random = np.random.default_rng(1)
    values, draws = random.normal(0.01, 0.004, 4), random.normal(0.01, 0.006, (4, 300))
    found = paired_difference(values, draws, seed=7)

    spread = math.sqrt(sum((v - sum(values) / 4) ** 2 for v in values) / 3)
    student = np.random.default_rng(7)
    totals = []
    for b in range(300):
        over_seeds = sum(draws[s, b] for s in range(4)) / 4
        totals.append(over_seeds + spread / 2 * student.standard_t(3))
    totals.sort()
    low, high = (totals[7] + 0.475 * (totals[8] - totals[7]), totals[291] + 0.525 * (totals[292] - totals[291]))
    assert (found.low, found.high) == pytest.approx((low, high), abs=1e-12)
    assert found.mean == pytest.approx(sum(values) / 4)
    assert found.seed_spread == pytest.approx(spread)


def test_without_image_noise_the_interval_is_students():
    values = np.array([0.01, 0.02, 0.03])
    found = paired_difference(values, np.tile(values[:, None], (1, 200_000)))
    half = 4.3027 * 0.01 / math.sqrt(3)  # t with 2 degrees of freedom
    assert (found.low, found.high) == pytest.approx((0.02 - half, 0.02 + half), rel=0.05)


def test_what_all_detectors_share_on_an_image_cancels():
    # Two detectors whose APs jump with the images drawn, one always 0.01 ahead.
    noise = np.random.default_rng(0).normal(0, 0.1, 500)
    found = paired_difference(np.array([0.01, 0.01]), np.tile((0.31 + noise) - (0.30 + noise), (2, 1)))
    assert (found.low, found.high) == pytest.approx((0.01, 0.01))


def test_draws_without_an_object_are_left_out():
    draws = np.array([[0.1, np.nan, 0.3], [0.1, np.nan, 0.3]])
    found = paired_difference(np.array([0.2, 0.2]), draws)
    assert found.low == pytest.approx(0.105)
    assert not paired_difference(np.array([np.nan]), np.full((1, 3), np.nan)).known


def test_seeds_needed_by_hand():
    # spread 0.01, images 0.001, mean 0.005: room = 2.5e-5 - (1.96e-3)^2 = 2.116e-5; (0.0196)^2 / room = 18.2; + 1.9
    assert seeds_needed(difference(-1, 1, mean=0.005), "more", 0.0) == 21
    assert seeds_needed(difference(-1, 1, mean=0.001), "more", 0.0) is None  # lost in the images' noise
    assert seeds_needed(difference(-1, 1, mean=0.0), "same", 0.005) == 21  # as far from both margins


def test_so_many_seeds_decide_about_every_other_time():
    random = np.random.default_rng(3)
    needed = seeds_needed(Difference((0.0, 0.0), 0.01, 0, 0, 0.02, 0.002), "more", 0.0)
    assert needed is not None
    decided = 0
    for trial in range(200):
        seeds = random.normal(0.01 + random.normal(0, 0.002), 0.02, needed)
        draws = seeds[:, None] + random.normal(0, 0.002, 400)
        decided += verdict(paired_difference(seeds, draws, trial), "more", 0.0) == "holds"
    assert 70 < decided < 130


def test_draws_of_the_images_are_those_of_a_set_with_each_image_so_often(monkeypatch: pytest.MonkeyPatch):
    """AP is hotcoco's, and the draws are the same for every detector."""
    monkeypatch.setattr(compare, "DRAWS", 3)
    truth, found = random_set(np.random.default_rng(0), ties=False)
    everything = np.arange(len(truth))
    (draws,) = image_draws(everything, len(truth), 3, 0)
    for value, often in zip(bootstrap_ap(found, truth), draws, strict=True):
        rows = np.repeat(everything, often.astype(int))
        several = replace(truth.subset(rows), image_ids=np.arange(len(rows)))
        boxes = [np.flatnonzero(found.image_index == row) for row in rows]
        index = np.repeat(np.arange(len(rows)), [len(part) for part in boxes])
        drawn = replace(found[np.concatenate(boxes)], image_index=index)
        assert value == pytest.approx(CocoEvaluator(several)(drawn).overall["AP"])
    assert bootstrap_ap(found, truth) == bootstrap_ap(found, truth)
