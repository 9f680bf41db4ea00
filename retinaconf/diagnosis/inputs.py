"""What is diagnosed: files of any detector, or a run of this package, whose candidates are made on the spot."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import zip_longest
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from rich.console import Console
from rich.progress import Progress

from retinaconf.config import InferenceConfig
from retinaconf.data.checked import CheckedImages
from retinaconf.data.ground_truth import GroundTruth, read_coco
from retinaconf.data.splits import read_split
from retinaconf.data.transforms import canvas, resized
from retinaconf.detections import Detections, read_detections
from retinaconf.diagnosis.measures.coverage import anchor_coverage
from retinaconf.diagnosis.measures.diagnose import Diagnosis, diagnose, missing_pictures
from retinaconf.diagnosis.measures.post_processing import PostProcessing
from retinaconf.diagnosis.measures.task_alignment import ERROR_IOU, best_of_objects
from retinaconf.errors import InputError
from retinaconf.evaluation.alpha_sweep import ALPHAS, compare_alphas
from retinaconf.evaluation.average_precision import curves_of
from retinaconf.evaluation.gains import REPLICATES
from retinaconf.evaluation.overlaps import best_overlaps
from retinaconf.progress import terminal_progress
from retinaconf.run_folder import val_list

if TYPE_CHECKING:
    from retinaconf.data.loader import Batch
    from retinaconf.inference.detector import Detector
    from retinaconf.inference.joint_score import JointScore
    from retinaconf.model.retinanet import Outputs

CLIPPED_LATE = (
    "This run's own NMS sees boxes before they are clipped to the image (inference.rules detectron2): AP and the curve "
    "of alpha are by that, oracles and NMS losses by an NMS of clipped boxes."
)


def diagnose_files(
    ground_truth: GroundTruth,
    detections: Sequence[Path] = (),
    candidates: Sequence[Path] = (),
    post_processing: PostProcessing | None = None,
) -> list[Diagnosis]:
    """One diagnosis for each detector: file n of `detections` and file n of `candidates` are of the same one.

    Progress is shown on stderr.

    Raises:
        InputError: a file is missing, malformed or of another split, or the lists do not pair.
    """
    if detections and candidates and len(detections) != len(candidates):
        raise InputError(
            f"{len(detections)} files of detections and {len(candidates)} of candidates; give one of each a detector"
        )
    if max(len(detections), len(candidates)) > 2:
        raise InputError("more than two detectors; compare two at a time")
    found = []
    with terminal_progress() as progress:
        for after, before in zip_longest(detections, candidates):
            columns = [
                None if path is None else read_detections(path, ground_truth, progress) for path in (after, before)
            ]
            found.append(diagnose(ground_truth, *columns, post_processing=post_processing, progress=progress))
    return found


def read_truth(ground_truth: Path, images: Path | None) -> GroundTruth:
    """A COCO file, and the folder `images` of its pictures.

    Raises:
        InputError: the file is missing or malformed, or the folder holds none of the pictures.
    """
    truth = read_coco(ground_truth, images)
    if images is not None and len(truth) and len(missing_pictures(truth)) == len(truth):
        raise InputError(
            f"--images {images}: holds none of the {len(truth):,} pictures that {ground_truth} lists (the first is "
            f"{truth.file_names[0]}); give the folder that these names are relative to"
        )
    return truth


def diagnose_run(
    run: Path,
    root: Path,
    split: str = "val",
    alpha: float | None = None,
    images: int = 5000,
    layout: str | None = None,
    device: str = "auto",
    val_fraction: float | None = None,
    replicates: int = REPLICATES,
) -> Diagnosis:
    """Diagnose a run on a split of `root`, or on `images` of its images, drawn at random where it has more.

    The detections at each alpha of the curve are the network's own, those of `evaluate --alpha`. Candidates are what
    NMS is given, and below the score threshold the best boxes of each object, so that the order within an object does
    not depend on the threshold. Memory holds them all, some 400 kB an image; the images themselves stream by.
    `replicates` is the number of bootstrap draws.

    Raises:
        InputError: no such run or split, bad data, other categories than the run's, or a wrong `alpha`.
    """
    from retinaconf.inference.detector import load
    from retinaconf.inference.joint_score import joint_score
    from retinaconf.inference.postprocess import RULES

    detector = load(run, device)
    config = detector.inference_config(**({} if alpha is None else {"alpha": alpha}))
    data = detector.config.data
    kept, check = val_list(run), CheckedImages(run).check
    ground_truth = read_split(root, split, data, layout, val_fraction, kept, detector, run, images, check)

    own = joint_score(config)
    has_quality = detector.config.model.quality != "none"
    # What `evaluate --alpha` ranks by at each of them.
    curve = [joint_score(detector.inference_config(alpha=at)) for at in ALPHAS] if has_quality else []
    with Progress(console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("images", total=len(ground_truth))
        joints = list(dict.fromkeys([own, *curve]))
        tables, candidates = detections_and_candidates(
            detector, ground_truth, config, joints, str(run), lambda images: bar.advance(task, images)
        )
    detections = dict(zip(joints, tables))
    sweep = None
    if curve:
        found = [detections[joint] for joint in curve]
        (own_curve,) = curves_of([detections[own]], ground_truth)
        sweep = compare_alphas(curves_of(found, ground_truth), own_curve, ground_truth, ALPHAS, replicates)
    sizes = ground_truth.image_sizes
    inputs = [resized((int(h), int(w)), data.short_side, data.long_side, resize=data.resize) for h, w in sizes]
    coverage = None
    if detector.config.matching.assigner == "max-iou":  # others do not ask for an IoU of 0.5
        coverage = anchor_coverage(
            ground_truth,
            scale=np.array(inputs)[:, ::-1] / sizes[:, ::-1],
            padded_size=np.array([canvas([size]) for size in inputs]),
            cell_anchors=detector.config.model.cell_anchors,
        )
    process = PostProcessing(config.score_threshold, config.nms_iou, config.detections, config.vote, config.soft_nms)
    diagnosis = diagnose(
        ground_truth,
        detections[own],
        candidates,
        post_processing=process,
        quality=sweep,
        coverage=coverage,
        replicates=replicates,
    )
    notes = () if RULES[config.rules].clip_first else (CLIPPED_LATE,)
    return replace(diagnosis, run=detector.config, notes=(*diagnosis.notes, *notes))


def detections_and_candidates(
    detector: Detector,
    ground_truth: GroundTruth,
    config: InferenceConfig,
    joints: Sequence[JointScore],
    source: str,
    done: Callable[[int], None] = lambda images: None,
) -> tuple[list[Detections], Detections]:
    """The detections by each of `joints`, and what NMS is given by the first of them, from one pass of the network.

    The candidates are those of `diagnose_run`. `done` hears how many images each batch has.
    """
    from retinaconf.inference.tables import gathered

    candidates: dict[int, Detections] = {}

    def look(batch: Batch, outputs: Outputs) -> None:
        candidates.update(_candidates(batch, outputs, config, joints[0], ground_truth))

    tables = detector.detect(ground_truth, config, joints, done=done, look=look)
    before = detector.with_confidence(gathered(candidates), joints[0])
    found = [replace(table, source=source) for table in (*tables, before)]
    return found[:-1], found[-1]


def _candidates(
    batch: Batch, outputs: Outputs, config: InferenceConfig, joint: JointScore, ground_truth: GroundTruth
) -> dict[int, Detections]:
    """What NMS is given of each image of a batch, and the best boxes of its objects even below the score threshold."""
    import torch

    from retinaconf.inference.postprocess import postprocess
    from retinaconf.inference.tables import tables_of

    # An object has boxes of its class only: of the others, a hundred thousand an image, those below are not made.
    image, place = torch.nonzero(batch.labels >= 0, as_tuple=True)
    thresholds = torch.full_like(outputs.class_logits[:, 0], config.score_threshold, dtype=torch.float32)  # (N, K)
    thresholds[image, batch.labels[image, place]] = 0
    everything = config.model_copy(update={"score_threshold": 0.0})
    (images,) = postprocess(outputs, batch.sizes, everything, [joint], suppress=False, thresholds=thresholds)
    kept: dict[int, Detections] = {}
    for index, table in tables_of(images, batch, ground_truth).items():
        taken = table.scores > np.float32(config.score_threshold)  # as the scores were computed
        overlaps = best_overlaps(table, ground_truth)
        for object_iou in (0.5, ERROR_IOU):
            taken[best_of_objects(table.scores, overlaps, object_iou)] = True
        kept[index] = table[taken]
    return kept
