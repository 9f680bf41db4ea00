"""From candidates to detections, as the detector's last step does it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from retinaconf.candidates import Candidates
from retinaconf.diagnosis.measures.nms import nms, top_per_image
from retinaconf.errors import InputError
from retinaconf.progress import Progress, silent


@dataclass(frozen=True)
class PostProcessing:
    """Keep score > `score_threshold`, NMS per class at `nms_iou`, the best `max_detections` of an image.

    Raises:
        InputError: `score_threshold` is not in [0, 1), `nms_iou` not in [0, 1], or `max_detections` below 1.
    """

    score_threshold: float = 0.0
    nms_iou: float = 0.5
    max_detections: int = 100

    def __post_init__(self) -> None:
        if not 0 <= self.score_threshold < 1:  # also NaN
            raise InputError(f"score threshold {self.score_threshold:g}: give one from 0 to below 1")
        if not 0 <= self.nms_iou <= 1:
            raise InputError(f"NMS IoU {self.nms_iou:g}: give one from 0 to 1")
        if self.max_detections < 1:
            raise InputError(f"{self.max_detections} detections an image: give at least 1")

    def __call__(self, candidates: Candidates, progress: Progress = silent) -> Candidates:
        """The detections that `candidates` give."""
        if self.score_threshold > 0:
            candidates = candidates.take(candidates.scores > self.score_threshold)
        suppressor = nms(
            candidates.image_index, candidates.labels, candidates.boxes, candidates.scores, self.nms_iou, progress
        )
        return self.best(candidates, suppressor)

    def best(self, candidates: Candidates, suppressor: np.ndarray) -> Candidates:
        """The detections, for a suppression (D,) that `nms` already found."""
        kept = np.flatnonzero(suppressor < 0)
        top = top_per_image(candidates.image_index[kept], candidates.scores[kept], self.max_detections)
        return candidates.take(kept[top])
