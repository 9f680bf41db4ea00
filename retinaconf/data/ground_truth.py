"""Ground truth of one split, as columns.

One structure serves training, evaluation and diagnosis, whatever layout the files had. Columns are numpy arrays, so
that loader workers share the parent's memory: a list of dicts would be copied page by page as reference counts change.
"""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, cast

import numpy as np

from retinaconf.data.val_split import ValSplit
from retinaconf.errors import FaultKind, InputError, reason
from retinaconf.files import open_regular


@dataclass(frozen=True)
class Fault:
    """An image or a record that was left out."""

    kind: FaultKind
    message: str  # one line: which file or record, and what is wrong with it
    image: bool = False  # a whole image was left out, not one of its annotations
    classes: frozenset[str] = frozenset()  # of the objects that were left out with it, as far as they are known

    def __str__(self) -> str:
        return self.message

    @classmethod
    def of_image(cls, error: InputError, classes: Iterable[str] = ()) -> Fault:
        """What was wrong with an image file that could not be read."""
        return cls(error.kind or "unreadable-image", str(error), True, frozenset(classes))


@dataclass(frozen=True)
class LeftOut:
    """What was left out of a split because it cannot be used; `str()` says it in words, empty where it is nothing."""

    images: int
    annotations: int  # without those of the images, and without boxes that have no extent
    classes: list[str]  # those that had objects among it, and have none in what remains
    records: list[str]  # a line for each image, annotation, and box without extent

    def __str__(self) -> str:
        counts = [(self.images, "image"), (self.annotations, "annotation")]
        words = " and ".join(f"{n:,} {noun}{'s' if n > 1 else ''}" for n, noun in counts if n)
        lost = f", with every box of {', '.join(self.classes)}" if self.classes else ""
        return f"{words} left out{lost}" if words else ""


@dataclass(frozen=True)
class GroundTruth:
    """Images and boxes of one split.

    I images and B boxes. Boxes are sorted by image; those of image i are rows `offsets[i]:offsets[i + 1]`. They are as
    the file gives them, not clipped to the image: the official evaluation uses them so.
    """

    image_ids: np.ndarray  # (I,) int64
    file_names: np.ndarray  # (I,) str, relative to image_folder
    image_sizes: np.ndarray  # (I, 2) int64: height, width; 0 where the file does not say
    boxes: np.ndarray  # (B, 4) float64, xyxy in pixels
    labels: np.ndarray  # (B,) int64, an index into `classes`
    crowd: np.ndarray  # (B,) bool: a region of many objects; no target in training, ignored in evaluation
    areas: np.ndarray  # (B,) float64, COCO's `area` (of the mask where there is one)
    offsets: np.ndarray  # (I + 1,) int64
    classes: tuple[str, ...]  # K names
    category_ids: tuple[int, ...]  # K ids as on disk, ascending, not necessarily contiguous
    image_folder: Path | None
    source: str  # the file or folder that messages name
    annotation_files: tuple[Path, ...] = ()  # what the boxes were read from; one that is not there may come
    dropped: tuple[Fault, ...] = field(default=())  # what was left out
    images_checked: bool = False  # every image has been decoded, and `image_sizes` are the true ones
    val_split: ValSplit | None = None  # which images are `val`, where the data set does not say
    taken: tuple[str, ...] = ()  # what was found by its content and not under its usual name: `images from imgs`

    def __len__(self) -> int:
        return len(self.image_ids)

    @property
    def image_index(self) -> np.ndarray:
        """(B,) int64: the image that each box belongs to."""
        return np.repeat(np.arange(len(self)), np.diff(self.offsets))

    @property
    def left_out(self) -> LeftOut:
        """What `skip_bad` left out of this split."""
        remaining = {self.classes[label] for label in np.unique(self.labels)}
        lost = frozenset().union(*(fault.classes for fault in self.dropped)) - remaining
        return LeftOut(
            images=sum(fault.image for fault in self.dropped),
            annotations=sum(not fault.image and fault.kind != "degenerate-box" for fault in self.dropped),
            classes=sorted(lost),
            records=[str(fault) for fault in self.dropped],
        )

    def path(self, index: int) -> Path:
        """The image's file."""
        return (self.image_folder or Path()) / str(self.file_names[index])

    def subset(self, indices: Sequence[int] | np.ndarray) -> GroundTruth:
        """The same classes with only the images `indices`, in that order."""
        chosen = np.asarray(indices, dtype=np.int64)
        counts = np.diff(self.offsets)[chosen]
        rows = np.concatenate([np.arange(*self.offsets[i : i + 2]) for i in chosen] or [np.zeros(0, np.int64)])
        return replace(
            self,
            image_ids=self.image_ids[chosen],
            file_names=self.file_names[chosen],
            image_sizes=self.image_sizes[chosen],
            boxes=self.boxes[rows],
            labels=self.labels[rows],
            crowd=self.crowd[rows],
            areas=self.areas[rows],
            offsets=np.concatenate([[0], np.cumsum(counts)]),
        )

    def fingerprint(self) -> dict[str, int | str]:
        """The parts that a training depends on, pixels aside, each as a number or a digest: equal for equal data."""

        def digest(part: Any) -> str:
            content = part.tobytes() if isinstance(part, np.ndarray) else json.dumps(part).encode()
            return hashlib.sha256(content).hexdigest()[:16]

        return {
            "images": len(self),
            "boxes": len(self.boxes),
            "classes": digest([self.category_ids, self.classes]),
            "image ids": digest(self.image_ids),
            "file names": digest(self.file_names.tolist()),
            "image sizes": digest(self.image_sizes),
            "boxes' images": digest(self.image_index),
            "box coordinates": digest(self.boxes),
            "box labels": digest(self.labels),
            "crowd flags": digest(self.crowd),
        }


