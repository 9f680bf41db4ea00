"""NMS, Soft-NMS and score voting of one image's boxes, against hand-worked numbers and slow loops."""

import math

import pytest
import torch
from torchvision.ops import batched_nms

from retinaconf.inference.suppression import BLOCK, Boxes, best_first, soft_nms, softened, suppressed, vote, voted


def test_voting_worked_by_hand():
    box, other = [0.0, 0.0, 10.0, 10.0], [0.0, 0.0, 10.0, 8.0]  # IoU 0.8
    weight = 0.6 * math.exp(-(0.2**2) / 0.025) / 0.9
    both = vote(torch.tensor([box]), torch.tensor([box, other, [20.0, 0.0, 30.0, 10.0]]), torch.tensor([0.9, 0.6, 0.9]))
    torch.testing.assert_close(both, torch.tensor([[0, 0, 10, (10 + weight * 8) / (1 + weight)]]))
    # Ties: the mean is between two boxes of equal score, wherever each stands.
    tied = vote(torch.tensor([box, other]), torch.tensor([other, box]), torch.tensor([0.5, 0.5]))
    same = math.exp(-(0.2**2) / 0.025)
    torch.testing.assert_close(tied[:, 3], torch.tensor([(10 + same * 8) / (1 + same), (8 + same * 10) / (1 + same)]))
    alone = torch.tensor([[0.1, 0.2, 77.7, 33.3], [5.0, 5.0, 5.0, 9.0]])  # the second without area
    assert torch.equal(vote(alone, alone, torch.tensor([0.051, 0.9])), alone)
    assert vote(alone[:0], alone[:0], torch.zeros(0)).shape == (0, 4)


def test_soft_nms_worked_by_hand():
    """Two of a class with IoU 0.5 and one of another class at the same place; then ties, none, and no area."""
    box, half = [0.0, 0.0, 10.0, 10.0], [0.0, 0.0, 10.0, 5.0]
    boxes, scores, labels = torch.tensor([box, half, box]), torch.tensor([0.8, 0.8, 0.6]), torch.tensor([0, 0, 1])
    left = math.exp(-(0.5**2) / 0.7)
    torch.testing.assert_close(soft_nms(boxes, scores, labels), torch.tensor([0.8, 0.8 * left, 0.6]))
    (kept,) = softened([Boxes(boxes, scores, labels, scores, scores)], 0.0)
    torch.testing.assert_close(kept.scores, torch.tensor([0.8, 0.6, 0.8 * left]))
    assert kept.labels.tolist() == [0, 1, 0]
    torch.testing.assert_close(kept.class_scores, torch.tensor([0.8, 0.6, 0.8]))  # these stay
    (kept,) = softened([Boxes(boxes, scores, labels, scores, None)], 0.6)
    assert kept.labels.tolist() == [0]  # not above 0.6
    none = torch.zeros(0, 4)
    (kept,) = softened([Boxes(none, none[:, 0], none[:, 0].long(), none[:, 0], None)], 0.0)
    assert len(kept.scores) == 0
    empty = torch.tensor([[5.0, 5.0, 5.0, 9.0]] * 2)
    assert soft_nms(empty, torch.tensor([0.9, 0.8]), torch.zeros(2)).tolist() == [
        pytest.approx(0.9),
        pytest.approx(0.8),
    ]
    together = soft_nms(torch.stack([boxes, boxes]), torch.stack([scores, scores]), torch.stack([labels, labels]))
    assert torch.equal(together[1], soft_nms(boxes, scores, labels))


