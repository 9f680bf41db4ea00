"""Two detectors on the same images, number by number: how much they differ, and within which interval.

Each number is that of `evaluate` and `diagnose`. Each difference is paired: both detectors, and all their trainings,
are evaluated on the same bootstrap draws of the images (`evaluation/compare.py`). Boxes are matched once, and a draw
gives every image a weight.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from retinaconf.data.ground_truth import GroundTruth
from retinaconf.detections import Detections
from retinaconf.diagnosis.measures.alignment import WithinObjects
from retinaconf.errors import InputError
from retinaconf.evaluation.average_precision import DRAWS_AT_ONCE, AveragePrecision, curve_of, image_draws
from retinaconf.evaluation.calibration import ANY_OVERLAP, finite_mean, la_ece, weighted_laece
from retinaconf.evaluation.coco import CocoEvaluator
from retinaconf.evaluation.compare import DRAWS, Difference, paired_difference
from retinaconf.evaluation.gains import ROUGH_REPLICATES
from retinaconf.evaluation.matching import SIZE_AREAS, match_detections
from retinaconf.progress import ProgressCallback, silent
from retinaconf.threads import in_threads

SIZES = ("AP_S", "AP_M", "AP_L")
# Of all but the two errors, higher is better. The second is of the confidence of a tuned run, and of others' score.
COMPARED = ("AP", "AP50", "AP75", *SIZES, "laece_0", "confidence_laece_0", "concordance")


@dataclass(frozen=True)
class Measured:
    """One detector's numbers, fractions: on all images, and on each draw of them."""

    name: str
    values: dict[str, float]  # the keys of COMPARED
    draws: dict[str, np.ndarray]  # of AP, AP50 and AP75 (DRAWS,), of the others (ROUGH_REPLICATES,)
    per_class: dict[str, float]  # AP by class name
    per_class_draws: np.ndarray  # (DRAWS, K)
    boxes: int
    images: int  # with boxes
    boxes_of_object: float  # whose order `concordance` is about
    tuned: bool = False  # whether its detections have a confidence


@dataclass(frozen=True)
class Comparison:
    """B - A, each with its 95% interval; NaN where the ground truth does not decide a number."""

    a: tuple[Measured, ...]  # a training each
    b: tuple[Measured, ...]  # as many, in the same order
    ground_truth: GroundTruth
    differences: dict[str, Difference]  # the keys of COMPARED; without the confidence's where no detector is tuned
    per_class: dict[str, Difference]  # of AP


