"""What in a data set will hurt training, found before it does."""

from __future__ import annotations

from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np

from retinaconf.cell_anchors import CellAnchors
from retinaconf.data.anchor_coverage import best_anchor_iou
from retinaconf.data.check_report import Finding, Report, Severity, SplitStatistics
from retinaconf.data.ground_truth import Fault, GroundTruth
from retinaconf.data.images import inspect_image
from retinaconf.data.layouts import Layout, find_layout, load_split
from retinaconf.data.similarity import same_content, same_scene, thumbnails
from retinaconf.data.transforms import PAD_TO, resized
from retinaconf.errors import InputError

REMEDIES: dict[str, str] = {
    "missing-split": "training needs train, and val to measure itself",
    "unreadable-split": "mend or restore the file: without it there is nothing to train on",
    "no-boxes": "check that the annotations belong to these images",
    "missing-image": "restore the file or correct its name; or train with --data.skip-bad",
    "unreadable-image": "restore the file; or train with --data.skip-bad",
    "truncated-image": "copy the file anew from its source; or train with --data.skip-bad",
    "size-mismatch": "restore the image that was annotated, or correct its size; or train with --data.skip-bad",
    "bad-annotation": "mend the record; or train with --data.skip-bad",
    "degenerate-box": "mend or remove the box; training leaves it out",
    "outside-box": "check the annotation's coordinates; training cuts the box at the image's edge",
    "tiny-box": "remove such boxes, train at a larger --data.short-side, or cut the images into tiles",
    "duplicate-box": "remove all but one: a detector cannot find one object twice",
    "duplicate-image": "remove all but one: the copies count double, and may be annotated differently",
    "shared-image": "remove the image from one of the splits: results on it are too good to be true",
    "unused-class": "add images of it, or remove the category: it can be neither learnt nor measured",
    "rare-class": "add images of the class: its AP will be low, and will vary from run to run",
    "duplicate-class": "give each category a name of its own, or make them one",
    "different-classes": "give all splits the same categories, with the same ids",
    "unfit-anchors": "train at a larger --data.short-side, or cut the images into tiles",
    "rotated-image": "nothing to do: they are turned upright, unless the boxes were drawn on the unturned pixels",
}
Findings = dict[tuple[Severity, str, str], list[str]]  # records by severity, kind and split

_SIZES = (0, 16, 32, 64, 128, 256, 512)  # lower ends of the histogram, in pixels of the network's input
_TINY = 4.0  # pixels of the network's input: half a cell of the finest level
_RARE = 10  # boxes
_UNFIT_SHARE = 0.1  # of all objects
_BLOCK = 64  # boxes that are compared with all others near them at once


def check(root: Path, short_side: int = 600, long_side: int = 1000, layout: str | None = None) -> Report:
    """Check all splits of a data set: files, annotations, and what a detector can make of them.

    Args:
        root: the data set's folder, in any layout of `retinaconf.data.layouts`.
        short_side: of the network's input in pixels, as in training; decides which boxes are tiny and which no anchor
            fits.
        long_side: at most this for the long side.
        layout: a key of `LAYOUTS`; by default the one that the folder has.

    Raises:
        InputError: no such folder, or no layout or several recognised. Everything else becomes a finding.
    """
    root = Path(root)
    found = find_layout(root, layout)
    splits = found.splits(root)
    findings: Findings = {}
    if "train" not in splits:
        _add(findings, "error", "missing-split", "train", [f"{root}: has {', '.join(splits)}"])
    if "val" not in splits:
        _add(findings, "warning", "missing-split", "val", [f"{root}: has {', '.join(splits)}"])
    truths: dict[str, GroundTruth] = {}
    for split in [split for split in ("train", "val", "test") if split in splits] or splits:
        truth = _usable_part(root, split, found, findings)
        if truth is not None:
            truths[split] = truth
    truths = _compare_images(truths, findings)
    _compare_classes(truths, findings)
    statistics = {split: _check_boxes(split, truth, short_side, long_side, findings) for split, truth in truths.items()}
    order: tuple[Severity, ...] = ("error", "warning", "note")
    listed = [
        Finding(severity, kind, split, tuple(records), REMEDIES[kind])
        for (severity, kind, split), records in sorted(findings.items(), key=lambda item: order.index(item[0][0]))
    ]
    return Report(str(root), found.name, short_side, long_side, statistics, tuple(listed))