@pytest.mark.parametrize("sizes", [[], [1], [BLOCK - 1, 0, BLOCK, BLOCK + 1, 1], [3 * BLOCK], list(range(40))])
def test_all_classes_vote_at_once_as_one_by_one(sizes):
    """`sizes`: candidates of each class."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(len(sizes)).repeat_interleave(torch.tensor(sizes, dtype=torch.int64))
    labels = labels[torch.randperm(len(labels), generator=generator)]
    corners = torch.rand(len(labels), 2, generator=generator) * 50
    boxes = torch.cat([corners, corners + torch.rand(len(labels), 2, generator=generator) * 60], dim=1)
    scores = torch.rand(len(labels), generator=generator).sort(descending=True).values
    candidates = Boxes(boxes, scores, labels, scores, None)
    kept = candidates.rows(suppressed(candidates, 0.5, 100))
    expected = kept.boxes.clone()
    for label in labels.unique():
        rows, of_class = kept.labels == label, labels == label
        expected[rows] = vote(kept.boxes[rows], boxes[of_class], scores[of_class])
    (found,) = voted([kept], [candidates])
    torch.testing.assert_close(found.boxes, expected, rtol=0, atol=1e-4)
    assert len(sizes) < 3 or (found.boxes - kept.boxes).abs().amax() > 0.1
    assert torch.equal(found.scores, kept.scores)


@pytest.mark.parametrize("counts", [[0], [0, 0], [300], [300, 0, 7, 40, 1]])
@pytest.mark.parametrize("classes", [1, 4])
def test_the_images_of_a_batch_do_not_meet(counts, classes, monkeypatch):
    """They lie on top of each other, and come out as each alone. `counts`: candidates of each image."""
    monkeypatch.setattr("retinaconf.inference.suppression.BLOCKS_AT_ONCE", 5)
    generator = torch.Generator().manual_seed(0)
    candidates = []
    for count in counts:
        corners = torch.rand(count, 2, generator=generator) * 50
        boxes = torch.cat([corners, corners + 20 + torch.rand(count, 2, generator=generator) * 60], dim=1)
        scores = torch.rand(count, generator=generator).sort(descending=True).values
        labels = torch.randint(0, classes, (count,), generator=generator)
        candidates.append(Boxes(boxes, scores, labels, scores, scores))
    images = [found.rows(suppressed(found, 0.7, 30)) for found in candidates]
    together = voted(softened(images, 0.3), [found.rows(found.scores > 0) for found in candidates])
    for image, found, kept in zip(images, candidates, together, strict=True):
        (alone,) = softened([image], 0.3)
        moved = alone.boxes.clone()
        for row, label in enumerate(alone.labels):
            of_class = found.labels == label
            moved[row] = vote(alone.boxes[[row]], found.boxes[of_class], found.scores[of_class])[0]
        torch.testing.assert_close(kept.boxes, moved, rtol=0, atol=1e-4)
        for one, other in zip(kept[1:], alone[1:]):
            torch.testing.assert_close(one, other)
    assert sum(counts) < 2 or any(len(kept.scores) < len(image.scores) for image, kept in zip(images, together))


@pytest.mark.parametrize("levels", [3, 40, 10**6])  # of the score: ties decide what the best boxes are, or not
@pytest.mark.parametrize("count", [0, 1, 7, 1200, 5000])
@pytest.mark.parametrize("limit", [1, 20, 100])
def test_suppression_from_the_best_on_is_the_whole_suppression(count, limit, levels):
    generator = torch.Generator().manual_seed(count)
    corner = torch.rand(count, 2, generator=generator) * 60  # crowded: most are suppressed
    boxes = torch.cat([corner, corner + 30 + torch.rand(count, 2, generator=generator) * 40], dim=1)
    labels = torch.randint(0, 3, (count,), generator=generator)
    scores = torch.randint(1, levels + 1, (count,), generator=generator) / levels
    order = torch.tensor(sorted(range(count), key=lambda row: -scores[row].item()), dtype=torch.int64)
    rank = torch.arange(count, 0, -1).double()
    expected = order[batched_nms(boxes[order].double(), rank, labels[order], 0.5)][:limit]
    assert torch.equal(suppressed(Boxes(boxes, scores, labels, scores, None), 0.5, limit), expected)
    assert torch.equal(best_first(scores, limit), order[:limit])