def measure(
    name: str,
    detections: Detections,
    within: WithinObjects,
    ground_truth: GroundTruth,
    progress: ProgressCallback = silent,
) -> Measured:
    """Measure one detector.

    Args:
        name: what to call it.
        detections: D of them, after NMS.
        within: the order of its boxes within objects, of the candidates where they are known.
        ground_truth: I images with at least one object.
        progress: told after each block of draws.

    Raises:
        InputError: there are no detections.
    """
    if len(detections) == 0:
        raise InputError(f"{name}: no boxes on these {len(ground_truth):,} images; give a detector that finds some")
    metrics = CocoEvaluator(ground_truth)(detections)
    curve = curve_of(detections, ground_truth)
    by_size = [
        AveragePrecision(match_detections(detections, ground_truth, areas=areas), ground_truth) for areas in SIZE_AREAS
    ]
    any_overlap = match_detections(detections, ground_truth, np.array([ANY_OVERLAP]))
    errors = {"laece_0": any_overlap}
    if detections.confidence is not None:
        by_confidence = replace(detections, scores=detections.confidence)
        errors["confidence_laece_0"] = match_detections(by_confidence, ground_truth, np.array([ANY_OVERLAP]))
    laece = {key: weighted_laece(matches, 0, len(ground_truth.classes)) for key, matches in errors.items()}
    concordance = within.per_object.concordance
    ordered = np.isfinite(concordance)
    ordered_image, concordance = ground_truth.image_index[ordered], concordance[ordered]

    def on_draws(numbered: tuple[int, np.ndarray]) -> tuple[dict[str, np.ndarray], np.ndarray]:
        block, weights = numbered  # (B, I)
        levels = curve.by_class(weights)  # (B, T, K)
        mean = finite_mean(levels)
        values = {"AP": mean.mean(axis=-1), "AP50": mean[:, 0], "AP75": mean[:, 5]}
        rough = weights[: max(0, ROUGH_REPLICATES - block * DRAWS_AT_ONCE)]
        if len(rough):
            values |= {key: sized(rough).mean(axis=-1) for key, sized in zip(SIZES, by_size)}
            values |= {key: np.array([error(draw) for draw in rough]) for key, error in laece.items()}
            values.setdefault("confidence_laece_0", values["laece_0"])
            often = rough[:, ordered_image]
            objects = often.sum(axis=1)
            no_object = np.full(len(rough), np.nan)
            values["concordance"] = np.divide(often @ concordance, objects, out=no_object, where=objects > 0)
        return values, levels.mean(axis=1)

    # Images are drawn in the order of their ids: their order in the file does not matter.
    images = np.argsort(ground_truth.image_ids, kind="stable")
    drawn, done = [], 0
    for found in in_threads(on_draws, enumerate(image_draws(images, len(images), DRAWS, seed=0))):
        drawn.append(found)
        done += len(found[1])
        progress(f"bootstrap over images, {name}", done, DRAWS)
    values = {key: metrics.overall[key] for key in ("AP", "AP50", "AP75", *SIZES)}
    values |= {key: finite_mean(la_ece(matches, 0, len(ground_truth.classes))) for key, matches in errors.items()}
    values.setdefault("confidence_laece_0", values["laece_0"])
    return Measured(
        name=name,
        values=values | {"concordance": within.concordance},
        draws={key: np.concatenate([values[key] for values, _ in drawn if key in values]) for key in COMPARED},
        per_class=metrics.per_class,
        per_class_draws=np.concatenate([of_class for _, of_class in drawn]),
        boxes=len(detections),
        images=len(np.unique(detections.image_index)),
        boxes_of_object=within.boxes,
        tuned=detections.confidence is not None,
    )


def compare(a: Sequence[Measured], b: Sequence[Measured], ground_truth: GroundTruth) -> Comparison:
    """The differences B - A of detectors measured on the same ground truth; training n of A is paired with n of B."""

    def difference(key: str) -> Difference:
        values = [other.values[key] - one.values[key] for one, other in zip(a, b)]
        return _difference(values, [other.draws[key] - one.draws[key] for one, other in zip(a, b)])

    def of_class(label: int, name: str) -> Difference:
        values = [other.per_class[name] - one.per_class[name] for one, other in zip(a, b)]
        draws = [other.per_class_draws[:, label] - one.per_class_draws[:, label] for one, other in zip(a, b)]
        return _difference(values, draws)

    tuned = any(each.tuned for each in (*a, *b))
    return Comparison(
        a=tuple(a),
        b=tuple(b),
        ground_truth=ground_truth,
        differences={key: difference(key) for key in COMPARED if tuned or key != "confidence_laece_0"},
        per_class={name: of_class(label, name) for label, name in enumerate(a[0].per_class)},
    )


def _difference(values: Sequence[float], draws: Sequence[np.ndarray]) -> Difference:
    """The paired difference. That of -values and -draws is the same with the other sign, to the last bit."""
    sign = -1.0 if np.mean(values) < 0 else 1.0  # the draws from Student's t have one sign
    found = paired_difference(sign * np.array(values), sign * np.array(draws))
    low, high = sorted((sign * found.low, sign * found.high))
    return replace(found, seeds=tuple(values), mean=float(np.mean(values)), low=low, high=high)
