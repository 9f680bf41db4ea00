"""COCO results JSON to columns, batch by batch."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO, NotRequired

import numpy as np
from typing_extensions import TypedDict

from retinaconf.errors import InputError, quoted
from retinaconf.json_text import Box, opened, quick_decoder
from retinaconf.progress import ProgressCallback, silent

OPTIONAL = ("class_score", "quality")
LARGEST_EXACT = 1 << 53  # from here on several integers round to one float


class _Record(TypedDict):
    """The usual form of a record."""

    image_id: int
    category_id: int
    bbox: Box
    score: float
    class_score: NotRequired[float]
    quality: NotRequired[float]


def read_coco_results(path: Path, progress: ProgressCallback = silent) -> dict[str, np.ndarray]:
    """Columns image_id, category_id (D,) int64, bbox (D, 4) xywh, score and, where all records have them, class_score
    and quality (D,) float64, in the file's order.

    Raises:
        InputError: the file is missing, is not JSON, is not a list of records, or a record lacks a field.
    """
    batches: list[dict[str, np.ndarray]] = []
    count = 0
    for batch in read_records(path, progress, quick_decoder(_Record)):
        batches.append(_columns(batch, path, count))
        count += len(batch)
    for name in OPTIONAL:
        having = [name in batch for batch in batches]
        if any(having) and not all(having):
            first = next(i for i, has in enumerate(having) if has != having[0])
            raise InputError(_partly(path, sum(len(batch["score"]) for batch in batches[:first]), name))
    if not batches:
        return {
            "image_id": np.zeros(0, np.int64),
            "category_id": np.zeros(0, np.int64),
            "bbox": np.zeros((0, 4)),
            "score": np.zeros(0),
        }
    return {name: np.concatenate([batch.pop(name) for batch in batches]) for name in list(batches[0])}


def read_records(
    path: Path, progress: ProgressCallback = silent, decode: Callable[[str], list[Any]] = json.loads
) -> Iterator[list[Any]]:
    """The list's elements as they are in the file, some thousands at a time; `decode` as of `JsonText.records`.

    Raises:
        InputError: the file is missing, or is not a JSON list.
    """

    def opener(path: Path) -> BinaryIO:
        return path.open("rb")  # it may be a pipe

    with opened(path, opener) as text:
        if text.peek() != "[":
            raise InputError(f"{path}: not a COCO results file; it must be a JSON list of records")
        size = path.stat().st_size
        for batch in text.records(decode):
            yield batch
            progress(f"reading {path.name} (MB)", text.bytes_read >> 20, size >> 20)
        text.end()


def _columns(records: list[Any], path: Path, first: int) -> dict[str, np.ndarray]:
    """Columns of one batch, whose first record is the file's record `first`."""
    try:
        columns = {
            "image_id": _ids([record["image_id"] for record in records]),
            "category_id": _ids([record["category_id"] for record in records]),
            "bbox": np.array([record["bbox"] for record in records]),
            "score": np.array([record["score"] for record in records]),
        }
        for name in OPTIONAL:
            if name in records[0]:
                columns[name] = np.array([record[name] for record in records])
            elif any(name in record for record in records):
                raise KeyError(name)
    except (KeyError, TypeError, ValueError, OverflowError):
        raise _fault(records, path, first) from None
    if columns["bbox"].ndim != 2 or columns["bbox"].shape[1] != 4:
        raise _fault(records, path, first)
    for name in columns.keys() - {"image_id", "category_id"}:
        if columns[name].dtype.kind not in "fi" or (name != "bbox" and columns[name].ndim != 1):
            raise _fault(records, path, first)
        columns[name] = columns[name].astype(np.float64)
    return columns


def _ids(values: list[Any]) -> np.ndarray:
    """(D,) int64 of ids; a whole float, as data frames write it, is one where no other integer rounds to it.

    Raises:
        ValueError: one is not an integer.
        OverflowError: one does not fit.
    """
    if set(map(type, values)) != {int}:
        if not all(map(_is_id, values)):
            raise ValueError("not all are integers")
        values = [int(value) for value in values]
    return np.array(values, dtype=np.int64)


def _is_id(value: Any) -> bool:
    if isinstance(value, float):
        return value.is_integer() and abs(value) < LARGEST_EXACT
    return isinstance(value, int) and not isinstance(value, bool) and -(2**63) <= value < 2**63


def _fault(records: list[Any], path: Path, first: int) -> InputError:
    """The first record that cannot be turned into a row, named."""

    def is_number(value: Any) -> bool:
        return isinstance(value, int | float) and not isinstance(value, bool)

    for position, record in enumerate(records, start=first):
        name = f"{path}: record {position}"
        if not isinstance(record, dict):
            return InputError(f"{name} is not an object; a COCO results file is a list of objects")
        for key in ("image_id", "category_id", "bbox", "score"):
            if key not in record:
                return InputError(f"{name} has no '{key}'; each needs image_id, category_id, bbox, score")
        for key in ("image_id", "category_id"):
            if not _is_id(record[key]):
                return InputError(f"{name} has {key} {quoted(record[key])}, not an integer of 64 bits")
        box = record["bbox"]
        if not isinstance(box, list) or len(box) != 4 or not all(map(is_number, box)):
            return InputError(f"{name} has bbox {quoted(box)}, not four numbers x, y, width, height")
        for key in ("score", *OPTIONAL):
            if key in record and not is_number(record[key]):
                return InputError(f"{name} has {key} {quoted(record[key])}, not a number")
        for key in OPTIONAL:
            if (key in record) != (key in records[0]):
                return InputError(_partly(path, position, key))
    return InputError(f"{path}: records {first} to {first + len(records) - 1} do not have the same form")


def _partly(path: Path, position: int, key: str) -> str:
    return f"{path}: '{key}' changes from present to absent at record {position}; give it in all records or in none"
