"""The introduction's Table 1 and Figures 1 and 2 of one run: boxes before and after NMS."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torchvision.ops import box_iou

from retinaconf.config import Config
from retinaconf.data.ground_truth import GroundTruth
from retinaconf.data.transforms import canvas, resized
from retinaconf.diagnosis.measures.paper_statistics import SCORE_THRESHOLDS, Counts, count_predictions, proportion_drop
from retinaconf.diagnosis.measures.post_processing import PostProcessing
from retinaconf.evaluation.overlaps import best_overlaps
from retinaconf.inference.detector import load
from retinaconf.model.anchors import anchor_boxes, level_shapes
from retinaconf.paper.items import Training
from retinaconf.paper.runs import Experiments

MAX_IMAGES = 1000  # all candidates of them are held in memory, some 400 kB an image
SHOWN = 10  # images with a column of their own, as in the paper
SCATTERED = 3  # of them in Figure 1
POINTS = 3000  # of an image and stage; more only make the file larger


def statistics(experiments: Experiments, training: Training, seed: int) -> dict[str, Any]:
    """The numbers behind all three, kept beside the run as JSON.

    Of at most 1,000 images drawn at random, and of ten of those with objects, again at random: a column each.

    - `images`, `classes`: how many there are. `shown`: ids of the ten. `positives`: their anchors with IoU > 0.5.
    - `before`, `after`: of each stage `shown` and `mean` (an image), each with `score` (cls > t), `iou` (a box of the
      same class) and `any_iou` (of any class).
    - `drop`: mean over images of what NMS takes from each proportion, `score` and `iou`; null without predictions.
    - `points`: for three of the ten, those with most predictions, `image` and `before`, `after`: [IoU, score] each.
    """
    return experiments.measured(training, seed, "statistics", _measure)


def _measure(experiments: Experiments, run: Path, training: Training) -> dict[str, Any]:
    random = np.random.default_rng(0)
    truth = sample(experiments.ground_truth, random)
    detector = load(run, experiments.device)
    config = detector.inference_config(alpha=0.0, joint="product", score_threshold=SCORE_THRESHOLDS[0])
    (before,) = detector.detect(truth, config, suppress=False)
    process = PostProcessing(config.score_threshold, config.nms_iou, config.detections)
    stages = {"before": before, "after": process(before)}

    has_object = np.unique(truth.image_index[~truth.crowd])
    shown = np.sort(random.choice(has_object, min(SHOWN, len(has_object)), replace=False))
    document: dict[str, Any] = {
        "images": len(truth),
        "classes": len(truth.classes),
        "shown": [int(truth.image_ids[image]) for image in shown],
        "positives": [positive_anchors(truth, int(image), detector.config) for image in shown],
    }
    counts: dict[str, Counts] = {}
    points: dict[str, Any] = {}
    for stage, boxes in stages.items():
        overlaps = best_overlaps(boxes, truth)
        same, any_class = (
            count_predictions(boxes.image_index, boxes.scores, iou, len(truth))
            for iou in (overlaps.same_iou, overlaps.any_iou)
        )
        counts[stage] = same
        columns = {"score": same.score, "iou": same.iou, "any_iou": any_class.iou}
        document[stage] = {
            "shown": {name: column[shown].T.tolist() for name, column in columns.items()},
            "mean": {name: column.mean(0).tolist() for name, column in columns.items()},
        }
        points[stage] = [
            np.stack([overlaps.same_iou[rows], boxes.scores[rows]], 1)[:POINTS].round(4).tolist()
            for rows in (boxes.image_index == image for image in shown)
        ]
    busiest = np.argsort(-counts["before"].score[shown, 0], kind="stable")[:SCATTERED]
    document["points"] = [
        {"image": document["shown"][at], "before": points["before"][at], "after": points["after"][at]} for at in busiest
    ]
    predicted = counts["before"].score[:, 0] > 0
    drops = dict(zip(("score", "iou"), proportion_drop(counts["before"], counts["after"])))
    document["drop"] = {
        name: np.nanmean(drop[predicted], axis=0).tolist() if predicted.any() else None for name, drop in drops.items()
    }
    return document


def sample(truth: GroundTruth, random: np.random.Generator) -> GroundTruth:
    """At most 1,000 of the images, in their order."""
    if len(truth) <= MAX_IMAGES:
        return truth
    return truth.subset(np.sort(random.choice(len(truth), MAX_IMAGES, replace=False)))


def positive_anchors(truth: GroundTruth, image: int, config: Config) -> int:
    """How many anchors of an image have an IoU above 0.5 with one of its objects, before any rule of training."""
    height, width = (int(side) for side in truth.image_sizes[image])
    data = config.data
    size = resized((height, width), data.short_side, data.long_side, resize=data.resize)
    rows = slice(*truth.offsets[image : image + 2])
    boxes = truth.boxes[rows][~truth.crowd[rows]] * (np.array([size[1], size[0]] * 2) / [width, height, width, height])
    anchors = anchor_boxes(level_shapes(*canvas([size])), torch.device("cpu"), config.model.cell_anchors)
    return int((box_iou(anchors.double(), torch.from_numpy(boxes)) > 0.5).any(1).sum())
