"""Scored boxes of one split, as columns: a detector's candidates before NMS, or its detections after it.

Both have the same records. They are read from a COCO results file (`coco_results.py`) or from the compact columnar
file defined here: a NumPy `.npz` archive without pickled objects, its arrays being

============ ====== ================ ==========================================================
version      int    ()               1
image_id     int    (D,)             as in the ground truth
category_id  int    (D,)             as in the ground truth
bbox         float  (D, 4)           x, y, width, height in pixels, as in COCO
score        float  (D,)             in [0, 1]; what the detector ranks by
class_score  float  (D,), optional   in [0, 1]; the classification score alone
quality      float  (D,), optional   in [0, 1]; the predicted IoU (centerness, object confidence)
============ ====== ================ ==========================================================
"""

from __future__ import annotations

import zipfile
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from retinaconf.data.ground_truth import GroundTruth
from retinaconf.errors import InputError, reason
from retinaconf.files import write_aside
from retinaconf.progress import Progress, silent

FORMAT_VERSION = 1
OPTIONAL = {"class_score": "class_scores", "quality": "quality"}  # on disk, in Candidates
SCORE_SLACK = 1e-6  # a float32 softmax may exceed 1 by this much; it is clipped


@dataclass(frozen=True)
class Candidates:
    """D scored boxes, sorted by image; within an image in the order given, which decides ties."""

    image_index: np.ndarray  # (D,) int64, ascending: a row in GroundTruth
    labels: np.ndarray  # (D,) int64, an index into GroundTruth.classes
    boxes: np.ndarray  # (D, 4) float64, xyxy in pixels, not clipped to the image
    scores: np.ndarray  # (D,) float64 in [0, 1]
    class_scores: np.ndarray | None = None  # (D,) float64 in [0, 1]
    quality: np.ndarray | None = None  # (D,) float64 in [0, 1]
    source: str = "arrays"  # the file that messages name

    def __len__(self) -> int:
        return len(self.scores)

    def offsets(self, num_images: int) -> np.ndarray:
        """(I + 1,) int64: the rows of image i are `offsets[i]:offsets[i + 1]`."""
        return np.searchsorted(self.image_index, np.arange(num_images + 1))

    def take(self, rows: np.ndarray) -> Candidates:
        """The rows chosen by a mask (D,) or by ascending indices."""
        return replace(
            self,
            image_index=self.image_index[rows],
            labels=self.labels[rows],
            boxes=self.boxes[rows],
            scores=self.scores[rows],
            class_scores=None if self.class_scores is None else self.class_scores[rows],
            quality=None if self.quality is None else self.quality[rows],
        )

    def rescored(self, alpha: float) -> Candidates:
        """The same boxes ranked by the joint score quality^alpha * class_score^(1 - alpha), eq. (11) of the paper.

        Where there is no separate class score, `scores` is taken as it.

        Raises:
            ValueError: there is no quality, or alpha is not in [0, 1].
        """
        if self.quality is None:
            raise ValueError(f"{self.source}: no quality scores to join")
        if not 0 <= alpha <= 1:
            raise ValueError(f"alpha is {alpha}; it must be in [0, 1]")
        class_scores = self.scores if self.class_scores is None else self.class_scores
        return replace(self, scores=self.quality**alpha * class_scores ** (1 - alpha))


def read_candidates(path: Path, ground_truth: GroundTruth, progress: Progress = silent) -> Candidates:
    """Read candidates or detections: a columnar file where the name ends in .npz, else COCO results JSON.

    Boxes that reach out of the image stay as they are; boxes without width or height stay and overlap nothing; the
    same record twice counts twice; an `id` in a record is not looked at. All this is as in the official evaluation.

    Raises:
        InputError: the file is missing or malformed; a score is NaN or outside [0, 1]; a box is not finite or has a
            negative side; an image or category is not in the ground truth; only some records have an optional field.
    """
    if path.suffix == ".npz":
        columns = _read_columns(path)
        record = "row"
    else:
        from retinaconf.coco_results import read_coco_results

        columns = read_coco_results(path, progress)
        record = "record"
    return candidates_from_columns(columns, ground_truth, str(path), record)


