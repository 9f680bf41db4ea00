"""How well the anchors fit each object: arithmetic on boxes, without a network and without listing anchors.

The anchors are those of `retinaconf.model.anchors`: at each cell of strides 8 to 128, nine boxes around the point
(x * stride, y * stride). For one anchor shape, the overlap along x falls with the distance of the two centres, and so
along y; the best anchor of a shape is therefore the one of the nearest cell, and only 45 shapes are left to be tried.
"""

from __future__ import annotations

import numpy as np

PER_CELL = 9
STRIDES = np.repeat([8, 16, 32, 64, 128], PER_CELL)  # (45,)
_SIDES = 4 * STRIDES * np.tile(2 ** (np.arange(9) % 3 / 3), 5)
_RATIO_ROOTS = np.sqrt(np.tile(np.repeat([0.5, 1.0, 2.0], 3), 5))  # height to width, at equal area
SHAPES = np.stack([_SIDES / _RATIO_ROOTS, _SIDES * _RATIO_ROOTS], axis=1)  # (45, 2): width, height


def best_anchor_iou(boxes: np.ndarray, canvases: np.ndarray) -> np.ndarray:
    """(B,) the largest IoU of each box with any anchor.

    At 0.5 or more, training matches the object to each such anchor that overlaps no other object more. Below, by
    RetinaNet's low-quality rule, it has its best anchor alone, and not even that if a later object claims it; at 0 it
    has none.

    Args:
        boxes: (B, 4) xyxy in pixels of the network's input, with a positive width and height.
        canvases: (B, 2) height and width of the padded input that each box is in, multiples of 32.
    """
    sides, centers = boxes[:, 2:] - boxes[:, :2], (boxes[:, :2] + boxes[:, 2:]) / 2
    best = np.zeros(len(boxes))
    for stride, shape in zip(STRIDES, SHAPES):
        last_cell = np.ceil(canvases[:, ::-1] / stride) - 1
        distance = np.abs(np.clip(np.round(centers / stride), 0, last_cell) * stride - centers)
        overlap = np.clip((sides + shape) / 2 - distance, 0, np.minimum(sides, shape)).prod(axis=1)
        best = np.maximum(best, overlap / (sides.prod(axis=1) + shape.prod() - overlap))
    return best
