"""How well the anchors fit each object: arithmetic on boxes, without a network and without listing anchors.

For one anchor shape, the overlap along x falls with the distance of the two centres, and so along y; the best anchor of
a shape is therefore the one of the nearest cell, and only the shapes of the five levels are left to be tried.
"""

from __future__ import annotations

import numpy as np

from retinaconf.cell_anchors import STRIDES, CellAnchors


def best_anchor_iou(boxes: np.ndarray, canvases: np.ndarray, cell_anchors: CellAnchors) -> np.ndarray:
    """(B,) the largest IoU of each box with any anchor.

    At 0.5 or more, training matches the object to each such anchor that overlaps no other object more. Below, by
    RetinaNet's low-quality rule, it has its best anchor alone, and not even that if a later object claims it; at 0 it
    has none.

    Args:
        boxes: (B, 4) xyxy in pixels of the network's input, with a positive width and height.
        canvases: (B, 2) height and width of the padded input that each box is in, multiples of 32.
        cell_anchors: of the detector.
    """
    sides, centers = boxes[:, 2:] - boxes[:, :2], (boxes[:, :2] + boxes[:, 2:]) / 2
    padded = canvases[:, ::-1]
    best = np.zeros(len(boxes))
    for stride in STRIDES:
        cells = np.ceil(padded / stride)
        step = cell_anchors.step(stride, padded, cells)
        distance = np.abs(np.clip(np.round(centers / step), 0, cells - 1) * step - centers)
        for shape in np.array(cell_anchors.sides(stride)):
            overlap = np.clip((sides + shape) / 2 - distance, 0, np.minimum(sides, shape)).prod(axis=1)
            best = np.maximum(best, overlap / (sides.prod(axis=1) + shape.prod() - overlap))
    return best
