"""Boxes and the offsets that the network predicts for them.

A delta is (dx, dy, dw, dh): the shift of the centre in units of the anchor's sides, and the log of the ratio of the
sides; no mean, standard deviation 1 (MMDetection's RetinaNet; torchvision's with weights (1, 1, 1, 1)).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

# A side grows or shrinks at most 62.5-fold, so that exp cannot overflow.
MAX_LOG_RATIO = math.log(1000 / 16)


def encode(anchors: Tensor, boxes: Tensor) -> Tensor:
    """Deltas (..., 4) that take `anchors` (..., 4) to `boxes` (..., 4); both need positive sides."""
    anchor_size = anchors[..., 2:] - anchors[..., :2]
    box_size = boxes[..., 2:] - boxes[..., :2]
    shift = (boxes[..., :2] + boxes[..., 2:] - anchors[..., :2] - anchors[..., 2:]) / (2 * anchor_size)
    return torch.cat([shift, torch.log(box_size / anchor_size)], dim=-1)


def decode(anchors: Tensor, deltas: Tensor, min_log_ratio: float = -MAX_LOG_RATIO) -> Tensor:
    """Boxes (..., 4) at `deltas` (..., 4) from `anchors` (..., 4); the inverse of `encode` up to the clamp.

    torchvision and Detectron2 clamp only the growth: `min_log_ratio` is minus infinity there.
    """
    size = anchors[..., 2:] - anchors[..., :2]
    centre = (anchors[..., :2] + anchors[..., 2:]) / 2 + deltas[..., :2] * size
    half = size * deltas[..., 2:].clamp(min_log_ratio, MAX_LOG_RATIO).exp() / 2
    return torch.cat([centre - half, centre + half], dim=-1)


def area(boxes: Tensor) -> Tensor:
    """Areas (...) of boxes (..., 4)."""
    return (boxes[..., 2] - boxes[..., 0]) * (boxes[..., 3] - boxes[..., 1])


def iou(boxes1: Tensor, boxes2: Tensor) -> Tensor:
    """Intersection over union (...) of boxes (..., 4), broadcast against each other; differentiable.

    Pairwise: `iou(a[:, None], b)`. Two boxes without area have IoU 0.
    """
    # One coordinate at a time: for A x G pairs this needs half the memory of corners (A, G, 2).
    width = torch.minimum(boxes1[..., 2], boxes2[..., 2]) - torch.maximum(boxes1[..., 0], boxes2[..., 0])
    height = torch.minimum(boxes1[..., 3], boxes2[..., 3]) - torch.maximum(boxes1[..., 1], boxes2[..., 1])
    intersection = width.clamp(min=0) * height.clamp(min=0)
    union = area(boxes1) + area(boxes2) - intersection
    return intersection / union.clamp(min=1e-6)
