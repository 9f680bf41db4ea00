"""The table of boxes: what a detector found, after NMS or before it (its candidates), as columns.

`read_detections` takes a COCO results file (`coco_results.py`) or the compact columnar file that `write_detections`
writes: a NumPy `.npz` archive without pickled objects, its arrays being

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

import math
import zipfile
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from retinaconf.coco_results import OPTIONAL, read_coco_results
from retinaconf.data.coco_records import index_of
from retinaconf.data.ground_truth import GroundTruth
from retinaconf.errors import InputError, extras_needed_by, quoted, reason
from retinaconf.files import open_regular, see_no_bomb, write_aside
from retinaconf.progress import ProgressCallback, silent

if TYPE_CHECKING:
    import pandas
    import supervision
    from PIL import Image

FORMAT_VERSION = 1
COLUMNS = ("version", "image_id", "category_id", "bbox", "score", "class_score", "quality")
SCORES = {"score": "scores", "class_score": "class_scores", "quality": "quality"}  # on disk, and as a column
SCORE_SLACK = 1e-6  # a float32 softmax may exceed 1 by this much; it is clipped


@dataclass(frozen=True)
class Detections:
    """D scored boxes, sorted by image. Within an image the order is the detector's: it decides ties.

    Floats have 64 bits where they are evaluated, and the network's 32 where `predict` returns them.
    """

    image_index: np.ndarray  # (D,) int64, ascending: a row in the ground truth; 0 where there is one image only
    labels: np.ndarray  # (D,) int64, an index into `classes`
    boxes: np.ndarray  # (D, 4) float xyxy in pixels of the original image; those of a file may reach out of it
    scores: np.ndarray  # (D,) float in [0, 1], what AP ranks by; after Soft-NMS, if there is one
    class_scores: np.ndarray | None = None  # (D,) float in [0, 1]
    quality: np.ndarray | None = None  # (D,) float in [0, 1], the predicted IoU with the object
    confidence: np.ndarray | None = None  # (D,) float in [0, 1], the IoU to expect of such a score, if the run is tuned
    classes: tuple[str, ...] = ()  # K names
    category_ids: tuple[int, ...] = ()  # K ids on disk
    source: str = "arrays"  # the file or run that messages name

    def __len__(self) -> int:
        return len(self.scores)

    def __getitem__(self, rows: np.ndarray | slice | int) -> Detections:
        """The rows chosen by a mask (D,), by ascending indices, by a slice, or by one index."""
        if isinstance(rows, slice):
            return replace(self, **{name: column[rows] for name, column in self.columns().items()})
        chosen = np.atleast_1d(np.arange(len(self))[rows])  # of rows of boxes NumPy's `take` is the fast way
        return replace(self, **{name: column.take(chosen, axis=0) for name, column in self.columns().items()})

    def __iter__(self) -> Iterator[Detections]:
        """Each detection as a table of one row, as `found[0]` is: it has the same columns and methods."""
        return (self[row] for row in range(len(self)))

    def astype(self, dtype: type[np.floating]) -> Detections:
        """The same with floats of another precision."""
        floats = {name: column.astype(dtype) for name, column in self.columns().items() if column.dtype.kind == "f"}
        return replace(self, **floats)

    def columns(self) -> dict[str, Any]:
        """The arrays, by name; without those that are None."""
        return {name: column for name, column in vars(self).items() if isinstance(column, np.ndarray)}

    @property
    def class_names(self) -> np.ndarray:
        """(D,) str: the class of each detection."""
        return np.array([self.classes[label] for label in self.labels], dtype=np.str_)

    def of_image(self, index: int) -> Detections:
        """The rows of one image."""
        return self[slice(*np.searchsorted(self.image_index, [index, index + 1]))]

    def above(self, score: float) -> Detections:
        """Those with a score above `score`."""
        return self[self.scores > score]

    def rescored(self, alpha: float) -> Detections:
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
        joint = self.quality**alpha
        joint *= class_scores ** (1 - alpha)
        return replace(self, scores=joint, confidence=None)

    def _known_scores(self) -> dict[str, np.ndarray]:
        """The columns of scores, by their names on disk."""
        scores = {on_disk: getattr(self, name) for on_disk, name in SCORES.items()} | {"confidence": self.confidence}
        return {name: column for name, column in scores.items() if column is not None}

    def to_coco(self, image_id: int | np.ndarray) -> list[dict[str, Any]]:
        """COCO results records, with `class_score`, `quality` and `confidence` where they are known; boxes are xywh.

        Args:
            image_id: of all boxes, or those (I,) of the images that `image_index` counts.
        """
        ids = np.asarray(image_id)
        columns = {
            "image_id": ids[self.image_index] if ids.ndim else np.broadcast_to(ids, len(self)),
            "category_id": np.array(self.category_ids, dtype=np.int64)[self.labels],
            "bbox": to_xywh(self.boxes.astype(np.float64)),
            **self._known_scores(),
        }
        known = {name: column.tolist() for name, column in columns.items()}
        return [dict(zip(known, row)) for row in zip(*known.values())]

    def to_supervision(self) -> supervision.Detections:
        """The same as `supervision.Detections`; `class_name` and what is known of the other scores are in its data."""
        with extras_needed_by("to_supervision"):
            import supervision

        data: dict[str, Any] = {"class_name": self.class_names}
        data |= {name: column for name, column in self._known_scores().items() if name != "score"}
        return supervision.Detections(xyxy=self.boxes, confidence=self.scores, class_id=self.labels, data=data)

    def to_pandas(self) -> pandas.DataFrame:
        """A row for each detection: `image_index`, `label`, `class_name`, `x1`, `y1`, `x2`, `y2` in pixels, and scores.

        The scores are `score`, and `class_score`, `quality` and `confidence` where they are known.

        Raises:
            InputError: pandas is not installed.
        """
        with extras_needed_by("to_pandas"):
            import pandas

        columns = {"image_index": self.image_index, "label": self.labels, "class_name": self.class_names}
        columns |= dict(zip(("x1", "y1", "x2", "y2"), self.boxes.T))
        return pandas.DataFrame(columns | self._known_scores())

    def draw(self, image: Any, bgr: bool = False) -> Image.Image:
        """A copy of the image, in RGB, with boxes, class names and scores on it.

        Args:
            image: anything that `predict` takes as one image.
            bgr: the channels of an array or a tensor are blue, green, red.
        """
        from retinaconf.inference.draw import draw_detections

        return draw_detections(image, self, bgr)


def to_xywh(boxes: np.ndarray) -> np.ndarray:
    """Boxes (D, 4) from xyxy to COCO's x, y, width, height."""
    return np.concatenate([boxes[:, :2], boxes[:, 2:] - boxes[:, :2]], axis=1)


