"""What a branch added to trained RetinaNets gains, by tower, on images that chose nothing.

    python studies/retrofit.py RUN [RUN ...] --data ROOT --out DIR [--seeds 3] [--towers TOWER ...] [--json FILE]

Retrofits each RUN into DIR/RUN-TOWER-SEED (used again where it is there) and evaluates at alpha 0 and at the alpha that
each retrofit chose on `val`. The interval of the mean difference is paired over seeds and images
(`retinaconf/evaluation/compare.py`). With several RUNs the seeds are theirs: a RUN counts once, with the mean over its
retrofits. With one RUN they are the retrofit's, and the interval says nothing of another RUN.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any, get_args

import numpy as np

from retinaconf.commands.retrofit import retrofit
from retinaconf.data.layouts import load_split
from retinaconf.evaluation.coco import CocoEvaluator
from retinaconf.evaluation.compare import Difference, bootstrap_ap, paired_difference
from retinaconf.files import write_aside
from retinaconf.inference.detector import load
from retinaconf.inference.joint_score import product
from retinaconf.training.branch_fit import Tower


def retrofitted(run: Path, root: Path, out: Path, tower: Tower, seed: int) -> Path:
    """The folder of a retrofit, made if it is not there."""
    folder = out / f"{run.name}-{tower}-{seed}"
    if not folder.exists():
        started = time.process_time()
        retrofit(run, root, folder, tower, seed)
        print(f"{time.process_time() - started:.0f} s of CPU time")
    return folder


def gain(run: Path, root: Path, split: str) -> dict[str, Any]:
    """The alpha of a retrofitted run; AP and AP by class at alpha 0 and there; the gain on each draw of the images."""
    detector = load(run)
    truth = load_split(root, split)
    alpha = detector.config.inference.alpha
    evaluator = CocoEvaluator(truth)
    tables = detector.detect(truth, detector.config.inference, [product(0.0), product(alpha)])
    metrics = [evaluator(table) for table in tables]
    plain, joint = (np.array(bootstrap_ap(table, truth)) for table in tables)
    return {
        "retrofit": run.name,
        "alpha": alpha,
        "AP": [each.overall["AP"] for each in metrics],
        "per_class": [each.per_class for each in metrics],
        "gains": [round(value, 5) for value in joint - plain],
    }


def over_runs(found: list[list[dict[str, Any]]]) -> Difference:
    """The mean gain of retrofits, a list a RUN."""
    gains = np.array([[each["AP"][1] - each["AP"][0] for each in retrofits] for retrofits in found])  # (R, S)
    draws = np.array([[each["gains"] for each in retrofits] for retrofits in found])  # (R, S, B)
    if len(found) == 1:
        return paired_difference(gains[0], draws[0])
    return paired_difference(gains.mean(axis=1), draws.mean(axis=1))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path, nargs="+")
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--towers", nargs="+", choices=get_args(Tower), default=get_args(Tower))
    parser.add_argument("--split", default="test")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    document: dict[Tower, list[list[dict[str, Any]]]] = {tower: [] for tower in options.towers}
    for tower, found in document.items():
        for run in options.runs:
            found.append([])
            for seed in range(options.seeds):
                retrofit = retrofitted(run, options.data, options.out, tower, seed)
                found[-1].append(gain(retrofit, options.data, options.split))
                plain, joint = found[-1][-1]["AP"]
                change = f"AP {100 * plain:.2f}, at alpha {found[-1][-1]['alpha']:g} {100 * joint:.2f}"
                print(f"{retrofit.name}: {change}, {100 * (joint - plain):+.2f}", flush=True)
        mean = over_runs(found)
        interval = f"95% interval {100 * mean.low:+.2f} to {100 * mean.high:+.2f}"
        print(f"{tower}: {100 * mean.mean:+.2f} points of AP, {interval}", flush=True)
    if options.json:
        text = json.dumps(document)
        write_aside(options.json, lambda aside: aside.write_text(text + "\n"))


if __name__ == "__main__":
    main()
