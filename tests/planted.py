"""Detectors whose alignment is known by construction.

Objects are 100 x 100 and far apart. A candidate is its object shifted to the right, which sets its IoU: a shift of d
gives (100 - d) / (100 + d). Two candidates of one object with IoU >= 0.52 overlap each other by more than 0.5, so that
NMS keeps exactly the best-scored of them.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from retinaconf.data.ground_truth import GroundTruth, ground_truth_from_coco
from retinaconf.detections import Detections

SIDE, APART = 100.0, 400.0


def truth(
    boxes: Sequence[Sequence[Sequence[float]]],
    labels: Sequence[Sequence[int]] | None = None,
    crowd: Sequence[Sequence[int]] | None = None,
    num_classes: int = 2,
    image_ids: Sequence[int] | None = None,
) -> GroundTruth:
    """Ground truth from xyxy boxes, labels and crowd flags, a list an image."""
    ids = list(image_ids or range(1, len(boxes) + 1))
    annotations = [
        {
            "id": 0,
            "image_id": ids[image],
            "category_id": 10 + (labels[image][place] if labels else 0),
            "bbox": [x1, y1, x2 - x1, y2 - y1],
            "iscrowd": crowd[image][place] if crowd else 0,
        }
        for image, of_image in enumerate(boxes)
        for place, (x1, y1, x2, y2) in enumerate(of_image)
    ]
    document = {
        "images": [{"id": i, "file_name": f"{i}.jpg", "width": 4000, "height": 4000} for i in ids],
        "categories": [{"id": 10 + k, "name": f"class {k}"} for k in range(num_classes)],
        "annotations": annotations,
    }
    return ground_truth_from_coco(document, None, "planted")


def shifted(box: Sequence[float], iou: float) -> list[float]:
    """The box moved right until its IoU with itself is `iou`."""
    by = round(SIDE * (1 - iou) / (1 + iou), 9)  # whole pixels stay whole, so that equal shifts are equal IoUs
    return [box[0] + by, box[1], box[2] + by, box[3]]


def spread_objects(images: int, per_image: int) -> GroundTruth:
    """`per_image` objects of class 0 in each image, in a row, far apart."""
    row = [[APART * i, 0.0, APART * i + SIDE, SIDE] for i in range(per_image)]
    return truth([row] * images)


def candidates_at(ground_truth: GroundTruth, ious: np.ndarray, scores: np.ndarray) -> Detections:
    """(B, C) IoUs and scores: C candidates of each object, with the object's class."""
    boxes = [shifted(box, iou) for box, of_object in zip(ground_truth.boxes, ious) for iou in of_object]
    each = ious.shape[1]
    return Detections(
        image_index=np.repeat(ground_truth.image_index, each),
        labels=np.repeat(ground_truth.labels, each),
        boxes=np.array(boxes).reshape(-1, 4),
        scores=scores.ravel().astype(np.float64),
    )


def random_set(
    rng: np.random.Generator, images: int = 12, per_image: int = 40, crowded: bool = True, ties: bool = True
) -> tuple[GroundTruth, Detections]:
    """Overlapping objects of three classes, crowd regions, an image without objects and one without boxes."""
    boxes, labels, crowd = [], [], []
    for image in range(images):
        count = 0 if image == 3 else int(rng.integers(1, 7))
        low = rng.uniform(0, 150, (count, 2))
        boxes.append(np.concatenate([low, low + rng.uniform(20, 120, (count, 2))], axis=1).tolist())
        labels.append(rng.integers(0, 3, count).tolist())
        crowd.append((rng.random(count) < (0.2 if crowded else 0)).astype(int).tolist())
    # Ids that are not in the order of the images.
    ground_truth = truth(boxes, labels, crowd, num_classes=4, image_ids=(100 - np.arange(images) * 7).tolist())
    parts = []
    for image in range(images):
        if image == 5:
            continue
        rows = slice(*ground_truth.offsets[image : image + 2])
        if boxes[image]:
            target = rng.integers(0, len(boxes[image]), per_image)
            found = ground_truth.boxes[rows][target] + rng.normal(0, 6, (per_image, 4))
            label = np.where(
                rng.random(per_image) < 0.8, ground_truth.labels[rows][target], rng.integers(0, 4, per_image)
            )
        else:
            found = rng.uniform(0, 200, (per_image, 4))
            label = rng.integers(0, 4, per_image)
        found = np.concatenate([np.minimum(found[:, :2], found[:, 2:]), np.maximum(found[:, :2], found[:, 2:])], axis=1)
        scores = rng.random(per_image)
        parts.append((np.full(per_image, image), label, found, np.round(scores, 1) if ties else scores))
    return ground_truth, Detections(*(np.concatenate(column) for column in zip(*parts)))
