"""The feature pyramid P3 ... P7 over the backbone's C3, C4, C5 (arXiv 1612.03144, 1708.02002)."""

from __future__ import annotations

from collections import OrderedDict
from typing import Literal

import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.ops import FeaturePyramidNetwork
from torchvision.ops.feature_pyramid_network import ExtraFPNBlock


class P6P7(ExtraFPNBlock):
    """P6 by a stride-2 convolution from C5 or P5, P7 by another from P6.

    torchvision's `LastLevelP6P7` takes P5 where that has as many channels as C5, and always puts a ReLU before P7;
    here both are settings.
    """

    def __init__(self, c5_channels: int, channels: int, p6_from: Literal["c5", "p5"], relu_before_p7: bool):
        super().__init__()
        self.p6_from = p6_from
        self.p6 = nn.Conv2d(c5_channels if p6_from == "c5" else channels, channels, 3, stride=2, padding=1)
        self.p7 = nn.Conv2d(channels, channels, 3, stride=2, padding=1)
        self.relu_before_p7 = relu_before_p7
        for conv in (self.p6, self.p7):
            nn.init.kaiming_uniform_(conv.weight, a=1)
            nn.init.zeros_(conv.bias)  # type: ignore[arg-type]

    def forward(self, results: list[Tensor], x: list[Tensor], names: list[str]) -> tuple[list[Tensor], list[str]]:
        """Append P6 and P7 to the levels `results`; `x` are the backbone's features."""
        p6 = self.p6(x[-1] if self.p6_from == "c5" else results[-1])
        p7 = self.p7(F.relu(p6) if self.relu_before_p7 else p6)
        return [*results, p6, p7], [*names, "p6", "p7"]


class FPN(FeaturePyramidNetwork):
    """torchvision's feature pyramid, from a list of features to a list of five levels."""

    def __init__(
        self,
        in_channels: list[int],
        channels: int,
        p6_from: Literal["c5", "p5"] = "c5",
        relu_before_p7: bool = False,
    ):
        super().__init__(in_channels, channels, P6P7(in_channels[-1], channels, p6_from, relu_before_p7))

    def forward(self, features: list[Tensor]) -> list[Tensor]:
        """C3, C4, C5 (N, C_l, H_l, W_l) to P3 ... P7 (N, C, H_l, W_l)."""
        return list(super().forward(OrderedDict((f"c{level}", f) for level, f in enumerate(features, 3))).values())