def read_coco(annotation_file: Path, image_folder: Path | None = None, skip_bad: bool = False) -> GroundTruth:
    """Read a COCO detection file.

    Boxes without width or height are always dropped and listed in `dropped`. Any other fault (a box that is not four
    finite numbers, an unknown image or category) raises, or with `skip_bad` is dropped and listed too.

    Raises:
        InputError: the file is missing, is not JSON, is not COCO, or holds a bad record.
    """
    document = _load_json(annotation_file)
    for key in ("images", "annotations", "categories"):
        if not isinstance(document, dict) or not isinstance(document.get(key), list):
            raise InputError(
                f"{annotation_file}: no list '{key}' in it; a COCO file has images, annotations, categories"
            )
    ground_truth = ground_truth_from_coco(document, image_folder, str(annotation_file), skip_bad)
    return replace(ground_truth, annotation_files=(annotation_file,))


def ground_truth_from_coco(
    document: dict[str, Any], image_folder: Path | None, source: str, skip_bad: bool = False
) -> GroundTruth:
    """Columns of a COCO dictionary; `source` is what messages name. See `read_coco`."""
    images, image_row = _images(document["images"], source)
    categories = sorted(_categories(document["categories"], source))
    label_of = {category_id: label for label, (category_id, _) in enumerate(categories)}

    dropped: list[Fault] = []
    rows: list[tuple[int, int, float, float, float, float, bool, float]] = []
    for position, annotation in enumerate(document["annotations"]):
        try:
            row = _annotation(annotation, position, images, image_row, label_of)
        except _BadRecordError as fault:
            if not skip_bad:
                raise InputError(f"{source}: {fault}; mend it, or drop such records with --data.skip-bad") from None
            dropped.append(Fault("bad-annotation", f"{source}: {fault}", classes=_class_of(annotation, categories)))
            continue
        if row[4] <= 0 or row[5] <= 0:
            side, value = ("width", row[4]) if row[4] <= 0 else ("height", row[5])
            name = f"annotation {annotation.get('id', f'at position {position}')} (image {images[row[0]][1]})"
            dropped.append(Fault("degenerate-box", f"{source}: {name} has {side} {value:g}"))
            continue
        rows.append(row)

    rows.sort(key=lambda row: row[0])  # stable: the file's order within an image
    table = np.array([row[:6] for row in rows], dtype=np.float64).reshape(-1, 6)
    xyxy = table[:, 2:6].copy()
    xyxy[:, 2:] += xyxy[:, :2]
    counts = np.bincount(table[:, 0].astype(np.int64), minlength=len(images))
    return GroundTruth(
        image_ids=np.array([image[0] for image in images], dtype=np.int64),
        file_names=np.array([image[1] for image in images], dtype=np.str_),
        image_sizes=np.array([image[2:] for image in images], dtype=np.int64).reshape(-1, 2),
        boxes=xyxy,
        labels=table[:, 1].astype(np.int64),
        crowd=np.array([row[6] for row in rows], dtype=bool),
        areas=np.array([row[7] for row in rows], dtype=np.float64),
        offsets=np.concatenate([[0], np.cumsum(counts)]).astype(np.int64),
        classes=tuple(name for _, name in categories),
        category_ids=tuple(category_id for category_id, _ in categories),
        image_folder=image_folder,
        source=source,
        dropped=tuple(dropped),
    )


