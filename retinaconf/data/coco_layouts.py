"""COCO annotations in three layouts, COCO 2017, flat and Roboflow's export: `retinaconf.data.layouts` shows them.

COCO 2017's files may also be of another year or none, `instances_train.json`, and in a folder of another name; those of
the flat layout in a folder of their own beside that of the images.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

from retinaconf.data.folders import IMAGE_SUFFIXES, find_images, folders_in, see_inside, taken, the_only
from retinaconf.data.ground_truth import GroundTruth, read_coco
from retinaconf.files import open_regular

_FLAT = ("train", "val", "test")
_BEGIN = re.compile(rb'\s*\{\s*"(info|licenses|type|images|annotations|categories)"\s*:')


def is_usual_coco_2017(root: Path) -> bool:
    """Whether `annotations/` holds files of COCO 2017."""
    return any((root / "annotations").glob("instances_*2017.json"))


def coco_2017_splits(root: Path) -> list[str]:
    """Splits of the data set; empty if the folder has another layout."""
    return in_usual_order(_coco_2017_files(root))


def read_coco_2017(root: Path, split: str, skip_bad: bool = False) -> GroundTruth:
    """Read one of `coco_2017_splits(root)`; see `read_coco`."""
    file = _coco_2017_files(root)[split]
    year = file.stem.removeprefix(f"instances_{split}")
    return _with_images(root, read_coco(file, None, skip_bad), [root / f"{split}{year}"], root / "annotations")


def is_usual_flat(root: Path) -> bool:
    """Whether the folder has one of the JSON files of the flat layout."""
    return any((root / f"{split}.json").is_file() for split in _FLAT)


def flat_splits(root: Path) -> list[str]:
    """Splits of the data set; empty if the folder has another layout."""
    folder = _flat_folder(root)
    return [] if folder is None else in_usual_order(file.stem for file in folder.glob("*.json"))


def read_flat(root: Path, split: str, skip_bad: bool = False) -> GroundTruth:
    """Read one of `flat_splits(root)`; see `read_coco`."""
    file = (_flat_folder(root) or root) / f"{split}.json"
    return _with_images(root, read_coco(file, None, skip_bad), [root / "images", root], root)


def is_usual_roboflow(root: Path) -> bool:
    """Whether a folder in this one has the JSON file of Roboflow's export."""
    return any(root.glob("*/_annotations.coco.json"))


def roboflow_splits(root: Path) -> list[str]:
    """Splits of the data set; empty if the folder has another layout."""
    found = [file.parent.name for file in root.glob("*/_annotations.coco.json")]
    return in_usual_order("val" if name == "valid" else name for name in found)


def read_roboflow(root: Path, split: str, skip_bad: bool = False) -> GroundTruth:
    """Read one of `roboflow_splits(root)`; see `read_coco`."""
    folder = root / ("valid" if split == "val" and not (root / "val").is_dir() else split)
    return read_coco(folder / "_annotations.coco.json", folder, skip_bad)


def in_usual_order(splits: Iterable[str]) -> list[str]:
    """`train`, `val` and `test` first."""
    return sorted(splits, key=lambda split: (_FLAT.index(split) if split in _FLAT else len(_FLAT), split))


def _coco_2017_files(root: Path) -> dict[str, Path]:
    """The annotation file of each split."""
    files = sorted((root / "annotations").glob("instances_*2017.json"))
    if not files:
        places = [[root / "annotations"], folders_in(root, 1)]

        def holds(folder: Path) -> bool:
            return bool(_coco_files(folder, "instances_*"))

        found = (the_only(root, folders, holds, "COCO annotations", "annotations") for folders in places)
        files = next((_coco_files(folder, "instances_*") for folder in found if folder is not None), [])
    return {re.sub(r"^instances_|_?(20\d\d)?$", "", file.stem): file for file in files}


def _flat_folder(root: Path) -> Path | None:
    """The folder with the JSON files: `root`, or one in it that holds nothing but files of annotations."""
    if is_usual_flat(root):
        return root

    def holds(folder: Path) -> bool:
        alone = not any(one.is_dir() or one.suffix.lower() in IMAGE_SUFFIXES for one in folder.iterdir())
        return alone and any(_coco_files(folder, split) for split in _FLAT)

    return the_only(root, folders_in(root, 1)[1:], holds, "COCO annotations", "annotations")


def _coco_files(folder: Path, name: str) -> list[Path]:
    """JSON files of this name that begin as COCO's do."""
    return [file for file in sorted(folder.glob(f"{name}.json")) if _BEGIN.match(_beginning(file))]


def _beginning(file: Path) -> bytes:
    try:
        with open_regular(file) as stream:
            return stream.read(1000)
    except OSError:
        return b""


def _with_images(root: Path, truth: GroundTruth, usual: Sequence[Path], usual_annotations: Path) -> GroundTruth:
    names = truth.file_names.tolist()
    folder = find_images(root, usual, names)
    see_inside([root], folder, names, truth.source)
    annotations = Path(truth.source).parent
    found = taken(root, annotations=(annotations, [usual_annotations]), images=(folder, usual))
    return replace(truth, image_folder=folder, taken=found)