def read_detections(path: Path, ground_truth: GroundTruth, progress: ProgressCallback = silent) -> Detections:
    """Read detections or candidates: a columnar file where the name ends in .npz, else COCO results JSON.

    Boxes that reach out of the image stay as they are; boxes without width or height stay and overlap nothing; the
    same record twice counts twice; an `id` in a record is not looked at. All this is as in the official evaluation.

    Raises:
        InputError: the file is missing or malformed; a score is NaN or outside [0, 1]; a box is not finite or has a
            negative side; an image or category is not in the ground truth; only some records have an optional field.
            Messages count records from 0.
    """
    is_columnar = path.suffix == ".npz"
    columns, record = (_read_columns(path), "row") if is_columnar else (read_coco_results(path, progress), "record")
    image_ids = columns["image_id"]

    def refuse(bad: Any, name: str, values: np.ndarray, fault: str) -> None:
        for row in np.nonzero(bad)[0][:1]:  # of (D,) or (D, n)
            found = f"{name} {values[row].tolist()}{fault}"
            raise InputError(f"{path}: {record} {row} (image {image_ids[row]}) has {found}")

    image_index = index_of(image_ids, ground_truth.image_ids)
    for row in np.flatnonzero(image_index < 0)[:1]:
        raise InputError(
            f"{path}: {record} {row} names image {image_ids[row]}, which {ground_truth.source} does not list; give the "
            "ground truth of the same split"
        )
    labels = index_of(columns["category_id"], np.asarray(ground_truth.category_ids, dtype=np.int64))
    advice = "write the data set's category ids, not the network's class indices"
    unlisted = f", which {ground_truth.source} does not list; {advice}"
    refuse(labels < 0, "category_id", columns["category_id"], unlisted)
    boxes = np.array(columns["bbox"], dtype=np.float64).reshape(-1, 4)
    refuse(~np.isfinite(boxes), "bbox", boxes, "; its numbers must be finite")
    refuse(boxes[:, 2:] < 0, "bbox", boxes, " of negative size; write x, y, width, height")
    boxes[:, 2:] += boxes[:, :2]

    scores: dict[str, Any] = {}
    for on_disk, name in SCORES.items():
        if on_disk in columns:
            values = np.asarray(columns[on_disk], dtype=np.float64)
            inside = (values >= 0) & (values <= 1 + SCORE_SLACK)  # False for NaN
            refuse(~inside, on_disk, values, "; scores must be in [0, 1] (apply the sigmoid or softmax first)")
            scores[name] = np.minimum(values, 1.0)

    known: dict[str, Any] = {"classes": ground_truth.classes, "category_ids": ground_truth.category_ids}
    found = Detections(image_index, labels, boxes, **scores, **known, source=str(path))
    return found if (np.diff(image_index) >= 0).all() else found[np.argsort(image_index, kind="stable")]


