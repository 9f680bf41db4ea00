"""A data set's folder to ground truth, whatever its layout; found by looking, nothing is copied.

====================== =============================================== =====================================
layout                 annotations                                     images
====================== =============================================== =====================================
`coco` COCO 2017       `annotations/instances_{split}2017.json`        `{split}2017/`
`flat` flat COCO       `{split}.json`                                  `images/`, or beside the JSON
`roboflow`             `{train,valid,test}/_annotations.coco.json`     beside the JSON
`voc` PASCAL VOC       `Annotations/*.xml`, `ImageSets/Main/`          `JPEGImages/`, or `images/`
`yolo` YOLO            `data.yaml`, `labels/`                          as `data.yaml` says
====================== =============================================== =====================================

Where a name is a little otherwise (`annots/` for `Annotations/`, `imgs/` for `images/`), the content decides, if only
one place holds it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np

from retinaconf.data.coco_layouts import (
    coco_2017_splits,
    flat_splits,
    is_usual_coco_2017,
    is_usual_flat,
    is_usual_roboflow,
    read_coco_2017,
    read_flat,
    read_roboflow,
    roboflow_splits,
)
from retinaconf.data.ground_truth import Fault, GroundTruth
from retinaconf.data.images import Check, check_image
from retinaconf.data.val_split import ValSplit, draw_val, name_of, read_list
from retinaconf.data.voc import is_usual_voc, read_voc, voc_splits
from retinaconf.data.yolo import is_usual_yolo, read_yolo, yolo_splits
from retinaconf.errors import InputError


@dataclass(frozen=True)
class Layout:
    """One way to lay out a data set in a folder."""

    key: str  # what --data.layout takes
    name: str
    looked_for: str
    is_usual: Callable[[Path], bool]  # whether a folder has the annotations under their usual name
    splits: Callable[[Path], list[str]]  # those the folder has; none: the folder has another layout
    read: Callable[..., GroundTruth]  # (root, split, skip_bad)
    reads_images: bool = False  # boxes are fractions of the images, whose files `read` checks by its argument `check`


def load_split(
    root: Path,
    split: str,
    skip_bad: bool = False,
    layout: str | None = None,
    val_fraction: float = 0.0,
    val_list: Path | None = None,
    check: Check = check_image,
) -> GroundTruth:
    """Ground truth of one split of the data set in `root`.

    Args:
        root: the data set's folder.
        split: `train`, `val`, `test`, or what else the layout names; `val` is also found as `valid`.
        skip_bad: drop records that cannot be used and list them in `dropped`; otherwise the first one raises.
        layout: a key of `LAYOUTS`; by default the one that the folder has.
        val_fraction: where there is `train` and no `val`, the share of its images that is held out as `val`, balanced
            by class; 0 holds none out.
        val_list: likewise, a file that lists these images, as a run keeps it; it goes before `val_fraction` if it names
            any image of `train`.
        check: as `check_images` takes it, for a layout whose annotations need the images' sizes.

    Raises:
        InputError: no such folder or split, no layout or several recognised, or a bad file or record.
    """
    root = Path(root)
    if not 0 <= val_fraction < 1:
        raise InputError(f"val_fraction = {val_fraction:g}: give a share of at least 0 and below 1")
    found = find_layout(root, layout)
    splits = found.splits(root)
    read = partial(found.read, check=check) if found.reads_images else found.read
    if "train" in splits and "val" not in splits and split in ("train", "val"):
        part = _part_of_train(read(root, "train", skip_bad), split == "val", skip_bad, val_fraction, val_list)
        if part is not None:
            return part
    if split not in splits:
        raise InputError(f"{root}: no split '{split}' in this {found.name} layout; it has {', '.join(splits)}")
    return read(root, split, skip_bad)


def _part_of_train(
    train: GroundTruth, is_val: bool, skip_bad: bool, fraction: float, listing: Path | None
) -> GroundTruth | None:
    """The images of `train` that are held out as `val`, None where none are, or those that are left."""
    objects: dict[str, list[str]] = {name_of(name): [] for name in train.file_names}
    names, missing = ([], []) if listing is None else read_list(listing, objects)
    kept_in = listing if names else None  # else there is no list, or it is of other data
    if kept_in is None:
        for index, label in zip(train.image_index[~train.crowd], train.labels[~train.crowd]):
            objects[name_of(train.file_names[index])].append(train.classes[label])
        names, missing = draw_val(objects, fraction) if fraction else [], []
    if not names:
        return None if is_val else train
    lost = [f"{listing}: names {name}, and {train.source} has no such image" for name in missing]
    if is_val and lost and not skip_bad:
        raise InputError(f"{lost[0]}; restore it, or leave such images out with --data.skip-bad")
    held_out = np.isin([name_of(name) for name in train.file_names], names)
    return replace(
        train.subset(np.flatnonzero(held_out == is_val)),
        val_split=ValSplit(tuple(names), len(objects), kept_in),
        # Records that `train` has lost are counted there, whichever part they would have been in.
        dropped=tuple(Fault("bad-annotation", line, image=True) for line in lost) if is_val else train.dropped,
    )


def find_layout(root: Path, layout: str | None = None) -> Layout:
    """The layout of the folder `root`, or the one named by its key.

    Raises:
        InputError: no such folder, or no layout or several recognised.
    """
    if not root.is_dir():
        raise InputError(f"{root}: no such folder; --data takes the folder that holds images and annotations")
    if layout is not None:
        if layout not in LAYOUTS:
            raise InputError(f"layout {layout!r}: no such layout; choose from {', '.join(LAYOUTS)}")
        if not LAYOUTS[layout].splits(root):
            raise InputError(f"{root}: not a {LAYOUTS[layout].name} layout; it would have {LAYOUTS[layout].looked_for}")
        return LAYOUTS[layout]
    found = _usual(root) or [one for one in LAYOUTS.values() if one.splits(root)]
    if not found:
        inside = [child for child in sorted(root.iterdir()) if child.is_dir() and _usual(child)]
        hint = f"; did you mean {inside[0]}?" if inside else ""
        looked_for = ", ".join(one.looked_for for one in LAYOUTS.values())
        raise InputError(f"{root}: no data set recognised; looked for {looked_for}{hint}")
    if len(found) > 1:
        names = " and ".join(one.name for one in found)
        keys = " or ".join(one.key for one in found)
        raise InputError(
            f"{root}: has the layouts {names}; choose with --data.layout {keys} in training, --layout elsewhere"
        )
    return found[0]


def describe(root: Path, ground_truth: GroundTruth, layout: str | None = None) -> str:
    """One line on what was found: `COCO 2017 layout in coco: annotations/instances_val2017.json, 100 images ...`."""
    source = Path(ground_truth.source)
    source = source.relative_to(root) if source.is_relative_to(root) else source
    parts = [", ".join(ground_truth.taken), str(ground_truth.val_split or ""), str(ground_truth.left_out)]
    rest = "".join(f"; {part}" for part in parts if part)
    return (
        f"{find_layout(Path(root), layout).name} layout in {root}: {source}, {len(ground_truth):,} images, "
        f"{len(ground_truth.boxes):,} boxes, {len(ground_truth.classes)} classes{rest}"
    )


def _usual(root: Path) -> list[Layout]:
    return [one for one in LAYOUTS.values() if one.is_usual(root) and one.splits(root)]


LAYOUTS = {
    layout.key: layout
    for layout in (
        Layout(
            "coco",
            "COCO 2017",
            "annotations/instances_{train,val}2017.json",
            is_usual_coco_2017,
            coco_2017_splits,
            read_coco_2017,
        ),
        Layout("flat", "flat COCO", "{train,val,test}.json", is_usual_flat, flat_splits, read_flat),
        Layout(
            "roboflow",
            "Roboflow COCO",
            "{train,valid,test}/_annotations.coco.json",
            is_usual_roboflow,
            roboflow_splits,
            read_roboflow,
        ),
        Layout("voc", "PASCAL VOC", "Annotations/*.xml", is_usual_voc, voc_splits, read_voc),
        Layout("yolo", "YOLO", "data.yaml", is_usual_yolo, yolo_splits, read_yolo, reads_images=True),
    )
}
