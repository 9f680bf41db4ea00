"""The diagnosis in words, for someone who has not read the paper."""

from __future__ import annotations

import math

import numpy as np

from retinaconf.diagnosis.diagnose import Diagnosis
from retinaconf.diagnosis.sizes import SIZES, object_size

CLEAR, SOME = 0.03, 0.01  # AP that ranking by true IoU would give: from here a clear problem, from here some
ORDERED = 0.75  # concordance within objects from which score and fit may be said to agree


def summarize(diagnosis: Diagnosis) -> list[str]:
    """One finding a sentence or two, the verdict first; plain text."""
    return [finding for finding in (*_findings(diagnosis), _left_out(diagnosis)) if finding]


def _findings(diagnosis: Diagnosis) -> list[str]:
    truth = diagnosis.ground_truth
    objects = int((~truth.crowd).sum())
    if objects == 0:
        return [f"Nothing can be said: the ground truth has no objects in its {len(truth):,} images."]
    if len(diagnosis.after.boxes) == 0:
        return [f"The detector reports no box at all on {len(truth):,} images with {objects:,} objects; AP is 0."]
    return [
        _verdict(diagnosis),
        _within(diagnosis),
        _casualties(diagnosis, objects),
        _ladder(diagnosis),
        _quality(diagnosis),
        _calibration(diagnosis),
        _coverage(diagnosis, objects),
    ]


def _left_out(diagnosis: Diagnosis) -> str:
    left_out = str(diagnosis.ground_truth.left_out)
    return f"All this is about {len(diagnosis.ground_truth):,} images; {left_out}." if left_out else ""


def _points(value: float) -> str:
    """A difference of AP in points, with its sign."""
    return f"{100 * value:+.1f}"


def _verdict(diagnosis: Diagnosis) -> str:
    rungs = {rung.name: rung.AP for rung in diagnosis.oracles}
    gain = rungs["ranked_by_iou"] - rungs["as_is"]
    what = "candidates" if diagnosis.before else "detections"
    within = (diagnosis.before or diagnosis.after).alignment.within
    judged = (
        "Score and localization clearly disagree"
        if gain >= CLEAR
        else "Score and localization disagree somewhat"
        if gain >= SOME
        else "Score and localization agree about as well as they can"
        if within.concordance >= ORDERED
        else "A better order of the boxes would gain little"  # too few on an object, or other faults are larger
    )
    return (
        f"{judged}: AP is {100 * rungs['as_is']:.1f}, and would be {100 * rungs['ranked_by_iou']:.1f} if only each "
        f"object's {what} were ranked by how well they fit ({_points(gain)} points)."
    )


def _within(diagnosis: Diagnosis) -> str:
    stage, what = (diagnosis.before, "candidates") if diagnosis.before else (diagnosis.after, "detections")
    assert stage is not None
    within = stage.alignment.within
    if within.objects == 0:
        return f"No object has two {what} that differ in score and IoU, so that their ranking cannot be judged."
    return (
        f"Of two {what} of one object, the better-placed has the higher score {within.concordance:.0%} of the time "
        f"(50% is chance, 100% perfect; Kendall's tau {within.kendall:.2f}, Spearman's rho {within.spearman:.2f}, mean "
        f"of {within.objects:,} objects)."
    )


def _casualties(diagnosis: Diagnosis, objects: int) -> str:
    casualties = diagnosis.casualties
    if casualties is None:
        return "What NMS throws away cannot be seen from detections; give candidates before NMS to see it."
    size = object_size(diagnosis.ground_truth.areas)
    chosen = ~diagnosis.ground_truth.crowd
    total = casualties.of(chosen)
    if total["found"] == 0:
        return "No candidate overlaps any object of its class."
    share = float((casualties.lost[chosen] > 0.05).mean())
    by_size = {
        name: float(casualties.of(chosen & (size == index))["mean_lost_iou"]) for index, name in enumerate(SIZES)
    }
    sizes = ", ".join(f"{value:.3f} for {name}" for name, value in by_size.items() if math.isfinite(value))
    neighbours = int(total["lost_at_75_to_neighbour"])
    crowding = f", {neighbours:,} of them to a neighbour's box" if neighbours else ""
    return (
        f"NMS keeps a box that fits worse by over 0.05 IoU than one it removes on {share:.0%} of objects, and costs "
        f"{total['mean_lost_iou']:.3f} IoU an object ({sizes}). By this alone {total['lost_at_50']:,} objects of "
        f"{objects:,} fall below IoU 0.5 and {total['lost_at_75']:,} below 0.75{crowding}."
    )


def _ladder(diagnosis: Diagnosis) -> str:
    start = diagnosis.oracles[0].AP
    gain = {rung.name: rung.AP - start for rung in diagnosis.oracles}
    return (
        f"With a perfect quality score AP would change by {_points(gain['quality_is_iou'])} points, with the true IoU "
        f"as the score by {_points(gain['score_is_iou'])}, with the right class on every well-placed box by "
        f"{_points(gain['class_right'])}, without duplicates by {_points(gain['no_duplicates'])}."
    )


def _quality(diagnosis: Diagnosis) -> str:
    sweep = diagnosis.quality
    if sweep is None:
        return ""
    gain = sweep.over_class_score
    low, high = gain.interval
    if not math.isfinite(low):
        return "There are too few images to tell what the quality score is worth."
    sure = "helps" if low > 0 else "hurts" if high < 0 else "makes no sure difference"
    return (
        f"Joining the detector's own quality score {sure}: the best alpha, {sweep.best_alpha:g}, changes AP by "
        f"{_points(gain.points)} points (95% interval {_points(low)} to {_points(high)}) on {len(sweep.reported_on):,} "
        "images it was not chosen on."
    )


def _calibration(diagnosis: Diagnosis) -> str:
    calibration = diagnosis.calibration
    bins = calibration.reliability
    filled = bins.count > 0
    if not filled.any():
        return ""
    score = float(np.average(bins.mean_score[filled], weights=bins.count[filled]))
    iou = float(np.average(bins.mean_iou[filled], weights=bins.count[filled]))
    lean = "too high" if score > iou + 0.02 else "too low" if score < iou - 0.02 else "right on average"
    thresholds = calibration.lrp.threshold[np.isfinite(calibration.lrp.threshold)]
    advice = f" The best score threshold is {np.median(thresholds):.2f} in the median class." if len(thresholds) else ""
    return (
        f"Read as a predicted IoU the score is {lean} (mean {score:.2f} against {iou:.2f}); it is off by "
        f"{calibration.mean_laece_0:.2f} (LaECE_0, 0 is perfect).{advice}"
    )


def _coverage(diagnosis: Diagnosis, objects: int) -> str:
    coverage = diagnosis.coverage
    if coverage is None:
        return ""
    total = coverage.of(~diagnosis.ground_truth.crowd)
    return (
        f"{total['never_positive']:,} of {objects:,} objects never get a positive anchor, and "
        f"{total['only_by_best_anchor']:,} only their best one, below IoU 0.5."
    )
