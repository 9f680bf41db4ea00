"""The map from score to IoU: against scikit-learn, cases worked by hand, and what must hold for any scores."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from planted import candidates_at, random_set, spread_objects, truth

from retinaconf.data.ground_truth import read_coco
from retinaconf.detections import Detections, read_detections
from retinaconf.diagnosis.measures.post_processing import PostProcessing
from retinaconf.errors import InputError
from retinaconf.evaluation import score_map as module
from retinaconf.evaluation.calibration import ANY_OVERLAP, calibrate, reliability
from retinaconf.evaluation.coco import CocoEvaluator
from retinaconf.evaluation.gains import halves
from retinaconf.evaluation.matching import match_detections
from retinaconf.evaluation.score_map import (
    RAW_WEIGHT,
    Curve,
    ScoreMap,
    fit,
    fit_curve,
    measure_unseen,
)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("ties", [False, True])
def test_up_to_a_hundred_scores_the_knots_are_scikit_learns(seed: int, ties: bool) -> None:
    isotonic = pytest.importorskip("sklearn.isotonic")
    rng = np.random.default_rng(seed)
    scores = rng.integers(0, 30, 100) / 30 if ties else rng.random(100)
    ious = np.clip(scores + rng.normal(0, 0.3, 100), 0, 1)
    expected = isotonic.IsotonicRegression(y_min=0, y_max=1).fit(scores, ious).predict(scores)
    curve = fit_curve(scores, ious)
    assert curve.ious == pytest.approx(np.unique(expected.round(12)), abs=1e-9)
    # Each knot is at the mean score of its block.
    block = np.searchsorted(curve.ious, expected - 1e-9)
    means = [scores[block == place].mean() for place in range(len(curve.ious))]
    assert curve.scores == pytest.approx(means, abs=1e-12)


def test_many_scores_are_grouped_and_ascend() -> None:
    rng = np.random.default_rng(0)
    scores = rng.random(5000) ** 2
    curve = fit_curve(scores, np.clip(scores + rng.normal(0, 0.3, 5000), 0, 1))
    assert 10 < len(curve.scores) <= module.GROUPS
    assert (np.diff(curve.scores) > 0).all()
    assert (np.diff(curve.ious) > 0).all()


def test_by_hand() -> None:
    """0.2 -> 0 and 0.4 -> 0.6 ascend; 0.6 -> 0.9 and 0.8 -> 0.7 do not, and become one knot: 0.7 -> 0.8.

    A score of 0.3 lies half-way: 0.999 · 0.3 + 0.001 · 0.3. Beyond the knots the map is level, but for the raw score.
    """
    curve = fit_curve(np.array([0.8, 0.2, 0.6, 0.4]), np.array([0.7, 0, 0.9, 0.6]))
    assert curve.scores == pytest.approx([0.2, 0.4, 0.7])
    assert curve.ious == pytest.approx([0, 0.6, 0.8])
    read = ScoreMap(curve, {}, {7: "cat"})(np.full(4, 7), np.array([1, 0.3, 0.7, 0]))
    assert read == pytest.approx([0.999 * 0.8 + 0.001, 0.3, 0.999 * 0.8 + 0.0007, 0], abs=1e-12)
    assert RAW_WEIGHT == 0.001


@given(st.lists(st.floats(0, 1), min_size=1), st.sampled_from([[0.0], [1.0], [0.0, 1.0], [0.3, 0.3]]))
@pytest.mark.ci
def test_any_two_scores_stay_in_order_and_in_range(raw: list[float], ious: list[float]) -> None:
    curve = Curve(np.linspace(0, 1, len(ious)), np.array(ious))
    scores = np.array(raw)
    read = ScoreMap(curve, {}, {})(np.zeros(len(raw), int), scores)
    assert ((read >= 0) & (read <= 1)).all()
    assert (np.sign(read[:, None] - read) == np.sign(scores[:, None] - scores)).all()


@pytest.mark.parametrize("own_from", [1, 10**9])
def test_ap_stays_bit_for_bit(own_from: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "OWN_MAP", own_from)
    ground_truth, boxes = random_set(np.random.default_rng(1))
    fitted = fit(boxes, ground_truth)
    assert bool(fitted.by_class) == (own_from == 1)
    scores = fitted(np.array(ground_truth.category_ids)[boxes.labels], boxes.scores)
    evaluator = CocoEvaluator(ground_truth)
    before, after = evaluator(boxes), evaluator(replace(boxes, scores=scores))
    assert before.overall == pytest.approx(after.overall, abs=0, nan_ok=True)


def test_a_class_has_its_own_map_from_enough_objects_on() -> None:
    """Class 0: scores are twice the IoU; class 1 has too few objects, class 2 no detections."""
    objects = spread_objects(module.OWN_MAP // 4, 8)
    labels = np.tile([0, 0, 0, 0, 2, 2, 2, 2], module.OWN_MAP // 4)
    labels[3] = 1
    labels[-5] = 0
    labels[-4:] = 0  # class 0 has OWN_MAP + 3, class 2 OWN_MAP - 4 of the objects
    ground_truth = replace(objects, labels=labels, classes=("a", "b", "c"), category_ids=(3, 8, 90))
    ious = np.where(labels == 0, 0.4, 0.8)[:, None]
    found = candidates_at(ground_truth, ious, np.full((len(labels), 1), 0.8))
    fitted = fit(found[labels != 2], ground_truth)
    assert list(fitted.by_class) == [3]
    a, b, c = fitted(np.array([3, 8, 90]), np.full(3, 0.8))
    assert a == pytest.approx(0.4, abs=RAW_WEIGHT)
    assert b == c
    assert b == pytest.approx((0.4 * (labels == 0).sum() + 0.8) / ((labels == 0).sum() + 1), abs=RAW_WEIGHT)


def test_crowds_do_not_count_and_one_box_is_enough() -> None:
    ground_truth = truth([[[0, 0, 100, 100], [500, 0, 900, 400]]], crowd=[[0, 1]])
    boxes = np.array([[0.0, 0, 100, 100], [600, 100, 650, 150]])
    both = Detections(np.zeros(2, int), np.zeros(2, int), boxes, np.array([0.5, 0.9]))
    assert fit(both, ground_truth).common == fit(both[np.array([0])], ground_truth).common
    assert fit(both, ground_truth).common.ious.tolist() == [1]
    with pytest.raises(InputError, match="all detections lie on crowd regions"):
        fit(both[np.array([1])], ground_truth)
    with pytest.raises(InputError, match="no detections"):
        fit(both[np.zeros(2, bool)], ground_truth)
    with pytest.raises(InputError, match="no objects"):
        fit(both, replace(ground_truth, crowd=np.ones(2, bool)))
    assert measure_unseen(both, ground_truth) is None  # one image has no two halves


def test_each_half_is_read_by_the_map_of_the_other(monkeypatch: pytest.MonkeyPatch) -> None:
    """Against maps fitted to a half alone, and the interval against a slow bootstrap."""
    ground_truth, boxes = random_set(np.random.default_rng(2), images=30)
    unseen = measure_unseen(boxes, ground_truth, replicates=40)
    assert unseen is not None
    ids = np.array(ground_truth.category_ids)[boxes.labels]
    scores = boxes.scores.copy()
    first, second = halves(ground_truth)
    for fitted_on, read_on in ((first, second), (second, first)):
        subset = ground_truth.subset(np.sort(fitted_on))
        rows = np.isin(boxes.image_index, fitted_on)
        part = replace(boxes[rows], image_index=np.searchsorted(np.sort(fitted_on), boxes.image_index[rows]))
        other = np.isin(boxes.image_index, read_on)
        scores[other] = fit(part, subset)(ids[other], boxes.scores[other])
    read = replace(boxes, scores=scores)
    assert unseen.after.pooled_error == pytest.approx(calibrate(read, ground_truth).pooled_error, abs=1e-12)
    assert unseen.before.pooled_error == calibrate(boxes, ground_truth).pooled_error

    images = np.argsort(ground_truth.image_ids)
    rng = np.random.default_rng(0)
    changes = []
    for _ in range(40):
        drawn = images[rng.integers(0, len(images), len(images))]
        errors = []
        for table in (boxes, read):
            m = match_detections(table, ground_truth, np.array([ANY_OVERLAP]))
            rows = [row for i in drawn for row in np.flatnonzero((m.image_index == i) & ~m.ignored[:, 0])]
            binned = reliability(m.scores[rows], m.iou[rows, 0], m.matched[rows, 0] >= 0)
            errors.append(binned.error(binned.mean_iou))
        changes.append(errors[1] - errors[0])
    assert unseen.interval == pytest.approx(np.quantile(changes, [0.025, 0.975]), abs=1e-12)


def test_on_a_real_detector_the_error_halves_on_unseen_images(shared_data: Path) -> None:
    """YOLOX-nano after its NMS: docs/diagnosis.md quotes these numbers."""
    ground_truth = read_coco(shared_data / "coco-mini" / "annotations" / "instances_val2017.json")
    candidates = read_detections(shared_data / "yolox-nano" / "candidates-val2017.npz", ground_truth)
    unseen = measure_unseen(PostProcessing(nms_iou=0.65)(candidates), ground_truth)
    assert unseen is not None
    assert unseen.before.pooled_error == pytest.approx(0.0214, abs=1e-4)
    assert unseen.after.pooled_error <= unseen.before.pooled_error / 2
    assert unseen.interval[1] < 0
