"""A run's diagnosis: its numbers are those of `evaluate`, its order within objects knows no scale, its anchors."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from retinaconf.data.layouts import load_split
from retinaconf.data.loader import evaluation_batches
from retinaconf.diagnosis.inputs import diagnose_run
from retinaconf.diagnosis.measures.diagnose import Diagnosis
from retinaconf.diagnosis.measures.task_alignment import BEST, rank_objects
from retinaconf.diagnosis.report.document import to_json
from retinaconf.diagnosis.report.summary import summarize
from retinaconf.evaluation.overlaps import best_overlaps
from retinaconf.inference.detector import load
from retinaconf.inference.evaluate import evaluate
from retinaconf.model.anchors import anchor_boxes, level_shapes
from retinaconf.run_folder import CONFIG, MODEL, read_weights, write_config, write_weights
from retinaconf.training.matching import match


def changed_run(run: Path, folder: Path, quality_logit: float | None = None, **inference: Any) -> Path:
    """A copy of a run with other settings of inference, and perhaps one quality everywhere."""
    weights = read_weights(run)
    config = weights.config.changed(**{f"inference.{name}": value for name, value in inference.items()})
    state = dict(weights.state)
    if quality_logit is not None:
        state["head.quality_conv.weight"] = state["head.quality_conv.weight"] * 0
        state["head.quality_conv.bias"] = state["head.quality_conv.bias"] * 0 + quality_logit
    folder.mkdir()
    write_config(folder / CONFIG, config)
    write_weights(folder / MODEL, state, config, weights.classes, weights.category_ids)
    return folder


SETTINGS = {
    "proportional": {"joint": "proportional", "alpha": 0.4},
    "class score": {"joint": "cls"},
    "product": {"joint": "cls*obj"},
    "filtered": {"alpha": 0.4, "min_quality": 0.5},
    "few candidates": {"alpha": 0.4, "candidates": 20},
    "torchvision": {"alpha": 0.4, "rules": "torchvision", "candidates": 50},
    "voting": {"alpha": 0.4, "vote": True},
    "Soft-NMS": {"alpha": 0.4, "soft_nms": True, "nms_iou": 0.75},
    "detectron2": {"alpha": 0.4, "rules": "detectron2", "nms_iou": 0.3, "detections": 7},
}


@pytest.mark.parametrize(
    "settings",
    [
        pytest.param(
            settings, id=name, marks=pytest.mark.slow if name in ("class score", "filtered", "torchvision") else ()
        )
        for name, settings in SETTINGS.items()
    ],
)
@pytest.mark.ci
def test_the_curve_is_what_evaluation_gives_at_each_alpha(trained: Any, tmp_path: Path, settings: dict[str, Any]):
    run = changed_run(trained.run, tmp_path / "run", **settings)
    diagnosis = diagnose_run(run, trained.data, "val", device="cpu", replicates=2)
    assert_evaluates_numbers(diagnosis, run, trained.data)
    assert any("before they are clipped" in note for note in diagnosis.notes) == (settings.get("rules") == "detectron2")
    if settings.get("vote"):  # the candidates' vote is that of the run
        assert diagnosis.before is not None
        made = diagnosis.post_processing(diagnosis.before.boxes).boxes
        unmoved = replace(diagnosis.post_processing, vote=False)(diagnosis.before.boxes).boxes
        assert made == pytest.approx(diagnosis.after.boxes.boxes, abs=1e-3)
        assert np.abs(made - unmoved).max() > 1
    sweep = diagnosis.quality
    for row in (0, 4, 10):
        there = evaluate(run, trained.data, "val", alpha=sweep.alphas[row], device="cpu")["metrics"]
        found = (sweep.AP[row], sweep.AP50[row], sweep.AP75[row])
        assert found == pytest.approx((there["AP"], there["AP50"], there["AP75"]), abs=1e-12)


def assert_evaluates_numbers(diagnosis: Diagnosis, run: Path, data: Path):
    own = evaluate(run, data, "val", device="cpu")
    assert {name: value for name, value in diagnosis.metrics.overall.items() if value == value} == {
        name: value for name, value in own["metrics"].items() if value is not None
    }


@pytest.mark.ci
def test_the_curve_does_not_depend_on_the_runs_own_alpha(trained: Any, tmp_path: Path):
    curves = []
    for alpha in (0.0, 0.4, 0.8):
        run = changed_run(trained.run, tmp_path / f"run{alpha}", alpha=alpha)
        diagnosis = diagnose_run(run, trained.data, "val", device="cpu", replicates=2)
        assert_evaluates_numbers(diagnosis, run, trained.data)
        curves.append(diagnosis.quality)
    assert len(set(curves[0].AP)) > 3
    for curve in curves[1:]:
        assert curve.AP.tolist() == curves[0].AP.tolist()
        assert (curve.best_alpha, curve.over_class_score) == (curves[0].best_alpha, curves[0].over_class_score)


@pytest.mark.ci
def test_the_order_within_objects_does_not_depend_on_the_scores_scale(trained: Any, tmp_path: Path):
    """With one quality everywhere all alphas order boxes alike; the score threshold cuts them at other places."""
    found: list[Diagnosis] = []
    for alpha in (0.0, 0.4, 0.8):
        run = changed_run(trained.run, tmp_path / f"run{alpha}", quality_logit=-1.0, alpha=alpha)
        found.append(diagnose_run(run, trained.data, "val", device="cpu", replicates=2))
    counts = [len(each.before.boxes) for each in found]
    assert max(counts) > 1.3 * min(counts)
    first = found[0].before.alignment
    assert 10 < first.within.boxes <= BEST
    for each in found[1:]:
        alignment = each.before.alignment
        assert alignment.within.objects == first.within.objects
        # The joint score in float32 has a few ties that the class score has not.
        assert alignment.within.concordance == pytest.approx(first.within.concordance, abs=2e-3)
        assert alignment.within.boxes == pytest.approx(first.within.boxes, abs=0.1)
        assert alignment.on_objects.spearman[0] == pytest.approx(first.on_objects.spearman[0], abs=2e-3)


@pytest.mark.parametrize("rules", ["paper", "torchvision"])
@pytest.mark.ci
def test_the_candidates_are_what_nms_gets_and_the_best_boxes_of_each_object(trained: Any, tmp_path: Path, rules: str):
    run = changed_run(trained.run, tmp_path / "run", rules=rules, score_threshold=0.1)
    diagnosis = diagnose_run(run, trained.data, "val", device="cpu", replicates=2)
    detector, truth = load(run, "cpu"), load_split(trained.data, "val")
    (given,) = detector.detect(truth, detector.config.inference, suppress=False)
    boxes = diagnosis.before.boxes
    for name in ("image_index", "labels", "boxes", "class_scores", "quality", "scores"):
        # torch's pow() differs in the last bit by the place in an array.
        np.testing.assert_allclose(getattr(boxes, name), getattr(given, name), rtol=1e-6)

    # The slow way: every pair, however small its score.
    (everything,) = detector.detect(truth, detector.inference_config(score_threshold=0.0), suppress=False)
    overlaps = best_overlaps(everything, truth)
    counts = []
    for row in np.flatnonzero(~truth.crowd):
        own = np.flatnonzero((overlaps.same_object == row) & (overlaps.same_iou >= 0.5))
        counts.append(min(len(own), BEST))
    assert diagnosis.before.alignment.within.per_object.count[~truth.crowd].tolist() == counts
    assert sum(counts) > (diagnosis.before.overlaps.same_iou >= 0.5).sum() > 0
    of_all = rank_objects(everything.scores, overlaps, len(truth.boxes))
    assert vars(diagnosis.before.alignment.rankings) == pytest.approx(vars(of_all), abs=1e-3)
    assert of_all.pcc_objects > 0
    above = rank_objects(boxes.scores, diagnosis.before.overlaps, len(truth.boxes))
    assert above.pcc != pytest.approx(of_all.pcc, abs=1e-3)


LARGER = {"data.short_side": 160, "data.long_side": 224}  # so that many anchors fit an object


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"model.anchors": "torchvision", "data.resize": "torchvision"},
        {"model.anchor_ratios": (0.3, 1.0, 4.0), "model.anchor_scales": (2.0, 5.0)},
    ],
    ids=["default", "torchvision", "ratios and scales"],
)
@pytest.mark.ci
def test_coverage_counts_the_anchors_that_training_matches(
    write_run: Callable[..., Path], make_data: Callable[..., Path], tmp_path: Path, changes: dict[str, Any]
):
    data, run = make_data(tmp_path / "data", train=1, val=6), write_run(tmp_path / "run", **(LARGER | changes))
    diagnosis = diagnose_run(run, data, device="cpu", replicates=2)
    coverage = diagnosis.coverage
    assert diagnosis.run is not None
    assert coverage is not None
    truth, detector = load_split(data, "val"), load(run, "cpu")
    counts = []
    for batch in evaluation_batches(truth, detector.config.data, 1):
        shapes = level_shapes(*batch.images.shape[2:])
        anchors = anchor_boxes(shapes, torch.device("cpu"), detector.config.model.cell_anchors)
        matches = match(anchors, batch.boxes, batch.labels)
        of_object = torch.bincount(matches.boxes[0, matches.labels[0] >= 0], minlength=batch.labels.shape[1])
        counts.append((int(batch.index[0]), of_object.tolist()))
    expected = [count for _, of_image in sorted(counts) for count in of_image]
    assert coverage.positives[~truth.crowd].tolist() == expected
    assert np.mean(expected) > 2


def test_another_assigner_has_no_coverage_by_iou(
    write_run: Callable[..., Path], make_data: Callable[..., Path], tmp_path: Path
):
    """Its objects need no anchor of IoU 0.5; the report is still that of a run."""
    data = make_data(tmp_path / "data", train=1, val=3)
    run = write_run(tmp_path / "run", **(LARGER | {"matching.assigner": "atss"}))
    diagnosis = diagnose_run(run, data, device="cpu", replicates=5)
    assert diagnosis.coverage is None
    assert not any("positive anchor" in sentence for sentence in summarize(diagnosis))
    assert diagnosis.run is not None
    assert to_json(diagnosis)["coverage"] is None
