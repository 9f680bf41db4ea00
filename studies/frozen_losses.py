"""Which loss makes the quality branch the better factor of the score, on detectors that do not move.

    python studies/frozen_losses.py RUN [RUN ...] --data ROOT --out DIR [--split val]

Two trainings from scratch differ by more than what their losses of the branch do. Here the detectors are the plain
RetinaNets RUN ..., frozen, and only the branch learns: one 3x3 convolution on the classification tower, from the
tower's maps of the training images (PASSES times, resized and mirrored as in training), with the same steps for each
loss. What this leaves out is what a loss does to the tower and to the boxes.

Writes DIR/LOSS-RUN, a run folder that the other commands take, used again where it is there, and DIR/SPLIT.json;
prints AP by joint score, its difference from the class score's and from that of cross entropy on positives, the change
of each class's AP, and what the branch says by IoU. Intervals are paired over RUNs and images
(`retinaconf/evaluation/compare.py`).
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from retinaconf.config import LossConfig
from retinaconf.data.ground_truth import GroundTruth
from retinaconf.data.layouts import load_split
from retinaconf.data.loader import Batch, steps_per_epoch, training_batches
from retinaconf.evaluation.coco import CocoEvaluator
from retinaconf.evaluation.compare import bootstrap_ap, paired_difference
from retinaconf.files import write_aside
from retinaconf.inference.detector import Detector, load
from retinaconf.inference.joint_score import product, proportional
from retinaconf.model.retinanet import Outputs
from retinaconf.paper.items import BEYOND_POSITIVES
from retinaconf.paper.quality_statistics import by_overlap, class_ranked
from retinaconf.run_folder import CONFIG, MODEL, write_config, write_weights
from retinaconf.training.matching import Matches, match, positive_overlaps
from retinaconf.training.quality_loss import beyond_positives, quality_loss

PASSES = 2
EPOCHS = 12  # over what the passes saw
RATE = 2e-3
ALPHAS = (0.2, 0.4, 0.6, 0.8)
JOINTS = [product(0.0), *map(product, ALPHAS), *map(proportional, ALPHAS)]


class Seen(NamedTuple):
    """A training batch as the frozen network sees it."""

    boxes: Tensor  # (N, G, 4)
    outputs: Outputs
    maps: list[Tensor]  # of the classification tower, five levels (N, C, H_l, W_l)
    matches: Matches
    targets: Tensor  # (P,) IoU of each positive's predicted box with its object


@torch.no_grad()
def seen(detector: Detector, batch: Batch) -> Seen:
    maps: list[Tensor] = []
    hook = detector.model.head.classification_tower.register_forward_hook(lambda *call: maps.append(call[-1]))
    outputs = detector.model(batch.images, batch.sizes)
    hook.remove()
    matches = match(outputs.anchors, batch.boxes, batch.labels)
    return Seen(batch.boxes, outputs, maps, matches, positive_overlaps(outputs, matches, batch.boxes))


def fitted_branch(batches: list[Seen], loss: LossConfig, anchors: int) -> nn.Conv2d:
    """The convolution, for so many `anchors` a cell, with a small `loss`, by AdamW; the same steps for any."""
    torch.manual_seed(0)
    branch = nn.Conv2d(batches[0].maps[0].shape[1], anchors, 3, padding=1)
    nn.init.normal_(branch.weight, std=0.01)
    nn.init.zeros_(branch.bias)  # type: ignore[arg-type]
    branch.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    optimizer = torch.optim.AdamW(branch.parameters(), weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, RATE, total_steps=EPOCHS * len(batches))
    for _ in range(EPOCHS):
        for index in torch.randperm(len(batches)).tolist():
            batch = batches[index]
            by_level = [branch(level).flatten(2).transpose(1, 2).flatten(1) for level in batch.maps]
            outputs = batch.outputs._replace(quality_logits=torch.cat(by_level, dim=1))
            positive = quality_loss(outputs.quality_logits[batch.matches.index], batch.targets, loss)
            total = positive + beyond_positives(outputs, batch.matches, batch.boxes, loss)
            optimizer.zero_grad()
            (total / max(1, len(batch.targets))).backward()
            optimizer.step()
            schedule.step()
    return branch


def fit(run: Path, root: Path, out: Path) -> None:
    """A run folder for every loss that has none, from one pass of the network."""
    missing = {name: training for name, training in BEYOND_POSITIVES.items() if not _folder(out, name, run).exists()}
    if not missing:
        return
    detector = load(run)
    train_set = load_split(root, "train")
    data = detector.config.data
    steps = PASSES * steps_per_epoch(len(train_set), data.batch_size)
    batches = [seen(detector, batch) for batch in training_batches(train_set, data, 0, 0, steps)]
    for name, training in missing.items():
        config = detector.config.changed(**{"model.quality": "classification"} | dict(training.changes))
        branch = fitted_branch(batches, config.loss, detector.model.cell_anchors.count)
        state = detector.state | {"head.quality_conv.weight": branch.weight, "head.quality_conv.bias": branch.bias}
        folder = _folder(out, name, run)
        folder.mkdir(parents=True)
        write_config(folder / CONFIG, config)
        write_weights(folder / MODEL, state, config, detector.classes, detector.category_ids)


def measure(run: Path, truth: GroundTruth) -> dict[str, Any]:
    """AP, by class, and on each draw of the images, by each joint score; and what the branch says by IoU."""
    detector = load(run)
    evaluator = CocoEvaluator(truth)
    tables = detector.detect(truth, detector.config.inference, JOINTS)
    rows = []
    for joint, table in zip(JOINTS, tables):
        metrics = evaluator(table)
        row = {"joint": joint.name, "AP": metrics.overall["AP"], "per_class": metrics.per_class}
        rows.append(row | {"draws": [round(value, 5) for value in bootstrap_ap(table, truth)]})
    return {"rows": rows, "qualities": by_overlap(class_ranked(detector, truth), truth)}


def compared(found: dict[str, list[dict[str, Any]]]) -> dict[str, dict[str, dict[str, list[float]]]]:
    """By loss and joint score the gain on the class score, and on cross entropy on positives: [mean, low, high]."""
    columns = {
        name: [np.array([[row[key] for row in result["rows"]] for result in results]) for key in ("AP", "draws")]
        for name, results in found.items()
    }  # (R, joints), (R, joints, B)
    of_ce, draws_of_ce = columns["CE"]
    return {
        name: {
            joint.name: {
                "gain": _interval(values[:, index] - values[:, 0], draws[:, index] - draws[:, 0]),
                "on CE": _interval((values - of_ce)[:, index], (draws - draws_of_ce)[:, index]),
            }
            for index, joint in enumerate(JOINTS)
        }
        for name, (values, draws) in columns.items()
    }


def _interval(values: np.ndarray, draws: np.ndarray) -> list[float]:
    difference = paired_difference(values, draws)
    return [round(value, 5) for value in (difference.mean, difference.low, difference.high)]


def report(found: dict[str, list[dict[str, Any]]], gains: dict[str, dict[str, dict[str, list[float]]]]) -> None:
    """Of each loss, over the frozen detectors."""
    for name, results in found.items():
        print(f"\n{name}")
        classes = [[list(row["per_class"].values()) for row in result["rows"]] for result in results]
        by_class = 100 * np.mean(classes, axis=0)  # (joints, K)
        for index, joint in enumerate(JOINTS):
            line = f"  {joint.name}: AP {100 * np.mean([result['rows'][index]['AP'] for result in results]):.2f}"
            if index:
                for what, interval in gains[name][joint.name].items():
                    line += ", {} {:+.2f} ({:+.2f} to {:+.2f})".format(what, *(100 * value for value in interval))
                changes = zip(results[0]["rows"][0]["per_class"], by_class[index] - by_class[0])
                line += "; " + ", ".join(f"{label} {change:+.1f}" for label, change in changes)
            print(line)
        qualities = [result["qualities"] for result in results]
        edges = qualities[0]["edges"]
        means = np.nanmean(np.array([each["quality"] for each in qualities], dtype=float), axis=0)
        print(
            "  quality: " + ", ".join(f"{low:g} to {high:g} {q:.2f}" for low, high, q in zip(edges, edges[1:], means))
        )
        ranks = (
            np.mean(np.array([each[key] for each in qualities], dtype=float))
            for key in ("quality_rank", "class_score_rank")
        )
        print("  rank correlation with IoU within an object: quality {:.2f}, class score {:.2f}".format(*ranks))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path, nargs="+")
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--split", default="val")
    options = parser.parse_args()
    truth = load_split(options.data, options.split)
    found: dict[str, list[dict[str, Any]]] = {name: [] for name in BEYOND_POSITIVES}
    for run in options.runs:
        fit(run, options.data, options.out)
        for name, results in found.items():
            results.append(measure(_folder(options.out, name, run), truth))
            print(f"{name} on {run.name}", flush=True)
    gains = compared(found)
    report(found, gains)
    for result in (result for results in found.values() for result in results):
        for row in result["rows"]:
            del row["draws"]  # 500 numbers a row
    text = json.dumps({"runs": [run.name for run in options.runs], "losses": found, "gains": gains})
    write_aside(options.out / f"{options.split}.json", lambda aside: aside.write_text(text + "\n"))


def _folder(out: Path, loss: str, run: Path) -> Path:
    words = "".join(letter if letter.isalnum() else "-" for letter in loss.lower())
    return out / f"{words}-{run.name}"


if __name__ == "__main__":
    main()