def _add(findings: Findings, severity: Severity, kind: str, split: str, records: Iterable[str]) -> None:
    lines = list(records)
    if lines:
        findings.setdefault((severity, kind, split), []).extend(lines)


def _add_faults(findings: Findings, split: str, faults: Iterable[Fault]) -> None:
    """A box without extent is left out of every training; any other fault of a file or a record stops it."""
    for fault in faults:
        severity: Severity = "warning" if fault.kind == "degenerate-box" else "error"
        _add(findings, severity, fault.kind, split, [fault.message])


def _usable_part(root: Path, split: str, layout: Layout, findings: Findings) -> GroundTruth | None:
    """The images and boxes that training could use, with true image sizes; all others become findings."""
    try:
        truth = load_split(root, split, skip_bad=True, layout=layout.key)
        if truth.image_folder is not None and len(truth) and not truth.image_folder.is_dir():
            raise InputError(f"{truth.image_folder}: no such folder; {truth.source} expects its images there")
    except InputError as fault:
        _add(findings, "error", "unreadable-split", split, [str(fault)])
        return None

    def inspect(index: int) -> tuple[tuple[int, int], int] | InputError:
        height, width = truth.image_sizes[index]
        try:
            return inspect_image(truth.path(index), (int(height), int(width)))
        except InputError as fault:
            return fault

    with ThreadPoolExecutor(max_workers=8) as pool:
        results = dict(enumerate(pool.map(inspect, range(len(truth)))))
    bad = [Fault.of_image(result) for result in results.values() if isinstance(result, InputError)]
    dropped = (*truth.dropped, *bad)
    _add_faults(findings, split, dropped)
    good = {index: result for index, result in results.items() if not isinstance(result, InputError)}
    turned = [f"{truth.path(index)}: EXIF orientation {tag}" for index, (_, tag) in good.items() if tag != 1]
    _add(findings, "note", "rotated-image", split, turned)
    sizes = np.array([size for size, _ in good.values()], dtype=np.int64).reshape(-1, 2)
    return replace(truth.subset(list(good)), image_sizes=sizes, dropped=dropped)


def _compare_images(truths: dict[str, GroundTruth], findings: Findings) -> dict[str, GroundTruth]:
    """Find copies within and between splits; returns the splits without images that turned out undecodable."""
    places = [(split, truth.path(index)) for split, truth in truths.items() for index in range(len(truth))]
    copies: dict[tuple[str, Path], str] = {}
    for copy, first in same_content([path for _, path in places]):
        (split, path), (first_split, first_path) = places[copy], places[first]
        if split == first_split:
            what = "is listed twice" if path == first_path else f"has the same content as {first_path}"
            _add(findings, "warning", "duplicate-image", split, [f"{path}: {what}"])
        elif path == first_path:
            copies[split, path] = f"{path}: is in {first_split}, too"
        else:
            copies[split, path] = f"{path}: has the same content as {first_path}, of {first_split}"
    descriptors: dict[str, np.ndarray] = {}
    usable: dict[str, GroundTruth] = {}
    for split, truth in truths.items():
        paths = [truth.path(index) for index in range(len(truth))]
        descriptors[split], faults = thumbnails(paths)
        _add_faults(findings, split, map(Fault.of_image, faults.values()))
        shared = {path: copies[split, path] for path in paths if (split, path) in copies}
        for other in usable:  # the splits before this one
            for query, likest in same_scene(descriptors[split], descriptors[other]):
                line = f"{paths[query]}: shows the same as {truths[other].path(likest)}, of {other}"
                shared.setdefault(paths[query], line)
        _add(findings, "warning", "shared-image", split, shared.values())
        usable[split] = truth.subset([index for index in range(len(truth)) if index not in faults])
    return usable


