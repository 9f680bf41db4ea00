"""Candidates around real or made-up ground truth, with a score that knows the IoU only in part."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from retinaconf.data.ground_truth import GroundTruth
from retinaconf.detections import Detections
from retinaconf.evaluation.overlaps import iou


def made_up_truth(
    folder: Path, num_images: int = 6, objects: int = 9, seed: int = 0, noise_picture: bool = False
) -> GroundTruth:
    """Images of 640 x 480 with up to `objects` boxes of four classes, one of them a crowd region; PNGs in `folder`."""
    rng = np.random.default_rng(seed)
    counts = np.full(num_images, objects) if noise_picture else rng.integers(1, objects + 1, num_images)
    corner = rng.uniform([0, 0], [500, 380], (counts.sum(), 2)).round(1)
    size = rng.uniform(12, 140, (counts.sum(), 2)).round(1)
    offsets = np.concatenate([[0], np.cumsum(counts)])
    crowd = np.zeros(counts.sum(), dtype=bool)
    crowd[offsets[num_images // 3]] = True
    for index in range(num_images):
        shade = rng.integers(0, 256, (480, 640, 3) if noise_picture else (6, 8, 3), dtype=np.uint8)
        Image.fromarray(shade).resize((640, 480)).save(folder / f"picture {index}.png", compress_level=0)
    return GroundTruth(
        image_ids=np.arange(num_images) + 100,
        file_names=np.array([f"picture {index}.png" for index in range(num_images)]),
        image_sizes=np.tile([480, 640], (num_images, 1)),
        boxes=np.concatenate([corner, corner + size], axis=1),
        labels=rng.integers(0, 4, counts.sum()),
        crowd=crowd,
        areas=size.prod(axis=1),
        offsets=offsets,
        classes=("apple", "bird", "cup", "dog"),
        category_ids=(1, 2, 5, 9),
        image_folder=folder,
        source="made-up.json",
    )


def synthetic_candidates(
    truth: GroundTruth, seed: int = 0, per_object: int = 30, noise: float = 0.25, with_quality: bool = True
) -> Detections:
    """Boxes jittered around each object, then as many moved away as there are objects.

    The class score follows the IoU but for `noise`; quality follows it more closely. Values are float32's, and scores
    have two digits in a tenth of the rows, so that there are ties.
    """
    rng = np.random.default_rng(seed)
    target = np.repeat(np.arange(len(truth.boxes)), per_object)
    size = truth.boxes[target, 2:] - truth.boxes[target, :2]
    spread = rng.choice([0.03, 0.08, 0.2], size=(len(target), 1))
    moved = truth.boxes[target] + spread * np.tile(size, 2) * rng.standard_normal((len(target), 4))
    boxes = np.concatenate([np.minimum(moved[:, :2], moved[:, 2:]), np.maximum(moved[:, :2], moved[:, 2:])], axis=1)
    fit = iou(boxes, truth.boxes[target])
    labels = truth.labels[target]

    strays = rng.permutation(len(target))[: len(truth.boxes)]
    boxes[strays] += rng.normal(0, 60, (len(strays), 1))
    fit[strays] = iou(boxes[strays], truth.boxes[target[strays]])
    labels = np.where(rng.random(len(labels)) < 0.03, rng.integers(len(truth.classes), size=len(labels)), labels)

    ease = rng.normal(0, 1, len(truth.boxes))[target]
    logit = 7 * (fit - 0.6) + ease + rng.normal(0, 5 * noise, len(fit))
    class_scores = 1 / (1 + np.exp(-np.where(fit < 0.3, logit - 1.5, logit)))
    quality = np.clip(fit + rng.normal(0, noise / 2, len(fit)), 0.001, 1)
    coarse = rng.random(len(fit)) < 0.1
    class_scores[coarse] = class_scores[coarse].round(2)
    quality[coarse] = quality[coarse].round(2)

    order = np.argsort(truth.image_index[target], kind="stable")
    single = {
        "boxes": boxes[order].astype(np.float32).astype(np.float64),
        "scores": class_scores[order].astype(np.float32).astype(np.float64),
        "quality": quality[order].astype(np.float32).astype(np.float64) if with_quality else None,
    }
    return Detections(
        image_index=truth.image_index[target][order],
        labels=labels[order],
        boxes=single["boxes"],
        scores=single["scores"],
        class_scores=single["scores"] if with_quality else None,
        quality=single["quality"],
        source="synthetic.npz",
    )
