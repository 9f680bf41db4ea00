"""The localization losses against loops and torchvision, and where their minima lie."""

from __future__ import annotations

import math
from typing import get_args

import pytest
import torch
from torch import Tensor
from torchvision.ops import generalized_box_iou

from retinaconf.config import LossConfig
from retinaconf.model.boxes import decode, encode
from retinaconf.model.distances import BINS, deltas_of, mean_distances
from retinaconf.model.retinanet import Outputs
from retinaconf.training.box_loss import BOX_LOSSES, distribution_focal_loss

P = 12


def a_case(seed: int = 0) -> tuple[Outputs, Tensor, Tensor, Tensor]:
    """Positives of two images, their anchors 64 pixels wide, and objects of 4 to 300 pixels near them."""
    generator = torch.Generator().manual_seed(seed)
    corner = torch.rand(P, 2, generator=generator) * 200
    anchors = torch.cat([corner, corner + 64], dim=1)
    middle = corner + 32 + 8 * torch.randn(P, 2, generator=generator)
    half = torch.logspace(math.log10(2), math.log10(150), P)[:, None] * torch.tensor([1.0, 0.8])
    objects = torch.cat([middle - half, middle + half], dim=1)
    deltas = encode(anchors, objects) + 0.3 * torch.randn(2, P, 4, generator=generator)
    outputs = Outputs(torch.zeros(2, P, 1), deltas.requires_grad_(), None, anchors, (P,))
    return outputs, torch.arange(P) % 2, torch.arange(P), objects


def test_the_setting_names_every_loss() -> None:
    assert tuple(BOX_LOSSES) == get_args(LossConfig.model_fields["box"].annotation)


def test_giou_is_torchvisions_and_its_gradient_that_of_the_decoded_boxes() -> None:
    outputs, image, anchor, objects = a_case()
    losses = BOX_LOSSES["giou"](outputs, image, anchor, objects)
    assert losses.shape == (P, 1)
    boxes = decode(outputs.anchors, outputs.box_deltas[image, anchor])
    torch.testing.assert_close(losses[:, 0], 1 - generalized_box_iou(boxes, objects).diagonal())
    assert losses.min() > 0
    (gradient,) = torch.autograd.grad(losses.sum(), outputs.box_deltas)
    for n, a, side in ((0, 4, 0), (1, 5, 1), (0, 6, 2), (1, 7, 3)):  # central differences in float64

        def at(step: float, n: int = n, a: int = a, side: int = side) -> float:
            deltas = outputs.box_deltas[n, a].detach().double()
            deltas[side] += step
            box = decode(outputs.anchors[a].double(), deltas)
            return 1 - generalized_box_iou(box[None], objects[a].double()[None]).item()

        assert gradient[n, a, side].item() == pytest.approx((at(1e-5) - at(-1e-5)) / 2e-5, rel=1e-4, abs=1e-6)
    assert not gradient[1 - image, anchor].any()  # of the other image's anchors


def test_giou_of_disjoint_boxes_pulls_them_together() -> None:
    outputs = Outputs(
        torch.zeros(1, 1, 1),
        torch.zeros(1, 1, 4, requires_grad=True),
        None,
        torch.tensor([[0.0, 0.0, 10.0, 10.0]]),
        (1,),
    )
    losses = BOX_LOSSES["giou"](outputs, torch.tensor([0]), torch.tensor([0]), torch.tensor([[40.0, 0.0, 50.0, 10.0]]))
    assert losses.item() == pytest.approx(1 + 30 / 50)  # of the hull, 50 x 10, the gap is 30 x 10
    losses.sum().backward()
    assert outputs.box_deltas.grad is not None
    assert outputs.box_deltas.grad[0, 0, 0] < 0  # to the right


@pytest.mark.parametrize("kind", BOX_LOSSES)
def test_no_positives(kind: str) -> None:
    outputs, image, anchor, objects = a_case()
    losses = BOX_LOSSES[kind](outputs, image[:0], anchor[:0], objects[:0])
    losses.sum().backward()
    assert len(losses) == 0
    assert outputs.box_deltas.grad is not None
    assert not outputs.box_deltas.grad.any()