def candidates_from_columns(
    columns: Mapping[str, np.ndarray], ground_truth: GroundTruth, source: str = "arrays", record: str = "row"
) -> Candidates:
    """Check the columns of the columnar format (module docstring) and sort them by image.

    Raises:
        InputError: as `read_candidates`; messages name `source` and the record's position, counted from 0.
    """

    def refuse(bad: Any, what: Callable[[int], str]) -> None:
        if bad.any():
            row = int(np.flatnonzero(bad)[0])
            raise InputError(f"{source}: {record} {row} (image {columns['image_id'][row]}) has {what(row)}")

    image_index = _lookup(columns["image_id"], ground_truth.image_ids)
    if (image_index < 0).any():
        row = int(np.flatnonzero(image_index < 0)[0])
        raise InputError(
            f"{source}: {record} {row} names image {columns['image_id'][row]}, which {ground_truth.source} does not "
            "list; give the ground truth of the same split"
        )
    category_ids = columns["category_id"]
    labels = _lookup(category_ids, np.asarray(ground_truth.category_ids, dtype=np.int64))
    refuse(
        labels < 0,
        lambda row: (
            f"category_id {category_ids[row]}, which {ground_truth.source} does not list; write the "
            "data set's category ids, not the network's class indices"
        ),
    )
    boxes = np.array(columns["bbox"], dtype=np.float64).reshape(-1, 4)
    refuse(~np.isfinite(boxes).all(1), lambda row: f"bbox {boxes[row].tolist()}; its numbers must be finite")
    refuse(
        (boxes[:, 2:] < 0).any(1),
        lambda row: f"bbox {boxes[row].tolist()} of negative size; write x, y, width, height",
    )
    boxes[:, 2:] += boxes[:, :2]

    scores: dict[str, np.ndarray | None] = {}
    for on_disk, name in {"score": "scores", **OPTIONAL}.items():
        column = columns.get(on_disk)
        if column is None:
            scores[name] = None
            continue
        values = np.asarray(column, dtype=np.float64)
        inside = (values >= 0) & (values <= 1 + SCORE_SLACK)  # False for NaN
        refuse(~inside, partial(_not_a_score, on_disk, values))
        scores[name] = np.minimum(values, 1.0)

    columns_now = {"image_index": image_index, "labels": labels, "boxes": boxes, **scores}
    if (np.diff(image_index) < 0).any():
        order = np.argsort(image_index, kind="stable")
        columns_now = {name: None if column is None else column[order] for name, column in columns_now.items()}
    return Candidates(**columns_now, source=source)  # type: ignore[arg-type]


