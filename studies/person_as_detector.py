"""How good a detector would a second annotator be?

    python studies/person_as_detector.py --data ROOT RUN [RUN ...] [--json FILE]

Where a field was annotated twice (`second_annotation.py`), one annotation is the reference, and two detectors are
measured by it on the same objects: the other person, and each RUN as it is. A photograph is the reference where it is
not in `train`; the other one of its field may be.

- AP. A person gives no scores, so the person's AP is the mean over random orders of the boxes.
- The IoU of a box with the reference: the person's, and the RUN's best-scored box on the same object. No order of
  boxes changes this.

AP is of the objects annotated twice; a RUN's boxes outside the shared part, and those on an object annotated once, take
no part. So the person has no wrong box, and the RUN may have some. Intervals are over a bootstrap of the photographs,
95%, and differences are paired.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from second_annotation import (
    MATCHED,
    annotations,
    average_precisions,
    not_trained_on,
    pairs,
    photographs_of,
    stacked,
    takes_part,
)

from retinaconf.data.ground_truth import GroundTruth
from retinaconf.detections import Detections
from retinaconf.evaluation.average_precision import image_draws
from retinaconf.evaluation.compare import DRAWS
from retinaconf.evaluation.overlaps import best_overlaps, iou
from retinaconf.files import write_json
from retinaconf.inference.detector import load

ORDERS = 50  # of a person's boxes; the standard deviation of their mean AP is then 0.1 points


class Measured(NamedTuple):
    """Values on all photographs, then on each of the B draws of them: (1 + B,) each."""

    ap: np.ndarray
    iou: np.ndarray  # mean over the objects that the detector finds; NaN where a draw has none
    person_iou: np.ndarray  # of the person's boxes of these objects
    found: int  # objects with a box of the detector


def person_ap(first: GroundTruth, second: GroundTruth, orders: int = ORDERS, seed: int = 0) -> np.ndarray:
    """(1 + B,) AP of the boxes of `second`, row by row of the objects of `first`, in the mean over random orders."""
    rng = np.random.default_rng(seed)
    boxes = (second.image_index, second.labels, second.boxes)
    names = {"classes": first.classes, "category_ids": first.category_ids}
    drawn = [Detections(*boxes, rng.permutation(len(second.boxes)) + 1.0, **names) for _ in range(orders)]
    return np.mean([average_precisions(one, first) for one in drawn], axis=0)


def measure(detections: Detections, first: GroundTruth, second: GroundTruth) -> Measured:
    """A detector, and the person's boxes of the objects that it finds, `second`, by the boxes of `first`."""
    on_object = best_overlaps(detections, first)
    best = np.full(len(first.boxes), np.nan)  # the IoU of the best-scored box on each object
    for row in np.argsort(detections.scores, kind="stable"):  # the best comes last, and stays
        if on_object.same_iou[row] >= MATCHED:
            best[on_object.same_object[row]] = on_object.same_iou[row]
    found = np.isfinite(best)
    draws = np.concatenate([np.ones((1, len(first))), *image_draws(np.arange(len(first)), len(first), DRAWS, seed=0)])
    weights = draws[:, first.image_index[found]]
    both = np.stack([best, iou(first.boxes, second.boxes)], axis=1)[found]
    with np.errstate(invalid="ignore"):
        ours, persons = (weights @ both / weights.sum(axis=1, keepdims=True)).T
    return Measured(average_precisions(detections, first), ours, persons, int(found.sum()))


def interval(values: np.ndarray) -> list[float]:
    """The value on all photographs, and the ends of its interval; NaN where no photograph has one."""
    if np.isnan(values).all():
        return [np.nan] * 3
    return [float(values[0]), *map(float, np.nanquantile(values[1:], [0.025, 0.975]))]


def compare(person: np.ndarray, runs: list[Measured]) -> dict[str, Any]:
    """The mean of the runs, beside the person."""
    ap, ours, persons = (np.mean([getattr(run, name) for run in runs], axis=0) for name in ("ap", "iou", "person_iou"))
    return {
        "found": [run.found for run in runs],
        "ap": {"person": interval(person), "runs": interval(ap), "difference": interval(ap - person)},
        "iou": {"person": interval(persons), "runs": interval(ours), "difference": interval(ours - persons)},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path, nargs="+")
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    twice = not_trained_on(pairs(photographs_of(options.data)))
    photographs = stacked([pair.a for pair in twice])
    first, second = (annotations(photographs, twice, which) for which in ("first", "second"))
    measured = []
    for run in options.runs:
        detector = load(run, "cpu")
        (detections,) = detector.detect(photographs, detector.inference_config())
        measured.append(measure(detections[takes_part(detections, photographs, twice)], first, second))
        print(f"{run}: AP {100 * measured[-1].ap[0]:.1f}, IoU {measured[-1].iou[0]:.3f}")
    document = {
        "photographs": len(photographs),
        "objects": len(first.boxes),
        **compare(person_ap(first, second), measured),
    }
    print(f"{document['objects']} objects in {document['photographs']} photographs, mean of the runs")
    for name, factor, digits in (("ap", 100, 1), ("iou", 1, 3)):
        for whose, (value, low, high) in document[name].items():
            ends = f"{factor * low:.{digits}f} to {factor * high:.{digits}f}"
            print(f"  {name}, {whose}: {factor * value:.{digits}f} ({ends})")
    if options.json:
        write_json(options.json, document)


if __name__ == "__main__":
    main()
