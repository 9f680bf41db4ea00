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
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from retinaconf.data.ground_truth import GroundTruth, read_coco
from retinaconf.data.voc import Difficult, read_voc, voc_splits
from retinaconf.data.yolo import read_yolo, yolo_splits
from retinaconf.errors import InputError


@dataclass(frozen=True)
class Layout:
    """One way to lay out a data set in a folder."""

    key: str  # what --data.layout takes
    name: str
    looked_for: str
    splits: Callable[[Path], list[str]]  # those the folder has; none: the folder has another layout
    read: Callable[..., GroundTruth]  # (root, split, skip_bad)


def load_split(
    root: Path,
    split: str,
    skip_bad: bool = False,
    layout: str | None = None,
    difficult: Difficult = "keep",
    val_fraction: float = 0.2,
    val_list: Path | None = None,
) -> GroundTruth:
    """Ground truth of one split of the data set in `root`.

    Args:
        root: the data set's folder.
        split: `train`, `val`, `test`, or what else the layout names; `val` is also found as `valid`.
        skip_bad: drop records that cannot be used and list them in `dropped`; otherwise the first one raises.
        layout: a key of `LAYOUTS`; by default the one that the folder has.
        difficult: of VOC only, which marks objects so: keep them, ignore them as crowd regions are, or drop them.
        val_fraction: of VOC without lists of splits, the share of the images that becomes `val`, balanced by class.
        val_list: likewise, a file that lists the images of `val`, as a run keeps it; it goes before `val_fraction`.

    Raises:
        InputError: no such folder or split, no layout or several recognised, or a bad file or record.
    """
    root = Path(root)
    found = find_layout(root, layout)
    splits = found.splits(root)
    if split not in splits:
        raise InputError(f"{root}: no split '{split}' in this {found.name} layout; it has {', '.join(splits)}")
    if found.read is read_voc:
        return read_voc(root, split, skip_bad, difficult, val_fraction, val_list)
    return found.read(root, split, skip_bad)


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
    found = _recognised(root)
    if not found:
        inside = [child for child in sorted(root.iterdir()) if child.is_dir() and _recognised(child)]
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
    rest = "".join(f"; {part}" for part in (ground_truth.val_split, ground_truth.left_out) if part and str(part))
    return (
        f"{find_layout(Path(root), layout).name} layout in {root}: {source}, {len(ground_truth):,} images, "
        f"{len(ground_truth.boxes):,} boxes, {len(ground_truth.classes)} classes{rest}"
    )


def _recognised(root: Path) -> list[Layout]:
    return [one for one in LAYOUTS.values() if one.splits(root)]


def _in_usual_order(splits: list[str]) -> list[str]:
    usual = ("train", "val", "test")
    return sorted(splits, key=lambda split: (usual.index(split) if split in usual else len(usual), split))


def _coco_2017_splits(root: Path) -> list[str]:
    files = root.glob("annotations/instances_*2017.json")
    return _in_usual_order([file.name.removeprefix("instances_").removesuffix("2017.json") for file in files])


def _read_coco_2017(root: Path, split: str, skip_bad: bool) -> GroundTruth:
    return read_coco(root / "annotations" / f"instances_{split}2017.json", root / f"{split}2017", skip_bad)


def _flat_splits(root: Path) -> list[str]:
    names = {file.stem for file in root.glob("*.json")}
    return _in_usual_order(list(names)) if names & {"train", "val", "test"} else []


def _read_flat(root: Path, split: str, skip_bad: bool) -> GroundTruth:
    ground_truth = read_coco(root / f"{split}.json", root / "images", skip_bad)
    names = ground_truth.file_names[:10]
    if not any((root / "images" / name).is_file() for name in names) and any((root / n).is_file() for n in names):
        return replace(ground_truth, image_folder=root)
    return ground_truth


def _roboflow_splits(root: Path) -> list[str]:
    found = [file.parent.name for file in root.glob("*/_annotations.coco.json")]
    return _in_usual_order(["val" if name == "valid" else name for name in found])


def _read_roboflow(root: Path, split: str, skip_bad: bool) -> GroundTruth:
    folder = root / ("valid" if split == "val" and not (root / "val").is_dir() else split)
    return read_coco(folder / "_annotations.coco.json", folder, skip_bad)


LAYOUTS = {
    layout.key: layout
    for layout in (
        Layout("coco", "COCO 2017", "annotations/instances_{train,val}2017.json", _coco_2017_splits, _read_coco_2017),
        Layout("flat", "flat COCO", "{train,val,test}.json", _flat_splits, _read_flat),
        Layout(
            "roboflow",
            "Roboflow COCO",
            "{train,valid,test}/_annotations.coco.json",
            _roboflow_splits,
            _read_roboflow,
        ),
        Layout("voc", "PASCAL VOC", "Annotations/*.xml", voc_splits, read_voc),
        Layout("yolo", "YOLO", "data.yaml", yolo_splits, read_yolo),
    )
}
