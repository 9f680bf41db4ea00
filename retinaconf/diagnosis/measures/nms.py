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
FEW_PAIRS = 4  # times the boxes of a block: while more pairs of boxes are left, rounds are faster
FIRST_DEPTH = 10  # boxes that NMS sees first, for each detection of an image, times 1 - its IoU threshold


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
        order = rows.start + descending(scores[rows])
        found = _suppress(_groups(image_index[order], labels[order]), boxes.take(order, axis=0), iou_threshold)
        suppressor[order] = np.where(found < 0, -1, order[found])
        return rows

    for rows in in_threads(suppress, image_blocks(image_index)):
        progress("NMS", rows.stop, len(scores))
    return suppressor


def best_kept(
    image_index: np.ndarray,
    labels: np.ndarray,
    boxes: np.ndarray,
    scores: np.ndarray,
    iou_threshold: float,
    limit: int,
    progress: ProgressCallback = silent,
) -> np.ndarray:
    """Ascending rows of each image's `limit` best boxes that `nms` keeps: those of `top_per_image`.

    A box is kept or removed by better ones alone. So NMS sees an image's best boxes only. Where it keeps too few, it
    sees these and the next boxes. The arguments are those of `nms`.
    """

    def best(rows: slice) -> tuple[slice, np.ndarray]:
        order, rank = _by_image(image_index[rows], scores[rows])
        order += rows.start
        image = image_index[rows] - image_index[rows.start]  # as in the order, since images ascend
        group = _groups(image, labels[order])
        found, kept, left = [], np.zeros(0, dtype=np.int64), np.arange(len(order))
        depth = limit * max(FIRST_DEPTH * (1 - iou_threshold), 1)
        while len(left):
            near = rank[left] < depth
            seen = np.sort(np.concatenate([kept, left[near]]))
            kept, left = seen[_suppress(group[seen], boxes.take(order[seen], axis=0), iou_threshold) < 0], left[~near]
            few = np.bincount(image[kept], minlength=image[-1] + 1) < limit
            more = few & (np.bincount(image[left], minlength=len(few)) > 0)
            unfinished = more[image[kept]]
            found.append(kept[~unfinished])
            kept, left = kept[unfinished], left[more[image[left]]]
            depth *= 2
        complete = np.sort(np.concatenate(found))
        return rows, np.sort(order[complete[_places(image[complete]) < limit]])

    parts = [np.zeros(0, dtype=np.int64)]
    for rows, part in in_threads(best, image_blocks(image_index)):
        parts.append(part)
        progress("NMS", rows.stop, len(scores))
    return np.concatenate(parts)


def image_blocks(image_index: np.ndarray) -> list[slice]:
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


def _groups(image_index: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """(D,) a whole number for each image and class."""
    group = (image_index - image_index.min()) * (labels.max() + 1) + labels
    return group.astype(np.uint16) if group.max() < 1 << 16 else group  # sorted by radix


def _suppress(group: np.ndarray, boxes: np.ndarray, iou_threshold: float) -> np.ndarray:
    """All groups at once: a round keeps each group's best remaining box and drops what it covers.

    When few pairs of boxes are left, all of them are compared at once. The last rounds would be many and short, and two
    threads would wait for each other in each. Boxes (D, 4) are in descending score within each group (D,). Returns (D,)
    int64, as `nms` does.
    """
    suppressor = np.full(len(group), -1, dtype=np.int64)
    row = np.argsort(group, kind="stable")
    group = group.take(row)
    first = np.flatnonzero(np.concatenate([[True], group[1:] != group[:-1]]))
    sizes = np.diff(first, append=len(row))
    x1, y1, x2, y2 = boxes.take(row, axis=0).T.copy()
    columns = [x1, y1, x2, y2, (x2 - x1) * (y2 - y1)]
    while sizes @ sizes > FEW_PAIRS * len(group):
        best = np.repeat(first, sizes)
        covered = _covers(columns, best, slice(None), iou_threshold)
        covered[first] = False
        dropped = np.flatnonzero(covered)
        suppressor[row.take(dropped)] = row.take(best.take(dropped))
        covered[first] = True
        stays = ~covered
        left = np.flatnonzero(stays)
        sizes = np.add.reduceat(stays, first, dtype=np.int64)
        sizes = sizes[sizes > 0]
        first = np.cumsum(sizes) - sizes
        row, *columns = (column.take(left) for column in (row, *columns))

    # Each pair once, by its worse box. `overlaps.pairs` and `iou` take up to a quarter longer.
    best = np.repeat(first, sizes)
    num_better = np.arange(len(row)) - best  # in the group
    worse = np.repeat(np.arange(len(row)), num_better)
    better = best.take(worse) + np.arange(len(worse)) - np.repeat(np.cumsum(num_better) - num_better, num_better)
    close = _covers(columns, better, worse, iou_threshold)
    better, worse = better[close], worse[close]
    by_kept = np.flatnonzero(~_removed(better, worse, len(row))[better])[::-1]  # of a box's pairs the first counts
    suppressor[row.take(worse.take(by_kept))] = row.take(better.take(by_kept))
    return suppressor


def _covers(
    columns: list[np.ndarray], better: np.ndarray, worse: np.ndarray | slice, iou_threshold: float
) -> np.ndarray:
    """(P,) bool: whether the IoU of two boxes is above the threshold; `columns` are x1, y1, x2, y2 and area.

    In place, since new arrays cost more than the arithmetic.
    """
    x1, y1, x2, y2, area = columns
    width, height = np.minimum(x2.take(better), x2[worse]), np.minimum(y2.take(better), y2[worse])
    width -= np.maximum(x1.take(better), x1[worse])
    height -= np.maximum(y1.take(better), y1[worse])
    intersection = np.maximum(width, 0, out=width)
    intersection *= np.maximum(height, 0, out=height)
    union = area.take(better)
    union += area[worse]
    union -= intersection
    with np.errstate(invalid="ignore"):  # 0 / 0, two empty boxes, is NaN: not larger than any threshold
        covers: np.ndarray = np.divide(intersection, union, out=union) > iou_threshold
    return covers


def _removed(better: np.ndarray, worse: np.ndarray, count: int) -> np.ndarray:
    """(count,) bool: what greedy NMS removes, where each box `better` (P,) would remove the box `worse` (P,).

    A box that nothing can remove is kept and removes its own; then there are new ones that nothing can remove.
    """
    removed = np.zeros(count, dtype=bool)
    while len(worse):
        kept = np.ones(count, dtype=bool)
        kept[worse] = False
        removed[worse[kept[better]]] = True
        undecided = ~(removed[better] | removed[worse])
        better, worse = better[undecided], worse[undecided]
    return removed


def top_per_image(image_index: np.ndarray, scores: np.ndarray, limit: int) -> np.ndarray:
    """Ascending rows of each image's `limit` best boxes, ties in their order; (D,) ascending images, (D,) scores."""
    found = [np.zeros(0, dtype=np.int64)]
    for rows in image_blocks(image_index):
        order, rank = _by_image(image_index[rows], scores[rows])
        found.append(rows.start + np.sort(order[rank < limit]))
    return np.concatenate(found)


def _by_image(image_index: np.ndarray, scores: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(D,) rows of a block by image, then by descending score; and the rank of each in its image."""
    image = image_index - image_index[0]
    return descending(scores, image), _places(image)


def _places(groups: np.ndarray) -> np.ndarray:
    """(D,) how many of the same group come before each; a group's are contiguous."""
    starts = np.flatnonzero(np.diff(groups, prepend=-1))
    return np.arange(len(groups)) - np.repeat(starts, np.diff(starts, append=len(groups)))
