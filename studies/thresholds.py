"""How near does a class come to the wished precision on images that did not choose its threshold?

    python studies/thresholds.py GROUND_TRUTH DETECTIONS [--precision 0.9] [--divisions 30]

Divides the images into random halves again and again. Each half is read with the thresholds that `retinaconf tune
--precision` would choose on the other half.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np

from retinaconf.data.ground_truth import GroundTruth, read_coco
from retinaconf.detections import Detections, read_detections
from retinaconf.evaluation.gains import halves
from retinaconf.evaluation.matching import match_detections
from retinaconf.evaluation.thresholds import RIGHT, Goal, shown_by_halves


def precisions(truth: GroundTruth, found: Detections, wished: float, divisions: int) -> np.ndarray:
    """(2 x divisions, K): the precision of each class on each half; NaN where a class shows nothing there."""
    matches = match_detections(found, truth, np.array([RIGHT]))
    counted = ~matches.ignored[:, 0]
    right = matches.matched[counted, 0] >= 0
    lines = []
    for seed in range(divisions):
        shown = shown_by_halves(found, matches, 0, truth, Goal(precision=wished), seed)
        if shown is None:
            continue
        for half in halves(truth, seed):
            kept = shown[matches.row[counted]] & np.isin(matches.image_index[counted], half)
            labels, num_classes = matches.labels[counted], len(truth.classes)
            all_, true = (np.bincount(labels[rows], minlength=num_classes) for rows in (kept, kept & right))
            lines.append(np.divide(true, all_, out=np.full(num_classes, np.nan), where=all_ > 0))
    return np.array(lines).reshape(-1, len(truth.classes))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("ground_truth", type=Path)
    parser.add_argument("detections", type=Path)
    parser.add_argument("--precision", type=float, default=0.9)
    parser.add_argument("--divisions", type=int, default=30)
    options = parser.parse_args()
    truth = read_coco(options.ground_truth)
    found = precisions(truth, read_detections(options.detections, truth), options.precision, options.divisions)
    objects = np.bincount(truth.labels[~truth.crowd], minlength=len(truth.classes))
    for name, count, values in zip(truth.classes, objects, found.T):
        values = values[np.isfinite(values)]
        if len(values):
            near = np.mean(np.abs(values - options.precision) <= 0.03)
            print(
                f"{name}, {count} objects: precision {values.mean():.3f}, standard deviation {values.std():.3f}; "
                f"within 3 points of {options.precision:g} in {near:.0%} of {len(values)} halves"
            )
        else:
            print(f"{name}, {count} objects: nothing is shown")


if __name__ == "__main__":
    main()
