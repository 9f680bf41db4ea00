"""The comparison of an exported file with torch: what it lets pass, and what it must not."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from retinaconf.config import InferenceConfig
from retinaconf.errors import InputError
from retinaconf.inference.suppression import Boxes, softened, suppressed, voted
from retinaconf.interop.agreement import differences_from_nms

OUT = Path("model.onnx")
THRESHOLD, NMS_IOU, LIMIT = 0.2, 0.5, 30


def candidates(seed: int = 0, count: int = 300) -> Boxes:
    generator = torch.Generator().manual_seed(seed)
    corner = torch.rand(count, 2, generator=generator) * 100
    size = torch.rand(count, 2, generator=generator) * 60 + 5
    scores = torch.rand(count, generator=generator).sort(descending=True).values
    labels = torch.randint(0, 3, (count,), generator=generator)
    return Boxes(torch.cat([corner, corner + size], 1), scores, labels, scores**2, scores.sqrt())


def survivors(known: Boxes, limit: int = LIMIT, nms_iou: float = NMS_IOU) -> Boxes:
    above = known.rows(known.scores > THRESHOLD)
    return above.rows(suppressed(above, nms_iou, limit))


def compare(
    found: Boxes, known: Boxes, limit: int = LIMIT, vote: bool = False, soft: bool = False
) -> tuple[float, float]:
    config = InferenceConfig(nms_iou=NMS_IOU, detections=limit, vote=vote, soft_nms=soft)
    return differences_from_nms(found, known, THRESHOLD, config, OUT)


@pytest.mark.parametrize("limit", [LIMIT, 1000])  # cut, and not
@pytest.mark.parametrize("vote", [False, True])
@pytest.mark.parametrize("soft", [False, True])
def test_what_nms_gives_passes(limit: int, vote: bool, soft: bool) -> None:
    for seed in range(10):
        known = candidates(seed)
        found = survivors(known, limit)
        if soft:
            (found,) = softened([found], THRESHOLD)
        if vote:
            (found,) = voted([found], [known.rows(known.scores > THRESHOLD)])
        pixels, score = compare(found, known, limit, vote, soft)
        assert (pixels, score) == (pytest.approx(0, abs=1e-4 * vote), pytest.approx(0, abs=1e-6 * soft))


def test_a_vote_that_is_missing_or_of_others_does_not_pass() -> None:
    known = candidates()
    found, voters = survivors(known), known.rows(known.scores > THRESHOLD)
    with pytest.raises(InputError, match="by up to"):
        compare(found, known, vote=True)
    with pytest.raises(InputError, match="by up to"):
        compare(*voted([found], [voters._replace(labels=voters.labels.roll(1))]), known, vote=True)
    (moved,) = voted([found], [voters])
    with pytest.raises(InputError, match="by up to"):
        compare(moved, known)
    with pytest.raises(InputError, match="missing"):
        compare(moved.rows(torch.arange(1, LIMIT)), known, vote=True)


@pytest.mark.parametrize("limit", [LIMIT, 1000])
def test_wrong_scores_of_soft_nms_do_not_pass(limit: int) -> None:
    for seed in range(10):
        known = candidates(seed)
        kept = survivors(known, limit)
        (right,) = softened([kept], THRESHOLD)
        for scores in (right.scores * 1.01, right.scores * 0.99, right.scores.flip(0)):
            with pytest.raises(InputError, match="in score"):
                compare(right._replace(scores=scores), known, limit, soft=True)
        with pytest.raises(InputError, match="in score"):  # as NMS ranks them
            compare(kept, known, limit, soft=True)
        with pytest.raises(InputError, match="missing"):
            compare(right.rows(torch.arange(1, len(right.scores))), known, limit, soft=True)


def test_the_largest_difference_is_reported() -> None:
    known = candidates()
    found = survivors(known)
    boxes, scores = found.boxes.clone(), found.scores.clone()
    boxes[3, 1] += 0.015625
    scores[5] -= 2**-14
    pixels, score = compare(found._replace(boxes=boxes, scores=scores), known)
    assert pixels == pytest.approx(0.015625, abs=1e-5)
    assert score == pytest.approx(2**-14, rel=1e-3)


def test_near_ties_may_fall_either_way() -> None:
    """Two boxes that overlap, with scores a rounding apart: either survives. Two at the cut: either is in."""
    boxes = torch.tensor([[0.0, 0, 10, 10], [0, 0, 10, 9], [50, 50, 60, 60], [80, 80, 90, 90]])
    scores = torch.tensor([0.9, 0.9 - 1e-6, 0.5, 0.5 - 1e-6])
    known = Boxes(boxes, scores, torch.zeros(4, dtype=torch.int64), scores, None)
    for first in (0, 1):
        for second in (2, 3):
            compare(known.rows(torch.tensor([first, second])), known, limit=2)
    with pytest.raises(InputError, match="missing"):
        compare(known.rows(torch.tensor([0, 2])), known, limit=3)  # then the last has its place


def test_what_is_wrong_does_not_pass() -> None:
    known = candidates()
    found = survivors(known)
    everything = torch.arange(len(found.scores))
    wrong = {
        "overlap": known.rows(torch.arange(LIMIT)),  # no NMS
        "missing": found.rows(everything[1:]),  # the best one left out
        "missing|overlap": survivors(known, nms_iou=0.3),
        "by up to 1 pixels": found._replace(boxes=found.boxes + 1),
        "in score": found._replace(scores=found.scores * 1.01),
        "by up to nan": found._replace(boxes=found.boxes * torch.nan),
        "class": found._replace(labels=found.labels + 3),
        "missing ": found.rows(everything[:0]),  # nothing at all
    }
    for words, detections in wrong.items():
        with pytest.raises(InputError, match=words.strip()):
            compare(detections, known)
    assert found.quality is not None
    with pytest.raises(InputError, match="in score"):
        compare(found._replace(quality=found.quality.flip(0)), known)


def test_nothing_found_where_there_is_nothing() -> None:
    none = candidates().rows(torch.arange(0))
    assert compare(none, none) == (0, 0)
