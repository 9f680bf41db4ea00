import math

import pytest
import torch
from torchvision.models.detection.retinanet import RetinaNetHead

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
