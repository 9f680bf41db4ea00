from collections import OrderedDict

import pytest
import torch
from torchvision.ops import FeaturePyramidNetwork
from torchvision.ops.feature_pyramid_network import LastLevelP6P7

from retinaconf.model.fpn import FPN

CHANNELS = [8, 12, 20]


def features():
    torch.manual_seed(1)
    return [torch.randn(2, c, 64 // s, 96 // s) for c, s in zip(CHANNELS, (8, 16, 32))]


@pytest.mark.parametrize("relu", [True, False])
def test_torchvision_pyramid_with_the_same_weights(relu):
    ours = FPN(CHANNELS, 16, relu_before_p7=relu)
    theirs = FeaturePyramidNetwork(CHANNELS, 16, LastLevelP6P7(CHANNELS[-1], 16))
    theirs.load_state_dict(ours.state_dict())
    expected = list(theirs(OrderedDict(enumerate(features()))).values())
    levels = ours(features())
    assert [tuple(level.shape) for level in levels] == [
        (2, 16, 8, 12),
        (2, 16, 4, 6),
        (2, 16, 2, 3),
        (2, 16, 1, 2),
        (2, 16, 1, 1),
    ]
    for a, b in zip(levels[:4], expected[:4]):
        torch.testing.assert_close(a, b)
    # torchvision always has the ReLU between P6 and P7.
    assert torch.allclose(levels[4], expected[4]) == relu
