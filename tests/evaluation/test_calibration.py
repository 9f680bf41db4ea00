"""Calibration against uq-detr, LRP also against a transcription of its definition."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from planted import random_set, spread_objects, truth

from retinaconf.data.ground_truth import GroundTruth
from retinaconf.detections import Detections
from retinaconf.evaluation.calibration import ANY_OVERLAP, calibrate, d_ece, la_ace, la_ece, optimal_lrp, reliability
from retinaconf.evaluation.matching import match_detections

uq_detr = pytest.importorskip("uq_detr")


def planted(seed: int) -> tuple[GroundTruth, Detections]:
    """Without crowds and ties, which uq-detr does not know; with scores 0 and 1 in each class, whose range it bins."""
    ground_truth, boxes = random_set(np.random.default_rng(seed), crowded=False, ties=False)
    scores = boxes.scores.copy()
    for label in np.unique(boxes.labels):
        scores[np.flatnonzero(boxes.labels == label)[:2]] = [0, 1]
    return ground_truth, replace(boxes, scores=scores)


def for_uq_detr(ground_truth: GroundTruth, boxes: Detections, label: int | None = None) -> tuple[list, list]:
    detections, objects = [], []
    for image in range(len(ground_truth)):
        rows = boxes.image_index == image
        targets = ground_truth.image_index == image
        if label is not None:
            rows, targets = rows & (boxes.labels == label), targets & (ground_truth.labels == label)
        detections.append(uq_detr.Detections(boxes.boxes[rows], boxes.scores[rows], boxes.labels[rows]))
        objects.append(uq_detr.GroundTruth(ground_truth.boxes[targets], ground_truth.labels[targets]))
    return detections, objects


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("threshold", [0.5, 0.75])
def test_calibration_errors_equal_uq_detr(seed: int, threshold: float) -> None:
    ground_truth, boxes = planted(seed)
    matches = match_detections(boxes, ground_truth, np.array([threshold]))
    arguments = {"tp_criterion": "greedy", "iou_threshold": threshold}
    detections, objects = for_uq_detr(ground_truth, boxes)
    assert d_ece(matches, 0) == pytest.approx(uq_detr.dece(detections, objects, **arguments).score, abs=1e-12)
    per_class = la_ece(matches, 0, len(ground_truth.classes))
    assert np.nanmean(per_class) == pytest.approx(uq_detr.laece(detections, objects, **arguments).score, abs=1e-12)


@pytest.mark.parametrize("seed", range(3))
def test_optimal_lrp_is_the_least_lrp_of_any_threshold(seed: int) -> None:
    ground_truth, boxes = planted(seed)
    lrp = optimal_lrp(match_detections(boxes, ground_truth, np.array([0.5])), 0, 0.5, ground_truth)
    for label in range(3):
        found = {}
        for threshold in [*np.unique(boxes.scores[boxes.labels == label]), 2.0]:
            kept = boxes[(boxes.labels == label) & (boxes.scores >= threshold)]
            found[threshold] = uq_detr.lrp(*for_uq_detr(ground_truth, kept, label), iou_threshold=0.5).score
        best = min(found.values())
        assert lrp.olrp[label] == pytest.approx(best, abs=1e-12)
        assert found[lrp.threshold[label]] == pytest.approx(best, abs=1e-12)


def test_lrp_by_hand() -> None:
    """Of three objects one is found with IoU 1 and one with IoU 0.6, after a false positive between them.

    Keep one: (0 + 0 + 2) / 3 = 0.667. Keep two: (0 + 1 + 2) / 4 = 0.75. Keep all: (0.4 / 0.5 + 1 + 1) / 4 = 0.7.
    """
    ground_truth = spread_objects(1, 3)
    boxes = ground_truth.boxes[[0, 0, 1]].copy()
    boxes[1] += 2000
    boxes[2, [0, 2]] += 25  # IoU 75 / 125
    detections = Detections(np.zeros(3, int), np.zeros(3, int), boxes, np.array([0.9, 0.8, 0.7]))
    lrp = optimal_lrp(match_detections(detections, ground_truth, np.array([0.5])), 0, 0.5, ground_truth)
    assert lrp.olrp[0] == pytest.approx(2 / 3)
    assert lrp.threshold[0] == 0.9
    assert (lrp.localization[0], lrp.false_positive[0]) == (0, 0)
    assert lrp.false_negative[0] == pytest.approx(2 / 3)
    assert np.isnan(lrp.olrp[1])  # no object of class 1
    without = optimal_lrp(
        match_detections(detections[np.array([1])], ground_truth, np.array([0.5])), 0, 0.5, ground_truth
    )
    assert without.olrp[0] == 1  # keeping the false positive or nothing: no object is found either way
    assert np.isnan(without.threshold[0])


def test_equal_scores_are_kept_together() -> None:
    ground_truth = spread_objects(1, 1)
    boxes = np.array([ground_truth.boxes[0], ground_truth.boxes[0] + 2000])
    detections = Detections(np.zeros(2, int), np.zeros(2, int), boxes, np.array([0.5, 0.5]))
    lrp = optimal_lrp(match_detections(detections, ground_truth, np.array([0.5])), 0, 0.5, ground_truth)
    assert lrp.olrp[0] == pytest.approx(0.5)  # no threshold separates the two: one right, one wrong


def test_a_score_that_is_the_iou_is_calibrated() -> None:
    ground_truth = spread_objects(50, 2)
    rng = np.random.default_rng(0)
    shift = rng.uniform(0, 30, 100)
    boxes = ground_truth.boxes.copy()
    boxes[:, [0, 2]] += shift[:, None]
    iou = (100 - shift) / (100 + shift)
    detections = Detections(ground_truth.image_index, ground_truth.labels, boxes, iou)
    calibration = calibrate(detections, ground_truth)
    assert calibration.mean_laece == pytest.approx(0, abs=1e-12)
    assert calibration.mean_laece_0 == pytest.approx(0, abs=1e-12)
    calibration = calibrate(replace(detections, scores=np.maximum(iou - 0.3, 0)), ground_truth)
    assert calibration.mean_laece_0 == pytest.approx(0.3, abs=1e-12)
    assert calibration.d_ece == pytest.approx(1 - (iou - 0.3).mean())


def test_detections_on_crowds_are_left_out() -> None:
    ground_truth = truth([[[0, 0, 100, 100], [500, 0, 900, 400]]], crowd=[[0, 1]])
    boxes = np.array([[0.0, 0, 100, 100], [600, 100, 650, 150], [2000, 0, 2100, 100]])
    detections = Detections(np.zeros(3, int), np.zeros(3, int), boxes, np.array([0.9, 0.8, 0.7]))
    matches = match_detections(detections, ground_truth, np.array([0.5, ANY_OVERLAP]))
    assert matches.ignored.tolist() == [[False, False], [True, True], [False, False]]
    assert calibrate(detections, ground_truth).reliability.count.sum() == 2


@pytest.mark.parametrize("seed", range(3))
def test_the_adaptive_error_is_a_mean_over_detections(seed: int) -> None:
    ground_truth, boxes = random_set(np.random.default_rng(seed))
    matches = match_detections(boxes, ground_truth, np.array([ANY_OVERLAP]))
    errors = la_ace(matches, 0, len(ground_truth.classes))
    for label in range(len(ground_truth.classes)):
        rows = [row for row in range(len(matches.row)) if matches.labels[row] == label and not matches.ignored[row, 0]]
        distances = [abs(matches.scores[row] - matches.iou[row, 0]) for row in rows]
        assert errors[label] == pytest.approx(np.mean(distances), abs=1e-12)


def test_where_detection_calibrations_code_does_otherwise() -> None:
    """The code of Kuzucu et al. leaves out classes of error 0, and its LaACE counts detections on crowds, as wrong.

    Class 0 is right: score and IoU are 1. Class 1 has a score of 0.6 and an IoU of 1; a second detection, score 0.9,
    lies on a crowd. By the definition the errors are 0 and 0.4, their mean 0.2. The code's LaECE_0 is 0.4, the mean
    without class 0, and its LaACE_0 is (0.4 + 0.9) / 2 = 0.65.
    """
    box, crowd = [0.0, 0, 100, 100], [500.0, 0, 900, 400]
    ground_truth = truth([[box, [1000.0, 0, 1100, 100], crowd]], labels=[[0, 1, 1]], crowd=[[0, 0, 1]])
    boxes = np.array([box, [1000.0, 0, 1100, 100], [600, 100, 650, 150]])
    detections = Detections(np.zeros(3, int), np.array([0, 1, 1]), boxes, np.array([1, 0.6, 0.9]))
    calibration = calibrate(detections, ground_truth)
    assert calibration.laece_0 == pytest.approx([0, 0.4])
    assert calibration.laace_0 == pytest.approx([0, 0.4])
    assert (calibration.mean_laece_0, calibration.mean_laace_0) == pytest.approx((0.2, 0.2))

    matches = match_detections(detections, ground_truth, np.array([ANY_OVERLAP]))
    theirs = np.array([np.abs(matches.scores - matches.iou[:, 0])[matches.labels == k].mean() for k in (0, 1)])
    assert theirs[theirs != 0].mean() == pytest.approx(0.65)
    assert calibration.laece_0[calibration.laece_0 != 0].mean() == pytest.approx(0.4)


def test_the_bins_that_detection_calibrations_code_has_fixed() -> None:
    """It reports D-ECE with 10 bins, LaECE with 25; the number depends on them, and is the reader's to choose here.

    A wrong box of score 0.62 and a right one of 0.66 share the bin (0.6, 0.7]: |0.64 - 0.5| = 0.14. Of 25 bins each has
    its own: (0.62 + 0.34) / 2 = 0.48.
    """
    ground_truth = spread_objects(1, 1)
    boxes = np.array([ground_truth.boxes[0] + 2000, ground_truth.boxes[0]])
    detections = Detections(np.zeros(2, int), np.zeros(2, int), boxes, np.array([0.62, 0.66]))
    matches = match_detections(detections, ground_truth, np.array([0.5]))
    assert d_ece(matches, 0, bins=10) == pytest.approx(0.14)
    assert la_ece(matches, 0, 2, bins=10)[0] == pytest.approx(0.14)
    assert d_ece(matches, 0) == calibrate(detections, ground_truth).d_ece == pytest.approx(0.48)


def test_bins_close_on_the_right() -> None:
    bins = reliability(np.array([0, 0.04, 0.0400001, 1.0]), np.zeros(4), np.zeros(4, bool))
    assert bins.count[[0, 1, 24]].tolist() == [2, 1, 1]
    assert np.isnan(bins.mean_score[5])


def test_without_detections_errors_are_nan_and_lrp_is_one() -> None:
    ground_truth = spread_objects(2, 2)
    none = Detections(np.zeros(0, int), np.zeros(0, int), np.zeros((0, 4)), np.zeros(0))
    calibration = calibrate(none, ground_truth)
    assert np.isnan(calibration.d_ece)
    assert np.isnan(calibration.mean_laece)
    assert calibration.mean_olrp == 1
