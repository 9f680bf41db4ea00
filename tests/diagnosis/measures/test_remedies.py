"""What can be changed without training: each choice and each gain against a slow loop or a case worked by hand."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from planted import SIDE, candidates_at, random_set, shifted, spread_objects, truth

from retinaconf.detections import Detections
from retinaconf.diagnosis.measures.diagnose import diagnose
from retinaconf.diagnosis.measures.post_processing import PostProcessing
from retinaconf.diagnosis.measures.remedies import reach_out
from retinaconf.evaluation.matching import match_detections


@pytest.mark.ci
def test_the_best_nms_iou_is_found_and_its_ap_is_the_metric() -> None:
    """Pairs of objects that overlap by 0.65, a perfect box on each: NMS at 0.5 leaves one of two."""
    box = [0.0, 0.0, SIDE, SIDE]
    ground_truth = truth([[box, shifted(box, 0.65)]] * 60)
    candidates = candidates_at(ground_truth, np.ones((120, 1)), np.tile([[0.9], [0.8]], (60, 1)))
    nms = diagnose(ground_truth, candidates=candidates, replicates=50).remedies.nms
    assert nms.best == 0.7  # the first of equals
    # One of two objects: precision 1 up to recall 0.5; with the other one perfect.
    assert (nms.over_own.before, nms.over_own.after) == pytest.approx((51 / 101, 1))
    assert nms.over_own.interval == pytest.approx((50 / 101, 50 / 101))  # all images are alike
    for iou, value in zip(nms.ious, nms.AP):
        process = PostProcessing(nms_iou=iou)
        alone = diagnose(ground_truth, candidates=candidates, post_processing=process, replicates=2)
        assert value == pytest.approx(alone.metrics.overall["AP"], abs=1e-12)


def test_what_is_as_good_as_the_best_stays() -> None:
    ground_truth = spread_objects(20, 5)
    candidates = candidates_at(ground_truth, np.tile([0.9, 0.8], (100, 1)), np.tile([0.9, 0.8], (100, 1)))
    process = PostProcessing(nms_iou=0.55)
    nms = diagnose(ground_truth, candidates=candidates, post_processing=process, replicates=20).remedies.nms
    assert nms.best == 0.55
    assert (nms.over_own.points, *nms.over_own.interval) == (0, 0, 0)


def test_detections_are_tried_with_a_further_nms() -> None:
    ground_truth = spread_objects(30, 4)
    easy = np.random.default_rng(0).random((120, 1))  # duplicates of easy objects come before hard objects
    twice = candidates_at(ground_truth, np.tile([0.97, 0.96], (120, 1)), np.hstack([easy, 0.999 * easy]))
    nms = diagnose(ground_truth, twice, replicates=20).remedies.nms
    assert nms.ious[-1] == 1  # as they are
    assert nms.best == 0.3
    assert nms.over_own.interval[0] > 0
    once = twice[np.arange(0, 240, 2)]
    assert diagnose(ground_truth, once, replicates=20).remedies.nms.best == 1


def test_clipping_to_the_image() -> None:
    """Images are 4000 wide. Boxes go on for 60 pixels beyond the edge that their objects, 100 wide, end at."""
    box = [3900.0, 0.0, 4000.0, SIDE]
    ground_truth = truth([[box]] * 40)
    boxes = ground_truth.boxes + np.array([0, 0, 60, 0])
    detections = Detections(np.arange(40), np.zeros(40, int), boxes, np.full(40, 0.9))
    assert reach_out(detections, ground_truth).all()
    remedies = diagnose(ground_truth, detections, replicates=20).remedies
    assert (remedies.clipping.before, remedies.clipping.after) == pytest.approx((0.3, 1))  # IoU 0.625: 0.5 to 0.6
    inside = replace(detections, boxes=ground_truth.boxes)
    assert diagnose(ground_truth, inside, replicates=20).remedies.clipping is None


@pytest.mark.parametrize("seed", range(5))
def test_the_threshold_has_the_best_f1_of_all(seed: int) -> None:
    ground_truth, detections = random_set(np.random.default_rng(seed), images=24)
    remedies = diagnose(ground_truth, detections, replicates=2).remedies

    def counts(score: float, images: np.ndarray) -> tuple[int, int, int]:
        """Right, shown and objects, matched anew with nothing below the threshold."""
        part = detections[(detections.scores >= score) & np.isin(detections.image_index, images)]
        matches = match_detections(part, ground_truth, np.array([0.5]))
        counted = ~matches.ignored[:, 0]
        objects = (~ground_truth.crowd & np.isin(ground_truth.image_index, images)).sum()
        return int((matches.matched[counted, 0] >= 0).sum()), int(counted.sum()), int(objects)

    def f1(score: float) -> float:
        right, shown, objects = counts(score, remedies.chosen_on)
        return 2 * right / (shown + objects)

    shown = remedies.shown
    assert f1(shown.score) == max(f1(score) for score in np.unique(detections.scores))
    for at in (shown, remedies.customary):
        right, number, objects = counts(at.score, remedies.reported_on)
        assert (at.precision, at.recall) == (right / number, right / objects)


def test_a_map_mends_scores_that_are_off_by_a_factor() -> None:
    """The score is half of the IoU: the map doubles it, and what is left is the width of a bin."""
    rng = np.random.default_rng(0)
    ground_truth = spread_objects(100, 10)
    ious = rng.uniform(0.3, 1, (1000, 1))
    detections = candidates_at(ground_truth, ious, ious / 2)
    known = diagnose(ground_truth, detections, replicates=2).remedies.recalibration
    assert known.error_before == pytest.approx(ious.mean() / 2, abs=0.01)
    assert known.error_after < 0.01
    assert np.interp([0.2, 0.3, 0.45], known.scores, known.ious) == pytest.approx([0.4, 0.6, 0.9], abs=0.01)
    assert (np.diff(known.ious) >= 0).all()
