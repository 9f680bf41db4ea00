"""The head of Figure 3: four detectors that differ in one branch.

|   | detector             | `quality`        | class target |
|---|----------------------|------------------|--------------|
| a | RetinaNet            | `none`           | label        |
| b | IoU-aware RetinaNet  | `localization`   | label        |
| c | joint (GFL-style)    | `none`           | IoU          |
| d | RetinaNet-Conf       | `classification` | label        |

The class target is a matter of the loss (`retinaconf.training.losses`), not of the head.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor, nn

NORM_GROUPS = 32
PRIOR = 0.01  # class score of every anchor before training (RetinaNet, section 4.1)


class Head(nn.Module):
    """Two towers, shared by all levels, and the 3x3 convolutions on top of them, for so many `anchors` a cell."""

    def __init__(
        self,
        channels: int,
        classes: int,
        anchors: int,
        convs: int = 4,
        quality: Literal["none", "classification", "localization"] = "none",
        norm: Literal["none", "group"] = "none",
    ):
        super().__init__()
        self.classes = classes
        self.quality = quality
        self.classification_tower = _tower(channels, convs, norm)
        self.localization_tower = _tower(channels, convs, norm)
        self.class_conv = nn.Conv2d(channels, anchors * classes, 3, padding=1)
        self.box_conv = nn.Conv2d(channels, anchors * 4, 3, padding=1)
        for module in self.modules():
            _init(module)
        nn.init.constant_(self.class_conv.bias, -math.log((1 - PRIOR) / PRIOR))  # type: ignore[arg-type]
        # The branch is made last, so that detectors with and without it start from the same weights for a seed.
        self.quality_conv = None if quality == "none" else _init(nn.Conv2d(channels, anchors, 3, padding=1))

    def forward(self, features: list[Tensor]) -> tuple[Tensor, Tensor, Tensor | None]:
        """Levels (N, C, H_l, W_l) to class logits (N, A, K), box deltas (N, A, 4), quality logits (N, A) or None."""
        class_logits, box_deltas, quality_logits = [], [], []
        for feature in features:
            classification = self.classification_tower(feature)
            localization = self.localization_tower(feature)
            class_logits.append(self.class_conv(classification))
            box_deltas.append(self.box_conv(localization))
            if self.quality_conv is not None:
                tower = classification if self.quality == "classification" else localization
                quality_logits.append(self.quality_conv(tower))
        return (
            _by_anchor(class_logits, self.classes),
            _by_anchor(box_deltas, 4),
            _by_anchor(quality_logits, 1).squeeze(-1) if quality_logits else None,
        )


def _tower(channels: int, convs: int, norm: Literal["none", "group"]) -> nn.Sequential:
    layers: list[nn.Module] = []
    for _ in range(convs):
        layers.append(nn.Conv2d(channels, channels, 3, padding=1))
        if norm == "group":
            layers.append(nn.GroupNorm(NORM_GROUPS, channels))
        layers.append(nn.ReLU(inplace=True))
    return nn.Sequential(*layers)


def _init(module: nn.Module) -> nn.Module:
    if isinstance(module, nn.Conv2d):
        nn.init.normal_(module.weight, std=0.01)
        assert module.bias is not None
        nn.init.zeros_(module.bias)
    return module


def _by_anchor(levels: list[Tensor], width: int) -> Tensor:
    """Maps (N, P * width, H_l, W_l) to (N, A, width), A running over levels, rows, columns and the P anchors of a cell.

    The transposed maps are views, so that the concatenation is the only copy.
    """
    rows = torch.cat([level.flatten(2).transpose(1, 2) for level in levels], dim=1)
    return rows.reshape(rows.shape[0], -1, width)
