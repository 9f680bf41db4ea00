"""What a detector can make of the boxes of a data set: which are faulty or too small, and which no anchor fits."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np

from retinaconf.cell_anchors import STRIDES, CellAnchors
from retinaconf.config import Config, DataConfig
from retinaconf.data.anchor_iou import best_anchor_iou
from retinaconf.data.anchor_proposal import propose_anchors
from retinaconf.data.findings import Findings, SplitStatistics
from retinaconf.data.ground_truth import GroundTruth
from retinaconf.data.transforms import MIN_SIDE, PAD_TO, resized

_SIZES = (0, 16, 32, 64, 128, 256, 512)  # lower ends of the histogram, in pixels of the network's input
_TINY = 4.0  # pixels of the network's input: half a cell of the finest level
_UNFIT_SHARE = 0.1  # of all objects
_LARGER = 1.5  # input size that is tried where anchors fit too few objects
_LONG = 3.0  # of an object's sides, the one to the other
_HELPS = 0.75  # of the objects that no anchor fits, at most so many are left by what is advised
_BLOCK = 64  # boxes that are compared with all others near them at once


@dataclass(frozen=True)
class _Targets:
    """The boxes of a split that training learns from."""

    rows: np.ndarray  # (B,) in the ground truth
    clipped: np.ndarray  # (B, 4) in pixels of the files, cut at the image's edge
    sizes: np.ndarray  # (B, 2) height and width of the file's image

    def at_input(self, data: DataConfig) -> tuple[np.ndarray, np.ndarray]:
        """(B, 4) boxes in pixels of the network's input, and (B, 2) height and width of it, padded."""
        return _at_input(self.clipped, self.sizes, data)


def check_boxes(
    truths: dict[str, GroundTruth], config: Config, findings: Findings
) -> tuple[dict[str, SplitStatistics], dict[str, Any] | None]:
    """Find bad boxes, and objects that no anchor fits; the numbers of each split, and settings for better anchors.

    The latter are found on the first split, if too few of its objects are fitted, and None where nothing helps.
    Nothing is said of anchors that another assigner than `max-iou` matches: it asks for no IoU of 0.5.
    """
    targets = {split: _targets(split, truth, config.data, findings) for split, truth in truths.items()}
    anchors, proposal = config.model.cell_anchors, None
    for some in list(targets.values())[: config.matching.assigner == "max-iou"]:
        boxes, canvases = some.at_input(config.data)
        share = _share(best_anchor_iou(boxes, canvases, anchors) < 0.5)
        found = propose_anchors(boxes, canvases, anchors) if share > _UNFIT_SHARE else None
        if found is not None and _share(best_anchor_iou(boxes, canvases, found) < 0.5) <= _HELPS * share:
            proposal = found
    statistics = {
        split: _check_anchors(split, truth, targets[split], config, proposal, findings)
        for split, truth in truths.items()
    }
    if proposal is None:
        return statistics, None
    return statistics, {"model.anchor_ratios": list(proposal.ratios), "model.anchor_scales": list(proposal.scales)}


