"""Detections of a whole split, by any number of joint scores from one pass of the network."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from retinaconf.config import InferenceConfig
from retinaconf.data.ground_truth import GroundTruth
from retinaconf.data.loader import Batch
from retinaconf.inference.detections import Detections
from retinaconf.inference.joint_score import JointScore
from retinaconf.inference.postprocess import Boxes, postprocess
from retinaconf.model.retinanet import Outputs


@dataclass(frozen=True)
class DetectionTable:
    """D detections of many images, as columns, sorted by image and within an image best first."""

    image_index: np.ndarray  # (D,) int64 row in the ground truth
    boxes: np.ndarray  # (D, 4) float32 xyxy in pixels of the original image
    scores: np.ndarray  # (D,) float32
    labels: np.ndarray  # (D,) int64
    class_scores: np.ndarray  # (D,) float32
    quality: np.ndarray | None  # (D,) float32

    def take(self, rows: np.ndarray) -> DetectionTable:
        """The rows chosen by a mask (D,)."""
        return replace(
            self,
            image_index=self.image_index[rows],
            boxes=self.boxes[rows],
            scores=self.scores[rows],
            labels=self.labels[rows],
            class_scores=self.class_scores[rows],
            quality=None if self.quality is None else self.quality[rows],
        )

    def to_coco(self, ground_truth: GroundTruth) -> list[dict[str, Any]]:
        """COCO results records with the image and category ids of the ground truth, as `Detections.to_coco`."""
        starts = np.searchsorted(self.image_index, np.arange(len(ground_truth) + 1))
        records: list[dict[str, Any]] = []
        for image_id, first, last in zip(ground_truth.image_ids.tolist(), starts, starts[1:]):
            part = slice(first, last)
            found = Detections(
                self.boxes[part],
                self.scores[part],
                self.labels[part],
                self.class_scores[part],
                None if self.quality is None else self.quality[part],
                ground_truth.classes,
                ground_truth.category_ids,
            )
            records += found.to_coco(image_id)
        return records


def detect(
    model: Callable[[Tensor, Tensor], Outputs],
    batches: Iterable[Batch],
    ground_truth: GroundTruth,
    config: InferenceConfig,
    joints: Sequence[JointScore],
    device: torch.device,
    suppress: bool = True,
    done: Callable[[int], None] = lambda images: None,
    look: Callable[[Batch, Outputs], None] = lambda batch, outputs: None,
) -> list[DetectionTable]:
    """One table for each of `joints`, over the images of `batches`.

    `done` hears how many images each batch has; `look` is shown each batch, on the device, and what the network says.
    With several processes each gives its own batches, and all get the whole tables.
    """
    found: list[dict[int, DetectionTable]] = [{} for _ in joints]
    for batch in batches:
        with torch.no_grad():
            on_device = batch.to(device)
            outputs = model(on_device.images, on_device.sizes)
            results = postprocess(outputs, on_device.sizes, config, joints, suppress)
            look(on_device, outputs)
        for tables, images in zip(found, results):
            tables.update(tables_of(images, batch, ground_truth))
        done(len(batch.index))
    return [gathered(tables) for tables in found]


def tables_of(images: Sequence[Boxes], batch: Batch, ground_truth: GroundTruth) -> dict[int, DetectionTable]:
    """The boxes of each image of a batch, in pixels of the original, by the image's row in the ground truth."""
    tables: dict[int, DetectionTable] = {}
    for boxes, index, size in zip(images, batch.index.tolist(), batch.sizes.tolist()):
        original = ground_truth.image_sizes[index]
        tables[index] = _table(boxes, index, (size[0], size[1]), (int(original[0]), int(original[1])))
    return tables


def to_original(boxes: Tensor, size: tuple[int, int], original: tuple[int, int]) -> np.ndarray:
    """Boxes (D, 4) in pixels of an image of `original` (height, width) that was resized to `size`."""
    limit = np.array([original[1], original[0]] * 2, dtype=np.float64)
    scaled = boxes.numpy().astype(np.float64) * limit / np.array([size[1], size[0]] * 2)
    return scaled.clip(0, limit).astype(np.float32)


def _table(boxes: Boxes, index: int, size: tuple[int, int], original: tuple[int, int]) -> DetectionTable:
    return DetectionTable(
        np.full(len(boxes.labels), index),
        to_original(boxes.boxes, size, original),
        boxes.scores.numpy(),
        boxes.labels.numpy(),
        boxes.class_scores.numpy(),
        None if boxes.quality is None else boxes.quality.numpy(),
    )


def gathered(tables: dict[int, DetectionTable]) -> DetectionTable:
    """The images of all processes in the ground truth's order."""
    if torch.distributed.is_initialized():
        everyone: list[dict[int, DetectionTable]] = [{}] * torch.distributed.get_world_size()
        torch.distributed.all_gather_object(everyone, tables)
        tables = {index: table for part in everyone for index, table in part.items()}
    rows = [tables[index] for index in sorted(tables)]

    def column(name: str) -> np.ndarray:
        return np.concatenate([getattr(row, name) for row in rows])

    if not rows:
        empty = np.zeros(0, np.float32)
        return DetectionTable(empty.astype(int), np.zeros((0, 4), np.float32), empty, empty.astype(int), empty, None)
    quality = None if rows[0].quality is None else column("quality")
    return DetectionTable(
        column("image_index"), column("boxes"), column("scores"), column("labels"), column("class_scores"), quality
    )
