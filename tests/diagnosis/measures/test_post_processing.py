"""Soft-NMS and score voting against slow loops that follow their texts, and against the network's own."""

from __future__ import annotations

from dataclasses import replace
from math import exp

import numpy as np
import pytest
from planted import random_set, truth

from retinaconf.detections import Detections
from retinaconf.diagnosis.measures import post_processing
from retinaconf.diagnosis.measures.diagnose import diagnose
from retinaconf.diagnosis.measures.post_processing import PostProcessing, vote
from retinaconf.diagnosis.report.comparability import incomparable
from retinaconf.diagnosis.report.document import to_json
from retinaconf.evaluation.overlaps import iou


def slow_vote(box: np.ndarray, voters: Detections) -> np.ndarray:
    """Sum of p_i b_i / sum of p_i with p_i = s_i exp(-(1 - IoU(b, b_i))^2 / 0.025), over the IoU above 0."""
    top, bottom = np.zeros(4), 0.0
    for other, score in zip(voters.boxes, voters.scores):
        width = min(box[2], other[2]) - max(box[0], other[0])
        height = min(box[3], other[3]) - max(box[1], other[1])
        if width > 0 and height > 0:
            areas = sum((b[2] - b[0]) * (b[3] - b[1]) for b in (box, other))
            p = score * exp(-((1 - width * height / (areas - width * height)) ** 2) / 0.025)
            top, bottom = top + p * other, bottom + p
    return top / bottom if bottom else box


@pytest.mark.parametrize("limit", [2, 100])
@pytest.mark.parametrize("at_once", [7, 1 << 18])
def test_voting_is_the_loop_over_one_box_at_a_time(monkeypatch: pytest.MonkeyPatch, at_once: int, limit: int) -> None:
    monkeypatch.setattr("retinaconf.evaluation.overlaps.PAIRS_AT_ONCE", at_once)
    monkeypatch.setattr("retinaconf.diagnosis.measures.nms.BOXES_AT_ONCE", at_once)
    moved = 0
    for seed in range(3):
        _, candidates = random_set(np.random.default_rng(seed))
        candidates.boxes[::13, 2] = candidates.boxes[::13, 0]  # without width
        plain = PostProcessing(score_threshold=0.2, nms_iou=0.4, max_detections=limit)
        before, after = plain(candidates), replace(plain, vote=True)(candidates)
        for name in ("image_index", "labels", "scores"):
            assert np.array_equal(getattr(after, name), getattr(before, name))
        above = candidates[candidates.scores > 0.2]
        for row, box in enumerate(before.boxes):
            same = (above.image_index == before.image_index[row]) & (above.labels == before.labels[row])
            assert after.boxes[row] == pytest.approx(slow_vote(box, above[same]), abs=1e-9)
        moved += int((np.abs(after.boxes - before.boxes).max(1) > 1).sum())
    assert moved > 10
    nothing = candidates[candidates.scores > 2]
    assert len(PostProcessing(vote=True)(nothing)) == 0


def test_a_box_alone_stays_to_the_bit() -> None:
    boxes = np.array([[0.1, 0.2, 77.7, 33.3], [5.0, 5.0, 5.0, 9.0]])
    alone = Detections(np.zeros(2, int), np.array([0, 1]), boxes, np.array([0.3, 0.0]))
    assert np.array_equal(post_processing.vote(alone, alone).boxes, boxes)


def test_voting_is_that_of_a_run() -> None:
    torch = pytest.importorskip("torch")
    from retinaconf.inference.suppression import Boxes, voted

    _, candidates = random_set(np.random.default_rng(0))
    detections = PostProcessing(nms_iou=0.4)(candidates)

    def of_image(table: Detections, image: int) -> Boxes:
        part = table.of_image(image)
        scores = torch.from_numpy(part.scores)
        return Boxes(torch.from_numpy(part.boxes), scores, torch.from_numpy(part.labels), scores, None)

    expected = voted(*([of_image(table, image) for image in range(12)] for table in (detections, candidates)))
    boxes = torch.cat([kept.boxes for kept in expected])
    assert vote(detections, candidates).boxes == pytest.approx(boxes.numpy(), abs=1e-9)


@pytest.mark.parametrize("at_once", [7, 1 << 18])
def test_soft_nms_is_the_loop_over_pairs(monkeypatch: pytest.MonkeyPatch, at_once: int) -> None:
    monkeypatch.setattr("retinaconf.evaluation.overlaps.PAIRS_AT_ONCE", at_once)
    fallen = gone = 0
    for seed in range(3):
        _, candidates = random_set(np.random.default_rng(seed))
        candidates.boxes[::13, 2] = candidates.boxes[::13, 0]  # without width
        candidates.scores[:] = candidates.scores.round(1)  # ties
        plain = PostProcessing(score_threshold=0.2, nms_iou=0.75)
        before, after = plain(candidates), replace(plain, soft_nms=True)(candidates)
        scores = before.scores.copy()
        for row in range(len(before)):
            for better in range(len(before)):
                first = (-before.scores[better], better) < (-before.scores[row], row)
                same = before.image_index[better] == before.image_index[row]
                if first and same and before.labels[better] == before.labels[row]:
                    overlap = iou(before.boxes[[better]], before.boxes[[row]])[0]
                    scores[row] *= exp(-(overlap**2) / 0.7)
        left = scores > 0.2
        for name in ("image_index", "labels", "boxes"):
            assert np.array_equal(getattr(after, name), getattr(before, name)[left])
        assert after.scores == pytest.approx(scores[left])
        fallen += int((scores < before.scores - 0.01).sum())
        gone += int((~left).sum())
    assert fallen > 20
    assert gone > 5
    assert len(PostProcessing(soft_nms=True)(candidates[candidates.scores > 2])) == 0


