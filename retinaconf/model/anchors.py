"""Anchors: the boxes of `retinaconf.cell_anchors` at every cell of every pyramid level."""

from __future__ import annotations

import functools
from typing import NamedTuple

import torch
from torch import Tensor

from retinaconf.cell_anchors import STRIDES, CellAnchors


class Grid(NamedTuple):
    """All anchors of a canvas. Levels lie one after the other along A."""

    anchors: Tensor  # (A, 4) xyxy, pixels of the padded image
    level_sizes: tuple[int, ...]  # anchors of P3 ... P7; they sum to A


def anchor_grid(shapes: tuple[tuple[int, int], ...], device: torch.device, cell_anchors: CellAnchors) -> Grid:
    """The anchors of levels with `shapes` (H, W) of P3 ... P7, as `anchor_boxes`."""
    level_sizes = tuple(height * width * cell_anchors.count for height, width in shapes)
    return Grid(anchor_boxes(shapes, device, cell_anchors), level_sizes)


def cell_boxes(stride: int, cell_anchors: CellAnchors) -> Tensor:
    """(P, 4) float32 boxes around the origin, on the level of `stride`."""
    corner = torch.tensor(cell_anchors.sides(stride), dtype=torch.float64) / 2
    return torch.cat([-corner, corner], dim=1).float()


@functools.lru_cache(maxsize=256)  # more than a run has canvases: what is new is copied to the device
def anchor_boxes(shapes: tuple[tuple[int, int], ...], device: torch.device, cell_anchors: CellAnchors) -> Tensor:
    """(A, 4) anchors of levels with `shapes` (H, W), level by level, row by row, cell by cell.

    The anchors of cell (0, 0) are centred on pixel (0, 0), as in MMDetection and torchvision. Cached: the tensor is
    shared between calls and must not be changed.
    """
    padded = (shapes[2][0] * STRIDES[2], shapes[2][1] * STRIDES[2])
    with torch.inference_mode(False):  # whoever asks first, training can use them
        levels = [
            level_anchors(shape, stride, padded, cell_anchors) for shape, stride in zip(shapes, STRIDES, strict=True)
        ]
        return torch.cat(levels).to(device)


def level_anchors(shape: tuple[int, int], stride: int, padded: tuple[int, int], cell_anchors: CellAnchors) -> Tensor:
    """(P * H * W, 4) anchors of a level of `shape` (H, W) over a padded image of `padded` (height, width) pixels."""
    down, right = (cell_anchors.step(stride, side, cells) for side, cells in zip(padded, shape, strict=True))
    y, x = torch.meshgrid(torch.arange(shape[0]) * down, torch.arange(shape[1]) * right, indexing="ij")
    shifts = torch.stack([x, y, x, y], dim=-1).reshape(-1, 1, 4)
    return (shifts + cell_boxes(stride, cell_anchors)).reshape(-1, 4)


def level_shapes(height: int, width: int) -> tuple[tuple[int, int], ...]:
    """(H, W) of P3 ... P7 for a padded image of `height` x `width` pixels, multiples of 32."""
    return tuple((-(-height // stride), -(-width // stride)) for stride in STRIDES)
