"""What a branch added to a trained RetinaNet gains, by tower and seed, on images that chose nothing.

    python studies/retrofit.py RUN --data ROOT --out DIR [--seeds 3] [--split test]

Retrofits RUN into DIR/TOWER-SEED (used again where it is there) and evaluates at alpha 0 and at the alpha that each
retrofit chose on `val`. The interval of the mean difference is paired over seeds and images
(`retinaconf/paper/compare.py`). The seeds are the retrofit's: all start from the one RUN.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import numpy as np

from retinaconf.data.layouts import load_split
from retinaconf.evaluation.coco import CocoEvaluator
from retinaconf.inference.detector import load
from retinaconf.inference.joint_score import product
from retinaconf.paper.compare import paired_difference
from retinaconf.paper.runs import replicates
from retinaconf.retrofit import retrofit_run


def gain(run: Path, root: Path, split: str) -> tuple[float, np.ndarray, np.ndarray]:
    """The alpha of a retrofitted run; AP at alpha 0 and there (2,), and on each draw of the images (2, B)."""
    detector = load(run)
    truth = load_split(root, split)
    alpha = detector.config.inference.alpha
    values, draws = [], []
    evaluator = CocoEvaluator(truth)
    for table in detector.detect(truth, detector.config.inference, [product(0.0), product(alpha)]):
        metrics = evaluator(table.image_index, table.boxes, table.scores, table.labels)
        values.append(metrics.overall["AP"])
        draws.append(replicates(table, truth))
    return alpha, np.array(values), np.array(draws)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--split", default="test")
    options = parser.parse_args()
    for tower in ("classification", "localization"):
        gains, draws = [], []
        for seed in range(options.seeds):
            out = options.out / f"{tower}-{seed}"
            if not out.exists():
                started = time.process_time()
                retrofit_run(options.run, options.data, out, tower, seed)
                print(f"{time.process_time() - started:.0f} s of CPU time")
            alpha, (plain, joint), by_draw = gain(out, options.data, options.split)
            gains.append(joint - plain)
            draws.append(by_draw[1] - by_draw[0])
            print(f"{tower}, seed {seed}: AP {100 * plain:.2f}, at alpha {alpha:g} {100 * joint:.2f}", flush=True)
        found = paired_difference(np.array(gains), np.array(draws))
        low, high = 100 * found.low, 100 * found.high
        print(f"{tower}: {100 * found.mean:+.2f} points of AP, 95% interval {low:+.2f} to {high:+.2f}", flush=True)


if __name__ == "__main__":
    main()
