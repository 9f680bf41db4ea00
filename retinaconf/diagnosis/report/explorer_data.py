"""What the report's explorer shows: pictures as JPEG, candidates as columns, all of it JSON.

Boxes and scores are packed as float32. The page's NMS works on those values in float64 arithmetic, as
`retinaconf.diagnosis.measures.nms` does on the same values, and so keeps exactly the same boxes.
"""

from __future__ import annotations

import base64
from collections.abc import Sequence
from typing import Any

import numpy as np

from retinaconf.data.ground_truth import GroundTruth
from retinaconf.detections import Detections
from retinaconf.diagnosis.measures.own_score import OwnScore
from retinaconf.errors import plain
from retinaconf.pages.pictures import encode_jpeg, load_picture

# 50 images stay below 15 MB: at most 70 kB and 5,000 x 34 bytes each, a third more in base64.
MAX_SIDE = 640
MAX_PICTURE_BYTES = 70_000
MAX_CANDIDATES = 5_000  # of an image, all detectors together


def explorer_data(
    ground_truth: GroundTruth,
    candidates: Sequence[Detections],
    own_scores: Sequence[OwnScore],
    names: Sequence[str],
    images: Sequence[int] | np.ndarray,
    notes: Sequence[str],
    settings: dict[str, float | None],
) -> dict[str, Any]:
    """The explorer's data, ready for JSON.

    `images` are rows of `ground_truth`, in the order they are offered; `notes` has a few words on each. `candidates`,
    `own_scores` and `names` are the detectors' (one or two). `settings` are the first ones shown: alpha (None: each
    detector's own score), nms_iou, score_threshold, max_detections.
    """
    return {
        "classes": list(ground_truth.classes),
        "settings": settings,
        "detectors": [
            {
                "name": name,
                "has_quality": rows.quality is not None,
                "own_score": {"formula": own.formula, "alpha": own.alpha},
            }
            for name, rows, own in zip(names, candidates, own_scores)
        ],
        "images": [_image(ground_truth, int(i), candidates, note) for i, note in zip(images, notes)],
        # Those that the page has no picture of, for its search.
        "others": [_contents(ground_truth, int(i)) for i in np.setdiff1d(np.arange(len(ground_truth)), images)],
    }


def _contents(ground_truth: GroundTruth, index: int) -> dict[str, Any]:
    """An image's name and the classes of its objects."""
    own = slice(*ground_truth.offsets[index : index + 2])
    return {"name": plain(ground_truth.file_names[index]), "labels": np.unique(ground_truth.labels[own]).tolist()}


def _image(ground_truth: GroundTruth, index: int, candidates: Sequence[Detections], note: str) -> dict[str, Any]:
    picture = load_picture(ground_truth, index)
    own = slice(*ground_truth.offsets[index : index + 2])
    height, width = (int(side) for side in ground_truth.image_sizes[index])
    if not (height and width) and picture is not None:
        width, height = picture.size
    if not (height and width):  # neither file nor annotation says: what holds all the boxes
        corners = [ground_truth.boxes[own, 2:]] + [rows.of_image(index).boxes[:, 2:] for rows in candidates]
        width, height = (max(1, int(side)) for side in np.concatenate([*corners, np.ones((1, 2))]).max(axis=0))
    return _contents(ground_truth, index) | {
        "note": note,
        "width": width,
        "height": height,
        "jpeg": None if picture is None else _base64(encode_jpeg(picture, MAX_SIDE, MAX_PICTURE_BYTES)),
        "objects": {
            "boxes": _column(ground_truth.boxes[own], np.float64),
            "labels": _column(ground_truth.labels[own], np.uint16),
            "crowd": _column(ground_truth.crowd[own], np.uint8),
        },
        "candidates": [pack_candidates(rows, index, MAX_CANDIDATES // len(candidates)) for rows in candidates],
    }


def pack_candidates(candidates: Detections, image: int, most: int) -> dict[str, Any]:
    """One image's candidates as base64 columns, in their order; beyond `most`, those with the lowest scores are out."""
    shown = candidates.of_image(image)
    left_out = max(0, len(shown) - most)
    if left_out:
        shown = shown[np.sort(np.argsort(-shown.scores, kind="stable")[:most])]
    packed = {
        "boxes": _column(shown.boxes, np.float32),
        "labels": _column(shown.labels, np.uint16),
        "scores": _column(shown.scores, np.float32),
        "left_out": left_out,
    }
    if shown.confidence is not None:
        packed["confidence"] = _column(shown.confidence, np.float32)
    if shown.quality is None:
        return packed
    class_scores = shown.scores if shown.class_scores is None else shown.class_scores
    return packed | {"class_scores": _column(class_scores, np.float32), "quality": _column(shown.quality, np.float32)}


def _column(values: np.ndarray, dtype: type[np.generic]) -> str:
    return _base64(np.ascontiguousarray(values, dtype=np.dtype(dtype).newbyteorder("<")).tobytes())


def _base64(data: bytes) -> str:
    return base64.b64encode(data).decode("ascii")
