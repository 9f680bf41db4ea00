"""Distances of a box's sides from the anchor's centre: there and back again."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from retinaconf.cell_anchors import CellAnchors
from retinaconf.model.anchors import anchor_boxes, level_shapes
from retinaconf.model.boxes import decode
from retinaconf.model.distances import BINS, SHORTEST, UNITS, deltas_of, distances_to, mean_distances

SQUARE = CellAnchors((1.0,), (8.0,))


@pytest.mark.parametrize("cell_anchors", [SQUARE, CellAnchors()], ids=["one", "nine"])
@given(seed=st.integers(0, 1000))
def test_from_a_box_to_distances_to_deltas_and_back(cell_anchors: CellAnchors, seed: int) -> None:
    """Wherever the box lies, its sides from a 50th of the anchor's to 10 times these."""
    generator = torch.Generator().manual_seed(seed)
    anchors = anchor_boxes(level_shapes(128, 160), torch.device("cpu"), cell_anchors)
    anchors = anchors[torch.randint(0, len(anchors), (20,), generator=generator)]
    size = (anchors[:, 2:] - anchors[:, :2]) * 10 ** (2.7 * torch.rand(20, 2, generator=generator) - 1.7)
    corner = anchors[:, :2] + 100 * torch.randn(20, 2, generator=generator)
    boxes = torch.cat([corner, corner + size], dim=1)
    found = decode(anchors, deltas_of(distances_to(anchors, boxes)))
    torch.testing.assert_close(found, boxes, rtol=1e-4, atol=1e-2)


def test_the_unit_of_one_square_anchor_is_the_stride() -> None:
    """As in FCOS and GFL: distances in strides of the level, from the cell's centre."""
    for stride in (8, 16, 128):
        side = SQUARE.sides(stride)[0][0]
        anchor = torch.tensor([100 - side / 2, 60 - side / 2, 100 + side / 2, 60 + side / 2])
        box = torch.tensor([100.0 - 2 * stride, 60 - stride, 100 + 3.5 * stride, 60 + 15 * stride])
        distances = torch.tensor([2.0, 1.0, 3.5, 15.0])
        torch.testing.assert_close(distances_to(anchor, box), distances)
        torch.testing.assert_close(decode(anchor, deltas_of(distances)), box)
    assert side == UNITS * stride


def test_sides_that_cross_have_the_shortest_size_and_a_finite_gradient() -> None:
    distances = torch.tensor([[2.0, 0.0, -2.0, 0.0], [0.0, 0.0, 0.0, 0.0], [1.0, 1.0, -3.0, 1.0]], requires_grad=True)
    deltas = deltas_of(distances)
    shortest = torch.tensor(SHORTEST / UNITS).log()
    torch.testing.assert_close(deltas[:, 2], shortest.expand(3))
    torch.testing.assert_close(deltas[:, 3], torch.stack([shortest, shortest, torch.tensor(2 / UNITS).log()]))
    torch.testing.assert_close(deltas[2, 0], torch.tensor(-4 / (2 * UNITS)))  # the middle of the sides, all the same
    deltas.sum().backward()
    assert distances.grad is not None
    assert torch.isfinite(distances.grad).all()


def test_mixed_precision_does_not_round_the_means() -> None:
    logits = 3 * torch.randn(2, 50, 4, BINS, generator=torch.Generator().manual_seed(0))
    with torch.autocast("cpu", torch.bfloat16):
        means = mean_distances(logits.softmax(-1))
    assert torch.equal(means, mean_distances(logits.softmax(-1)))
    torch.testing.assert_close(means, logits.softmax(dim=-1) @ torch.arange(float(BINS)))


def test_the_mean_of_a_distribution_by_hand() -> None:
    logits = torch.full((2, 4, BINS), -1e4)
    logits[0, :, 7] = 0
    logits[1, 0, 2:4] = 0
    logits[1, 1] = 0
    logits[1, 2, [0, BINS - 1]] = torch.tensor([0.0, 1.0986123])  # odds 1 to 3
    logits[1, 3, BINS - 1] = 1e4
    means = mean_distances(logits.bfloat16().float().softmax(-1))
    assert means.dtype == torch.float32
    torch.testing.assert_close(means[0], torch.full((4,), 7.0))
    torch.testing.assert_close(means[1], torch.tensor([2.5, 7.5, 11.25, 15.0]), atol=0.02, rtol=0)
