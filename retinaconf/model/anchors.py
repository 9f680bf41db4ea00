"""Anchors: nine boxes at every cell of every pyramid level.

By default those of MMDetection and Detectron2 (which numbers them otherwise). torchvision's are cut to whole pixels:
a side's octaves, the corners, and the distance of the cells, which it takes as the padded image's side divided by
their number: 60 and not 64 pixels on P6 where the image is 608 high.
"""

from __future__ import annotations

import functools

import torch
from torch import Tensor

STRIDES = (8, 16, 32, 64, 128)  # of P3 ... P7, in pixels
OCTAVE_SCALES = (1.0, 2 ** (1 / 3), 2 ** (2 / 3))
RATIOS = (0.5, 1.0, 2.0)  # height to width, at equal area
BASE_SIZE = 4  # side of the square anchor of scale 1, in strides
PER_CELL = len(OCTAVE_SCALES) * len(RATIOS)


def cell_anchors(stride: int, whole_pixels: bool = False) -> Tensor:
    """(9, 4) float32 boxes around the origin, ratio by ratio, scales ascending; `whole_pixels` as torchvision."""
    side = BASE_SIZE * stride * torch.tensor(OCTAVE_SCALES, dtype=torch.float64)
    if whole_pixels:
        side = side.floor()
    ratio_root = torch.tensor(RATIOS, dtype=torch.float64).sqrt()
    width = (side / ratio_root[:, None]).flatten()
    height = (side * ratio_root[:, None]).flatten()
    boxes = (torch.stack([-width, -height, width, height], dim=1) / 2).float()
    return boxes.round() if whole_pixels else boxes


@functools.lru_cache(maxsize=64)
def anchor_boxes(shapes: tuple[tuple[int, int], ...], device: torch.device, whole_pixels: bool = False) -> Tensor:
    """(A, 4) anchors of levels with `shapes` (H, W), level by level, row by row, cell by cell.

    The anchors of cell (0, 0) are centred on pixel (0, 0), as in MMDetection and torchvision. Cached: the tensor is
    shared between calls and must not be changed.
    """
    padded = (shapes[2][0] * STRIDES[2], shapes[2][1] * STRIDES[2])
    with torch.inference_mode(False):  # whoever asks first, training can use them
        levels = [
            level_anchors(shape, stride, padded, whole_pixels) for shape, stride in zip(shapes, STRIDES, strict=True)
        ]
        return torch.cat(levels).to(device)


def level_anchors(shape: tuple[int, int], stride: int, padded: tuple[int, int], whole_pixels: bool = False) -> Tensor:
    """(9 * H * W, 4) anchors of a level of `shape` (H, W) over a padded image of `padded` (height, width) pixels."""
    height, width = shape
    down, right = (padded[0] // height, padded[1] // width) if whole_pixels else (stride, stride)
    y, x = torch.meshgrid(torch.arange(height) * down, torch.arange(width) * right, indexing="ij")
    shifts = torch.stack([x, y, x, y], dim=-1).reshape(-1, 1, 4)
    return (shifts + cell_anchors(stride, whole_pixels)).reshape(-1, 4)


def level_shapes(height: int, width: int) -> tuple[tuple[int, int], ...]:
    """(H, W) of P3 ... P7 for a padded image of `height` x `width` pixels, multiples of 32."""
    return tuple((-(-height // stride), -(-width // stride)) for stride in STRIDES)
