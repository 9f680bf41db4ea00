"""Comparisons against the official numbers, a slow loop over draws, and what must not matter."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from as_coco import as_coco
from planted import random_set
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from retinaconf.data.ground_truth import GroundTruth
from retinaconf.detections import Detections
from retinaconf.diagnosis.measures import comparison
from retinaconf.diagnosis.measures.alignment import measure_alignment
from retinaconf.diagnosis.measures.comparison import COMPARED, Comparison, Measured, compare, measure
from retinaconf.diagnosis.report.comparison import notes, rows
from retinaconf.errors import InputError
from retinaconf.evaluation.average_precision import image_draws
from retinaconf.evaluation.calibration import calibrate
from retinaconf.evaluation.coco import CocoEvaluator
from retinaconf.evaluation.overlaps import best_overlaps


@pytest.fixture
def few_draws(monkeypatch: pytest.MonkeyPatch) -> int:
    monkeypatch.setattr(comparison, "DRAWS", 40)
    return 40


def sets(number: int = 3) -> tuple[GroundTruth, list[Detections]]:
    """Ground truth with objects of all sizes, and detectors that place boxes ever worse; no ties."""
    truth, found = random_set(np.random.default_rng(0), ties=False)
    areas = np.random.default_rng(1).choice([500.0, 3000.0, 20000.0], len(truth.areas))
    truth = replace(truth, areas=areas)
    random = np.random.default_rng(2)
    tables = [found]
    for step in range(1, number):
        moved = found.boxes + random.normal(0, 2 * step, (len(found), 1))
        tables.append(replace(found, boxes=moved, scores=random.permutation(found.scores)))
    return truth, tables


def measured(detections: Detections, truth: GroundTruth, name: str = "x") -> Measured:
    within = measure_alignment(detections, best_overlaps(detections, truth), truth).within
    return measure(name, detections, within, truth)


def concordance(detections: Detections, truth: GroundTruth) -> float:
    return measure_alignment(detections, best_overlaps(detections, truth), truth).within.concordance


def intervals(found: Comparison) -> list[tuple[float, float, float]]:
    return [(each.mean, each.low, each.high) for each in (*found.differences.values(), *found.per_class.values())]


def test_the_numbers_are_those_of_pycocotools(few_draws: int, capsys: pytest.CaptureFixture[str]):
    truth, (detections, _, _) = sets()
    found = measured(detections, truth)
    official = COCO()
    official.dataset = as_coco(truth)
    official.createIndex()
    results = replace(detections, classes=truth.classes, category_ids=truth.category_ids).to_coco(truth.image_ids)
    evaluation = COCOeval(official, official.loadRes(results), "bbox")
    evaluation.evaluate()
    evaluation.accumulate()
    evaluation.summarize()
    keys = ("AP", "AP50", "AP75", "AP_S", "AP_M", "AP_L")
    assert [found.values[key] for key in keys] == pytest.approx(evaluation.stats[:6].tolist(), abs=1e-9)
    precision = evaluation.eval["precision"][:, :, :, 0, 2]  # (thresholds, recalls, classes)
    expected = [np.nan if (of_class < 0).any() else of_class.mean() for of_class in np.moveaxis(precision, 2, 0)]
    assert list(found.per_class.values()) == pytest.approx(expected, abs=1e-9, nan_ok=True)
    assert found.values["laece_0"] == calibrate(detections, truth).mean_laece_0
    assert found.values["concordance"] == concordance(detections, truth)


@pytest.mark.parametrize("tuned", [False, True])
def test_a_draw_is_the_evaluation_of_each_image_so_often(few_draws: int, tuned: bool):
    truth, (detections, _, _) = sets()
    detections = replace(detections, confidence=detections.scores**2) if tuned else detections
    found = measured(detections, truth)
    images = np.argsort(truth.image_ids)
    for draw, weights in zip(range(6), next(image_draws(images, len(images), few_draws, seed=0))):
        copies = np.repeat(np.arange(len(truth)), weights.astype(int))
        several = replace(truth.subset(copies), image_ids=np.arange(len(copies)))
        rows = [np.flatnonzero(detections.image_index == image) for image in copies]
        index = np.repeat(np.arange(len(copies)), [len(part) for part in rows])
        drawn = replace(detections[np.concatenate(rows)], image_index=index)
        metrics = CocoEvaluator(several)(drawn)
        expected = {key: metrics.overall[key] for key in ("AP", "AP50", "AP75", "AP_S", "AP_M", "AP_L")}
        expected["laece_0"] = calibrate(drawn, several).mean_laece_0
        told = replace(drawn, scores=drawn.scores**2) if tuned else drawn
        expected["confidence_laece_0"] = calibrate(told, several).mean_laece_0
        expected["concordance"] = concordance(drawn, several)
        assert {key: found.draws[key][draw] for key in COMPARED} == pytest.approx(expected, abs=1e-12, nan_ok=True)
        of_class = found.per_class_draws[draw]
        assert of_class == pytest.approx(list(metrics.per_class.values()), abs=1e-12, nan_ok=True)


def test_a_tuned_detector_is_compared_by_the_confidence_that_it_tells(few_draws: int):
    """The other one tells its score. Where neither is tuned there is no such number."""
    truth, (table, _, _) = sets()
    tuned = measured(replace(table, confidence=table.scores**2), truth)
    plain = measured(table, truth)
    key = "confidence_laece_0"
    assert tuned.values[key] == calibrate(replace(table, scores=table.scores**2), truth).mean_laece_0
    assert tuned.values["laece_0"] == plain.values["laece_0"] == plain.values[key] != tuned.values[key]
    assert key not in compare([plain], [plain], truth).differences
    for sides, name in ((([plain], [tuned]), "A"), (([tuned], [plain]), "B"), (([tuned], [tuned]), None)):
        found = compare(*sides, truth)
        assert found.differences[key].mean == sides[1][0].values[key] - sides[0][0].values[key]
        assert [label for label, *_ in rows(found)][-2] == "LaECE_0 of the confidence (lower is better)"
        said = [note for note in notes(found) if "not tuned" in note]
        assert [note[:14] for note in said] == ([f"{name} is not tuned"] if name else [])


def test_the_interval_is_that_of_the_differences_on_the_draws(few_draws: int):
    truth, tables = sets()
    a, b, _ = (measured(table, truth) for table in tables)
    found = compare([a], [b], truth).differences["AP"]
    low, high = np.quantile([y - x for x, y in zip(a.draws["AP"], b.draws["AP"])], [0.025, 0.975])
    assert (found.low, found.high) == pytest.approx((low, high), abs=1e-15)
    assert found.mean == b.values["AP"] - a.values["AP"] < 0
    assert found.low < found.mean < found.high


def test_the_same_twice_differs_by_exactly_nothing(few_draws: int):
    truth, (table, _, _) = sets()
    found = intervals(compare([measured(table, truth)], [measured(table, truth)], truth))
    known = [each for each in found if np.isfinite(each[0])]
    assert len(known) >= len(COMPARED) - 1  # without a confidence
    assert set(known) == {(0.0, 0.0, 0.0)}


def test_the_order_of_images_and_boxes_does_not_matter(few_draws: int):
    truth, tables = sets()
    images = np.random.default_rng(5).permutation(len(truth))
    place = np.argsort(images)
    other_truth = truth.subset(images)

    def shuffled(table: Detections) -> Detections:
        rows = np.random.default_rng(6).permutation(len(table))
        rows = rows[np.argsort(place[table.image_index[rows]], kind="stable")]
        mixed = table[rows]
        return replace(mixed, image_index=place[mixed.image_index])

    one = compare([measured(tables[0], truth)], [measured(tables[1], truth)], truth)
    sides = [[measured(shuffled(table), other_truth)] for table in tables[:2]]
    other = compare(*sides, other_truth)
    np.testing.assert_allclose(intervals(one), intervals(other), rtol=0, atol=1e-12)


@pytest.mark.parametrize("trainings", [1, 2])
def test_swapped_sides_change_the_signs_alone(few_draws: int, trainings: int):
    truth, tables = sets(4)
    found = [measured(table, truth) for table in tables]
    a, b = found[:trainings], found[2 : 2 + trainings]
    there, back = intervals(compare(a, b, truth)), intervals(compare(b, a, truth))
    np.testing.assert_allclose(there, [(-mean, -high, -low) for mean, low, high in back], rtol=0, atol=1e-15)


def test_several_trainings_are_paired_in_their_order(few_draws: int):
    truth, tables = sets(4)
    a0, a1, b0, b1 = (measured(table, truth) for table in tables)
    found = compare([a0, a1], [b0, b1], truth).differences["AP"]
    seeds = [b0.values["AP"] - a0.values["AP"], b1.values["AP"] - a1.values["AP"]]
    assert found.seeds == pytest.approx(seeds)
    assert found.mean == pytest.approx(np.mean(seeds))
    alone = compare([a0], [b0], truth).differences["AP"]
    assert found.high - found.low > alone.high - alone.low  # t with one degree of freedom


def test_no_boxes_are_refused(few_draws: int):
    truth, (table, _, _) = sets()
    with pytest.raises(InputError, match="x: no boxes on these 12 images"):
        measured(table[np.zeros(0, dtype=int)], truth)
