"""What each preset of `data.augment` changes, on `val`, against the flip alone.

    python studies/augmentation.py --data ROOT --out DIR [--epochs 24] [--batch-size 8] [--seeds 3] [--ways WAY ...]

Trains `aligned-lite0` at short side 256 in each way and evaluates each training's best epoch on `val`, which also chose
that epoch, for every way alike. Differences are paired over seeds and images (`retinaconf/evaluation/compare.py`). The
trainings and what was measured stay in DIR; the command continues where it was stopped, and ends with
`augmentation.json`.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np

from retinaconf.evaluation.coco import CocoEvaluator
from retinaconf.evaluation.compare import bootstrap_ap, paired_difference
from retinaconf.files import write_json
from retinaconf.inference.detector import load
from retinaconf.paper.items import Training
from retinaconf.paper.runs import Experiments
from retinaconf.recipes import recipe

FLIP = "flip"
WAYS: dict[str, dict[str, Any]] = {
    FLIP: {},
    "none": {"data.augment": "none"},
    "light": {"data.augment": "light"},
    "strong": {"data.augment": "strong"},
    "flip, upside down, turned": {"data.vertical_flip": 0.5, "data.turn": 0.75},
}


def training(way: str) -> Training:
    """A way as the paper's engine trains it."""
    return Training("aligned", tuple(WAYS[way].items()), label=f"augment-{way.replace(',', '').replace(' ', '-')}")


def measure(experiments: Experiments, run: Path, training: Training) -> dict[str, Any]:
    """AP by COCO, and on each draw of the images."""
    detector = load(run, experiments.device)
    (table,) = detector.detect(experiments.ground_truth, detector.config.inference)
    overall = CocoEvaluator(experiments.ground_truth)(table).overall
    draws = bootstrap_ap(table, experiments.ground_truth)
    return {"AP": overall["AP"], "AP50": overall["AP50"], "draws": [round(value, 5) for value in draws]}


def document(found: dict[str, list[dict[str, Any]]]) -> list[dict[str, Any]]:
    """By way: the APs of the seeds, their mean, and the paired difference to the flip."""
    rows = []
    for way, results in found.items():
        values = np.array([result["AP"] for result in results])
        row: dict[str, Any] = {"way": way, "AP": values.tolist(), "mean": float(values.mean())}
        if way != FLIP:
            flips = found[FLIP][: len(results)]
            draws = np.array([result["draws"] for result in results]) - np.array([flip["draws"] for flip in flips])
            difference = paired_difference(values - np.array([flip["AP"] for flip in flips]), draws)
            row |= {"over_flip": difference.mean, "interval": [difference.low, difference.high]}
        rows.append(row)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--epochs", type=int, default=24)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--ways", nargs="+", choices=[way for way in WAYS if way != FLIP], default=list(WAYS)[1:])
    parser.add_argument("--device", default="auto")
    options = parser.parse_args()
    small = {"data.short_side": 256, "data.long_side": 448, "data.scale": (1.0, 1.0), "data.skip_bad": True}
    small |= {"data.batch_size": options.batch_size, "schedule.epochs": options.epochs}
    small |= {"optimizer.kept_lr": 1.0, "loss.iou_score": "quality-focal"}  # as the recipe had it for what is kept
    experiments = Experiments(
        options.out, options.data, recipe("aligned-lite0").changed(**small), device=options.device
    )
    found = {
        way: [experiments.measured(training(way), seed, "augmentation", measure) for seed in range(options.seeds)]
        for way in [FLIP, *options.ways]
    }
    rows = document(found)
    for row in rows:
        text = f"{row['way']}: AP {100 * row['mean']:.1f}"
        if "interval" in row:
            low, high = row["interval"]
            text += f", {100 * row['over_flip']:+.1f} ({100 * low:+.1f} to {100 * high:+.1f}) over the flip"
        print(text)
    write_json(options.out / "augmentation.json", rows)


if __name__ == "__main__":
    main()
