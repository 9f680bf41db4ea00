"""Several detectors' detections of the same images as one: NMS within each class, then score voting."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from retinaconf.coco_results import read_coco_results
from retinaconf.data.ground_truth import GroundTruth
from retinaconf.detections import Detections
from retinaconf.diagnosis.measures.post_processing import PostProcessing
from retinaconf.evaluation.average_precision import curves_of
from retinaconf.evaluation.gains import Gain, measure_gains
from retinaconf.progress import ProgressCallback, silent

PROCESS = PostProcessing(nms_iou=0.65, vote=True)  # as Oksuz et al. (2023), "MoCaE", merge detectors


def merge(tables: Sequence[Detections], progress: ProgressCallback = silent) -> Detections:
    """The detections of PROCESS, with all of the tables as its candidates; of the scores only `scores` stay.

    Scores of different detectors are compared: they must mean the same, as calibrated ones do. All tables are of the
    same images and classes.
    """
    columns: dict[str, Any] = {
        name: np.concatenate([getattr(table, name) for table in tables])
        for name in ("image_index", "labels", "boxes", "scores")
    }
    order = np.argsort(columns["image_index"], kind="stable")
    columns = {name: column[order] for name, column in columns.items()}
    candidates = Detections(**columns, classes=tables[0].classes, category_ids=tables[0].category_ids, source="merged")
    return PROCESS(candidates, progress)


def images_of(files: Sequence[Path]) -> GroundTruth:
    """The images and categories that COCO results name, without objects: what `read_detections` needs to read them.

    Raises:
        InputError: a file is missing or malformed.
    """
    columns = [read_coco_results(file) for file in files]
    images, ids = (np.unique(np.concatenate([one[name] for one in columns])) for name in ("image_id", "category_id"))
    return GroundTruth(
        image_ids=images,
        file_names=np.full(len(images), ""),
        image_sizes=np.zeros((len(images), 2), np.int64),
        boxes=np.zeros((0, 4)),
        labels=np.zeros(0, np.int64),
        crowd=np.zeros(0, bool),
        areas=np.zeros(0),
        offsets=np.zeros(len(images) + 1, np.int64),
        classes=tuple(map(str, ids.tolist())),
        category_ids=tuple(ids.tolist()),
        image_folder=None,
        source=", ".join(map(str, files)),
    )


@dataclass(frozen=True)
class MergeGain:
    """AP of each detector, and what merging adds to the best of them on the same images: which favours that one."""

    AP: list[float]
    best: int
    gain: Gain


def measure_merge(
    tables: Sequence[Detections], merged: Detections, ground_truth: GroundTruth, progress: ProgressCallback = silent
) -> MergeGain:
    """The AP of `tables` and of what they give merged, with a paired bootstrap over the images."""
    curves = list(curves_of((*tables, merged), ground_truth))
    every = np.arange(len(ground_truth))
    values = [float(curve(np.ones(len(every))).mean()) for curve in curves[:-1]]
    best = int(np.argmax(values))
    pair = [(0, 1)]
    (gain,) = measure_gains([curves[best], curves[-1]], pair, every, len(every), progress=progress)
    return MergeGain(values, best, gain)
