import math

import pytest
import torch
from torchvision.models.detection.retinanet import RetinaNetHead

from retinaconf.model.distances import deltas_of, mean_distances
from retinaconf.model.head import PRIOR, Head

SHAPES = [(8, 12), (4, 6), (2, 3), (1, 2), (1, 1)]


def levels(channels=32, n=2):
    torch.manual_seed(1)
    return [torch.randn(n, channels, *shape) for shape in SHAPES]


def test_torchvision_head_with_the_same_weights_gives_the_same():
    torch.manual_seed(0)
    ours, theirs = Head(32, 5, 9, convs=4), RetinaNetHead(32, 9, 5)
    towers = [
        (ours.classification_tower, theirs.classification_head),
        (ours.localization_tower, theirs.regression_head),
    ]
    for tower, head in towers:
        for i, block in enumerate(head.conv):
            block[0].load_state_dict(tower[2 * i].state_dict())
    theirs.classification_head.cls_logits.load_state_dict(ours.class_conv.state_dict())
    theirs.regression_head.bbox_reg.load_state_dict(ours.box_conv.state_dict())
    class_logits, box_deltas, quality, _ = ours(levels())
    expected = theirs(levels())
    assert quality is None
    torch.testing.assert_close(class_logits, expected["cls_logits"])
    torch.testing.assert_close(box_deltas, expected["bbox_regression"])


@pytest.mark.parametrize("quality", ["classification", "localization"])
def test_branch_sits_on_its_tower(quality):
    head = Head(32, 3, 9, convs=2, quality=quality)
    _, _, logits, _ = head(levels())
    assert logits.shape == (2, 9 * sum(h * w for h, w in SHAPES))
    logits.sum().backward()
    with_gradient, without = head.classification_tower, head.localization_tower
    if quality == "localization":
        with_gradient, without = without, with_gradient
    assert all(p.grad is not None for p in with_gradient.parameters())
    assert all(p.grad is None for p in without.parameters())


def test_branch_costs_what_the_paper_says():
    extra = sum(p.numel() for p in Head(256, 80, 9, quality="classification").parameters())
    assert extra - sum(p.numel() for p in Head(256, 80, 9).parameters()) == 20_745


def test_all_detectors_start_from_the_same_weights():
    heads = []
    for quality in ("none", "classification", "localization"):
        torch.manual_seed(0)
        heads.append(Head(16, 4, 9, quality=quality).state_dict())
    for name, tensor in heads[0].items():
        assert all(torch.equal(head[name], tensor) for head in heads)
    assert torch.equal(heads[1]["quality_conv.weight"], heads[2]["quality_conv.weight"])


@pytest.mark.parametrize("box", ["deltas", "distances", "distribution"])
def test_all_detectors_start_from_the_same_weights_whatever_their_boxes(box: str):
    """Those with another quality or a scale per level; and at every start that scale is 1."""
    heads = []
    for quality in ("none", "classification", "localization", *(["distribution"] if box == "distribution" else [])):
        for level_scale in (False, True):
            torch.manual_seed(0)
            heads.append(Head(16, 4, 1, quality=quality, box=box, level_scale=level_scale))
    for name, tensor in heads[0].state_dict().items():
        assert all(torch.equal(head.state_dict()[name], tensor) for head in heads)
    for one, scaled in zip(heads[::2], heads[1::2]):
        for a, b in zip(one(levels(16)), scaled(levels(16))):
            assert (a is None) == (b is None)
            assert a is None or torch.equal(a, b)


def test_each_level_has_its_scale():
    torch.manual_seed(0)
    head = Head(32, 3, 2, level_scale=True)
    maps = levels()
    plain = head(maps)[1].split([2 * h * w for h, w in SHAPES], dim=1)
    scales = torch.tensor([1.0, 2.0, 0.5, -1.0, 3.0])
    head.level_scales.data.copy_(scales)
    scaled = head(maps)[1].split([2 * h * w for h, w in SHAPES], dim=1)
    for level, scale in enumerate(scales):
        torch.testing.assert_close(scaled[level], scale * plain[level])
        torch.testing.assert_close(head([maps[level]], level)[1], scaled[level])  # as an export asks for it
    scaled[2].sum().backward()
    assert head.level_scales.grad.nonzero().flatten().tolist() == [2]


def test_distances_are_the_exponent_of_outputs_and_those_of_a_distribution_its_mean():
    torch.manual_seed(0)
    maps = levels()
    cells = sum(h * w for h, w in SHAPES)
    head = Head(32, 3, 2, box="distances")
    _, box_deltas, _, box_logits = head(maps)
    assert box_logits is None
    raw = head.box_conv(head.localization_tower(maps[0]))[0, 4:, 0, 0]  # the second anchor of the first cell
    left, top, right, bottom = raw.exp().tolist()
    expected = [(right - left) / 16, (bottom - top) / 16, math.log((left + right) / 8), math.log((top + bottom) / 8)]
    torch.testing.assert_close(box_deltas[0, 1], torch.tensor(expected), rtol=1e-4, atol=1e-6)

    head = Head(32, 3, 2, box="distribution", quality="distribution")
    _, box_deltas, quality, box_logits = head(maps)
    assert (box_deltas.shape, quality.shape) == ((2, 2 * cells, 4), (2, 2 * cells))
    assert box_logits.shape == (2, 2 * cells, 4, 16)
    raw = head.box_conv(head.localization_tower(maps[0]))[0, 64:, 0, 0].view(4, 16)
    torch.testing.assert_close(box_logits[0, 1], raw)
    left, top, right, bottom = (raw.softmax(1) * torch.arange(16)).sum(1).tolist()
    expected = [(right - left) / 16, (bottom - top) / 16, math.log((left + right) / 8), math.log((top + bottom) / 8)]
    torch.testing.assert_close(box_deltas[0, 1], torch.tensor(expected), rtol=1e-4, atol=1e-6)

    with torch.autocast("cpu", torch.bfloat16):  # rounds the logits, and nothing behind them
        _, box_deltas, _, box_logits = head(maps)
    assert (box_logits.dtype, box_deltas.dtype) == (torch.bfloat16, torch.float32)
    assert torch.equal(box_deltas, deltas_of(mean_distances(box_logits.float().softmax(-1))))


def test_the_head_has_outputs_for_each_anchor_of_a_cell():
    torch.manual_seed(0)
    head = Head(32, 3, 2, quality="classification")
    maps = levels()
    class_logits, box_deltas, quality_logits, _ = head(maps)
    cells = sum(h * w for h, w in SHAPES)
    assert (class_logits.shape, box_deltas.shape) == ((2, 2 * cells, 3), (2, 2 * cells, 4))
    assert quality_logits.shape == (2, 2 * cells)
    # The second anchor of the first cell of the second level has the second part of the convolution's channels.
    row = 2 * SHAPES[0][0] * SHAPES[0][1] + 1
    box = head.box_conv(head.localization_tower(maps[1]))[:, 4:, 0, 0]
    torch.testing.assert_close(box_deltas[:, row], box)


def test_initial_scores_are_the_prior():
    class_logits, *_ = Head(32, 3, 9)([torch.zeros(1, 32, 4, 4)] * 5)
    torch.testing.assert_close(torch.sigmoid(class_logits), torch.full_like(class_logits, PRIOR))
    assert Head(32, 3, 9).class_conv.bias[0].item() == pytest.approx(-math.log(99))
