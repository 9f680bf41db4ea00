"""Our matches and AP against the official ones."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from planted import random_set

from retinaconf.data.ground_truth import GroundTruth
from retinaconf.detections import Detections
from retinaconf.evaluation import average_precision
from retinaconf.evaluation.average_precision import RECALLS, AveragePrecision, _levels_reached, image_draws
from retinaconf.evaluation.coco import CocoEvaluator
from retinaconf.evaluation.matching import SIZE_AREAS, match_detections


def official(ground_truth: GroundTruth, detections: Detections) -> list[float]:
    metrics = CocoEvaluator(ground_truth)(detections)
    return [metrics.overall[key] for key in ("AP", "AP50", "AP75")]


def ours(ground_truth: GroundTruth, detections: Detections, weights: np.ndarray) -> list[float]:
    levels = AveragePrecision(match_detections(detections, ground_truth), ground_truth)(weights)
    return [levels.mean(), levels[0], levels[5]]


@pytest.mark.parametrize("seed", range(20))
def test_equals_the_official_ap(seed: int) -> None:
    ground_truth, detections = random_set(np.random.default_rng(seed))
    result = ours(ground_truth, detections, np.ones(len(ground_truth)))
    assert result == pytest.approx(official(ground_truth, detections), abs=1e-12)


@pytest.mark.parametrize("seed", range(20))
def test_equals_the_official_ap_of_each_size_and_class(seed: int) -> None:
    ground_truth, detections = random_set(np.random.default_rng(seed), ties=False)
    # Sizes of all kinds, also the official limits, and areas that are not those of the boxes, as masks have.
    areas = np.random.default_rng(seed).choice([500.0, 32.0**2, 3000.0, 96.0**2, 20000.0], len(ground_truth.areas))
    ground_truth = replace(ground_truth, areas=np.where(ground_truth.labels == 1, ground_truth.areas, areas))
    metrics, everywhere = CocoEvaluator(ground_truth)(detections), np.ones(len(ground_truth))
    for key, size in zip(("AP_S", "AP_M", "AP_L"), SIZE_AREAS):
        matches = match_detections(detections, ground_truth, areas=size)
        found = AveragePrecision(matches, ground_truth)(everywhere).mean()
        assert found == pytest.approx(metrics.overall[key], abs=1e-12, nan_ok=True)
    matches = match_detections(detections, ground_truth)
    by_class = AveragePrecision(matches, ground_truth).by_class(everywhere).mean(axis=0)
    assert by_class == pytest.approx(list(metrics.per_class.values()), abs=1e-12, nan_ok=True)


def test_the_best_hundred_of_an_image_and_class_count() -> None:
    ground_truth, detections = random_set(np.random.default_rng(0), images=8, per_image=500)
    result = ours(ground_truth, detections, np.ones(len(ground_truth)))
    assert result == pytest.approx(official(ground_truth, detections), abs=1e-12)


@pytest.mark.parametrize("seed", range(6))
def test_weights_equal_repeated_images(seed: int) -> None:
    """An image of weight w counts like w copies of it; one of weight 0 like none."""
    rng = np.random.default_rng(seed)
    ground_truth, detections = random_set(rng, ties=False)
    weights = rng.integers(0, 4, len(ground_truth))
    copies = np.repeat(np.arange(len(ground_truth)), weights)
    repeated = replace(ground_truth.subset(copies), image_ids=np.arange(len(copies)))
    rows = [np.flatnonzero(detections.image_index == i) for i in copies]
    image_index = np.repeat(np.arange(len(copies)), [len(part) for part in rows])
    again = replace(detections[np.concatenate(rows)], image_index=image_index)
    assert ours(ground_truth, detections, weights.astype(float)) == pytest.approx(official(repeated, again), abs=1e-12)


def test_a_recall_at_a_level_has_reached_it() -> None:
    objects = np.random.default_rng(0).permutation(1001)  # of 0, too
    reached, first = _levels_reached(tuple(objects.tolist()))
    for count, start in zip(objects, first):
        if count:
            recall = np.arange(count + 1) / count
            found = reached[start : start + count + 1]
            assert (found == np.searchsorted(RECALLS, recall, side="right")).all()


def test_within_equals_weights_of_zero() -> None:
    ground_truth, detections = random_set(np.random.default_rng(3))
    curve = AveragePrecision(match_detections(detections, ground_truth), ground_truth)
    images = np.array([7, 0, 4, 9])
    weights = np.bincount(images, minlength=len(ground_truth)).astype(float)
    part = curve.within(images)
    assert part(weights) == pytest.approx(curve(weights), abs=1e-15)
    assert curve.within(np.arange(len(ground_truth)))(weights).tolist() == curve(weights).tolist()


def test_nothing_to_measure_is_nan_without_a_warning() -> None:
    ground_truth, detections = random_set(np.random.default_rng(3))
    curve = AveragePrecision(match_detections(detections, ground_truth), ground_truth)
    assert np.isnan(curve(np.zeros(len(ground_truth)))).all()
    none = AveragePrecision(match_detections(detections[np.zeros(0, int)], ground_truth), ground_truth)
    assert none(np.ones(len(ground_truth))).tolist() == [0.0] * 10


@pytest.mark.parametrize("entries_at_once", [1, 300, 1 << 18])
@pytest.mark.parametrize("seed", range(4))
def test_several_draws_are_those_one_by_one(seed: int, entries_at_once: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(average_precision, "ENTRIES_AT_ONCE", entries_at_once)
    ground_truth, detections = random_set(np.random.default_rng(seed))
    curve = AveragePrecision(match_detections(detections, ground_truth), ground_truth)
    everything = np.arange(len(ground_truth))
    draws = np.concatenate([*image_draws(everything, len(everything), 30, seed), np.zeros((1, len(everything)))])
    assert np.array_equal(curve(draws), [curve(draw) for draw in draws], equal_nan=True)
    assert np.array_equal(curve.by_class(draws), [curve.by_class(draw) for draw in draws], equal_nan=True)
    assert np.isnan(curve(draws)[-1]).all()
    assert np.isfinite(curve(draws)[:-1]).all()


def test_draws_take_as_many_images_as_there_are() -> None:
    images = np.array([2, 5, 6])
    draws = np.concatenate(list(image_draws(images, 8, 210, seed=0)))
    assert (draws.sum(1) == 3).all()
    assert draws[:, images].sum() == 630
    assert draws.mean(0)[images] == pytest.approx([1, 1, 1], abs=0.2)