def slow_distribution_focal_loss(box_logits: Tensor, anchors: Tensor, objects: Tensor) -> list[float]:
    """Equation (6) of Generalized Focal Loss, a side at a time; units of an eighth of the anchor's side."""
    losses = []
    for logits, anchor, box in zip(box_logits.double(), anchors.tolist(), objects.tolist()):
        x, y = (anchor[0] + anchor[2]) / 2, (anchor[1] + anchor[3]) / 2
        width, height = (anchor[2] - anchor[0]) / 8, (anchor[3] - anchor[1]) / 8
        sides = [(x - box[0]) / width, (y - box[1]) / height, (box[2] - x) / width, (box[3] - y) / height]
        total = 0.0
        for side, distance in zip(logits, sides):
            distance = min(max(distance, 0.0), BINS - 1.0)
            log_p = (side - side.logsumexp(0)).tolist()
            i = min(int(distance), BINS - 2)
            total -= (i + 1 - distance) * log_p[i] + (distance - i) * log_p[i + 1]
        losses.append(total / 4)
    return losses


def test_distribution_focal_loss_against_a_loop() -> None:
    outputs, _, _, objects = a_case()  # some sides lie behind the centre, some beyond the last bin
    box_logits = 3 * torch.randn(P, 4, BINS, generator=torch.Generator().manual_seed(1))
    losses = distribution_focal_loss(box_logits, outputs.anchors, objects)
    assert losses.shape == (P, 1)
    expected = slow_distribution_focal_loss(box_logits, outputs.anchors, objects)
    torch.testing.assert_close(losses[:, 0], torch.tensor(expected))
    half = distribution_focal_loss(box_logits.bfloat16(), outputs.anchors, objects)
    assert half.dtype == torch.float32
    whole = distribution_focal_loss(box_logits.bfloat16().float(), outputs.anchors, objects)
    torch.testing.assert_close(half, whole)


def test_at_its_minimum_the_distribution_means_the_true_distance() -> None:
    """Two bins share it by their nearness, and decoding gives the object back."""
    anchors = torch.tensor([[0.0, 0.0, 64.0, 64.0]]).expand(3, 4)
    objects = torch.tensor(
        [
            [3.0, 10.0, 60.0, 55.0],
            [0.0, 8.0, 40.0, 56.0],  # whole numbers of 8 pixels
            [-88.0, -80.5, 152.0, 150.0],  # the longest distance, 15 units, among them
        ]
    )
    logits = torch.zeros(3, 4, BINS, requires_grad=True)
    optimizer = torch.optim.Adam([logits], lr=0.3)
    for _ in range(400):
        optimizer.zero_grad()
        distribution_focal_loss(logits, anchors, objects).sum().backward()
        optimizer.step()
    found = decode(anchors, deltas_of(mean_distances(logits.detach().softmax(-1))))
    torch.testing.assert_close(found, objects, atol=0.1, rtol=0)
    distance = (32 - 3) / 8  # of the first object's left side
    p = logits.detach()[0, 0].softmax(0)
    assert p[3].item() == pytest.approx(4 - distance, abs=0.01)
    assert p[4].item() == pytest.approx(distance - 3, abs=0.01)


def test_sides_beyond_the_last_bin_and_behind_the_centre_have_the_outermost_bins() -> None:
    anchors = torch.tensor([[0.0, 0.0, 64.0, 64.0]])
    objects = torch.tensor([[-1000.0, 40.0, 1000.0, 60.0]])  # left, right: 129 and 121 units; top: -1
    logits = torch.zeros(1, 4, BINS, requires_grad=True)
    loss = distribution_focal_loss(logits, anchors, objects)
    assert loss.item() == pytest.approx(math.log(BINS))
    loss.sum().backward()
    assert logits.grad is not None
    wanted = (logits.grad < 0).int().argmax(dim=2)[0]
    assert wanted.tolist() == [BINS - 1, 0, BINS - 1, 3]  # the lower side is at 3.5 units, between 3 and 4
    assert torch.isfinite(logits.grad).all()


@pytest.mark.parametrize("size", [1e4, -1e4])
def test_extreme_logits_stay_finite(size: float) -> None:
    anchors, objects = torch.tensor([[0.0, 0.0, 64.0, 64.0]]), torch.tensor([[10.0, 10.0, 50.0, 50.0]])
    logits = torch.zeros(1, 4, BINS)
    logits[..., 9] = size
    logits.requires_grad_()
    loss = distribution_focal_loss(logits, anchors, objects).sum() + deltas_of(mean_distances(logits.softmax(-1))).sum()
    loss.backward()
    assert torch.isfinite(loss)
    assert logits.grad is not None
    assert torch.isfinite(logits.grad).all()
