"""What the owner of a detector can do, each with the gain that was measured and with what it is compared to."""

from __future__ import annotations

import math

from retinaconf.config import SOFT_NMS_IOU, SOFT_NMS_SIGMA, VOTE_SIGMA
from retinaconf.diagnosis.measures.diagnose import Diagnosis
from retinaconf.diagnosis.measures.remedies import CUSTOMARY, Shown, reach_out
from retinaconf.diagnosis.report.summary import (
    FEW_IMAGES,
    FEW_OBJECTS,
    SOME,
    count,
    is_sure,
    likely_candidates,
    num_objects,
    points,
    rungs,
    too_few,
)

WORTH_MAPPING = 0.005  # by which a map must bring scores closer to IoUs


def advise(diagnosis: Diagnosis) -> list[str]:
    """What to do, a sentence or two each; plain text. Changes that need no training come before those that do."""
    if num_objects(diagnosis) == 0:
        return ["Give ground truth that has objects."]
    if len(diagnosis.after.boxes) == 0:
        return ["Look at the detector's score threshold, and at whether the file is of these images."]
    if likely_candidates(diagnosis):
        return ["If these boxes are those before NMS, give the file with --candidates. If not: " + _nms(diagnosis)]
    remedies = diagnosis.remedies
    few = too_few(diagnosis)
    if few:
        return [f"Diagnose more: at least {FEW_OBJECTS} objects in {FEW_IMAGES} images. Nothing is sure with {few}."]
    parts = (_clipping, _nms, _soft_nms, _voting, _score, _threshold, _recalibration)
    lines = [part(diagnosis) for part in parts]
    return [
        "All but the last of these need no training. Settings were chosen on "
        f"{len(remedies.chosen_on):,} of the images, and measured on the other {len(remedies.reported_on):,}, compared "
        "with the detector as it is.",
        *sorted(filter(None, lines), key=lambda line: line.startswith("Keep")),  # what changes comes first
        _training(diagnosis),
    ]


def _nms(diagnosis: Diagnosis) -> str:
    nms = diagnosis.remedies.nms
    tried = ", ".join(f"{iou:g}" for iou in nms.ious)
    if diagnosis.before is None:
        if is_sure(nms.over_own) > 0:
            return f"Run NMS at IoU {nms.best:g} over the detections: AP changes by {points(nms.over_own)}."
        return (
            "Keep the detections without a further NMS, which gains nothing that is sure. What an NMS inside your "
            "detector costs is not in this file: if there is one, diagnose the boxes before it, too."
        )
    present = diagnosis.post_processing.nms_iou
    if nms.best == present:
        return f"Keep NMS at IoU {present:g}: it is the best of {tried}."
    if is_sure(nms.over_own) > 0:
        return f"Set the IoU of NMS to {nms.best:g} instead of {present:g}: AP changes by {points(nms.over_own)}."
    return (
        f"Keep NMS at IoU {present:g}: the best of {tried} is {nms.best:g}, which changes AP by "
        f"{points(nms.over_own)}, no sure gain."
    )


def _soft_nms(diagnosis: Diagnosis) -> str:
    gain = diagnosis.remedies.soft_nms
    if gain is None:
        return ""
    if is_sure(gain) <= 0:
        return f"Keep the scores that NMS leaves: Soft-NMS changes AP by {points(gain)} on all images, no sure gain."
    how = " (`retinaconf tune RUN --data ROOT` keeps it in the run)" if diagnosis.run is not None else ""
    return (
        f"Use Soft-NMS{how}: NMS at IoU {SOFT_NMS_IOU:g}, and then each score × exp(-IoU^2 / {SOFT_NMS_SIGMA:g}) "
        f"for each better box of its class that it overlaps. AP changes by {points(gain)} on all images."
    )


def _voting(diagnosis: Diagnosis) -> str:
    gain = diagnosis.remedies.voting
    if gain is None:
        return ""
    if is_sure(gain) <= 0:
        return f"Keep the boxes that NMS leaves: score voting changes AP by {points(gain)} on all images, no sure gain."
    setting = " (inference.vote)" if diagnosis.run is not None else ""
    return (
        f"Add score voting after NMS{setting}: each detection becomes the mean of the candidates of its class that "
        f"overlap it, weighted by score × exp(-(1 - IoU)^2 / {VOTE_SIGMA:g}), and keeps its score. AP changes by "
        f"{points(gain)} on all images."
    )


