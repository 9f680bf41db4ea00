"""YOLO annotations: `data.yaml`, and a text file of labels for each image.

`data.yaml` has `names` (a list, or a dict from index to name) and for `train`, `val` and `test` a folder of images, a
list of folders, or a text file that lists images; relative to `path`, if that is given, or to `data.yaml` itself.
The labels of `.../images/a/b.jpg` are in `.../labels/a/b.txt`; an image without that file has no objects.

A line is `class x y w h`, the box's centre and size as fractions of the upright picture's width and height, or
`class x1 y1 x2 y2 x3 y3 ...`, a polygon, whose extent is taken as the box (docs.ultralytics.com/datasets/detect).
"""

from __future__ import annotations

import math
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

from retinaconf.data.folders import IMAGE_SUFFIXES, JUDGED, folders_in, see_inside, the_only
from retinaconf.data.ground_truth import Fault, GroundTruth, ground_truth_from_coco
from retinaconf.data.images import Check, check_image, check_images
from retinaconf.errors import InputError, reason
from retinaconf.files import read_text

LARGEST = 1 << 20  # bytes of `data.yaml`, which takes 20 seconds to read at this size
_KEYS = {"train": ("train",), "val": ("val", "valid"), "test": ("test",)}


def yolo_splits(root: Path) -> list[str]:
    """Splits that `data.yaml` names; empty if there is no such file, and no other one with its content.

    Raises:
        InputError: `data.yaml` is not YAML or names no classes; or it is not there, and several others are like it.
    """
    file = _file(root)
    if file is None:
        return []
    specification = _specification(file)
    return [split for split in _KEYS if _entries(specification, split)]


def is_usual_yolo(root: Path) -> bool:
    """Whether the folder has a `data.yaml`."""
    return (root / "data.yaml").is_file()


def read_yolo(root: Path, split: str, skip_bad: bool = False, check: Check = check_image) -> GroundTruth:
    """Read one split. Category ids are the class indices of the label files.

    Boxes are fractions of the picture, so that each image is opened for its size, and checked on the way.

    Args:
        root: the folder that holds `data.yaml`.
        split: one of `yolo_splits(root)`.
        skip_bad: drop what cannot be used and list it in `dropped`; otherwise the first such record raises.
        check: what checks an image and gives its size, as `check_images` takes it.

    Raises:
        InputError: a folder is missing, no image has labels, or an image or a line of labels is bad.
    """
    file = _file(root) or root / "data.yaml"
    specification = _specification(file)
    names = _names(specification, file)
    paths = [path for entry in _entries(specification, split) for path in _images(file, specification, split, entry)]
    paths = sorted(set(paths))
    if not paths:
        looked_for = ", ".join(sorted(IMAGE_SUFFIXES))
        raise InputError(f"{file}: '{split}' names no image; looked for {looked_for}{_without(split)}")
    dropped: list[Fault] = []
    images: list[dict[str, Any]] = []
    records: list[dict[str, Any]] = []
    labels_of, folder = _label_files(root, paths)
    for image_id, path in enumerate(paths, start=1):
        labels = labels_of[path]
        try:
            lines = _lines(labels)
        except InputError as error:
            if not skip_bad:
                raise InputError(f"{error}; mend it, or leave such images out with --data.skip-bad") from None
            dropped.append(Fault("bad-annotation", str(error), image=True))
            continue
        images.append({"id": image_id, "file_name": os.path.relpath(path, root)})
        for number, line in enumerate(lines, start=1):
            if not line.strip():
                continue
            try:
                label, (x0, y0, x1, y1) = _object(line, names, "kpt_shape" in specification)
            except ValueError as error:
                fault = f"{labels}: line {number} {error}"
                if not skip_bad:
                    raise InputError(f"{fault}; mend it, or drop such lines with --data.skip-bad") from None
                dropped.append(Fault("bad-annotation", fault, classes=_class_of(line, names)))
                continue
            if x1 <= x0 or y1 <= y0:
                fault = f"{labels}: line {number} has width {x1 - x0:g}, height {y1 - y0:g}"
                dropped.append(Fault("degenerate-box", fault))
                continue
            records.append({"image_id": image_id, "category_id": label, "bbox": [x0, y0, x1 - x0, y1 - y0]})
    document = {
        "images": images,
        "annotations": records,
        "categories": [{"id": index, "name": name} for index, name in names.items()],
    }
    truth = ground_truth_from_coco(document, root, str(file))
    truth = check_images(replace(truth, dropped=tuple(dropped)), skip_bad, check=check)
    if not any(labels.is_file() for labels in labels_of.values()):
        raise InputError(
            f"{file}: none of the {len(paths)} images of '{split}' has labels; expected {labels_of[paths[0]]}"
        )
    pixels = truth.image_sizes[truth.image_index][:, [1, 0, 1, 0]]  # (B, 4): width, height, width, height
    found = [f"classes from {file.name}"] if file.name != "data.yaml" else []
    found += [f"labels from {folder.relative_to(root)}"] if folder is not None else []
    boxes, areas = truth.boxes * pixels, truth.areas * pixels[:, 0] * pixels[:, 1]
    return replace(truth, boxes=boxes, areas=areas, taken=tuple(found), annotation_files=(file, *labels_of.values()))