class _BadRecordError(Exception):
    """An annotation that cannot be used; the message names it."""


def _class_of(annotation: Any, categories: list[tuple[int, str]]) -> frozenset[str]:
    category_id = annotation.get("category_id") if isinstance(annotation, dict) else None
    return frozenset(name for known, name in categories if known == category_id)


def _load_json(path: Path) -> Any:
    try:
        with open_regular(path) as stream:
            return json.loads(stream.read())
    except FileNotFoundError:
        raise InputError(f"{path}: no such file") from None
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({reason(error)})") from None
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: not valid JSON ({error})") from None


def _is_int(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and -(2**63) <= value < 2**63


def _is_finite(value: float) -> bool:
    return abs(value) <= sys.float_info.max  # false also of integers that no float holds


def _images(records: list[Any], source: str) -> tuple[list[tuple[int, str, int, int]], dict[int, int]]:
    images: list[tuple[int, str, int, int]] = []
    row_of: dict[int, int] = {}
    for position, record in enumerate(records):
        if not isinstance(record, dict) or not _is_int(record.get("id")):
            raise InputError(f"{source}: image at position {position} has no integer 'id'")
        if not isinstance(record.get("file_name", ""), str):
            raise InputError(f"{source}: image {record['id']}: 'file_name' is not a text")
        if record["id"] in row_of:
            raise InputError(f"{source}: image id {record['id']} occurs twice; ids must be unique")
        size = [record.get(key) or 0 for key in ("height", "width")]
        if not all(_is_int(side) and side >= 0 for side in size):
            raise InputError(
                f"{source}: image {record['id']} has size {size[1]} x {size[0]}; give whole numbers of pixels"
            )
        row_of[record["id"]] = len(images)
        images.append((record["id"], record.get("file_name") or str(record["id"]), size[0], size[1]))
    return images, row_of


def _categories(records: list[Any], source: str) -> list[tuple[int, str]]:
    if not records:
        raise InputError(f"{source}: the list 'categories' is empty; a detector needs at least one class")
    seen: dict[int, str] = {}
    for position, record in enumerate(records):
        if not isinstance(record, dict) or not _is_int(record.get("id")):
            raise InputError(f"{source}: category at position {position} has no integer 'id'")
        if record["id"] in seen:
            raise InputError(f"{source}: category id {record['id']} occurs twice; ids must be unique")
        seen[record["id"]] = str(record.get("name", record["id"]))
    return list(seen.items())


def _annotation(
    annotation: Any,
    position: int,
    images: list[tuple[int, str, int, int]],
    image_row: dict[int, int],
    label_of: dict[int, int],
) -> tuple[int, int, float, float, float, float, bool, float]:
    """(image, label, x, y, w, h, crowd, area) of one record."""
    if not isinstance(annotation, dict):
        raise _BadRecordError(f"annotation at position {position} is not an object")
    name = f"annotation {annotation.get('id', f'at position {position}')}"
    image_id, category_id = annotation.get("image_id"), annotation.get("category_id")
    image = image_row.get(cast(int, image_id)) if _is_int(image_id) else None
    if image is None:
        raise _BadRecordError(f"{name} names image {image_id!r}, which 'images' does not list")
    name += f" (image {images[image][1]})"
    label = label_of.get(cast(int, category_id)) if _is_int(category_id) else None
    if label is None:
        raise _BadRecordError(f"{name} names category {category_id!r}, which 'categories' does not list")
    box = annotation.get("bbox")
    if not isinstance(box, list) or len(box) != 4 or not all(isinstance(value, int | float) for value in box):
        raise _BadRecordError(f"{name} has bbox {box!r}, not four numbers x, y, width, height")
    if not all(_is_finite(value) for value in box):
        raise _BadRecordError(f"{name} has bbox {box!r}; its numbers must be finite")
    x, y, w, h = (float(value) for value in box)
    area = annotation.get("area")
    area = w * h if area is None else area
    if not isinstance(area, int | float) or not _is_finite(area):
        raise _BadRecordError(f"{name} has area {area!r}, not a finite number")
    crowd = annotation.get("iscrowd") or 0
    if crowd not in (0, 1):
        raise _BadRecordError(f"{name} has iscrowd {crowd!r}, not 0 or 1")
    return image, label, x, y, w, h, bool(crowd), float(area)
