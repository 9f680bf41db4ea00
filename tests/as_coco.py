"""A split as the COCO dictionary that it could have been read from."""

from __future__ import annotations

from typing import Any

from retinaconf.data.ground_truth import GroundTruth
from retinaconf.detections import to_xywh


def as_coco(truth: GroundTruth) -> dict[str, Any]:
    """Category and image ids as on disk, annotation ids counted from 1."""
    boxes = to_xywh(truth.boxes).tolist()
    return {
        "images": [
            {"id": int(i), "file_name": str(name), "height": int(h), "width": int(w)}
            for i, name, (h, w) in zip(truth.image_ids, truth.file_names, truth.image_sizes)
        ],
        "categories": [{"id": i, "name": n} for i, n in zip(truth.category_ids, truth.classes)],
        "annotations": [
            {
                "id": row + 1,
                "image_id": int(truth.image_ids[image]),
                "category_id": truth.category_ids[truth.labels[row]],
                "bbox": boxes[row],
                "area": float(truth.areas[row]),
                "iscrowd": int(truth.crowd[row]),
            }
            for row, image in enumerate(truth.image_index)
        ],
    }