def _file(root: Path) -> Path | None:
    """`data.yaml`, or the only other file with its content."""
    if is_usual_yolo(root):
        return root / "data.yaml"

    def holds(file: Path) -> bool:
        try:
            specification = _specification(file)
        except InputError:
            return False
        return "names" in specification and any(_entries(specification, split) for split in _KEYS)

    return the_only(root, sorted(root.glob("*.y*ml")), holds, "YOLO's classes and splits", "data.yaml")


def _specification(file: Path) -> dict[str, Any]:
    import yaml

    try:
        if file.stat().st_size > LARGEST:
            raise ValueError(f"larger than {LARGEST:,} bytes")
        text = read_text(file)
        if any(isinstance(token, yaml.AliasToken) for token in yaml.scan(text)):
            raise ValueError("an alias, which can stand for more than fits into memory; write out what it stands for")
        specification = yaml.safe_load(text)
    except OSError as error:
        raise InputError(f"{file}: cannot be read ({reason(error)})") from None
    except (yaml.YAMLError, ValueError, KeyError, RecursionError) as error:  # KeyError: of `!!bool maybe`
        raise InputError(f"{file}: not valid YAML ({' '.join(str(error).split())})") from None
    if not isinstance(specification, dict):
        raise InputError(f"{file}: has no keys; it needs 'names', 'train' and 'val'")
    return specification


def _names(specification: dict[str, Any], file: Path) -> dict[int, str]:
    """Class names by index."""
    names = specification.get("names")
    if isinstance(names, list):
        names = dict(enumerate(names))
    if not isinstance(names, dict) or not names:
        raise InputError(f"{file}: no 'names' in it; list the names of the classes, or give them by index")
    try:
        by_index = {int(index): str(name) for index, name in names.items()}
    except (TypeError, ValueError):
        raise InputError(f"{file}: 'names' has an index that is not a whole number") from None
    count = specification.get("nc", len(by_index))
    if count != len(by_index) or min(by_index) < 0:
        raise InputError(f"{file}: 'nc' is {count}, 'names' has {len(by_index)} entries; correct one of them")
    return by_index


def _entries(specification: dict[str, Any], split: str) -> list[str]:
    for key in _KEYS.get(split, ()):
        entry = specification.get(key)
        if entry:
            return [str(one) for one in entry] if isinstance(entry, list) else [str(entry)]
    return []


def _without(split: str) -> str:
    """What to do about a missing `val`: exports name all three splits, also those that they leave empty."""
    return "; if there is no 'val', remove its line, and images of 'train' are held out" if split == "val" else ""