def _compare_classes(truths: dict[str, GroundTruth], findings: Findings) -> None:
    """Classes without boxes or with few, and classes that are not the same in all splits."""
    first = next(iter(truths), "")
    for split, truth in truths.items():
        twice = {name for name in truth.classes if truth.classes.count(name) > 1}
        lines = [f"{truth.source}: several categories have the name {name}" for name in sorted(twice)]
        _add(findings, "warning", "duplicate-class", split, lines)

        known = dict(zip(truths[first].category_ids, truths[first].classes))
        lines = [
            f"{truth.source}: category {i} is {name}, in {first} {'it is ' + known[i] if i in known else 'unknown'}"
            for i, name in zip(truth.category_ids, truth.classes)
            if known.get(i) != name
        ]
        _add(findings, "warning", "different-classes", split, lines)

        counts = np.bincount(truth.labels[~truth.crowd], minlength=len(truth.classes))
        if not counts.any():
            line = f"{truth.source}: no box in it"
            _add(findings, "error" if split == first else "warning", "no-boxes", split, [line])
            continue
        lines = [f"{truth.source}: no box of class {truth.classes[label]}" for label in np.flatnonzero(counts == 0)]
        _add(findings, "warning" if split == first else "note", "unused-class", split, lines)
        if split == first:
            rare = np.flatnonzero((counts > 0) & (counts < _RARE))
            lines = [f"{truth.source}: class {truth.classes[label]} has {counts[label]} boxes" for label in rare]
            _add(findings, "note", "rare-class", split, lines)


def _check_boxes(
    split: str, truth: GroundTruth, short_side: int, long_side: int, findings: Findings
) -> SplitStatistics:
    """Find bad boxes, and count the others."""
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
    _add(findings, "warning", "outside-box", split, outside)
    rows = np.flatnonzero(inside & ~truth.crowd)
    boxes, canvases = _at_input_size(clipped[rows], sizes[rows], short_side, long_side)
    sides = boxes[:, 2:] - boxes[:, :2]
    tiny = [
        line(rows[i], f"is {sides[i, 0]:.1f} x {sides[i, 1]:.1f} pixels at input size {short_side} x {long_side}")
        for i in np.flatnonzero(sides.min(axis=1, initial=np.inf) < _TINY)
    ]
    _add(findings, "warning", "tiny-box", split, tiny)
    _add(findings, "warning", "duplicate-box", split, (line(row, "occurs twice") for row in _duplicates(truth, rows)))

    unfit = best_anchor_iou(boxes, canvases, CellAnchors())
    share = float((unfit < 0.5).mean()) if len(rows) else 0.0
    if share > _UNFIT_SHARE:
        more = round(1.5 * short_side), round(1.5 * long_side)
        then = (best_anchor_iou(*_at_input_size(clipped[rows], sizes[rows], *more), CellAnchors()) < 0.5).mean()
        text = (
            f"{truth.source}: {share:.1%} of the boxes overlap no anchor by IoU 0.5 at input size {short_side} x "
            f"{long_side}, and learn from their best anchor only; at {more[0]} x {more[1]} {then:.1%}"
        )
        _add(findings, "warning", "unfit-anchors", split, [text])

    ends = [f"{low} to {high}" for low, high in pairwise(_SIZES)] + [f"from {_SIZES[-1]}"]
    histogram = np.histogram(np.sqrt(sides.prod(axis=1)), [*_SIZES, np.inf])[0]
    images_of = np.unique(np.stack([truth.labels[rows], index[rows]]), axis=1)[0]
    classes = len(truth.classes)
    return SplitStatistics(
        images=len(truth),
        images_left_out=truth.left_out.images,
        images_without_boxes=len(truth) - len(np.unique(index[rows])),
        boxes=len(rows),
        annotations_left_out=truth.left_out.annotations,
        crowd_regions=int(truth.crowd.sum()),
        class_boxes=dict(zip(truth.classes, np.bincount(truth.labels[rows], minlength=classes).tolist())),
        class_images=dict(zip(truth.classes, np.bincount(images_of, minlength=classes).tolist())),
        box_sizes=dict(zip(ends, histogram.tolist())),
        best_anchor_below_half=int((unfit < 0.5).sum()),
        no_anchor=int((unfit == 0).sum()),
    )


def _at_input_size(
    boxes: np.ndarray, sizes: np.ndarray, short_side: int, long_side: int
) -> tuple[np.ndarray, np.ndarray]:
    """(B, 4) boxes in pixels of the network's input, and (B, 2) height and width of it, padded."""
    shapes, which = np.unique(sizes, axis=0, return_inverse=True)
    targets = np.array([resized((int(h), int(w)), short_side, long_side) for h, w in shapes]).reshape(-1, 2)[which]
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
