"""The whole diagnosis of one detector: ground truth, detections and candidates in, every number out."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from retinaconf.config import Config
from retinaconf.data.ground_truth import GroundTruth
from retinaconf.detections import Detections
from retinaconf.diagnosis.measures.alignment import Alignment, measure_alignment
from retinaconf.diagnosis.measures.casualties import Casualties, nms_casualties
from retinaconf.diagnosis.measures.coverage import Coverage
from retinaconf.diagnosis.measures.nms import nms
from retinaconf.diagnosis.measures.oracles import Rung, oracle_ladder
from retinaconf.diagnosis.measures.own_score import OwnScore, own_score
from retinaconf.diagnosis.measures.paper_statistics import Counts, count_predictions
from retinaconf.diagnosis.measures.post_processing import PostProcessing
from retinaconf.diagnosis.measures.remedies import Remedies, measure_remedies, reach_out
from retinaconf.errors import InputError
from retinaconf.evaluation.alpha_sweep import AlphaSweep, sweep_alpha
from retinaconf.evaluation.average_precision import curve_of
from retinaconf.evaluation.calibration import Calibration, calibrate
from retinaconf.evaluation.coco import CocoEvaluator, Metrics
from retinaconf.evaluation.gains import REPLICATES, ROUGH_REPLICATES
from retinaconf.evaluation.overlaps import Overlaps, best_overlaps
from retinaconf.progress import ProgressCallback, silent
from retinaconf.threads import give_back_memory, in_threads


@dataclass(frozen=True)
class Stage:
    """Boxes before or after NMS, how well they are placed, and how well their score says so.

    `boxes` exceed the score threshold; `alignment` within objects is of all that were given.
    """

    boxes: Detections  # D
    overlaps: Overlaps  # of them
    alignment: Alignment
    counts: dict[str, Counts]  # the paper's Table 1: "same_class", "any_class"


@dataclass(frozen=True)
class Diagnosis:
    """Everything that is known of one detector. What each number means: docs/diagnosis.md."""

    ground_truth: GroundTruth
    post_processing: PostProcessing
    object_iou: float  # candidates with at least this IoU are an object's own
    own_score: OwnScore  # what the detector ranks by, as its records tell; all numbers but `quality` are by it
    before: Stage | None  # the candidates; None where only detections were given
    after: Stage  # the detections
    suppressor: np.ndarray | None  # (D,) of `before`: -1 kept, else the row of the box that removed it
    metrics: Metrics  # COCO's, of the detections
    casualties: Casualties | None  # with candidates only
    oracles: list[Rung]
    quality: AlphaSweep | None  # where there are quality scores
    calibration: Calibration  # of the scores
    confidence: Calibration | None  # of the confidence, where the detections have one
    remedies: Remedies  # what can be changed without training, and what it gains
    coverage: Coverage | None  # where training matches anchors by their IoU
    notes: tuple[str, ...]  # what the reader should know of the input, a sentence each
    run: Config | None = None  # the settings of a run of this package, whose commands can be named

    def inputs(self) -> Iterator[Path]:
        """The files that it was made from, or the folder of the run: nothing that is written may replace them."""
        yield from (Path(stage.boxes.source) for stage in (self.before, self.after) if stage is not None)
        yield Path(self.ground_truth.source)
        yield from (self.ground_truth.path(index) for index in range(len(self.ground_truth)))


def diagnose(
    ground_truth: GroundTruth,
    detections: Detections | None = None,
    candidates: Detections | None = None,
    *,
    post_processing: PostProcessing | None = None,
    object_iou: float = 0.5,
    quality: AlphaSweep | None = None,
    coverage: Coverage | None = None,
    replicates: int = REPLICATES,
    seed: int = 0,
    progress: ProgressCallback = silent,
) -> Diagnosis:
    """Diagnose a detector from its boxes.

    All columns are held in memory: a candidate takes 72 bytes, or 100 with class score and quality, and the work some
    170 more. So 5,000 images of 1,000 candidates need 1.4 GB; of a larger set, diagnose a sample of the images
    (`GroundTruth.subset`), which loses little: all numbers here are means over boxes, objects or images.

    Args:
        ground_truth: I images.
        detections: after NMS. Made from the candidates where None. Where both are given, `metrics`, calibration and all
            that is said of the stage after NMS are of these, and gains are over those made from the candidates.
        candidates: before NMS. Without them nothing is said of NMS, and oracles re-rank the detections. They may reach
            below the score threshold: NMS gets those above it, and the order within each object is measured on all.
        post_processing: what makes detections of candidates, also in the oracles and at each alpha.
        object_iou: candidates of its class with at least this IoU are an object's own.
        quality: the AP at each alpha, where the detector makes its detections itself; else made of the boxes given.
        coverage: from `anchor_coverage`, where the detector's training matches anchors by their IoU.
        replicates: bootstrap draws for the intervals at each alpha; all others take 200 at most.
        seed: of those draws, and of the halves of the images.
        progress: told how far each step is.

    Raises:
        InputError: neither detections nor candidates are given, or `object_iou` is not in (0, 1].
    """
    if detections is None and candidates is None:
        raise InputError("nothing to diagnose; give detections, or candidates before NMS, or both")
    if not 0 < object_iou <= 1:  # also NaN
        raise InputError(f"object IoU {object_iou:g}: give one above 0, up to 1")
    process = post_processing or PostProcessing()
    before: Stage | None = None
    suppressor: np.ndarray | None = None
    casualties: Casualties | None = None
    source = candidates  # all of them: the score threshold cuts the joint score at each alpha anew
    if candidates is not None:
        before = _stage(candidates, ground_truth, object_iou, process.score_threshold, progress)
        candidates = before.boxes
        columns = (candidates.image_index, candidates.labels, candidates.boxes, candidates.scores)
        suppressor = nms(*columns, process.nms_iou, progress)
        casualties = nms_casualties(candidates, suppressor, before.overlaps.same_object, ground_truth, progress)
    made = None if candidates is None or suppressor is None else process.best(candidates, suppressor)
    final = detections if detections is not None else made
    assert final is not None
    after = _stage(final, ground_truth, object_iou, 0, progress)

    base, own = before or after, made if made is not None else final  # gains are over `own`, so that NMS is the same
    finish: Callable[[Detections], Detections] = process if before else _unchanged
    known = final.confidence
    of_final: list[Callable[[], Any]] = [
        lambda: CocoEvaluator(ground_truth)(final),
        lambda: curve_of(own, ground_truth),
        lambda: calibrate(final, ground_truth),
        lambda: None if known is None else calibrate(replace(final, scores=known), ground_truth),
    ]
    metrics, own_curve, calibration, confidence = in_threads(lambda measure: measure(), of_final)
    give_back_memory()
    rough = min(replicates, ROUGH_REPLICATES)
    ladder = oracle_ladder(
        base.boxes,
        base.overlaps,
        ground_truth,
        finish,
        own,
        object_iou,
        replicates=rough,
        seed=seed,
        progress=progress,
    )
    give_back_memory()
    ranked = source if source is not None else final
    if quality is None and ranked.quality is not None:
        quality = sweep_alpha(
            ranked, own_curve, ground_truth, finish, replicates=replicates, seed=seed, progress=progress
        )
        give_back_memory()
    return Diagnosis(
        ground_truth=ground_truth,
        post_processing=process,
        object_iou=object_iou,
        own_score=own_score(base.boxes),
        before=before,
        after=after,
        suppressor=suppressor,
        metrics=metrics,
        casualties=casualties,
        oracles=ladder,
        quality=quality,
        calibration=calibration,
        confidence=confidence,
        remedies=measure_remedies(
            base.boxes, own, own_curve, ground_truth, process if before else None, rough, seed, progress
        ),
        coverage=coverage,
        notes=tuple(_notes(ground_truth, final, candidates, detections, process)),
    )


def missing_pictures(ground_truth: GroundTruth) -> np.ndarray:
    """(n,) rows of the images whose file is not there."""
    return np.flatnonzero([not ground_truth.path(index).is_file() for index in range(len(ground_truth))])


def _unchanged(detections: Detections) -> Detections:
    """Detections are past post-processing."""
    return detections


def _stage(
    boxes: Detections, ground_truth: GroundTruth, object_iou: float, score_threshold: float, progress: ProgressCallback
) -> Stage:
    overlaps = best_overlaps(boxes, ground_truth, progress)
    above = boxes.scores > score_threshold if score_threshold > 0 else np.ones(len(boxes), dtype=bool)
    alignment = measure_alignment(boxes, overlaps, ground_truth, object_iou, above)
    if not above.all():
        boxes, overlaps = boxes[above], overlaps.take(above)
    readings = {"same_class": overlaps.same_iou, "any_class": overlaps.any_iou}
    counts = in_threads(
        lambda iou: count_predictions(boxes.image_index, boxes.scores, iou, len(ground_truth)), readings.values()
    )
    return Stage(boxes=boxes, overlaps=overlaps, alignment=alignment, counts=dict(zip(readings, counts)))


def _notes(
    ground_truth: GroundTruth,
    final: Detections,
    candidates: Detections | None,
    detections: Detections | None,
    process: PostProcessing,
) -> list[str]:
    notes = [f"{ground_truth.source}: {ground_truth.val_split}."] if ground_truth.val_split is not None else []
    if dropped := ground_truth.dropped:
        what = str(ground_truth.left_out) or f"{len(dropped):,} ground-truth records without extent left out"
        notes.append(f"This is about {len(ground_truth):,} images; {what}. The first: {dropped[0]}.")
    if ground_truth.image_folder is not None and len(missing := missing_pictures(ground_truth)):
        notes.append(
            f"{len(missing):,} of {len(ground_truth):,} pictures are not in {ground_truth.image_folder} (the first: "
            f"{ground_truth.file_names[missing[0]]}); the report shows their boxes on an empty ground."
        )
    if process.vote:
        notes.append(
            "This detector votes after NMS: each detection is a mean of candidates. What is said of NMS, and what the "
            "explorer shows, is of the boxes before that."
        )
    if process.soft_nms:
        notes.append(
            "This detector lowers scores after NMS (Soft-NMS). What is said of NMS, and what the explorer shows, is of "
            "the scores before that."
        )
    boxes = candidates if candidates is not None else final
    outside = reach_out(boxes, ground_truth)
    if outside.any():
        notes.append(f"{outside.sum():,} boxes reach out of their image by more than a pixel; they are used as given.")
    x1, y1, x2, y2 = boxes.boxes.T
    empty = (x2 <= x1) | (y2 <= y1)
    if empty.any():
        notes.append(f"{empty.sum():,} boxes have no width or no height; they overlap nothing.")
    if candidates is None and len(final):
        removed = nms(final.image_index, final.labels, final.boxes, final.scores, process.nms_iou) >= 0
        if removed.mean() > 0.5:
            notes.append(
                f"NMS at IoU {process.nms_iou:g} would remove {removed.mean():.0%} of these detections: if they are "
                "candidates before NMS, give them as such."
            )
    if detections is not None:
        per_class = detections.image_index * len(ground_truth.classes) + detections.labels
        if len(per_class) and np.unique(per_class, return_counts=True)[1].max() > 100:
            notes.append("Some images have over 100 detections of a class; COCO's AP uses the best 100.")
    return notes