def _score(diagnosis: Diagnosis) -> str:
    sweep, own = diagnosis.quality, diagnosis.own_score
    if sweep is None:
        return ""
    if is_sure(sweep.over_own) > 0:
        joint = f"quality^{sweep.best_alpha:g} × class score^{1 - sweep.best_alpha:g}"
        return f"Rank by {joint} instead of {own.formula}, in NMS, too: AP changes by {points(sweep.over_own)}."
    if own.has_alpha(sweep.best_alpha):
        return "Keep the score as it is: no other weight of the quality that was tried is better."
    return (
        f"Keep the score as it is: another weight of the quality (alpha {sweep.best_alpha:g}) changes AP by "
        f"{points(sweep.over_own)}, no sure gain."
    )


def _clipping(diagnosis: Diagnosis) -> str:
    gain = diagnosis.remedies.clipping
    if gain is None or is_sure(gain) <= 0:
        return ""
    boxes = int(reach_out(diagnosis.after.boxes, diagnosis.ground_truth).sum())
    return (
        f"Clip boxes to their image: {count(boxes, 'detection')} reach out by more than a pixel, and AP changes by "
        f"{points(gain)} on all images."
    )


def _threshold(diagnosis: Diagnosis) -> str:
    shown, customary = diagnosis.remedies.shown, diagnosis.remedies.customary
    if shown is None or customary is None or not math.isfinite(shown.precision):
        return ""

    def told(at: Shown) -> str:
        return f"{at.precision:.0%} of them are right and {at.recall:.0%} of the objects are found"

    compared = f"; from {CUSTOMARY:g} on, {told(customary)}" if math.isfinite(customary.precision) else ""
    return (
        f"To show or count boxes, take those with a score of {shown.score:.2f} or more: {told(shown)}{compared} (right "
        "and found: IoU 0.5 or more). The report has a threshold for each class under 'By class'."
    )


def _recalibration(diagnosis: Diagnosis) -> str:
    map_ = diagnosis.remedies.recalibration
    if map_ is None:
        return ""
    if diagnosis.confidence is not None:
        return (
            "Read the IoU to expect from the confidence, to which the run is tuned. It is off by "
            f"{diagnosis.confidence.mean_laece_0:.3f} (LaECE_0), the score by {diagnosis.calibration.mean_laece_0:.3f}."
        )
    change = f"from {map_.error_before:.3f} to {map_.error_after:.3f}"
    if map_.error_before - map_.error_after < WORTH_MAPPING:
        return f"Keep the scores uncalibrated: a map to the expected IoU would bring the mean distance {change} only."
    how = (
        "tune the run: `retinaconf tune RUN --data ROOT` fits a map on val, and the run's detections have a confidence"
        if diagnosis.run is not None
        else "calibrate the detections: `retinaconf calibrate --detections DT --ground-truth GT --out MAP` fits a map, "
        "and `--apply MAP` applies it to further files"
    )
    return (
        f"To read a score as the IoU to expect, {how}. The mean distance "
        f"between score and IoU, all classes together, falls {change}. AP does not change. The report's table "
        "'The IoU that a score stands for' shows such a map."
    )


def _training(diagnosis: Diagnosis) -> str:
    ladder = rungs(diagnosis)
    order, classes = ladder["ranked_by_iou"].gain, ladder["class_right"].gain
    wishes = []
    if order.points >= SOME and is_sure(order) > 0:
        wishes.append(f"{points(order)} from a score that knows how well a box fits ({_better_score(diagnosis)})")
    if classes.points >= SOME and is_sure(classes) > 0:
        wishes.append(
            f"{points(classes)} from classes that are not confused (check their labels, add examples of them)"
        )
    if not wishes:
        return "With training: nothing that this report measures is worth it. Look for objects that are not found."
    return f"What training could add at most: {'; '.join(wishes)}."


def _better_score(diagnosis: Diagnosis) -> str:
    run = diagnosis.run
    if run is not None and (run.model.quality != "none" or run.model.class_target == "iou"):
        other = "" if run.model.box == "distribution" else ", or try the recipe aligned"
        return f"its score learns the IoU already; train longer or on more images{other}"
    if run is not None:
        return "add a quality branch with retinaconf retrofit, or train the recipe aligned"
    if diagnosis.quality is not None:
        return "train the quality with the IoU as its target"
    return "train a branch that predicts the IoU, or take the IoU as the class score's target, as varifocal loss does"