def _images(file: Path, specification: dict[str, Any], split: str, entry: str) -> list[Path]:
    """Image files of a folder, at any depth, or of a text file that lists them."""
    root = file.parent
    # Downloaded sets often carry a `path` of their author's machine, or a `../` too many.
    places = [root / str(specification.get("path") or "") / entry, root / entry, root / entry.removeprefix("../")]
    place = next((one for one in places if one.exists()), None)
    if place is None:
        looked = " and ".join(dict.fromkeys(os.path.normpath(one) for one in places))
        raise InputError(f"{file}: '{split}' names {entry}, which does not exist; looked at {looked}{_without(split)}")
    place = Path(os.path.normpath(place))
    if place.is_dir():
        return [
            path for path in place.rglob("*") if path.suffix.lower() in IMAGE_SUFFIXES and not path.name.startswith(".")
        ]
    listed = [Path(line.strip()) for line in _lines(place) if line.strip()]
    roots = [root, root / str(specification.get("path") or "")]
    see_inside(roots, root, [os.path.abspath(place)], str(file))
    see_inside(roots, place.parent, map(str, listed), str(place))
    return [
        Path(os.path.normpath(place.parent / path if (place.parent / path).exists() else root / path))
        for path in listed
    ]


def _label_files(root: Path, images: list[Path]) -> tuple[dict[Path, Path], Path | None]:
    """The file with the labels of each image, and their folder if it was found by its content."""
    usual = {image: _label_file(image) for image in images}
    if any(labels.is_file() for labels in usual.values()):
        return usual, None
    # In a folder of another name they have the same paths as the images have in theirs.
    common = os.path.commonpath([os.path.abspath(image.parent) for image in images])
    names = {image: Path(os.path.relpath(image, common)).with_suffix(".txt") for image in images}

    judged = list(names.values())[:JUDGED]

    def holds(folder: Path) -> bool:
        return any((folder / name).is_file() for name in judged)

    folder = the_only(root, folders_in(root, 2), holds, "labels with the images' names", "labels")
    return usual if folder is None else {image: folder / name for image, name in names.items()}, folder


def _label_file(image: Path) -> Path:
    """The last folder `images` of the path becomes `labels`; without one, the labels are beside the image."""
    parts = list(image.parts)
    for position in reversed(range(len(parts) - 1)):
        if parts[position] == "images":
            parts[position] = "labels"
            break
    return Path(*parts).with_suffix(".txt")


def _lines(file: Path) -> list[str]:
    try:
        return read_text(file).splitlines()
    except FileNotFoundError:
        return []
    except OSError as error:
        raise InputError(f"{file}: cannot be read ({reason(error)})") from None
    except UnicodeDecodeError:
        raise InputError(f"{file}: not a text file") from None


def _class_of(line: str, names: dict[int, str]) -> frozenset[str]:
    first = line.split()[0]
    is_number = first.isdecimal() and len(first) < 10  # Python refuses to read thousands of digits
    return frozenset({names[int(first)]} if is_number and int(first) in names else ())


def _object(line: str, names: dict[int, str], has_keypoints: bool) -> tuple[int, tuple[float, float, float, float]]:
    """Class and extent (x0, y0, x1, y1), as fractions, of one line; ValueError says what is wrong with it."""
    words = line.split()
    try:
        label, values = float(words[0]), [float(word) for word in words[1:]]
    except ValueError:
        raise ValueError(f"is {line.strip()!r}, not numbers") from None
    if has_keypoints:
        values = values[:4]
    if len(values) != 4 and (len(values) < 6 or len(values) % 2):
        raise ValueError(f"has {len(words)} columns; it needs class x y w h, or class and at least three points")
    if label not in names:
        raise ValueError(f"has class {words[0]}, which 'names' does not list")
    if not all(math.isfinite(value) and -0.01 <= value <= 1.01 for value in values):
        raise ValueError("has coordinates that are not fractions of the picture, from 0 to 1")
    if len(values) == 4:
        x, y, w, h = values
        return int(label), (x - w / 2, y - h / 2, x + w / 2, y + h / 2)
    return int(label), (min(values[::2]), min(values[1::2]), max(values[::2]), max(values[1::2]))
