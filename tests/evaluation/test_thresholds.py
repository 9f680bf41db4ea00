"""Thresholds by class: by hand and against a slow search; their precision and recall against a slow bootstrap."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from planted import random_set, spread_objects

from retinaconf.data.ground_truth import GroundTruth
from retinaconf.detections import Detections
from retinaconf.evaluation.calibration import optimal_lrp
from retinaconf.evaluation.gains import halves
from retinaconf.evaluation.matching import match_detections
from retinaconf.evaluation.thresholds import RIGHT, Goal, Thresholds, choose_thresholds, measure_shown, shown_by_halves

AT_RIGHT = np.array([RIGHT])


def one_image() -> tuple[GroundTruth, Detections]:
    """Class 0: four objects; right, right, wrong and right at 0.8, 0.6 (twice) and 0.2. Class 1: nothing."""
    ground_truth = spread_objects(1, 4)
    boxes = ground_truth.boxes[[0, 1, 1, 2]].copy()
    boxes[2] += 2000
    return ground_truth, Detections(
        np.zeros(4, int),
        np.zeros(4, int),
        boxes,
        np.array([0.8, 0.6, 0.6, 0.2]),
        classes=ground_truth.classes,
        category_ids=ground_truth.category_ids,
    )


def many(seed: int, **options: int) -> tuple[GroundTruth, Detections]:
    ground_truth, found = random_set(np.random.default_rng(seed), **options)
    return ground_truth, replace(found, classes=ground_truth.classes, category_ids=ground_truth.category_ids)


@pytest.mark.parametrize(
    ("goal", "threshold", "best"),
    [
        (Goal(precision=1.0), 0.8, None),
        (Goal(precision=0.75), 0.2, None),  # 1, 2/3 (equal scores are kept together), 3/4: the lowest that reaches it
        (Goal(recall=0.5), 0.6, None),  # 1/4, 2/4, 3/4: the highest
        (Goal(recall=0.9), 0.2, 0.75),  # not reached: all there are
        (Goal(), 0.2, None),  # LRP 3/4, 3/5, 2/5
    ],
    ids=str,
)
def test_by_hand(goal: Goal, threshold: float, best: float | None) -> None:
    ground_truth, found = one_image()
    chosen = choose_thresholds(match_detections(found, ground_truth, AT_RIGHT), 0, ground_truth, goal)
    assert chosen is not None
    (id_, _) = ground_truth.category_ids
    assert chosen.by_class == {id_: threshold}
    assert chosen.common == threshold  # for class 1, which has nothing
    assert chosen.unreached == ({} if best is None else {id_: best})
    assert chosen.keep(found).tolist() == (found.scores >= threshold).tolist()


def test_a_precision_that_no_threshold_reaches() -> None:
    ground_truth, found = one_image()
    wrong = replace(found, scores=np.array([0.6, 0.5, 0.9, 0.2]))  # 0, 1/2, 2/3, 3/4
    chosen = choose_thresholds(match_detections(wrong, ground_truth, AT_RIGHT), 0, ground_truth, Goal(precision=0.8))
    assert chosen is not None
    assert list(chosen.by_class.values()) == [0.2]
    assert list(chosen.unreached.values()) == [0.75]


@pytest.mark.parametrize("seed", range(3))
def test_against_a_search_over_all_scores(seed: int) -> None:
    ground_truth, found = many(seed)
    matches = match_detections(found, ground_truth, AT_RIGHT)
    counted = ~matches.ignored[:, 0]
    lrp = optimal_lrp(matches, 0, RIGHT, ground_truth)
    objects = np.bincount(ground_truth.labels[~ground_truth.crowd], minlength=len(ground_truth.classes))
    least, precise = (choose_thresholds(matches, 0, ground_truth, goal) for goal in (Goal(), Goal(precision=0.4)))
    some = choose_thresholds(matches, 0, ground_truth, Goal(recall=0.3))
    assert least is not None
    assert precise is not None
    assert some is not None
    for label, id_ in enumerate(ground_truth.category_ids):
        if objects[label] == 0:
            assert id_ not in least.by_class
            continue
        scores = matches.scores[counted & (matches.labels == label)]
        true = matches.matched[counted & (matches.labels == label), 0] >= 0
        rates = {s: (true[scores >= s].mean(), true[scores >= s].sum() / objects[label]) for s in scores}
        if np.isfinite(lrp.threshold[label]):
            assert least.by_class[id_] == lrp.threshold[label]
        reached = [s for s, (precision, _) in rates.items() if precision >= 0.4]
        nearest = max(rates, key=lambda s: (rates[s][0], s))
        assert precise.by_class[id_] == (min(reached) if reached else nearest)
        assert (id_ in precise.unreached) == (not reached)
        reached = [s for s, (_, recall) in rates.items() if recall >= 0.3]
        nearest = max(rates, key=lambda s: (rates[s][1], s))
        assert some.by_class[id_] == (max(reached) if reached else nearest)


def test_each_half_is_shown_by_the_thresholds_of_the_other() -> None:
    ground_truth, found = many(4, images=30)
    matches = match_detections(found, ground_truth, AT_RIGHT)
    shown = shown_by_halves(found, matches, 0, ground_truth, Goal())
    assert shown is not None
    first, second = halves(ground_truth)
    for chosen_on, read_on in ((first, second), (second, first)):
        images = np.sort(chosen_on)
        rows = np.isin(found.image_index, images)
        part = replace(found[rows], image_index=np.searchsorted(images, found.image_index[rows]))
        subset = ground_truth.subset(images)
        alone = choose_thresholds(match_detections(part, subset, AT_RIGHT), 0, subset, Goal())
        assert alone is not None
        on = np.isin(found.image_index, read_on)
        assert shown[on].tolist() == alone.keep(found)[on].tolist()


def test_precision_and_recall_against_a_slow_bootstrap() -> None:
    ground_truth, found = many(5, images=20)
    matches = match_detections(found, ground_truth, AT_RIGHT)
    shown = found.scores > 0.5
    measured = measure_shown(shown, matches, 0, ground_truth, replicates=30)
    assert [one.name for one in measured] == [*ground_truth.classes, "all together"]
    images = np.argsort(ground_truth.image_ids)
    rng = np.random.default_rng(0)
    draws = [images[rng.integers(0, len(images), len(images))] for _ in range(30)]
    every = list(range(len(ground_truth.classes)))
    for label, one in enumerate(measured):
        classes = [label] if label in every else every

        def rates(drawn: np.ndarray, classes: list[int] = classes) -> tuple[float, float]:
            true = kept = objects = 0
            for image in drawn:
                rows = (matches.image_index == image) & np.isin(matches.labels, classes) & ~matches.ignored[:, 0]
                rows &= shown[matches.row]
                kept += int(rows.sum())
                true += int((matches.matched[rows, 0] >= 0).sum())
                real = ~ground_truth.crowd & (ground_truth.image_index == image)
                objects += int((real & np.isin(ground_truth.labels, classes)).sum())
            return true / kept if kept else np.nan, true / objects if objects else np.nan

        assert (one.precision, one.recall) == pytest.approx(rates(np.arange(20)), nan_ok=True)

        def quantiles(values: np.ndarray) -> np.ndarray:
            finite = values[np.isfinite(values)]
            return np.quantile(finite, [0.025, 0.975]) if len(finite) else np.full(2, np.nan)

        drawn = np.array([rates(draw) for draw in draws])
        for interval, values in zip((one.precision_interval, one.recall_interval), drawn.T):
            assert interval == pytest.approx(quantiles(values), nan_ok=True)


def test_without_objects_or_detections_there_is_no_threshold() -> None:
    ground_truth, found = one_image()
    none = found[np.zeros(4, bool)]
    assert choose_thresholds(match_detections(none, ground_truth, AT_RIGHT), 0, ground_truth, Goal()) is None
    crowds = replace(ground_truth, crowd=np.ones(4, bool))
    assert choose_thresholds(match_detections(found, crowds, AT_RIGHT), 0, crowds, Goal()) is None
    matches = match_detections(found, ground_truth, AT_RIGHT)
    assert shown_by_halves(found, matches, 0, ground_truth, Goal()) is None  # one image has no two halves
    measured = measure_shown(np.zeros(4, bool), matches, 0, ground_truth, replicates=3)
    assert np.isnan([measured[0].precision, *measured[0].precision_interval, measured[1].recall]).all()
    assert measured[0].recall == 0
    assert Thresholds("", 0.5, {7: 0.1}, {}).of([7, 8]).tolist() == [0.1, 0.5]
