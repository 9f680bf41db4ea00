"""From how many objects on does a class need a map from score to IoU of its own?

    python studies/own_map.py GROUND_TRUTH DETECTIONS [--draws 60]

Draws images to fit on and 50 others to read, and compares each class's own map with the map of all classes, by the
mean squared distance of calibrated score and IoU: as the detector is, and with one class's scores replaced by their
square root, which makes the classes differ.
"""

from __future__ import annotations

import argparse
from collections import defaultdict
from pathlib import Path

import numpy as np

from retinaconf.data.ground_truth import GroundTruth, read_coco
from retinaconf.detections import read_detections
from retinaconf.evaluation.calibration import ANY_OVERLAP
from retinaconf.evaluation.matching import MatchedDetections, match_detections
from retinaconf.evaluation.score_map import fit_curve, num_objects

EDGES = (1, 5, 10, 25, 50, 100, 10**9)  # of the bins of objects


def compare(truth: GroundTruth, matches: MatchedDetections, draws: int, differ: bool) -> dict[int, np.ndarray]:
    """By bin of objects fitted to: detections read, and the summed squared distances of the common and the own map."""
    rng = np.random.default_rng(0)
    counted = ~matches.ignored[:, 0]
    image, labels = matches.image_index[counted], matches.labels[counted]
    raw, ious = matches.scores[counted], matches.iou[counted, 0]
    found: dict[int, np.ndarray] = defaultdict(lambda: np.zeros(3))
    half = len(truth) // 2
    for _ in range(draws):
        images = rng.permutation(len(truth))
        read = np.isin(image, images[half:])
        for size in (half, half // 2, half // 4):
            fitted = np.isin(image, images[:size])
            objects = num_objects(truth, images[:size])
            for label in np.intersect1d(labels[fitted], labels[read]):
                of_class = labels == label
                scores = np.where(of_class, np.sqrt(raw), raw) if differ else raw
                common = fit_curve(scores[fitted], ious[fitted])
                own = fit_curve(scores[fitted & of_class], ious[fitted & of_class])
                rows = read & of_class
                distances = [
                    ((np.interp(scores[rows], curve.scores, curve.ious) - ious[rows]) ** 2).sum()
                    for curve in (common, own)
                ]
                found[int(np.searchsorted(EDGES, objects[label], side="right"))] += [rows.sum(), *distances]
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("ground_truth", type=Path)
    parser.add_argument("detections", type=Path)
    parser.add_argument("--draws", type=int, default=60)
    options = parser.parse_args()
    truth = read_coco(options.ground_truth)
    matches = match_detections(read_detections(options.detections, truth), truth, np.array([ANY_OVERLAP]))
    for differ in (False, True):
        print("one class's scores replaced by their square root" if differ else "the scores as they are")
        for place, (count, common, own) in sorted(compare(truth, matches, options.draws, differ).items()):
            low, high = (0, *EDGES)[place], EDGES[place]
            name = f"{low} to {high - 1}" if high < EDGES[-1] else f"{low} or more"
            print(f"{name:>12} objects: common {common / count:.4f}, own {own / count:.4f}")


if __name__ == "__main__":
    main()
