"""The diagnosis in words, for someone who has not read the paper. What to do about it is in `advice.py`."""

from __future__ import annotations

import math

import numpy as np

from retinaconf.diagnosis.measures.diagnose import Diagnosis
from retinaconf.diagnosis.measures.oracles import Rung
from retinaconf.diagnosis.measures.task_alignment import BEST
from retinaconf.evaluation.alpha_sweep import AlphaSweep
from retinaconf.evaluation.coco import SIZES, object_size
from retinaconf.evaluation.gains import Gain

CLEAR, SOME = 0.03, 0.01  # AP that ranking by true IoU would give: from here a clear problem, from here some
ORDERED = 0.75  # concordance within objects from which score and fit may be said to agree
FEW_OBJECTS, FEW_IMAGES = 100, 20  # below either, no verdict


def summarize(diagnosis: Diagnosis) -> list[str]:
    """One finding a sentence or two, the verdict first; plain text."""
    truth = diagnosis.ground_truth
    objects = num_objects(diagnosis)
    if objects == 0:
        return [f"Nothing can be said: the ground truth has no objects in its {len(truth):,} images."]
    if len(diagnosis.after.boxes) == 0:
        return [f"The detector reports no box at all on {len(truth):,} images with {objects:,} objects; AP is 0."]
    findings = [
        _duplicates(diagnosis),
        _verdict(diagnosis),
        _post_processing(diagnosis),
        _within(diagnosis, objects),
        _casualties(diagnosis, objects),
        _ladder(diagnosis),
        _quality(diagnosis),
        _calibration(diagnosis),
        _coverage(diagnosis, objects),
    ]
    return [finding for finding in findings if finding]


def num_objects(diagnosis: Diagnosis) -> int:
    """Ground-truth boxes that are no crowd regions."""
    return int((~diagnosis.ground_truth.crowd).sum())


def too_few(diagnosis: Diagnosis) -> str:
    """'8 objects in 2 images' where that is too little for a verdict; else nothing."""
    truth = diagnosis.ground_truth
    objects, images = num_objects(diagnosis), len(np.unique(truth.image_index[~truth.crowd]))
    if objects >= FEW_OBJECTS and images >= FEW_IMAGES:
        return ""
    return f"{count(objects, 'object')} in {count(images, 'image')}"


def likely_candidates(diagnosis: Diagnosis) -> bool:
    """Whether what was given as detections surely gains by an NMS."""
    nms = diagnosis.remedies.nms
    return diagnosis.before is None and nms.over_own.points >= SOME and is_sure(nms.over_own) > 0


def rungs(diagnosis: Diagnosis) -> dict[str, Rung]:
    """The oracle ladder by name."""
    return {rung.name: rung for rung in diagnosis.oracles}


def is_sure(gain: Gain) -> int:
    """1 where the whole interval is a gain, -1 where it is a loss, 0 where it may be either or is not known."""
    low, high = gain.interval
    return 1 if low > 0 else -1 if high < 0 else 0


def points(gain: Gain) -> str:
    """'+6.5 points (95% interval +5.1 to +7.9)'; without an interval where there is none."""
    low, high = gain.interval
    interval = f" (95% interval {_signed(low)} to {_signed(high)})" if math.isfinite(low) else ""
    return f"{_signed(gain.points)} points{interval}"