def write_candidates(path: Path, images: Iterable[Mapping[str, Any]]) -> int:
    """Write the columnar file from one mapping an image, drawn one by one, and return the number of rows.

    Each has `image_id` (an int), `category_ids` (D,), `boxes` (D, 4) xyxy in pixels, `scores` (D,), and, in every
    image or in none, `class_scores` (D,) and `quality` (D,): numpy arrays, lists, or tensors on the CPU. D may be 0.

    Raises:
        InputError: columns of one image differ in length, an optional column is there for some images only, or the file
            cannot be written.
    """
    parts: dict[str, list[np.ndarray]] = {"image_id": [], "category_id": [], "bbox": [], "score": []}
    for image in images:
        scores = np.asarray(image["scores"])
        boxes = np.asarray(image["boxes"], dtype=np.result_type(scores.dtype, np.float32)).reshape(-1, 4)
        row = {
            "image_id": np.full(len(scores), int(image["image_id"]), dtype=np.int64),
            "category_id": np.asarray(image["category_ids"]).astype(np.int64),
            "bbox": np.concatenate([boxes[:, :2], boxes[:, 2:] - boxes[:, :2]], axis=1),
            "score": scores,
            **{on_disk: np.asarray(image[name]) for on_disk, name in OPTIONAL.items() if image.get(name) is not None},
        }
        if len({len(column) for column in row.values()}) > 1:
            sizes = ", ".join(f"{name} {len(column)}" for name, column in row.items())
            raise InputError(f"{path}: image {image['image_id']} has columns of different lengths ({sizes})")
        if not parts["score"]:
            parts |= {name: [] for name in row}
        if set(parts) != set(row):
            odd = ", ".join(sorted(set(parts) ^ set(row)))
            raise InputError(f"{path}: {odd} is given for some images only (first seen at image {image['image_id']})")
        for name, column in row.items():
            parts[name].append(column)
    empty = {"image_id": np.zeros(0, np.int64), "category_id": np.zeros(0, np.int64), "bbox": np.zeros((0, 4))}
    columns = {
        name: np.concatenate(arrays) if arrays else empty.get(name, np.zeros(0)) for name, arrays in parts.items()
    }

    def write(aside: Path) -> None:
        with aside.open("wb") as file:  # a file, since savez would add .npz to a bare path
            np.savez(file, version=np.int64(FORMAT_VERSION), **columns)  # type: ignore[arg-type]

    write_aside(path, write)
    return len(columns["score"])


def _read_columns(path: Path) -> dict[str, np.ndarray]:
    try:
        with np.load(path, allow_pickle=False) as archive:
            columns = {name: archive[name] for name in archive.files}
    except FileNotFoundError:
        raise InputError(f"{path}: no such file") from None
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({reason(error)})") from None
    except (ValueError, EOFError, AttributeError, zipfile.BadZipFile, KeyError) as error:
        raise InputError(
            f"{path}: not a columnar candidates file ({reason(error)}); write_candidates makes one"
        ) from None
    if int(columns.get("version", np.int64(0))) != FORMAT_VERSION:
        found = columns.get("version", "none")
        raise InputError(f"{path}: format version {found}; this retinaconf reads version {FORMAT_VERSION}")
    for name, kinds in {"image_id": "iu", "category_id": "iu", "bbox": "f", "score": "f"}.items():
        if name not in columns:
            raise InputError(f"{path}: no array '{name}' in it; write_candidates makes such files")
        if columns[name].dtype.kind not in kinds:
            raise InputError(
                f"{path}: array '{name}' holds {columns[name].dtype}, not {'int' if 'i' in kinds else 'float'}"
            )
    count = len(columns["score"]) if columns["score"].ndim == 1 else -1
    for name in ("image_id", "category_id", "bbox", "score", *OPTIONAL):
        shape = (count, 4) if name == "bbox" else (count,)
        if name in columns and columns[name].shape != shape:
            raise InputError(f"{path}: array '{name}' has shape {columns[name].shape}; all need D rows, bbox 4 columns")
        if name in OPTIONAL and name in columns and columns[name].dtype.kind != "f":
            raise InputError(f"{path}: array '{name}' holds {columns[name].dtype}, not float")
    return columns


def _not_a_score(name: str, values: np.ndarray, row: int) -> str:
    return f"{name} {values[row]}; scores must be in [0, 1] (apply the sigmoid or softmax first)"


def _lookup(ids: np.ndarray, known: np.ndarray) -> np.ndarray:
    """(D,) int64: where each id stands in `known`, -1 where it does not."""
    if len(known) == 0:
        return np.full(len(ids), -1, dtype=np.int64)
    whole = ids.astype(np.int64)  # a comparison of unsigned with signed ones would be one of floats
    order = np.argsort(known, kind="stable")
    place = order[np.minimum(np.searchsorted(known, whole, sorter=order), len(known) - 1)]
    return np.where((known[place] == whole) & (ids <= np.iinfo(np.int64).max), place, -1)
