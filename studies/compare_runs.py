"""What one kind of detector gains over another, run against run.

    python studies/compare_runs.py --runs A0 [A1 ...] --than B0 [B1 ...] --data ROOT [--split test] [--joint NAME]

A0 and B0 are trainings of the same data, schedule and seed, and so on. Prints AP, AP50 and AP75 of each, and the
difference A - B with its 95% interval, paired over seeds and images (`evaluation/compare.py`); for one pair that
of the images alone. A's runs are judged by the joint score NAME of `evaluate --sweep`, without it by their own; B's by
their own.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np

from retinaconf.data.ground_truth import GroundTruth
from retinaconf.data.layouts import load_split
from retinaconf.evaluation.coco import CocoEvaluator
from retinaconf.evaluation.compare import bootstrap_ap, paired_difference
from retinaconf.inference.detector import load
from retinaconf.inference.joint_score import joint_score, sweep

SHOWN = ("AP", "AP50", "AP75")


def measured(run: Path, truth: GroundTruth, joint_name: str | None) -> tuple[list[float], list[float]]:
    """SHOWN of a run, and its AP on each draw of the images."""
    detector = load(run)
    config = detector.config.inference
    joint = {joint.name: joint for joint in sweep()}[joint_name] if joint_name else joint_score(config)
    (table,) = detector.detect(truth, config, [joint])
    metrics = CocoEvaluator(truth)(table)
    values = [metrics.overall[name] for name in SHOWN]
    by_class = ", ".join(f"{name} {100 * AP:.1f}" for name, AP in metrics.per_class.items())
    print(f"{run.name} by {joint.name}: " + ", ".join(f"{m} {100 * v:.2f}" for m, v in zip(SHOWN, values)), flush=True)
    print(f"  {by_class}", flush=True)
    return values, bootstrap_ap(table, truth)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=Path, nargs="+", required=True)
    parser.add_argument("--than", type=Path, nargs="+", required=True)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--split", default="test")
    parser.add_argument("--joint", choices=[joint.name for joint in sweep()])
    options = parser.parse_args()
    if len(options.runs) != len(options.than):
        parser.error("give as many --runs as --than")
    truth = load_split(options.data, options.split)
    ours = [measured(run, truth, options.joint) for run in options.runs]
    theirs = [measured(run, truth, None) for run in options.than]
    (values, draws), (other_values, other_draws) = (map(np.array, zip(*side)) for side in (ours, theirs))
    found = paired_difference(values[:, 0] - other_values[:, 0], draws - other_draws)
    seeds = ", ".join(f"{100 * difference:+.2f}" for difference in found.seeds)
    print(f"AP: {100 * found.mean:+.2f}, 95% interval {100 * found.low:+.2f} to {100 * found.high:+.2f}; seeds {seeds}")


if __name__ == "__main__":
    main()
