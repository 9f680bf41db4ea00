"""Greedy non-maximum suppression per image and class, in NumPy.

The rule is that of torchvision.ops.nms: boxes in descending order of score, equal scores in their order; a box is
removed if its IoU with a box already kept, of the same image and class, is larger than the threshold. The report's
explorer runs the same rule in the page; both compute in float64, so that they agree to the last box.
"""

from __future__ import annotations

import numpy as np

from retinaconf.evaluation.matching import descending
from retinaconf.progress import ProgressCallback, silent
from retinaconf.threads import in_threads

BOXES_AT_ONCE = 1 << 17  # what fits a CPU's cache; larger is slower


def nms(
    image_index: np.ndarray,
    labels: np.ndarray,
    boxes: np.ndarray,
    scores: np.ndarray,
    iou_threshold: float,
    progress: ProgressCallback = silent,
) -> np.ndarray:
    """What NMS does to each box.

    Args:
        image_index: (D,) int, ascending.
        labels: (D,) int.
        boxes: (D, 4) float64, xyxy.
        scores: (D,) float64.
        iou_threshold: a box is removed above it, not at it.

    Returns:
        (D,) int64: -1 for a box that is kept, else the row of the kept box that removed it.
    """
    suppressor = np.full(len(scores), -1, dtype=np.int64)

    def suppress(rows: slice) -> slice:
        found = _suppress(image_index[rows], labels[rows], boxes[rows], scores[rows], iou_threshold)
        suppressor[rows] = np.where(found < 0, -1, found + rows.start)
        return rows

    for rows in in_threads(suppress, _blocks(image_index)):
        progress("NMS", rows.stop, len(scores))
    return suppressor


def _blocks(image_index: np.ndarray) -> list[slice]:
    """Rows of whole images, about BOXES_AT_ONCE each."""
    blocks, start = [], 0
    while start < len(image_index):
        stop = min(start + BOXES_AT_ONCE, len(image_index))
        if stop < len(image_index):
            whole = int(np.searchsorted(image_index, image_index[stop]))
            stop = whole if whole > start else int(np.searchsorted(image_index, image_index[start], side="right"))
        blocks.append(slice(start, stop))
        start = stop
    return blocks


def _suppress(
    image_index: np.ndarray, labels: np.ndarray, boxes: np.ndarray, scores: np.ndarray, iou_threshold: float
) -> np.ndarray:
    """All groups (image, class) at once: a round keeps each group's best remaining box and drops what it covers."""
    suppressor = np.full(len(scores), -1, dtype=np.int64)
    group = (image_index - image_index[0]) * (labels.max() + 1) + labels
    if group.max() < 1 << 16:
        group = group.astype(np.uint16)  # sorted by radix
    row = descending(scores)
    row = row[np.argsort(group[row], kind="stable")]
    group = group[row]
    x1, y1, x2, y2 = boxes[row].T.copy()
    area = (x2 - x1) * (y2 - y1)
    while len(row):
        first = np.flatnonzero(np.concatenate([[True], group[1:] != group[:-1]]))
        sizes = np.diff(first, append=len(row))

        def of_first(column: np.ndarray, first: np.ndarray = first, sizes: np.ndarray = sizes) -> np.ndarray:
            return np.repeat(column[first], sizes)

        width = np.minimum(x2, of_first(x2)) - np.maximum(x1, of_first(x1))
        height = np.minimum(y2, of_first(y2)) - np.maximum(y1, of_first(y1))
        intersection = np.maximum(width, 0) * np.maximum(height, 0)
        with np.errstate(invalid="ignore"):  # 0 / 0, two empty boxes, is NaN: not larger than any threshold
            covered = intersection / (of_first(area) + area - intersection) > iou_threshold
        covered[first] = False
        suppressor[row[covered]] = of_first(row)[covered]
        left = ~covered
        left[first] = False
        row, group, x1, y1, x2, y2, area = (column[left] for column in (row, group, x1, y1, x2, y2, area))
    return suppressor


def top_per_image(image_index: np.ndarray, scores: np.ndarray, limit: int) -> np.ndarray:
    """Ascending rows of each image's `limit` best boxes, ties in their order; (D,) ascending images, (D,) scores."""
    starts = np.flatnonzero(np.diff(image_index, prepend=-1))
    parts = [np.zeros(0, dtype=np.int64)]
    for start, stop in zip(starts, np.append(starts[1:], len(scores))):
        best = np.arange(start, stop)
        if len(best) > limit:
            best = np.sort(start + np.argsort(-scores[start:stop], kind="stable")[:limit])
        parts.append(best)
    return np.concatenate(parts)
