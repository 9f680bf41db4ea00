"""The head of Figure 3: four detectors that differ in one branch.

|   | detector             | `quality`        | class target |
|---|----------------------|------------------|--------------|
| a | RetinaNet            | `none`           | label        |
| b | IoU-aware RetinaNet  | `localization`   | label        |
| c | joint (GFL-style)    | `none`           | IoU          |
| d | RetinaNet-Conf       | `classification` | label        |

The class target is a matter of the loss (`retinaconf.training.losses`), not of the head.

What the field has learned since the paper comes by three more switches: boxes as distances or distributions
(`retinaconf.model.distances`), a quality that is read off the box's own distribution
(`retinaconf.model.quality_branch`), and a learned scale of the box outputs for each level (FCOS).
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor, nn

from retinaconf.cell_anchors import STRIDES
from retinaconf.model.distances import BINS, deltas_of, mean_distances
from retinaconf.model.quality_branch import DistributionQuality

NORM_GROUPS = 32
PRIOR = 0.01  # score of every anchor before training (RetinaNet, section 4.1)


class Head(nn.Module):
    """Two towers, shared by all levels, and the 3x3 convolutions on top of them, for so many `anchors` a cell."""

    def __init__(
        self,
        channels: int,
        classes: int,
        anchors: int,
        convs: int = 4,
        quality: Literal["none", "classification", "localization", "distribution"] = "none",
        norm: Literal["none", "group"] = "none",
        box: Literal["deltas", "distances", "distribution"] = "deltas",
        level_scale: bool = False,
    ):
        super().__init__()
        self.classes = classes
        self.quality = quality
        self.box = box
        self.classification_tower = _tower(channels, convs, norm)
        self.localization_tower = _tower(channels, convs, norm)
        self.class_conv = nn.Conv2d(channels, anchors * classes, 3, padding=1)
        self.box_conv = nn.Conv2d(channels, anchors * self.box_width, 3, padding=1)
        for module in self.modules():
            _init(module)
        self.start_at(PRIOR)
        # These are made last, so that all detectors start from the same weights for a seed.
        self.level_scales = nn.Parameter(torch.ones(len(STRIDES))) if level_scale else None
        self.quality_conv = (
            _init(nn.Conv2d(channels, anchors, 3, padding=1)) if quality in ("classification", "localization") else None
        )
        self.distribution_quality = DistributionQuality() if quality == "distribution" else None

    @property
    def box_width(self) -> int:
        """Outputs of an anchor's box."""
        return 4 * BINS if self.box == "distribution" else 4

    def start_at(self, class_score: float) -> None:
        """Let every class score of an untrained network be `class_score`."""
        nn.init.constant_(self.class_conv.bias, -math.log((1 - class_score) / class_score))  # type: ignore[arg-type]

    def forward(
        self, features: list[Tensor], first_level: int = 0
    ) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
        """Levels (N, C, H_l, W_l), from P3 + `first_level` on, to what the head says of each anchor.

        Class logits (N, A, K), box deltas (N, A, 4), quality logits (N, A) or None, and the logits (N, A, 4, BINS) of
        the boxes' distributions or None.
        """
        class_logits, boxes, quality = [], [], []
        for level, feature in enumerate(features, first_level):
            # The backward pass goes the other way: it frees the tower of the boxes before it comes to the class logits,
            # whose gradient takes the most memory.
            classification = self.classification_tower(feature)
            class_logits.append(self.class_conv(classification))
            localization = self.localization_tower(feature)
            box = self.box_conv(localization)
            boxes.append(box if self.level_scales is None else box * self.level_scales[level])
            if self.quality_conv is not None:
                quality.append(self.quality_conv(classification if self.quality == "classification" else localization))
        box_deltas, quality_logits, box_logits = _by_anchor(boxes, self.box_width), None, None
        if self.box == "distances":
            box_deltas = deltas_of(box_deltas.float().exp())
        elif self.box == "distribution":
            box_logits = box_deltas.unflatten(2, (4, BINS))
            distributions = box_logits.float().softmax(dim=-1)
            box_deltas = deltas_of(mean_distances(distributions))
        if self.quality_conv is not None:
            quality_logits = _by_anchor(quality, 1).squeeze(-1)
        elif self.distribution_quality is not None:
            quality_logits = self.distribution_quality(distributions)
        return _by_anchor(class_logits, self.classes), box_deltas, quality_logits, box_logits


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
