"""What in a data set will hurt training, found before it does."""

from __future__ import annotations

from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np

from retinaconf.config import Config
from retinaconf.data.check_boxes import check_boxes
from retinaconf.data.findings import Findings, Report
from retinaconf.data.ground_truth import Fault, GroundTruth
from retinaconf.data.images import inspect_image
from retinaconf.data.layouts import Layout, describe, find_layout, load_split
from retinaconf.data.similarity import same_content, same_scene, thumbnails
from retinaconf.errors import InputError
from retinaconf.recipes import RECIPES

_RARE = 10  # boxes


def check(root: Path, config: Config = RECIPES["aligned-lite0"]) -> Report:
    """Check all splits of a data set: files, annotations, and what a detector can make of them.

    Args:
        root: the data set's folder, in any layout of `retinaconf.data.layouts`.
        config: of the training that is planned. Its input size decides which boxes are too small, and with its anchors
            which objects no anchor fits.

    Raises:
        InputError: no such folder, or no layout or several recognised. Everything else becomes a finding.
    """
    root = Path(root)
    layout = find_layout(root, config.data.layout)
    splits = layout.splits(root)
    findings = Findings()
    truths: dict[str, GroundTruth] = {}
    found: dict[str, str] = {}
    known = ("train", "val", "test")
    for split in known if set(known) & set(splits) else splits:
        held_out = split == "val" and "train" in truths and truths["train"].val_split is not None
        if split in splits or held_out:
            truth = _usable_part(root, split, layout, config.data.val_fraction, findings)
            if truth is not None:
                truths[split], found[split] = truth, describe(root, truth, layout.key)
    for split in ("train", "val"):
        if split not in splits and split not in truths:
            what = f"{root}: has {', '.join(splits)}"
            findings.add("error" if split == "train" else "warning", "missing-split", split, [what])
    truths = _compare_images(truths, findings)
    _compare_classes(truths, findings)
    statistics, proposal = check_boxes(truths, config, findings)
    data = config.data
    return Report(
        str(root), layout.name, found, data.short_side, data.long_side, statistics, proposal, findings.listed()
    )


def _add_faults(findings: Findings, split: str, faults: Iterable[Fault]) -> None:
    """A box without extent is left out of every training; any other fault of a file or a record stops it."""
    for fault in faults:
        findings.add("warning" if fault.kind == "degenerate-box" else "error", fault.kind, split, [fault.message])


def _usable_part(root: Path, split: str, layout: Layout, val_fraction: float, findings: Findings) -> GroundTruth | None:
    """The images and boxes that training could use, with true image sizes; all others become findings."""
    try:
        truth = load_split(root, split, skip_bad=True, layout=layout.key, val_fraction=val_fraction)
        if truth.image_folder is not None and len(truth) and not truth.image_folder.is_dir():
            raise InputError(f"{truth.image_folder}: no such folder; {truth.source} expects its images there")
    except InputError as fault:
        findings.add("error", "unreadable-split", split, [str(fault)])
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
    findings.add("note", "rotated-image", split, turned)
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
            findings.add("warning", "duplicate-image", split, [f"{path}: {what}"])
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
        findings.add("warning", "shared-image", split, shared.values())
        usable[split] = truth.subset([index for index in range(len(truth)) if index not in faults])
    return usable


def _compare_classes(truths: dict[str, GroundTruth], findings: Findings) -> None:
    """Classes without boxes or with few, and classes that are not the same in all splits."""
    first = next(iter(truths), "")
    for split, truth in truths.items():
        twice = {name for name in truth.classes if truth.classes.count(name) > 1}
        lines = [f"{truth.source}: several categories have the name {name}" for name in sorted(twice)]
        findings.add("warning", "duplicate-class", split, lines)

        known = dict(zip(truths[first].category_ids, truths[first].classes))
        lines = [
            f"{truth.source}: category {i} is {name}, in {first} {'it is ' + known[i] if i in known else 'unknown'}"
            for i, name in zip(truth.category_ids, truth.classes)
            if known.get(i) != name
        ]
        findings.add("warning", "different-classes", split, lines)

        counts = np.bincount(truth.labels[~truth.crowd], minlength=len(truth.classes))
        if not counts.any():
            line = f"{truth.source}: no box in it"
            findings.add("error" if split == first else "warning", "no-boxes", split, [line])
            continue
        lines = [f"{truth.source}: no box of class {truth.classes[label]}" for label in np.flatnonzero(counts == 0)]
        findings.add("warning" if split == first else "note", "unused-class", split, lines)
        if split == first:
            rare = np.flatnonzero((counts > 0) & (counts < _RARE))
            lines = [f"{truth.source}: class {truth.classes[label]} has {counts[label]} boxes" for label in rare]
            findings.add("note", "rare-class", split, lines)