def count(number: int, noun: str) -> str:
    """'1 object', '1,200 objects'."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def _signed(value: float) -> str:
    return f"{100 * value:+.1f}"


def _boxes(diagnosis: Diagnosis) -> str:
    return "candidates" if diagnosis.before else "detections"


def _duplicates(diagnosis: Diagnosis) -> str:
    nms = diagnosis.remedies.nms
    if not likely_candidates(diagnosis):
        return ""
    return (
        f"These detections seem to be candidates before NMS: NMS at IoU {nms.best:g} changes their AP by "
        f"{points(nms.over_own)}. If they are, give them with --candidates; what follows is not about your detector."
    )


def _verdict(diagnosis: Diagnosis) -> str:
    ladder = rungs(diagnosis)
    gain = ladder["ranked_by_iou"].gain
    within = (diagnosis.before or diagnosis.after).alignment.within
    what = (
        f"AP is {100 * gain.before:.1f}, and would be {100 * gain.after:.1f} if the {_boxes(diagnosis)} of each object "
        "were ranked by how well they fit it"
    )
    few = too_few(diagnosis)
    if few:
        return (
            f"{few} are too few to judge a detector by, which takes at least {FEW_OBJECTS} objects in {FEW_IMAGES} "
            f"images. Of these images only: {what}."
        )
    if gain.points >= SOME and is_sure(gain) <= 0:
        judged = "These images are too few to tell whether score and localization disagree"
    elif gain.points >= CLEAR:
        judged = "Score and localization clearly disagree"
    elif gain.points >= SOME:
        judged = "Score and localization disagree somewhat"
    elif within.concordance >= ORDERED:
        judged = "Score and localization agree about as well as they can"
    else:  # few boxes on an object, or other faults are larger
        judged = f"A better order of these {_boxes(diagnosis)} would gain little"
    return f"{judged}: {what}, {points(gain)}."


def _post_processing(diagnosis: Diagnosis) -> str:
    process = diagnosis.post_processing
    if diagnosis.before is None:
        return (
            "AP is of the detections as they are in the file; as in COCO's evaluation the best 100 of a class in an "
            "image count."
        )
    made = (
        f"a score above {process.score_threshold:g}, NMS within each class at IoU {process.nms_iou:g}, the best "
        f"{process.max_detections:,} of an image{', Soft-NMS' if process.soft_nms else ''}"
        f"{', score voting' if process.vote else ''}"
    )
    if diagnosis.run is not None:
        return f"AP is of the detections made from the candidates by the run's own settings: {made}."
    if diagnosis.after.boxes.source != diagnosis.before.boxes.source:
        given = diagnosis.metrics.overall["AP"]
        return (
            f"AP is of detections made here from the candidates: {made}. The detections in the file have AP "
            f"{100 * given:.1f}; where the two differ, set --nms-iou and --score-threshold to what your detector uses."
        )
    return (
        f"AP is of the detections made here from the candidates: {made}. Set --nms-iou and --score-threshold to what "
        "your detector uses; with other settings its AP is another."
    )


def _within(diagnosis: Diagnosis, objects: int) -> str:
    stage, what = diagnosis.before or diagnosis.after, _boxes(diagnosis)
    within, iou = stage.alignment.within, diagnosis.object_iou
    own = f"{what} of its class that fit no other object better, with IoU {iou:g} or more, the best {BEST} by score"
    if within.objects == 0:
        return f"No object has two {what} of its own to rank ({own}), so that their order cannot be judged."
    return (
        f"Of two {what} of one object, the better-placed one has the higher score {within.concordance:.0%} of the time "
        f"(50% is chance, 100% is perfect). This is the mean of {within.objects:,} of the {count(objects, 'object')}: "
        f"those with at least two {what} of their own ({own})."
    )


def _casualties(diagnosis: Diagnosis, objects: int) -> str:
    casualties = diagnosis.casualties
    if casualties is None:
        return (
            "What NMS throws away is not in a file of detections. If your detector has an NMS, give its candidates "
            "before NMS to see it; if it has none, nothing is missing here."
        )
    size = object_size(diagnosis.ground_truth.areas)
    chosen = ~diagnosis.ground_truth.crowd
    total = casualties.of(chosen)
    found = int(total["found"])
    if found == 0:
        return "No candidate overlaps any object of its class."
    share = float((casualties.lost[chosen & (casualties.best_candidate >= 0)] > 0.05).mean())
    by_size = {
        name: float(casualties.of(chosen & (size == index))["mean_lost_iou"]) for index, name in enumerate(SIZES)
    }
    sizes = ", ".join(f"{value:.3f} for {name}" for name, value in by_size.items() if math.isfinite(value))
    neighbours = int(total["lost_at_75_to_neighbour"])
    crowding = f" ({neighbours:,} of them lose it to a neighbour's box)" if neighbours else ""
    without = objects - found
    missing = f" The other {without:,} have none, so that no order of the boxes can find them." if without else ""
    return (
        f"{found:,} of the {count(objects, 'object')} have a candidate of their class that overlaps them.{missing} For "
        f"{share:.0%} of the {found:,}, NMS removes a candidate that fits better by over 0.05 IoU than the best one it "
        f"keeps; the mean loss over all {found:,} is {total['mean_lost_iou']:.3f} IoU ({sizes}). By NMS "
        f"alone, {total['lost_at_50']:,} of them fall below IoU 0.5 and {total['lost_at_75']:,} below 0.75{crowding}."
    )


def _ladder(diagnosis: Diagnosis) -> str:
    ladder = rungs(diagnosis)
    gain = {name: _signed(rung.gain.points) for name, rung in ladder.items()}
    return (
        f"If one thing were perfect and all else stayed, AP {100 * ladder['as_is'].AP:.1f} would change by "
        f"{gain['quality_is_iou']} points with the score joined with the true IoU, {gain['score_is_iou']} with the "
        f"true IoU as the score, {gain['class_right']} with the right class for every box on an object, "
        f"{gain['no_duplicates']} without duplicates."
    )


def _quality(diagnosis: Diagnosis) -> str:
    sweep, own = diagnosis.quality, diagnosis.own_score
    if sweep is None:
        return ""
    if not math.isfinite(sweep.over_own.interval[0]):
        return "There are too few images to tell what the quality score is worth."
    if own.rule == "other":
        uses = "The detector's own score is none of the usual combinations of its class score and its quality"
    elif own.rule == "class":
        uses = "The detector ranks by its class score alone and leaves its quality unused"
    else:
        uses = f"The detector ranks by {own.formula}"
    if own.has_alpha(sweep.best_alpha):
        best = "No other weight of the quality that was tried is better on one half of the images."
        gain = f"the detector's score changes AP by {points(sweep.over_class_score)} on the other half."
    else:
        best, gain = _best_alpha(sweep), _over_class_score(sweep)
    if own.rule == "class" or sweep.best_alpha == 0:  # one of the two is the class score alone
        return f"{uses}. {best}"
    return f"{uses}. {best} Compared with the class score alone, {gain}"


def _best_alpha(sweep: AlphaSweep) -> str:
    sure = {1: "a gain", -1: "a loss", 0: "no sure difference"}[is_sure(sweep.over_own)]
    alone = "" if sweep.best_alpha else " (the class score alone)"
    return (
        "Compared with that, ranking by quality^alpha × class score^(1 - alpha) with the best alpha, "
        f"{sweep.best_alpha:g}{alone}, changes AP by {points(sweep.over_own)} on {len(sweep.reported_on):,} images "
        f"that alpha was not chosen on: {sure}."
    )


def _over_class_score(sweep: AlphaSweep) -> str:
    has = sweep.over_own.before - sweep.over_class_score.before
    return f"that alpha changes AP by {points(sweep.over_class_score)}, and the detector's own score by {_signed(has)}."


def _calibration(diagnosis: Diagnosis) -> str:
    calibration = diagnosis.calibration
    bins = calibration.reliability
    filled = bins.count > 0
    if not filled.any():
        return ""
    score = float(np.average(bins.mean_score[filled], weights=bins.count[filled]))
    iou = float(np.average(bins.mean_iou[filled], weights=bins.count[filled]))
    lean = "too high" if score > iou + 0.02 else "too low" if score < iou - 0.02 else "right on average"
    known = diagnosis.confidence
    tuned = "" if known is None else f", and the confidence of this tuned run by {known.mean_laece_0:.2f}"
    return (
        f"As predictions of the IoU, the scores of the detections are {lean}: their mean is {score:.2f}, and the mean "
        f"IoU is {iou:.2f}. Within a class they are off by {calibration.mean_laece_0:.2f} (LaECE_0, the mean over the "
        f"classes; 0 is perfect){tuned}."
    )


def _coverage(diagnosis: Diagnosis, objects: int) -> str:
    coverage = diagnosis.coverage
    if coverage is None:
        return ""
    total = coverage.of(~diagnosis.ground_truth.crowd)
    return (
        f"{total['never_positive']:,} of the {count(objects, 'object')} never get a positive anchor in training, and "
        f"{total['only_by_best_anchor']:,} get only their best one, whose IoU is below 0.5."
    )