def _targets(split: str, truth: GroundTruth, data: DataConfig, findings: Findings) -> _Targets:
    """Find bad boxes; what is left."""
    index = truth.image_index
    sizes = truth.image_sizes[index]
    edges = np.concatenate([sizes[:, ::-1], sizes[:, ::-1]], axis=1)  # (B, 4): width, height, width, height
    clipped = truth.boxes.clip(0, edges)
    inside = np.all(clipped[:, 2:] > clipped[:, :2], axis=1)
    beyond = (np.abs(clipped - truth.boxes) > 1).any(axis=1)  # a pixel more or less is rounding

    def line(row: int, what: str) -> str:
        x0, y0, x1, y1 = truth.boxes[row]
        box = f"{x0:.5g}, {y0:.5g}, {x1 - x0:.5g}, {y1 - y0:.5g}"
        image = truth.file_names[index[row]]
        return f"{truth.source}: image {image}, {truth.classes[truth.labels[row]]} at x, y, w, h {box} {what}"

    outside = [
        line(row, f"{'leaves' if inside[row] else 'is outside'} the image of {sizes[row, 1]} x {sizes[row, 0]} pixels")
        for row in np.flatnonzero(beyond | ~inside).tolist()
    ]
    findings.add("warning", "outside-box", split, outside)
    rows = np.flatnonzero(inside & ~truth.crowd)
    boxes, _ = _at_input(clipped[rows], sizes[rows], data)
    sides = boxes[:, 2:] - boxes[:, :2]
    least = sides.min(axis=1, initial=np.inf)
    for kind, low, high, digits in (("thin-box", 0, MIN_SIDE, 3), ("tiny-box", MIN_SIDE, _TINY, 1)):
        found = [
            line(
                rows[i],
                f"is {sides[i, 0]:.{digits}f} x {sides[i, 1]:.{digits}f} pixels at input size {data.short_side} x "
                f"{data.long_side}",
            )
            for i in np.flatnonzero((low <= least) & (least < high))
        ]
        findings.add("warning", kind, split, found)
    rows = rows[least >= MIN_SIDE]
    duplicates = (line(row, "occurs twice") for row in _duplicates(truth, rows))
    findings.add("warning", "duplicate-box", split, duplicates)
    return _Targets(rows, clipped[rows], sizes[rows])


def _check_anchors(
    split: str,
    truth: GroundTruth,
    targets: _Targets,
    config: Config,
    proposal: CellAnchors | None,
    findings: Findings,
) -> SplitStatistics:
    """Find out how many objects no anchor fits, and what would help; the numbers of the split."""
    boxes, canvases = targets.at_input(config.data)
    sides = boxes[:, 2:] - boxes[:, :2]
    by_iou = config.matching.assigner == "max-iou"
    best = best_anchor_iou(boxes, canvases, config.model.cell_anchors)
    then = None if proposal is None else best_anchor_iou(boxes, canvases, proposal)
    if by_iou and _share(best < 0.5) > _UNFIT_SHARE:
        record, remedy = _unfit(truth, targets, config, best < 0.5, proposal, then)
        findings.add("warning", "unfit-anchors", split, [record], remedy)

    ends = [f"{low} to {high}" for low, high in pairwise(_SIZES)] + [f"from {_SIZES[-1]}"]
    histogram = np.histogram(np.sqrt(sides.prod(axis=1)), [*_SIZES, np.inf])[0]
    labels, index = truth.labels[targets.rows], truth.image_index[targets.rows]
    images_of = np.unique(np.stack([labels, index]), axis=1)[0]
    classes = len(truth.classes)
    return SplitStatistics(
        images=len(truth),
        images_left_out=truth.left_out.images,
        images_without_boxes=len(truth) - len(np.unique(index)),
        boxes=len(targets.rows),
        annotations_left_out=truth.left_out.annotations,
        crowd_regions=int(truth.crowd.sum()),
        class_boxes=dict(zip(truth.classes, np.bincount(labels, minlength=classes).tolist())),
        class_images=dict(zip(truth.classes, np.bincount(images_of, minlength=classes).tolist())),
        box_sizes=dict(zip(ends, histogram.tolist())),
        best_anchor_below_half=int((best < 0.5).sum()) if by_iou else None,
        no_anchor=int((best == 0).sum()),
        below_half_with_proposal=None if then is None else int((then < 0.5).sum()),
    )


