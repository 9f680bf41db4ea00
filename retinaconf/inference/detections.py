"""What a detector found in an image, and its neighbours' forms of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from retinaconf.errors import extras_needed_by

if TYPE_CHECKING:
    import supervision
    from PIL import Image


@dataclass(frozen=True)
class Detections:
    """D detections of one image, best first."""

    boxes: np.ndarray  # (D, 4) float32 xyxy in pixels of the original image
    scores: np.ndarray  # (D,) float32 joint score, what NMS and AP rank by
    labels: np.ndarray  # (D,) int64 index into `classes`
    class_scores: np.ndarray  # (D,) float32
    quality: np.ndarray | None  # (D,) float32 predicted IoU with the object; None without a quality branch
    classes: tuple[str, ...]
    category_ids: tuple[int, ...]

    def __len__(self) -> int:
        return len(self.boxes)

    def above(self, score: float) -> Detections:
        """Those with a joint score above `score`."""
        keep = self.scores > score
        quality = None if self.quality is None else self.quality[keep]
        return Detections(
            self.boxes[keep],
            self.scores[keep],
            self.labels[keep],
            self.class_scores[keep],
            quality,
            self.classes,
            self.category_ids,
        )

    def to_coco(self, image_id: int) -> list[dict[str, Any]]:
        """COCO results records, with `class_score` and `quality` beside `score`; boxes are xywh."""
        records = []
        for row, (x1, y1, x2, y2) in enumerate(self.boxes.astype(np.float64)):
            record: dict[str, Any] = {
                "image_id": image_id,
                "category_id": self.category_ids[self.labels[row]],
                "bbox": [x1, y1, x2 - x1, y2 - y1],
                "score": float(self.scores[row]),
                "class_score": float(self.class_scores[row]),
            }
            if self.quality is not None:
                record["quality"] = float(self.quality[row])
            records.append(record)
        return records

    def to_supervision(self) -> supervision.Detections:
        """The same as `supervision.Detections`, with `class_name`, `class_score` and `quality` in its data."""
        with extras_needed_by("to_supervision"):
            import supervision

        data: dict[str, Any] = {
            "class_name": np.array([self.classes[label] for label in self.labels], dtype=np.str_),
            "class_score": self.class_scores,
        }
        if self.quality is not None:
            data["quality"] = self.quality
        return supervision.Detections(xyxy=self.boxes, confidence=self.scores, class_id=self.labels, data=data)

    def draw(self, image: Any) -> Image.Image:
        """A copy of the image (anything that `predict` takes) with boxes, class names and scores on it."""
        from retinaconf.inference.draw import draw_detections

        return draw_detections(image, self)
