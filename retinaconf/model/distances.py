"""Boxes as the distances of their four sides from the anchor's centre: left, top, right, bottom (FCOS, GFL).

The unit is an eighth of the anchor's side. With one square anchor of 8 strides a cell, that is the stride of the level,
as published. A distance is `exp` of an output (`model.box distances`), or the mean of a distribution over `BINS` whole
numbers of units (`model.box distribution`; Generalized Focal Loss, equation 5). Both become deltas at once
(`retinaconf.model.boxes`), so that nothing behind the head knows of distances.
"""

from __future__ import annotations

import torch
from torch import Tensor

UNITS = 8  # of which the anchor's side has so many
BINS = 16  # a side: the longest distance is 15 units, so the largest box has 3.75 times the anchor's side
SHORTEST = 1e-3  # units from one side to the other; the log of 0 has no gradient


def mean_distances(distributions: Tensor) -> Tensor:
    """(..., 4) float32 means of the distributions (..., 4, BINS) float32, in mixed precision, too.

    A matrix product would be rounded to bfloat16 there: by up to 0.03 units, which is half a pixel on P4.
    """
    bins = torch.arange(BINS, device=distributions.device, dtype=torch.float32)
    return (distributions * bins).sum(dim=-1)


def deltas_of(distances: Tensor) -> Tensor:
    """Box deltas (..., 4) of distances (..., 4) in units: left, top, right, bottom."""
    before, after = distances[..., :2], distances[..., 2:]
    size = (before + after).clamp(min=SHORTEST) / UNITS
    return torch.cat([(after - before) / (2 * UNITS), size.log()], dim=-1)


def distances_to(anchors: Tensor, boxes: Tensor) -> Tensor:
    """Distances (..., 4) in units from the centres of `anchors` (..., 4) to the sides of `boxes` (..., 4).

    They are negative where a side lies on the other side of the centre.
    """
    centre = (anchors[..., :2] + anchors[..., 2:]) / 2
    unit = (anchors[..., 2:] - anchors[..., :2]) / UNITS
    return torch.cat([(centre - boxes[..., :2]) / unit, (boxes[..., 2:] - centre) / unit], dim=-1)
