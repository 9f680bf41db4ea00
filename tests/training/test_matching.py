import pytest
import torch
from torchvision.models.detection._utils import Matcher
from torchvision.ops import box_iou

from retinaconf.cell_anchors import CellAnchors
from retinaconf.model.anchors import anchor_boxes, level_shapes
from retinaconf.training.matching import IGNORED, NEGATIVE, match

ANCHORS = anchor_boxes(level_shapes(128, 160), torch.device("cpu"), CellAnchors())


def ground_truth(counts, seed=0, width=160, height=128):
    """Boxes (N, G, 4) and labels (N, G), padded."""
    generator = torch.Generator().manual_seed(seed)
    boxes = torch.zeros(len(counts), max(counts), 4)
    labels = torch.full((len(counts), max(counts)), -1)
    for n, count in enumerate(counts):
        corner = torch.rand(count, 2, generator=generator) * torch.tensor([width, height]) * 0.8
        side = 5 + torch.rand(count, 2, generator=generator) * 90
        boxes[n, :count] = torch.cat([corner, corner + side], dim=1)
        labels[n, :count] = torch.randint(0, 4, (count,), generator=generator)
    return boxes, labels


def slow_match(anchors, boxes, labels):
    """The rules, one anchor and one object at a time."""
    overlaps = box_iou(anchors, boxes)
    result, owner = [], []
    for row in overlaps.tolist():
        best = max(row, default=0.0)
        if best >= 0.5:
            owner.append(row.index(best))
            result.append(int(labels[owner[-1]]))
        else:
            owner.append(0)
            result.append(NEGATIVE if best < 0.4 else IGNORED)
    for g in range(len(boxes)):
        best = overlaps[:, g].max()
        for a in range(len(anchors)):
            if best > 0 and overlaps[a, g] == best:
                owner[a], result[a] = g, int(labels[g])
    return torch.tensor(result), torch.tensor(owner)


@pytest.mark.parametrize("at_once", [2, 100])
@pytest.mark.parametrize("seed", range(4))
@pytest.mark.ci
def test_against_the_rules_written_as_loops(seed, at_once, monkeypatch):
    monkeypatch.setattr("retinaconf.training.matching.OBJECTS_AT_ONCE", at_once)
    boxes, labels = ground_truth([7, 1, 3, 0], seed)
    found = match(ANCHORS, boxes, labels)
    expected_objects = []
    for n in range(4):
        real = labels[n] >= 0
        expected, owner = slow_match(ANCHORS, boxes[n, real], labels[n, real])
        assert torch.equal(found.labels[n], expected)
        assert torch.equal(found.boxes[n], owner)
        expected_objects += [boxes[n, owner[a]] for a in range(len(ANCHORS)) if expected[a] >= 0]
    assert found.positives == len(expected_objects) > 0
    assert torch.equal(found.objects(boxes), torch.stack(expected_objects))


@pytest.mark.parametrize("seed", range(4))
def test_torchvision_matches_alike_but_for_the_owner_of_low_quality_matches(seed):
    boxes, labels = ground_truth([9], seed)
    found = match(ANCHORS, boxes, labels)
    overlaps = box_iou(boxes[0], ANCHORS)
    theirs = Matcher(0.5, 0.4, allow_low_quality_matches=True)(overlaps)
    assert torch.equal(found.labels[0] >= 0, theirs >= 0)
    assert torch.equal(found.labels[0] == NEGATIVE, theirs == Matcher.BELOW_LOW_THRESHOLD)
    assert torch.equal(found.labels[0] == IGNORED, theirs == Matcher.BETWEEN_THRESHOLDS)
    plain = Matcher(0.5, 0.4, allow_low_quality_matches=False)(overlaps)
    best_of_object = (overlaps == overlaps.amax(1, keepdim=True)).any(0)
    agreed = (plain >= 0) & ~best_of_object
    assert torch.equal(found.boxes[0][agreed], theirs[agreed])


def test_low_quality_match_belongs_to_the_object_that_claims_it():
    anchors = torch.tensor([[0.0, 0.0, 10.0, 10.0], [100.0, 100.0, 110.0, 110.0]])
    # The anchor's own best is the first object (IoU 0.6); the second's only overlap is with the same anchor.
    boxes = torch.tensor([[[0.0, 0.0, 10.0, 6.0], [0.0, 8.0, 10.0, 12.0]]])
    found = match(anchors, boxes, torch.tensor([[0, 1]]))
    assert found.labels.tolist() == [[1, NEGATIVE]]
    assert found.boxes.tolist() == [[1, 0]]


def test_all_ties_for_the_best_are_kept():
    anchors = torch.tensor([[0.0, 0.0, 10.0, 10.0], [20.0, 0.0, 30.0, 10.0], [200.0, 0.0, 210.0, 10.0]])
    boxes = torch.tensor([[[5.0, 0.0, 25.0, 10.0]]])  # overlaps both by a quarter... equally
    found = match(anchors, boxes, torch.tensor([[3]]))
    assert found.labels.tolist() == [[3, 3, NEGATIVE]]


def test_object_that_no_anchor_touches_claims_none():
    found = match(ANCHORS, torch.tensor([[[5000.0, 5000.0, 5010.0, 5010.0]]]), torch.tensor([[0]]))
    assert (found.labels == NEGATIVE).all()


@pytest.mark.parametrize(("n", "g"), [(1, 0), (3, 0), (2, 5)])
def test_images_without_boxes_are_all_negative(n, g):
    found = match(ANCHORS, torch.zeros(n, g, 4), torch.full((n, g), -1))
    assert (found.labels == NEGATIVE).all()
    assert (found.boxes == 0).all()


def test_thresholds_are_inclusive_above_and_exclusive_below():
    anchors = torch.tensor(
        [[0.0, 0.0, 10.0, 5.0], [0.0, 0.0, 10.0, 4.0], [0.0, 0.0, 10.0, 3.9], [0.0, 0.0, 10.0, 10.0]]
    )
    found = match(anchors, torch.tensor([[[0.0, 0.0, 10.0, 10.0]]]), torch.tensor([[2]]))
    assert found.labels.tolist() == [[2, IGNORED, NEGATIVE, 2]]
