"""COCO's detection metrics, by hotcoco (the numbers of pycocotools)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from hotcoco import COCO, COCOeval

from retinaconf.data.ground_truth import GroundTruth
from retinaconf.detections import Detections, to_xywh

# Our keys and hotcoco's. AR is with 100 detections an image.
METRICS = {
    "AP": "AP",
    "AP50": "AP50",
    "AP75": "AP75",
    "AP_S": "APs",
    "AP_M": "APm",
    "AP_L": "APl",
    "AR": "AR100",
    "AR_S": "ARs",
    "AR_M": "ARm",
    "AR_L": "ARl",
}
SIZES = ("small", "medium", "large")  # of objects, by area in square pixels


@dataclass(frozen=True)
class Metrics:
    """COCO's ten numbers, as fractions; NaN where no ground truth decides one (no small objects, say)."""

    overall: dict[str, float]  # the keys of METRICS
    per_class: dict[str, float]  # AP by class name; with the id where two classes have one name


class CocoEvaluator:
    """Evaluates any number of detection sets against one ground truth on the official protocol.

    Crowd regions are ignored regions, at most 100 detections an image and class count, areas are COCO's own.
    """

    def __init__(self, ground_truth: GroundTruth):
        self.ground_truth = ground_truth
        # hotcoco takes ids from 0 to 2^53: ranks in the place of image ids, which keep the ids' order (it decides
        # between equal scores), and labels in the place of category ids.
        self._image_ids = np.argsort(np.argsort(ground_truth.image_ids))
        self._coco = COCO.from_arrays(
            images=[{"id": image_id} for image_id in self._image_ids.tolist()],  # boxes need no more
            categories=[{"id": label, "name": str(label)} for label in range(len(ground_truth.classes))],
            image_ids=self._image_ids[ground_truth.image_index],
            category_ids=ground_truth.labels,
            boxes=to_xywh(ground_truth.boxes),
            area=ground_truth.areas,
            iscrowd=ground_truth.crowd,
        )

    def __call__(self, detections: Detections) -> Metrics:
        """Metrics of D detections, in any order.

        Ties in score keep their order here, as pycocotools' stable sort does.
        """
        image_ids = self._image_ids[detections.image_index]
        boxes = to_xywh(detections.boxes.astype(np.float64))
        table = np.column_stack([image_ids, boxes, detections.scores, detections.labels])
        evaluation = COCOeval(self._coco, self._coco.load_res(table), "bbox")
        evaluation.params.max_dets = [100]  # all of METRICS; 1 and 10 would take most of `accumulate`
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summary_lines()  # fills the stats without printing them
        results = evaluation.get_results(per_class=True)

        def metric(key: str) -> float:
            value = results.get(key, -1.0)
            return float(value) if value >= 0 else float("nan")  # -1 is pycocotools' "nothing to measure"

        return Metrics(
            overall={ours: metric(theirs) for ours, theirs in METRICS.items()},
            per_class={name: metric(f"AP/{label}") for label, name in enumerate(_distinct(self.ground_truth))},
        )


def _distinct(ground_truth: GroundTruth) -> list[str]:
    """The names of the classes, with the id where two have the same."""
    names = ground_truth.classes
    return [
        f"{name} ({category_id})" if names.count(name) > 1 else name
        for name, category_id in zip(names, ground_truth.category_ids)
    ]


def object_size(areas: np.ndarray) -> np.ndarray:
    """(B,) index into SIZES for (B,) areas: small below 32^2, large from 96^2.

    The official evaluation counts an area of exactly 32^2 or 96^2 on both sides; here an object has one size.
    """
    return np.digitize(areas, [32.0**2, 96.0**2])
