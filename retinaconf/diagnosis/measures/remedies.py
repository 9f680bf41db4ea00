"""What a detector's owner can change without training, and what each change gains.

What has to be chosen is chosen on one half of the images and measured on the other, against the detector as it is.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from retinaconf.config import SOFT_NMS_IOU
from retinaconf.data.ground_truth import GroundTruth
from retinaconf.detections import Detections
from retinaconf.diagnosis.measures.post_processing import PostProcessing, vote
from retinaconf.evaluation.average_precision import AveragePrecision, curve_of, curves_of
from retinaconf.evaluation.calibration import ANY_OVERLAP, reliability
from retinaconf.evaluation.gains import ROUGH_REPLICATES, Gain, choose, halves, measure_gains
from retinaconf.evaluation.matching import MatchedDetections, match_detections
from retinaconf.evaluation.score_map import fit_matches, num_objects, read_by_halves
from retinaconf.progress import ProgressCallback, silent
from retinaconf.threads import give_back_memory, in_threads

NMS_IOUS = (0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
CUSTOMARY = 0.5  # the score threshold that many programs draw boxes from


@dataclass(frozen=True)
class NmsChoice:
    """AP over all images at each IoU threshold of NMS, and the gain of the best."""

    ious: tuple[float, ...]
    AP: np.ndarray  # (n,)
    best: float  # chosen on one half of the images
    over_own: Gain  # over the detector as it is, on the other half


@dataclass(frozen=True)
class Shown:
    """What a user sees who is shown the detections with a score of at least `score`; IoU 0.5 counts as right."""

    score: float
    precision: float  # the share of the shown that are right; NaN if none is shown
    recall: float  # the share of the objects that are found


@dataclass(frozen=True)
class Recalibration:
    """The map from score to expected IoU of all images and classes: `np.interp(score, scores, ious)`.

    Both columns ascend. The errors are means of |score - IoU| over bins of score, as `retinaconf calibrate` reports
    them: each half of the images by a map of the other half.
    """

    scores: np.ndarray  # (n,)
    ious: np.ndarray  # (n,)
    error_before: float
    error_after: float


@dataclass(frozen=True)
class Remedies:
    """Each measured on images that it was not chosen on; None where there is nothing to choose or to measure with."""

    nms: NmsChoice
    clipping: Gain | None  # of boxes clipped to their image, where some reach out; on all images
    soft_nms: Gain | None  # of Soft-NMS, where there are candidates and it is not set yet; on all images
    voting: Gain | None  # of `vote` after NMS, where there are candidates and they do not vote yet; on all images
    shown: Shown | None  # at the threshold with the best F1
    customary: Shown | None  # at 0.5
    recalibration: Recalibration | None
    chosen_on: np.ndarray  # image rows of the first half, ascending
    reported_on: np.ndarray  # of the second


def measure_remedies(
    boxes: Detections,
    detections: Detections,
    own: AveragePrecision,
    ground_truth: GroundTruth,
    post_processing: PostProcessing | None,
    replicates: int = ROUGH_REPLICATES,
    seed: int = 0,
    progress: ProgressCallback = silent,
) -> Remedies:
    """Try what can be changed after a detector is trained.

    Args:
        boxes: D candidates before NMS, or the detections where there are none.
        detections: those of the detector as it is.
        own: their AP.
        ground_truth: I images.
        post_processing: what makes detections of the candidates; None for detections, which a further NMS is tried on.
        replicates: bootstrap draws.
        seed: of the halves and of the draws.
        progress: told after each setting and block of draws.
    """
    gains = _gains_of_changes(boxes, detections, own, ground_truth, post_processing, replicates, seed, progress)
    give_back_memory()
    first, second = halves(ground_truth, seed)
    matches = match_detections(detections, ground_truth, np.array([0.5, ANY_OVERLAP]))
    best = _best_threshold(matches, ground_truth, first)
    return Remedies(
        nms=_choose_nms(boxes, own, ground_truth, post_processing, replicates, seed, progress),
        clipping=gains.get("clipping"),
        soft_nms=gains.get("soft NMS"),
        voting=gains.get("voting"),
        shown=None if best is None else _shown(matches, ground_truth, second, best),
        customary=None if best is None else _shown(matches, ground_truth, second, CUSTOMARY),
        recalibration=_recalibrate(detections, matches, ground_truth, seed),
        chosen_on=np.sort(first),
        reported_on=np.sort(second),
    )


def _gains_of_changes(
    boxes: Detections,
    detections: Detections,
    own: AveragePrecision,
    ground_truth: GroundTruth,
    post_processing: PostProcessing | None,
    replicates: int,
    seed: int,
    progress: ProgressCallback,
) -> dict[str, Gain]:
    """The gain, on all images, of each change that leaves nothing to choose."""
    changed: dict[str, Detections] = {}
    if reach_out(detections, ground_truth).any():
        changed["clipping"] = _clipped(detections, ground_truth)
    if post_processing is not None and not post_processing.soft_nms:
        changed["soft NMS"] = replace(post_processing, nms_iou=SOFT_NMS_IOU, soft_nms=True)(boxes)
    if post_processing is not None and not post_processing.vote:
        changed["voting"] = vote(detections, boxes)
    if not changed:
        return {}
    curves = list(curves_of(changed.values(), ground_truth))
    over_own = [(0, 1 + place) for place in range(len(curves))]
    everything = np.argsort(ground_truth.image_ids, kind="stable")  # whatever their order in the file
    measured = measure_gains([own, *curves], over_own, everything, len(everything), replicates, seed, progress)
    return dict(zip(changed, measured))


def reach_out(boxes: Detections, ground_truth: GroundTruth) -> np.ndarray:
    """(D,) bool: which boxes reach out of their image by more than a pixel, where its size is known."""
    height, width = (side.take(boxes.image_index) for side in ground_truth.image_sizes.T)
    x1, y1, x2, y2 = boxes.boxes.T
    beyond = (x1 < -1) | (y1 < -1) | (x2 > width + 1) | (y2 > height + 1)
    return (height > 0) & (width > 0) & beyond


def _clipped(boxes: Detections, ground_truth: GroundTruth) -> Detections:
    height, width = ground_truth.image_sizes[boxes.image_index].T
    size = np.stack([width, height, width, height], axis=1)
    return replace(boxes, boxes=np.where(size > 0, np.clip(boxes.boxes, 0, size), boxes.boxes))


def _choose_nms(
    boxes: Detections,
    own: AveragePrecision,
    ground_truth: GroundTruth,
    post_processing: PostProcessing | None,
    replicates: int,
    seed: int,
    progress: ProgressCallback,
) -> NmsChoice:
    # At an IoU of 1 NMS removes nothing: detections stay as they are.
    process = post_processing or PostProcessing(nms_iou=1.0, max_detections=max(1, len(boxes)))
    ious = tuple(sorted({*NMS_IOUS, process.nms_iou}))
    # The largest takes longest, so it comes first: no thread waits for it at the end.
    others = [nms_iou for nms_iou in reversed(ious) if nms_iou != process.nms_iou]

    def curve_with(nms_iou: float) -> AveragePrecision:
        return curve_of(replace(process, nms_iou=nms_iou)(boxes), ground_truth)

    curve_at = {process.nms_iou: own}
    for nms_iou, curve in zip(others, in_threads(curve_with, others)):
        curve_at[nms_iou] = curve
        progress("AP at every NMS IoU", len(curve_at), len(ious))
    curves = [curve_at[nms_iou] for nms_iou in ious]
    preferred = sorted(range(len(ious)), key=lambda index: ious[index] != process.nms_iou)  # of equals the present one
    choice = choose([curves[index] for index in preferred], [own], ground_truth, replicates, seed, progress)
    everywhere = np.ones(len(ground_truth))
    return NmsChoice(
        ious=ious,
        AP=np.array(list(in_threads(lambda curve: curve(everywhere).mean(), curves))),
        best=ious[preferred[choice.best]],
        over_own=choice.gains[0],
    )


def _best_threshold(matches: MatchedDetections, ground_truth: GroundTruth, images: np.ndarray) -> float | None:
    """The score with the best F1 at IoU 0.5 on `images`, the highest of equals; None where nothing is found there."""
    rows = np.isin(matches.image_index, images) & ~matches.ignored[:, 0]
    scores, right = matches.scores[rows], matches.matched[rows, 0] >= 0  # in descending score
    if not right.any():
        return None
    f1 = 2 * np.cumsum(right) / (np.arange(len(scores)) + 1 + num_objects(ground_truth, images).sum())
    f1[:-1][scores[1:] == scores[:-1]] = 0  # equal scores are shown together
    return float(scores[np.argmax(f1)])


def _shown(matches: MatchedDetections, ground_truth: GroundTruth, images: np.ndarray, score: float) -> Shown:
    rows = np.isin(matches.image_index, images) & ~matches.ignored[:, 0] & (matches.scores >= score)
    right = np.count_nonzero(matches.matched[rows, 0] >= 0)
    shown, objects = np.count_nonzero(rows), num_objects(ground_truth, images).sum()
    return Shown(score, right / shown if shown else float("nan"), right / objects if objects else float("nan"))


def _recalibrate(
    detections: Detections, matches: MatchedDetections, ground_truth: GroundTruth, seed: int
) -> Recalibration | None:
    fitted = fit_matches(matches, 1, ground_truth)
    unseen = read_by_halves(detections, matches, 1, ground_truth, seed)
    if fitted is None or unseen is None:
        return None
    counted = ~matches.ignored[:, 1]
    row, iou = matches.row[counted], matches.iou[counted, 1]
    errors = []
    for scores in (detections.scores[row], unseen[row]):
        binned = reliability(scores, iou, iou > 0)
        errors.append(binned.error(binned.mean_iou))
    return Recalibration(fitted.common.scores, fitted.common.ious, *errors)
