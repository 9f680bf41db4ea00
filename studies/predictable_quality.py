"""Is the fit there to be predicted? The IoU, learned by trees from what the quality branch sees and more.

    python studies/predictable_quality.py RUN [RUN ...] --data ROOT [--split val] [--json FILE]

Gradient-boosted trees learn the IoU of a box with the object that it fits best, background included, from the features
of both towers at its cell, all class scores, the box's deltas and size: more than the branch has, without its linear
form. They learn on two thirds of the split's images, so on features as unseen images have them, and from the very boxes
that inference ranks; they are asked on the other third (three folds). RUNs are detectors of any kind, used as they are.

A probe, not a bound: trees that minimise the squared error over all boxes need not find an object's best order.

Prints the explained variance, the rank correlation with the IoU among the boxes of one object, and what the predicted
quality adds to AP in each use of the score (`retinaconf/paper/quality_statistics.py`), beside what the IoU itself would
add.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sklearn.ensemble import HistGradientBoostingRegressor
from torch import Tensor

from retinaconf.data.ground_truth import GroundTruth
from retinaconf.data.layouts import load_split
from retinaconf.data.loader import evaluation_batches
from retinaconf.detections import Detections
from retinaconf.evaluation.overlaps import best_overlaps
from retinaconf.files import write_aside
from retinaconf.inference.detector import BATCH, Detector, load
from retinaconf.inference.tables import to_original
from retinaconf.paper.quality_statistics import CLASS_SCORE, USES, by_overlap, by_use

FOLDS = 3
LEARNED = 12_000  # boxes, drawn at random from two folds


@torch.no_grad()
def boxes_and_features(detector: Detector, truth: GroundTruth) -> tuple[Detections, np.ndarray]:
    """The (anchor, class) pairs with a class score above 0.05, and what is known of each (D, F)."""
    maps: list[Tensor] = []
    head, per_cell = detector.model.head, detector.model.cell_anchors.count
    hooks = [
        tower.register_forward_hook(lambda *call: maps.append(call[-1]))
        for tower in (head.classification_tower, head.localization_tower)
    ]
    columns: list[tuple[np.ndarray, ...]] = []
    for batch in evaluation_batches(truth, detector.config.data, BATCH):
        maps.clear()
        outputs = detector.model(batch.images, batch.sizes)
        # The head visits level by level: classification, localization, classification ...
        towers = [torch.cat([m.flatten(2).transpose(1, 2) for m in maps[first::2]], 1) for first in (0, 1)]
        features = torch.cat(towers, dim=2)  # (N, cells, 2 C)
        scores = torch.sigmoid(outputs.class_logits)
        for n, image in enumerate(batch.index.tolist()):
            anchor, label = torch.nonzero(scores[n] > CLASS_SCORE, as_tuple=True)
            height, width = batch.sizes[n].tolist()
            deltas = outputs.box_deltas[n, anchor]
            boxes = outputs.boxes(n, anchor)
            boxes = torch.minimum(boxes.clamp(min=0), torch.tensor([width, height] * 2).to(boxes))
            has_area = (boxes[:, 2:] > boxes[:, :2]).all(1)
            anchor, label, deltas, boxes = (part[has_area] for part in (anchor, label, deltas, boxes))
            score = scores[n, anchor, label]
            sides = (boxes[:, 2:] - boxes[:, :2]).log()
            kind = torch.stack([anchor % per_cell, label], 1)
            known = [features[n, anchor // per_cell], scores[n, anchor], deltas, sides, kind, score[:, None]]
            original = (int(truth.image_sizes[image, 0]), int(truth.image_sizes[image, 1]))
            columns.append(
                (
                    np.full(len(anchor), image),
                    label.numpy(),
                    to_original(boxes, (height, width), original).astype(np.float64),
                    score.double().numpy(),
                    torch.cat(known, dim=1).numpy(),
                )
            )
    for hook in hooks:
        hook.remove()
    image_index, labels, boxes_, scores_, known_ = (np.concatenate(column) for column in zip(*columns))
    order = np.lexsort((-scores_, image_index))
    found = Detections(image_index[order], labels[order], boxes_[order], scores_[order])
    return found, known_[order]


def predicted(known: np.ndarray, target: np.ndarray, image_index: np.ndarray) -> np.ndarray:
    """(D,) `target` of each box, by trees that saw no box of its image."""
    random = np.random.default_rng(0)
    said = np.zeros(len(target))
    for fold in range(FOLDS):
        asked = image_index % FOLDS == fold
        rows = np.flatnonzero(~asked)
        rows = random.choice(rows, min(LEARNED, len(rows)), replace=False)
        trees = HistGradientBoostingRegressor(max_iter=60, learning_rate=0.15, max_leaf_nodes=15, random_state=0)
        said[asked] = trees.fit(known[rows], target[rows]).predict(known[asked])
    return said.clip(1e-3, 1)


def measure(run: Path, truth: GroundTruth) -> dict[str, Any]:
    boxes, known = boxes_and_features(load(run, "cpu"), truth)
    iou = best_overlaps(boxes, truth).any_iou
    quality = predicted(known, iou, boxes.image_index)
    boxes = replace(boxes, quality=quality)
    explained = 1 - ((iou - quality) ** 2).mean() / iou.var()
    return {"run": run.name, "explained": explained, **by_overlap(boxes, truth), "uses": by_use(boxes, truth)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path, nargs="+")
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--split", default="val")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    truth = load_split(options.data, options.split)
    found = []
    for run in options.runs:
        found.append(measure(run, truth))
        result, uses = found[-1], found[-1]["uses"]
        print(f"{run.name}: {result['boxes']:,} boxes, AP {100 * uses['AP']:.2f}; explained {result['explained']:.2f}")
        ranks = np.array([result["quality_rank"], result["class_score_rank"]], dtype=float)  # None becomes NaN
        print("  rank correlation within an object: predicted {:.2f}, class score {:.2f}".format(*ranks))
        for quality in ("quality", "perfect"):
            for use in USES:
                gains = zip(uses["alphas"], uses[quality][use])
                print(f"  {quality}, {use}: " + ", ".join(f"alpha {a:g} {100 * g:+.2f}" for a, g in gains), flush=True)
    if options.json:
        text = json.dumps(found)
        write_aside(options.json, lambda aside: aside.write_text(text + "\n"))


if __name__ == "__main__":
    main()
