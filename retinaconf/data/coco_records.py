"""Records of a COCO detection file: as columns where they have the usual form, one by one where they have not."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import chain
from typing import Any, NamedTuple, NotRequired, cast

import numpy as np
from typing_extensions import TypedDict

from retinaconf.errors import InputError, plain, quoted
from retinaconf.json_text import Box

LONGEST_NAME = 1000  # characters of a file or a class: an array of names has room for the longest in each place
_NO_ID = -(2**63)


class UsualImage(TypedDict):
    """What is read of an image, and the usual types."""

    id: int
    file_name: NotRequired[str]
    height: NotRequired[int]
    width: NotRequired[int]


class UsualAnnotation(TypedDict):
    """What is read of an annotation, and the usual types."""

    id: NotRequired[int]
    image_id: int
    category_id: int
    bbox: Box
    area: NotRequired[float]
    iscrowd: NotRequired[int]


class Row(NamedTuple):
    """An annotation that can be used."""

    position: int  # in the file
    image: int  # its position among the images
    label: int
    x: float
    y: float
    width: float
    height: float
    crowd: bool
    area: float


@dataclass(frozen=True)
class Annotations:
    """B annotations whose fields have the usual types, as columns, and the others as they are."""

    position: np.ndarray  # (B,) int64: in the file
    ids: np.ndarray  # (B, 3) int64: the annotation's, the image's and the category's
    numbers: np.ndarray  # (B, 6) float64: x, y, width, height, all finite, the sides above 0; crowd, 0 or 1; area
    others: list[tuple[int, Any]]  # each with its position

    @classmethod
    def of(cls, batches: Iterable[list[Any]]) -> Annotations:
        """Those of all batches."""
        parts: list[tuple[np.ndarray, ...]]
        parts = [(np.zeros(0, np.int64), np.zeros((0, 3), np.int64), np.zeros((0, 6)))]
        others: list[tuple[int, Any]] = []
        first = 0
        for records in batches:
            columns = _columns(records)
            usual = np.zeros(len(records), bool) if columns is None else (columns[1][:, 2:4] > 0).all(axis=1)
            others += [(first + int(row), records[row]) for row in np.flatnonzero(~usual)]
            if columns is not None:
                parts.append((first + np.flatnonzero(usual), *(column[usual] for column in columns)))
            first += len(records)
        position, ids, numbers = (np.concatenate(column) for column in zip(*parts))
        return cls(position, ids, numbers, others)

    def rows(self, image_ids: np.ndarray, category_ids: np.ndarray) -> tuple[np.ndarray, list[tuple[int, Any]]]:
        """Those of known images and categories, as a table whose columns are those of `Row`; and all the others."""
        image, label = index_of(self.ids[:, 1], image_ids), index_of(self.ids[:, 2], category_ids)
        known = (image >= 0) & (label >= 0)
        table = np.column_stack([self.position, image, label, self.numbers])[known]
        others = [*self.others, *self._records(np.flatnonzero(~known))]
        return table, sorted(others, key=lambda other: other[0])

    def _records(self, rows: np.ndarray) -> Iterator[tuple[int, dict[str, Any]]]:
        """Positions, and the fields that a message needs."""
        for row in rows:
            known = dict(zip(("id", "image_id", "category_id"), self.ids[row].tolist()))
            if known["id"] == _NO_ID:
                del known["id"]
            yield int(self.position[row]), known


def _columns(records: list[Any]) -> tuple[np.ndarray, np.ndarray] | None:
    """`ids` and `numbers` of records, or None where one is unusual."""
    try:
        ids = [[record.get("id") for record in records]]
        ids += [[record[key] for record in records] for key in ("image_id", "category_id")]
        boxes = [record["bbox"] for record in records]
        crowd = [record.get("iscrowd") or 0 for record in records]
        areas = [record.get("area") for record in records]
        sides = list(chain.from_iterable(boxes))
        if set(map(type, ids[0])) == {type(None)}:
            ids[0] = [_NO_ID] * len(records)
        has_areas = set(map(type, areas)) != {type(None)}
        numbers = set(map(type, chain(sides, areas if has_areas else ())))
        usual = set(map(type, chain(*ids))) == {int} and numbers <= {int, float} and set(crowd) <= {0, 1}
        usual &= set(map(type, boxes)) == {list} and set(map(len, boxes)) == {4}
        if not usual:
            return None
        xywh = np.array(sides, dtype=np.float64).reshape(-1, 4)
        area = np.array(areas, dtype=np.float64) if has_areas else xywh[:, 2] * xywh[:, 3]
        table = np.column_stack([xywh, np.array(crowd, dtype=np.float64), area])
        return (np.array(ids, dtype=np.int64).T, table) if np.isfinite(table).all() else None
    except (AttributeError, KeyError, TypeError, OverflowError):
        return None


def index_of(ids: np.ndarray, known: np.ndarray) -> np.ndarray:
    """(D,) int64: where each integer of `ids` stands in `known`, -1 where it does not."""
    if len(known) == 0:
        return np.full(len(ids), -1, dtype=np.int64)
    starts = np.flatnonzero(np.concatenate([[True], ids[1:] != ids[:-1]])[: len(ids)])  # an image's ids are one run
    first = ids[starts]
    whole = first.astype(np.int64)  # a comparison of unsigned with signed ones would be one of floats
    order = np.argsort(known, kind="stable")
    place = order[np.minimum(np.searchsorted(known, whole, sorter=order), len(known) - 1)]
    found = np.where((known[place] == whole) & (first <= np.iinfo(np.int64).max), place, -1)
    return np.repeat(found, np.diff(starts, append=len(ids)))


class BadRecordError(Exception):
    """An annotation that cannot be used; the message names it."""


def id_of(annotation: dict[str, Any], position: int) -> str:
    """How messages call an annotation."""
    return quoted(annotation["id"]) if "id" in annotation else f"at position {position}"


def row_of(
    annotation: Any,
    position: int,
    images: list[tuple[int, str, int, int]],
    image_row: dict[int, int],
    label_of: dict[int, int],
) -> Row:
    """One record of any form, checked.

    Raises:
        BadRecordError: it is bad.
    """
    if not isinstance(annotation, dict):
        raise BadRecordError(f"annotation at position {position} is not an object")
    name = f"annotation {id_of(annotation, position)}"
    image_id, category_id = annotation.get("image_id"), annotation.get("category_id")
    image = image_row.get(cast(int, image_id)) if _is_int(image_id) else None
    if image is None:
        raise BadRecordError(f"{name} names image {quoted(image_id)}, which 'images' does not list")
    name += f" (image {images[image][1]})"
    label = label_of.get(cast(int, category_id)) if _is_int(category_id) else None
    if label is None:
        raise BadRecordError(f"{name} names category {quoted(category_id)}, which 'categories' does not list")
    box = annotation.get("bbox")
    if not isinstance(box, list) or len(box) != 4 or not all(isinstance(value, int | float) for value in box):
        raise BadRecordError(f"{name} has bbox {quoted(box)}, not four numbers x, y, width, height")
    if not all(_is_finite(value) for value in box):
        raise BadRecordError(f"{name} has bbox {quoted(box)}; its numbers must be finite")
    x, y, w, h = (float(value) for value in box)
    area = annotation.get("area")
    area = w * h if area is None else area
    if not isinstance(area, int | float) or not _is_finite(area):
        raise BadRecordError(f"{name} has area {quoted(area)}, not a finite number")
    crowd = annotation.get("iscrowd") or 0
    if crowd not in (0, 1):
        raise BadRecordError(f"{name} has iscrowd {quoted(crowd)}, not 0 or 1")
    return Row(position, image, label, x, y, w, h, bool(crowd), float(area))


def images_of(records: list[Any], source: str) -> tuple[list[tuple[int, str, int, int]], dict[int, int]]:
    """(id, file name, height, width) of each image, and where each id stands.

    Raises:
        InputError: a record is bad.
    """
    images: list[tuple[int, str, int, int]] = []
    row_of: dict[int, int] = {}
    for position, record in enumerate(records):
        if not isinstance(record, dict) or not _is_int(record.get("id")):
            raise InputError(f"{source}: image at position {position} has no integer 'id'")
        name = record.get("file_name", "")
        if not isinstance(name, str) or len(name) > LONGEST_NAME or not _is_file_name(name):
            raise InputError(
                f"{source}: image {record['id']}: 'file_name' is not a text of up to {LONGEST_NAME:,} characters"
            )
        if record["id"] in row_of:
            raise InputError(f"{source}: image id {record['id']} occurs twice; ids must be unique")
        size = [record.get(key) or 0 for key in ("height", "width")]
        if not all(_is_int(side) and side >= 0 for side in size):
            raise InputError(
                f"{source}: image {record['id']} has size {quoted(size[1])} x {quoted(size[0])}; give whole numbers of "
                "pixels"
            )
        row_of[record["id"]] = len(images)
        images.append((record["id"], name or str(record["id"]), size[0], size[1]))
    return images, row_of


def categories_of(records: list[Any], source: str) -> list[tuple[int, str]]:
    """(id, name) of each category, by id.

    Raises:
        InputError: a record is bad, or there is none.
    """
    if not records:
        raise InputError(f"{source}: the list 'categories' is empty; a detector needs at least one class")
    seen: dict[int, str] = {}
    for position, record in enumerate(records):
        if not isinstance(record, dict) or not _is_int(record.get("id")):
            raise InputError(f"{source}: category at position {position} has no integer 'id'")
        if record["id"] in seen:
            raise InputError(f"{source}: category id {record['id']} occurs twice; ids must be unique")
        name = record.get("name", record["id"])
        if not isinstance(name, str | int | float) or len(str(name)) > LONGEST_NAME or plain(str(name)) != str(name):
            raise InputError(
                f"{source}: category {record['id']} has the name {quoted(name)}; give it one line of text of up to "
                f"{LONGEST_NAME:,} characters"
            )
        seen[record["id"]] = str(name)
    return sorted(seen.items())


def _is_int(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and -(2**63) <= value < 2**63


def _is_file_name(name: str) -> bool:
    """Whether it is text that can be written: bytes that are no UTF-8 are halves of surrogate pairs, as in `os`."""
    try:
        name.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:
        return False
    return True


def _is_finite(value: float) -> bool:
    return abs(value) <= sys.float_info.max  # false also of integers that no float holds
