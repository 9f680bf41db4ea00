"""TOOD's figures against a loop over objects that follows the words of its section 4.3, and a case worked by hand."""

from __future__ import annotations

import numpy as np
import pytest
from planted import candidates_at, random_set, spread_objects

from retinaconf.diagnosis.measures.diagnose import diagnose
from retinaconf.diagnosis.measures.post_processing import PostProcessing
from retinaconf.diagnosis.report.document import to_json
from retinaconf.diagnosis.report.tables import tables
from retinaconf.evaluation.overlaps import best_overlaps

FIGURES = ("pcc", "pcc_objects", "iou", "iou_objects", "correct", "redundant", "error")


@pytest.mark.parametrize("seed", range(4))
def test_the_figures_are_those_of_a_loop_over_objects(seed: int) -> None:
    stats = pytest.importorskip("scipy.stats")
    ground_truth, candidates = random_set(np.random.default_rng(seed), per_image=300)
    candidates.scores[::3] = np.round(candidates.scores[::3], 1)  # ties
    process = PostProcessing(score_threshold=0.3, nms_iou=0.6)
    found = diagnose(ground_truth, candidates=candidates, post_processing=process, replicates=2)

    overlaps = best_overlaps(candidates, ground_truth)  # all of them: the threshold is not the ranking's
    pccs, ious = [], []
    for row in range(len(ground_truth.boxes)):
        own = [b for b in range(len(candidates)) if overlaps.same_object[b] == row and overlaps.same_iou[b] > 0.1]
        own.sort(key=lambda b: -candidates.scores[b])
        score, iou = candidates.scores[own], overlaps.same_iou[own]
        if len(set(score[:50])) > 1 and len(set(iou[:50])) > 1:
            ranks = [stats.rankdata(values[:50]) for values in (score, iou)]
            pccs.append(stats.pearsonr(*ranks).statistic)
        if own:
            ious.append(iou[:10].mean())
    correct = redundant = error = 0
    detections = found.after
    for row in range(len(ground_truth.boxes)):
        own_ious = detections.overlaps.same_iou[detections.overlaps.same_object == row]
        fits = int((own_ious >= 0.5).sum())
        correct += fits > 0
        redundant += max(fits - 1, 0)
        error += int(((own_ious > 0.1) & (own_ious < 0.5)).sum())
    assert len(pccs) > 10
    assert min(correct, redundant, error) > 0
    expected = [np.mean(pccs), len(pccs), np.mean(ious), len(ious), correct, redundant, error]
    numbers = to_json(found)["task_alignment"]
    assert [numbers[name] for name in FIGURES] == pytest.approx(expected)


def test_the_figures_of_a_case_worked_by_hand() -> None:
    """Of each object two boxes whose order is right, and a third, less than half on it, that NMS leaves."""
    ground_truth = spread_objects(2, 3)
    ious, scores = np.tile([0.9, 0.6, 0.3], (6, 1)), np.tile([0.9, 0.7, 0.8], (6, 1))
    ious[0] = [0.9, 0.8, 0.05]  # nothing below 0.1 counts
    candidates = candidates_at(ground_truth, ious, scores)
    found = diagnose(ground_truth, candidates=candidates, replicates=2)
    numbers = to_json(found)["task_alignment"]
    # Ranks (3, 1, 2) of the scores and (3, 2, 1) of the IoUs: Pearson's r is 1 / 2; 1 for the first object.
    expected = [(1 + 5 * 0.5) / 6, 6, (0.85 + 5 * 0.6) / 6, 6, 6, 0, 5]
    assert [numbers[name] for name in FIGURES] == pytest.approx(expected)

    twice = diagnose(ground_truth, candidates[np.arange(18) % 3 < 2], replicates=2)  # as if without NMS
    numbers = to_json(twice)["task_alignment"]
    assert [numbers[name] for name in FIGURES] == [None, None, None, None, 6, 6, 0]
    for diagnosis in (found, twice):
        shown = tables([("it", to_json(diagnosis))])
        assert "0.452" in shown
        assert "30,734" in shown


def test_an_object_without_boxes_says_nothing() -> None:
    ground_truth = spread_objects(1, 2)
    candidates = candidates_at(ground_truth, np.array([[0.9], [0.05]]), np.array([[0.9], [0.8]]))
    numbers = to_json(diagnose(ground_truth, candidates=candidates, replicates=2))["task_alignment"]
    assert [numbers[name] for name in FIGURES] == [None, 0, pytest.approx(0.9), 1, 1, 0, 0]
