"""A comparison in words, as tables' rows, and as JSON."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np

from retinaconf.diagnosis.measures.comparison import Comparison, Measured
from retinaconf.diagnosis.report.comparability import ALIKE, other_calibration, other_order
from retinaconf.diagnosis.report.summary import FEW_IMAGES, FEW_OBJECTS, count
from retinaconf.evaluation.compare import DRAWS, Difference

Better = Literal["A", "B", "neither", "undecided"]
LABELS = {
    "AP": "AP",
    "AP50": "AP50",
    "AP75": "AP75",
    "AP_S": "AP, small objects",
    "AP_M": "AP, medium objects",
    "AP_L": "AP, large objects",
    "laece_0": "calibration error LaECE_0 (lower is better)",
    "confidence_laece_0": "LaECE_0 of the confidence (lower is better)",
    "concordance": "order within objects",
}


def better(comparison: Comparison) -> Better:
    """Which side has the higher AP: the interval is on one side of 0. "neither" if no draw tells them apart."""
    AP = comparison.differences["AP"]
    if too_few(comparison) or not AP.known:
        return "undecided"
    if AP.low > 0:
        return "B"
    if AP.high < 0:
        return "A"
    return "neither" if AP.low == AP.high == 0 else "undecided"


def too_few(comparison: Comparison) -> bool:
    """Whether there are too few objects or images for a verdict."""
    return _objects(comparison) < FEW_OBJECTS or _images_with_objects(comparison) < FEW_IMAGES


def sentence(comparison: Comparison) -> str:
    """The answer in one sentence: "B is better: +1.8 AP, 95% interval +0.4 to +3.1; 100 images"."""
    AP, which = comparison.differences["AP"], better(comparison)
    sign = -1 if which == "A" else 1
    low, high = sorted((sign * AP.low, sign * AP.high))
    gain = f"{_signed(sign * AP.mean)} AP, 95% interval {_signed(low)} to {_signed(high)}"
    basis = count(len(comparison.ground_truth), "image")
    if len(comparison.a) > 1:
        basis += f", {count(len(comparison.a), 'training')} of each"
    if which in ("A", "B"):
        return f"{which} is better: {gain}; {basis}"
    if which == "neither":
        return f"no difference: A and B have the same AP, also on every draw of the images; {basis}"
    if too_few(comparison):
        found = f"{count(_objects(comparison), 'object')} in {count(_images_with_objects(comparison), 'image')}"
        least = f"it takes at least {FEW_OBJECTS} objects in {FEW_IMAGES} images"
        return f"undecided: {found} are too few, {least}; on these B - A is {gain}"
    return f"undecided: B - A is {gain}; {basis}"


def notes(comparison: Comparison) -> list[str]:
    """What the reader must know of the numbers, a sentence each."""
    found = []
    a, b = comparison.a, comparison.b
    covered = [max(each.images for each in side) for side in (a, b)]
    if max(covered) > ALIKE * min(covered):
        found.append(
            f"A has boxes on {covered[0]:,} and B on {covered[1]:,} of the {len(comparison.ground_truth):,} images. If "
            "one was not run on all of them, give the ground truth of the images that both were run on."
        )
    images = len(comparison.ground_truth)
    reported = [float(np.mean([each.boxes for each in side])) / images for side in (a, b)]
    ordered = [float(np.mean([each.boxes_of_object for each in side])) for side in (a, b)]
    found += [*other_order(*ordered), *other_calibration(*reported)]
    for name, side, other in (("A", a, b), ("B", b, a)):
        if any(each.tuned for each in other) and not all(each.tuned for each in side):
            found.append(
                f"{name} is not tuned: instead of a confidence, it tells its score. `retinaconf tune` tunes it."
            )
    if len(a) == 1:
        found.append(
            "The intervals are about these two detectors. Another training of each may differ by more; to compare "
            "methods, give several trainings of each with --against."
        )
    return found


def rows(comparison: Comparison) -> list[tuple[str, float, float, Difference]]:
    """Label, A, B and B - A of each number; A and B are means over the trainings."""

    def mean(side: Sequence[Measured], key: str) -> float:
        return float(np.mean([each.values[key] for each in side]))

    differences = comparison.differences
    return [(LABELS[key], mean(comparison.a, key), mean(comparison.b, key), differences[key]) for key in differences]


def class_rows(comparison: Comparison) -> list[tuple[str, float, float, Difference]]:
    """The same of the AP of each class."""

    def mean(side: Sequence[Measured], name: str) -> float:
        return float(np.mean([each.per_class[name] for each in side]))

    of_class = comparison.per_class
    return [(name, mean(comparison.a, name), mean(comparison.b, name), of_class[name]) for name in of_class]


def interval(difference: Difference) -> str:
    """'+0.4 to +3.1' in hundredths; '-' where it is not known."""
    return f"{_signed(difference.low)} to {_signed(difference.high)}" if difference.known else "-"


def points(value: float, signed: bool = False) -> str:
    """A fraction in hundredths; '-' where it is not known."""
    return "-" if not math.isfinite(value) else _signed(value) if signed else f"{100 * value:.1f}"


def to_json(comparison: Comparison) -> dict[str, Any]:
    """What `retinaconf compare --json` writes; docs/cli.md lists the keys."""

    def each(values: Sequence[tuple[str, float, float, Difference]], names: Sequence[str]) -> dict[str, Any]:
        return {
            name: {
                "a": a,
                "b": b,
                "difference": found.mean,
                "low": found.low,
                "high": found.high,
                "trainings": list(found.seeds),
            }
            for name, (_, a, b, found) in zip(names, values)
        }

    return {
        "a": [each.name for each in comparison.a],
        "b": [each.name for each in comparison.b],
        "ground_truth": str(Path(comparison.ground_truth.source)),
        "images": len(comparison.ground_truth),
        "objects": _objects(comparison),
        "draws": DRAWS,
        "better": better(comparison),
        "sentence": sentence(comparison),
        "notes": notes(comparison),
        "differences": each(rows(comparison), list(comparison.differences)),
        "per_class": each(class_rows(comparison), list(comparison.per_class)),
    }


def _objects(comparison: Comparison) -> int:
    return int((~comparison.ground_truth.crowd).sum())


def _images_with_objects(comparison: Comparison) -> int:
    truth = comparison.ground_truth
    return len(np.unique(truth.image_index[~truth.crowd]))


def _signed(value: float) -> str:
    return f"{round(100 * value, 1) + 0.0:+.1f}"  # never "-0.0"