def _unfit(
    truth: GroundTruth,
    targets: _Targets,
    config: Config,
    unfit: np.ndarray,
    proposal: CellAnchors | None,
    then: np.ndarray | None,
) -> tuple[str, str]:
    """The record of a split of which no anchor fits many objects, with what was tried; and what helps."""
    data, anchors = config.data, config.model.cell_anchors
    larger = data.model_copy(
        update={"short_side": round(_LARGER * data.short_side), "long_side": round(_LARGER * data.long_side)}
    )
    boxes, _ = targets.at_input(data)
    sides = (boxes[:, 2:] - boxes[:, :2])[unfit]
    is_long = sides.max(axis=1) > _LONG * sides.min(axis=1)
    is_small = sides.prod(axis=1) < min(width * height for width, height in anchors.sides(STRIDES[0])) / 2
    share, at_larger = _share(unfit), _share(best_anchor_iou(*targets.at_input(larger), anchors) < 0.5)
    record = (
        f"{truth.source}: {share:.1%} of the boxes overlap no anchor by IoU 0.5 at input size {data.short_side} x "
        f"{data.long_side}, and learn from their best anchor only. Of these, {_share(is_long):.0%} are more than "
        f"{_LONG:g} times as long as wide, {_share(is_small):.0%} smaller than half the smallest anchor. "
        f"At {larger.short_side} x {larger.long_side} it is {at_larger:.1%}"
    )
    remedies = []
    if proposal is not None and then is not None:
        options, with_proposal = _options(proposal, anchors), _share(then < 0.5)
        record += f"; with {options} ({proposal.count} anchors a cell, not {anchors.count}) {with_proposal:.1%}"
        if with_proposal <= _HELPS * share:
            remedies.append(f"train with {options}")
    if at_larger <= _HELPS * share:
        remedies.append("train at a larger --data.short-side and --data.long-side, or cut the images into tiles")
    return record, "; or ".join(remedies)


def _options(proposal: CellAnchors, now: CellAnchors) -> str:
    """The options of `retinaconf train` that change the anchors so."""
    parts = []
    if proposal.ratios != now.ratios:
        parts.append(f"--model.anchor-ratios {' '.join(f'{ratio:g}' for ratio in proposal.ratios)}")
    if proposal.scales != now.scales:
        parts.append(f"--model.anchor-scales {' '.join(f'{scale:g}' for scale in proposal.scales)}")
    return " ".join(parts)


def _share(mask: np.ndarray) -> float:
    return float(mask.mean()) if len(mask) else 0.0


def _at_input(boxes: np.ndarray, sizes: np.ndarray, data: DataConfig) -> tuple[np.ndarray, np.ndarray]:
    shapes, which = np.unique(sizes, axis=0, return_inverse=True)
    which = which.reshape(-1)  # NumPy 2.0 gives it as a column
    inputs = [resized((int(h), int(w)), data.short_side, data.long_side, resize=data.resize) for h, w in shapes]
    targets = np.array(inputs).reshape(-1, 2)[which]
    scale = (targets / sizes)[:, ::-1]
    return boxes * np.concatenate([scale, scale], axis=1), np.ceil(targets / PAD_TO) * PAD_TO


def _duplicates(truth: GroundTruth, rows: np.ndarray) -> list[int]:
    """Those of `rows` whose box agrees with that of an earlier one of the same image and class within rounding."""
    found: list[int] = []
    image, label, left = truth.image_index[rows], truth.labels[rows], truth.boxes[rows, 0]
    order = np.lexsort((left, label, image))
    starts = np.flatnonzero(np.diff(image[order], prepend=-1) | np.diff(label[order], prepend=-1))
    for group in np.split(rows[order], starts[1:]):
        left = truth.boxes[group, 0]
        first, last = np.searchsorted(left, left - 1), np.searchsorted(left, left + 1, side="right")
        for start in range(0, len(group) if len(group) > 1 else 0, _BLOCK):
            some = group[start : start + _BLOCK]
            near = group[first[start] : last[start + len(some) - 1]]  # no other has its left edge within a pixel
            tolerance = np.minimum(1, 0.05 * (truth.boxes[near, 2:] - truth.boxes[near, :2]).min(axis=1))
            same = near < some[:, None]
            for edge in range(4):
                same &= np.abs(truth.boxes[some, None, edge] - truth.boxes[near, edge]) <= tolerance
            found += some[same.any(axis=1)].tolist()
    return sorted(found)
