"""Ground truth of one split, as columns.

One structure serves training, evaluation and diagnosis, whatever layout the files had. Columns are numpy arrays, so
that loader workers share the parent's memory: a list of dicts would be copied page by page as reference counts change.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from retinaconf.data.coco_records import (
    Annotations,
    BadRecordError,
    Row,
    UsualAnnotation,
    UsualImage,
    categories_of,
    id_of,
    images_of,
    row_of,
)
from retinaconf.data.folders import see_inside
from retinaconf.data.val_split import ValSplit
from retinaconf.errors import FaultKind, InputError, one_line
from retinaconf.json_text import opened, quick_decoder


@dataclass(frozen=True)
class Fault:
    """An image or a record that was left out."""

    kind: FaultKind
    message: str  # one line: which file or record, and what is wrong with it
    image: bool = False  # a whole image was left out, not one of its annotations
    classes: frozenset[str] = frozenset()  # of the objects that were left out with it, as far as they are known

    def __str__(self) -> str:
        return one_line(self.message)

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
        InputError: the file is missing, is not JSON, is not COCO, holds a bad record, or names an image outside of
            `image_folder`.
    """
    lists: dict[str, Any] = {}
    with opened(annotation_file) as text:
        if text.peek() != "{":
            text.value()
        else:
            for key in text.keys():  # noqa: SIM118
                is_list = text.peek() == "["
                if key == "annotations" and is_list:
                    lists[key] = Annotations.of(text.records(quick_decoder(UsualAnnotation)))
                elif key == "images" and is_list:
                    lists[key] = list(chain.from_iterable(text.records(quick_decoder(UsualImage))))
                else:
                    lists[key] = text.value()
        text.end()
    for key in ("images", "annotations", "categories"):
        if not isinstance(lists.get(key), list | Annotations):
            raise InputError(
                f"{annotation_file}: no list '{key}' in it; a COCO file has images, annotations, categories"
            )
    images, annotations, categories = (lists["images"], lists["annotations"], lists["categories"])
    ground_truth = _columns(images, annotations, categories, image_folder, str(annotation_file), skip_bad)
    if image_folder is not None:
        see_inside([image_folder], image_folder, ground_truth.file_names.tolist(), ground_truth.source)
    return replace(ground_truth, annotation_files=(annotation_file,))


def ground_truth_from_coco(
    document: dict[str, Any], image_folder: Path | None, source: str, skip_bad: bool = False
) -> GroundTruth:
    """Columns of a COCO dictionary; `source` is what messages name. See `read_coco`."""
    annotations = Annotations.of([document["annotations"]])
    return _columns(document["images"], annotations, document["categories"], image_folder, source, skip_bad)


def _columns(
    image_records: list[Any],
    annotations: Annotations,
    category_records: list[Any],
    image_folder: Path | None,
    source: str,
    skip_bad: bool,
) -> GroundTruth:
    images, image_row = images_of(image_records, source)
    categories = categories_of(category_records, source)
    label_of = {category_id: label for label, (category_id, _) in enumerate(categories)}
    image_ids = np.array([image[0] for image in images], dtype=np.int64)
    table, others = annotations.rows(image_ids, np.array(list(label_of), dtype=np.int64))

    dropped: list[Fault] = []
    rows: list[Row] = []
    for position, annotation in others:
        try:
            row = row_of(annotation, position, images, image_row, label_of)
        except BadRecordError as fault:
            if not skip_bad:
                raise InputError(f"{source}: {fault}; mend it, or drop such records with --data.skip-bad") from None
            dropped.append(Fault("bad-annotation", f"{source}: {fault}", classes=_class_of(annotation, categories)))
            continue
        if row.width <= 0 or row.height <= 0:
            side, value = ("width", row.width) if row.width <= 0 else ("height", row.height)
            name = f"annotation {id_of(annotation, position)} (image {images[row.image][1]})"
            dropped.append(Fault("degenerate-box", f"{source}: {name} has {side} {value:g}"))
            continue
        rows.append(row)

    table = np.concatenate([table, np.array(rows, dtype=np.float64).reshape(-1, len(Row._fields))])
    position, image, label, x, y, width, height, crowd, area = table[np.lexsort((table[:, 0], table[:, 1]))].T
    counts = np.bincount(image.astype(np.int64), minlength=len(images))
    return GroundTruth(
        image_ids=image_ids,
        file_names=np.array([image[1] for image in images], dtype=np.str_),
        image_sizes=np.array([image[2:] for image in images], dtype=np.int64).reshape(-1, 2),
        boxes=np.column_stack([x, y, x + width, y + height]),
        labels=label.astype(np.int64),
        crowd=crowd.astype(bool),
        areas=area.copy(),
        offsets=np.concatenate([[0], np.cumsum(counts)]).astype(np.int64),
        classes=tuple(name for _, name in categories),
        category_ids=tuple(category_id for category_id, _ in categories),
        image_folder=image_folder,
        source=source,
        dropped=tuple(dropped),
    )


def _class_of(annotation: Any, categories: list[tuple[int, str]]) -> frozenset[str]:
    category_id = annotation.get("category_id") if isinstance(annotation, dict) else None
    return frozenset(name for known, name in categories if known == category_id)
