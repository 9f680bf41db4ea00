import math

import pytest
import torch
from torchvision.models.detection._utils import BoxCoder
from torchvision.ops import box_iou

from retinaconf.model.boxes import MAX_LOG_RATIO, decode, encode, iou


def random_boxes(n, seed=0, size=500.0):
    generator = torch.Generator().manual_seed(seed)
    corner = torch.rand(n, 2, generator=generator) * size
    return torch.cat([corner, corner + 10 + torch.rand(n, 2, generator=generator) * size], dim=1)


def test_torchvision_codes_boxes_alike():
    anchors, boxes = random_boxes(500, 1), random_boxes(500, 2)
    coder = BoxCoder(weights=(1.0, 1.0, 1.0, 1.0), bbox_xform_clip=MAX_LOG_RATIO)
    torch.testing.assert_close(encode(anchors, boxes), coder.encode_single(boxes, anchors), rtol=1e-5, atol=1e-5)
    deltas = torch.randn(500, 4, generator=torch.Generator().manual_seed(3))
    torch.testing.assert_close(decode(anchors, deltas), coder.decode_single(deltas, anchors), rtol=1e-5, atol=1e-3)


def test_decode_inverts_encode():
    anchors, boxes = random_boxes(500, 4).double(), random_boxes(500, 5).double()
    torch.testing.assert_close(decode(anchors, encode(anchors, boxes)), boxes)


def test_zero_delta_is_the_anchor_and_a_hand_worked_case():
    anchor = torch.tensor([[10.0, 20.0, 30.0, 60.0]])
    assert torch.equal(decode(anchor, torch.zeros(1, 4)), anchor)
    # Shift by half a width to the right, a quarter height up; twice as wide, half as high.
    moved = decode(anchor, torch.tensor([[0.5, -0.25, math.log(2), -math.log(2)]]))
    torch.testing.assert_close(moved, torch.tensor([[10.0, 20.0, 50.0, 40.0]]))


def test_growth_and_shrinkage_are_clamped():
    anchor = torch.tensor([[0.0, 0.0, 16.0, 16.0]])
    for sign in (1, -1):
        box = decode(anchor, torch.tensor([[0.0, 0.0, sign * 100.0, sign * 100.0]]))
        torch.testing.assert_close(box[0, 2] - box[0, 0], torch.tensor(16 * (1000 / 16) ** sign))


def test_pairwise_and_aligned_iou_against_torchvision():
    a, b = random_boxes(60, 6), random_boxes(60, 7)
    torch.testing.assert_close(iou(a[:, None], b), box_iou(a, b))
    torch.testing.assert_close(iou(a, b), box_iou(a, b).diagonal())


@pytest.mark.parametrize(
    ("a", "b", "expected"),
    [
        pytest.param([0, 0, 2, 2], [0, 0, 2, 2], 1.0, id="same"),
        pytest.param([0, 0, 2, 2], [1, 0, 3, 2], 1 / 3, id="half over"),
        pytest.param([0, 0, 2, 2], [2, 0, 4, 2], 0.0, id="touching"),
        pytest.param([0, 0, 2, 2], [5, 5, 6, 6], 0.0, id="apart in both directions"),
        pytest.param([1, 1, 1, 1], [1, 1, 1, 1], 0.0, id="no area"),
    ],
)
def test_iou_by_hand(a, b, expected):
    assert iou(torch.tensor(a).float(), torch.tensor(b).float()).item() == pytest.approx(expected)


def test_iou_gradient():
    a, b = random_boxes(5, 8).double().requires_grad_(), random_boxes(5, 8).double() + 3
    assert torch.autograd.gradcheck(lambda x: iou(x, b), (a,))
