"""From candidates to detections, as the detector's last step does it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from retinaconf.diagnosis.candidates import Candidates
from retinaconf.diagnosis.nms import nms, top_per_image
from retinaconf.diagnosis.progress import Progress, silent


@dataclass(frozen=True)
class PostProcessing:
    """Keep score > `score_threshold`, NMS per class at `nms_iou`, the best `max_detections` of an image."""

    score_threshold: float = 0.0
    nms_iou: float = 0.5
    max_detections: int = 100

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