def test_soft_nms_is_that_of_a_run() -> None:
    torch = pytest.importorskip("torch")
    from retinaconf.inference.suppression import Boxes, softened

    _, candidates = random_set(np.random.default_rng(0))
    process = PostProcessing(score_threshold=0.2, nms_iou=0.75)
    kept, found = process(candidates), replace(process, soft_nms=True)(candidates)
    for image in range(12):
        part, expected = kept.of_image(image), found.of_image(image)
        order = np.argsort(-part.scores, kind="stable")
        columns = [torch.from_numpy(column[order]) for column in (part.boxes, part.scores, part.labels, part.scores)]
        (ours,) = softened([Boxes(*columns, None)], 0.2)
        again = np.argsort(-expected.scores, kind="stable")
        assert expected.scores[again] == pytest.approx(ours.scores.numpy())
        assert np.array_equal(expected.boxes[again], ours.boxes.numpy())


def test_soft_nms_as_a_remedy() -> None:
    """Two objects with IoU 0.6 and an exact box on each: NMS at 0.5 removes one, Soft-NMS keeps it."""
    one, other = [0.0, 0.0, 100.0, 100.0], [25.0, 0.0, 125.0, 100.0]
    ground_truth = truth([[one, other]] * 60)
    boxes = np.array([one, other] * 60)
    candidates = Detections(np.repeat(np.arange(60), 2), np.zeros(120, int), boxes, np.tile([0.9, 0.8], 60))
    process = PostProcessing(nms_iou=0.5)
    found = diagnose(ground_truth, candidates=candidates, post_processing=process, replicates=20)
    gain = found.remedies.soft_nms
    assert gain is not None
    assert (gain.before, gain.after) == pytest.approx((51 / 101, 1))  # of 101 recalls
    document = to_json(found)
    assert document["remedies"]["soft_nms"]["gain"] == pytest.approx(50 / 101)
    assert any(line.startswith("Use Soft-NMS: NMS at IoU 0.75") for line in document["advice"])
    changed = replace(process, nms_iou=0.75, soft_nms=True)
    soft = diagnose(ground_truth, candidates=candidates, post_processing=changed, replicates=20)
    assert soft.metrics.overall["AP"] == pytest.approx(1)
    assert soft.remedies.soft_nms is None
    assert any("(Soft-NMS)" in note for note in soft.notes)
    assert "with Soft-NMS" in " ".join(incomparable(found, soft))
    assert not any("Soft-NMS" in line for line in to_json(soft)["advice"])
    assert diagnose(ground_truth, found.after.boxes, replicates=20).remedies.soft_nms is None


def test_voting_as_a_remedy() -> None:
    """The best-scored candidate is 8 pixels to the right, four others are exact: the mean fits better."""
    box = [0.0, 0.0, 100.0, 100.0]
    ground_truth = truth([[box]] * 40)
    boxes = np.array([[8.0, 0.0, 108.0, 100.0], box, box, box, box] * 40)
    scores = np.tile([0.6, 0.5, 0.5, 0.5, 0.5], 40)
    candidates = Detections(np.repeat(np.arange(40), 5), np.zeros(200, int), boxes, scores)
    process = PostProcessing(nms_iou=0.4)
    found = diagnose(ground_truth, candidates=candidates, post_processing=process, replicates=20)
    gain = found.remedies.voting
    assert gain is not None
    shift = 8 * 0.6 / (0.6 + 4 * 0.5 * exp(-((1 - 92 / 108) ** 2) / 0.025))
    assert 0.85 < 92 / 108 < 0.9 < (100 - shift) / (100 + shift) < 0.95
    assert (gain.before, gain.after) == pytest.approx((0.8, 0.9))  # of ten IoUs
    assert gain.interval == pytest.approx((0.1, 0.1))
    assert to_json(found)["remedies"]["voting"]["gain"] == pytest.approx(0.1)
    voting = diagnose(ground_truth, candidates=candidates, post_processing=replace(process, vote=True), replicates=20)
    assert voting.metrics.overall["AP"] == pytest.approx(0.9)
    assert voting.remedies.voting is None
    assert any("votes after NMS" in note for note in voting.notes)
    assert diagnose(ground_truth, found.after.boxes, replicates=20).remedies.voting is None