def write_detections(path: Path, images: Iterable[Mapping[str, Any]]) -> int:
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
            "bbox": to_xywh(boxes),
            "score": scores,
            **{name: np.asarray(image[SCORES[name]]) for name in OPTIONAL if image.get(SCORES[name]) is not None},
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
        with open_regular(path) as file, zipfile.ZipFile(file) as archive:
            see_no_bomb(archive)
            columns = {name: _array(archive, name) for name in COLUMNS if f"{name}.npy" in archive.namelist()}
    except FileNotFoundError:
        raise InputError(f"{path}: no such file") from None
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({reason(error)})") from None
    except Exception as error:  # a damaged archive can raise anything
        raise InputError(
            f"{path}: not a columnar candidates file ({reason(error)}); write_detections makes one"
        ) from None
    version = columns.get("version", np.int64(0))
    if version.shape != () or version != FORMAT_VERSION:
        found = quoted(columns["version"].tolist()) if "version" in columns else "none"
        raise InputError(f"{path}: format version {found}; this retinaconf reads version {FORMAT_VERSION}")
    for name in ("image_id", "category_id", "bbox", "score"):
        if name not in columns:
            raise InputError(f"{path}: no array '{name}' in it; write_detections makes such files")
    count = len(columns["score"]) if columns["score"].ndim == 1 else -1
    for name in ("image_id", "category_id", "bbox", *(score for score in SCORES if score in columns)):
        column, number = columns[name], "int" if name.endswith("_id") else "float"
        if column.dtype.kind not in {"int": "iu", "float": "f"}[number]:
            raise InputError(f"{path}: array '{name}' holds {column.dtype}, not {number}")
        if column.shape != ((count, 4) if name == "bbox" else (count,)):
            raise InputError(f"{path}: array '{name}' has shape {column.shape}; all need D rows, bbox 4 columns")
    return columns


def _array(archive: zipfile.ZipFile, name: str) -> np.ndarray:
    """An array of an archive, whose size is compared with its header before there is memory for it.

    Raises:
        ValueError: it holds something else, or the header is of another size.
    """
    header = np.lib.format
    with archive.open(f"{name}.npy") as stream:
        read = header.read_array_header_1_0 if header.read_magic(stream) == (1, 0) else header.read_array_header_2_0
        shape, _, dtype = read(stream)
        whole = archive.getinfo(f"{name}.npy").file_size - stream.tell()
        if dtype.hasobject or math.prod(shape) * dtype.itemsize != whole:
            raise ValueError(f"array '{name}' is said to be {dtype} of shape {shape}, and has {whole:,} bytes")
    with archive.open(f"{name}.npy") as stream:
        array: np.ndarray = header.read_array(stream, allow_pickle=False)
    return array
