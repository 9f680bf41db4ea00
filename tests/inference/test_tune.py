"""What `tune` chooses, on planted detections whose best alpha is known."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from planted import candidates_at, spread_objects, truth

from retinaconf.config import InferenceConfig
from retinaconf.data.ground_truth import GroundTruth
from retinaconf.detections import Detections
from retinaconf.diagnosis.measures.post_processing import PostProcessing
from retinaconf.evaluation.coco import CocoEvaluator
from retinaconf.evaluation.thresholds import Goal
from retinaconf.evaluation.tuning import tuning_of
from retinaconf.inference.joint_score import JointScore
from retinaconf.inference.tune import choose_all


class Planted:
    """A detector of one table, ranked by equation (11) as it is asked to."""

    def __init__(self, table: Detections, alpha: float):
        self.table, self.own = table, InferenceConfig(alpha=alpha)
        self.config = SimpleNamespace(model=SimpleNamespace(quality="classification"))

    def inference_config(self, **changes: Any) -> InferenceConfig:
        return self.own.model_copy(update=changes)

    def detect(
        self,
        ground_truth: GroundTruth,
        config: InferenceConfig,
        joints: Sequence[JointScore],
        done: Callable[[int], None],
    ) -> list[Detections]:
        done(len(ground_truth))
        process = PostProcessing(nms_iou=config.nms_iou, soft_nms=config.soft_nms)
        return [process(self.table.rescored(joint.quality_exponent)) for joint in joints]


def beside_each_other(overlap: float) -> tuple[GroundTruth, Detections]:
    """Two objects with this IoU in each of 60 images, and an exact box on each."""
    shift = 100 * (1 - overlap) / (1 + overlap)
    boxes = np.array([[0.0, 0.0, 100.0, 100.0], [shift, 0.0, 100.0 + shift, 100.0]] * 60)
    ground_truth = truth([boxes[:2].tolist()] * 60)
    scores = np.tile([0.9, 0.8], 60)
    names = {"classes": ground_truth.classes, "category_ids": ground_truth.category_ids}
    image_index, labels = np.repeat(np.arange(60), 2), np.zeros(120, int)
    return ground_truth, Detections(image_index, labels, boxes, scores, scores, scores, **names)


def planted(seed: int) -> tuple[GroundTruth, Detections]:
    """Three boxes an object: the quality is the IoU, the class score knows nothing."""
    rng = np.random.default_rng(seed)
    ground_truth = spread_objects(40, 4)
    ious = rng.uniform(0.3, 1, (160, 3))
    table = candidates_at(ground_truth, ious, rng.uniform(0.2, 0.8, (160, 3)))
    names = {"classes": ground_truth.classes, "category_ids": ground_truth.category_ids}
    return ground_truth, replace(table, quality=ious.ravel(), **names)


def test_an_alpha_that_surely_ranks_better_is_taken() -> None:
    ground_truth, table = planted(0)
    images: list[int] = []
    tuned = choose_all(Planted(table, 0.1), ground_truth, Goal(), images.append)  # type: ignore[arg-type]
    assert images == [40, 40]  # and once more with Soft-NMS
    assert (tuned.tuning.joint, tuned.own.alpha) == ("product", 0.1)
    assert tuned.gain is not None
    assert tuned.gain.interval[0] > 0
    assert tuned.unseen is not None
    evaluator = CocoEvaluator(ground_truth)
    aps = {alpha: evaluator(table.rescored(alpha)).overall["AP"] for alpha in np.arange(10) / 10}
    assert tuned.tuning.alpha == pytest.approx(max(aps, key=lambda alpha: aps[alpha]))
    scores = table.rescored(tuned.tuning.alpha).scores
    assert min(tuned.tuning.thresholds.by_class.values()) in scores  # of the score that was chosen


@pytest.mark.ci
def test_soft_nms_is_taken_where_it_surely_gains() -> None:
    ground_truth, table = beside_each_other(0.6)  # NMS at 0.5 removes one
    detector = Planted(table, 0.4)
    tuned = choose_all(detector, ground_truth, Goal())  # type: ignore[arg-type]
    assert tuned.soft_gain is not None
    assert (tuned.soft_gain.before, tuned.soft_gain.after) == pytest.approx((51 / 101, 1))
    assert tuned.tuning.soft_nms
    left = float(0.8 * np.exp(-(0.6**2) / 0.7))
    assert min(tuned.tuning.thresholds.by_class.values()) == pytest.approx(left)  # of the scores that are left
    assert tuning_of(json.loads(json.dumps(tuned.tuning.values()))) == tuned.tuning

    ground_truth, table = beside_each_other(0.4)  # NMS removes none
    tuned = choose_all(Planted(table, 0.4), ground_truth, Goal())  # type: ignore[arg-type]
    assert tuned.soft_gain is not None
    assert tuned.soft_gain.points == pytest.approx(0)
    assert not tuned.tuning.soft_nms
    assert min(tuned.tuning.thresholds.by_class.values()) == 0.8

    detector.own = InferenceConfig(alpha=0.4, soft_nms=True)
    images: list[int] = []
    tuned = choose_all(detector, ground_truth, Goal(), images.append)  # type: ignore[arg-type]
    assert (tuned.soft_gain, tuned.tuning.soft_nms, images) == (None, False, [60])


def test_of_equals_the_own_score_stays() -> None:
    ground_truth, table = planted(1)
    assert table.quality is not None
    same = replace(table, class_scores=table.quality, scores=table.quality)  # every alpha gives the same score
    tuned = choose_all(Planted(same, 0.35), ground_truth, Goal(precision=0.9))  # type: ignore[arg-type]
    assert tuned.tuning.alpha == 0.35
    assert tuned.gain is not None
    assert (tuned.gain.points, tuned.gain.interval) == (0, (0, 0))
    assert tuned.best == tuned.own
