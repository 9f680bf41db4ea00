"""The network's boxes as tables, in pixels of the original images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from retinaconf.data.ground_truth import GroundTruth
from retinaconf.data.loader import Batch
from retinaconf.data.splits import HasCategories
from retinaconf.detections import Detections
from retinaconf.inference.suppression import Boxes


def to_original(boxes: Tensor, size: tuple[int, int], original: tuple[int, int]) -> np.ndarray:
    """Boxes (D, 4) in pixels of an image of `original` (height, width) that was resized to `size`."""
    limit = np.array([original[1], original[0]] * 2, dtype=np.float64)
    scaled = boxes.numpy().astype(np.float64) * limit / np.array([size[1], size[0]] * 2)
    return scaled.clip(0, limit).astype(np.float32)


def to_table(
    boxes: Boxes, size: tuple[int, int], original: tuple[int, int], names: HasCategories, image_index: int = 0
) -> Detections:
    """The boxes of an image of `original` (height, width) that was resized to `size`."""
    return Detections(
        np.full(len(boxes.labels), image_index),
        boxes.labels.numpy(),
        to_original(boxes.boxes, size, original),
        boxes.scores.numpy(),
        boxes.class_scores.numpy(),
        None if boxes.quality is None else boxes.quality.numpy(),
        classes=names.classes,
        category_ids=names.category_ids,
    )


def tables_of(images: Sequence[Boxes], batch: Batch, ground_truth: GroundTruth) -> dict[int, Detections]:
    """A table in 64 bits for each image of a batch, by the image's row in the ground truth."""
    tables: dict[int, Detections] = {}
    for boxes, index, (height, width) in zip(images, batch.index.tolist(), batch.sizes.tolist()):
        original = ground_truth.image_sizes[index].tolist()
        table = to_table(boxes, (height, width), (original[0], original[1]), ground_truth, index)
        tables[index] = table.astype(np.float64)
    return tables


def gathered(tables: dict[int, Detections]) -> Detections:
    """One table of the images of all processes, in the ground truth's order."""
    if torch.distributed.is_initialized():
        everyone: list[dict[int, Detections]] = [{}] * torch.distributed.get_world_size()
        torch.distributed.all_gather_object(everyone, tables)
        tables = {index: table for part in everyone for index, table in part.items()}
    if not tables:
        nothing = np.zeros(0)
        return Detections(nothing.astype(int), nothing.astype(int), np.zeros((0, 4)), nothing, nothing)
    rows = [tables[index] for index in sorted(tables)]
    columns: dict[str, Any] = {name: np.concatenate([getattr(row, name) for row in rows]) for name in rows[0].columns()}
    return replace(rows[0], **columns)
