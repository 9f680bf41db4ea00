"""What is compared: results files of any detectors, or runs of this package."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from retinaconf.data.checked import CheckedImages
from retinaconf.data.ground_truth import GroundTruth
from retinaconf.data.splits import other_category, read_split
from retinaconf.detections import read_detections
from retinaconf.diagnosis.inputs import detections_and_candidates, diagnose_run
from retinaconf.diagnosis.measures.alignment import measure_alignment
from retinaconf.diagnosis.measures.comparison import Comparison, Measured, compare, measure
from retinaconf.diagnosis.measures.diagnose import Diagnosis, diagnose
from retinaconf.errors import InputError
from retinaconf.evaluation.overlaps import best_overlaps
from retinaconf.progress import ProgressCallback, terminal_progress
from retinaconf.run_folder import val_list


def compare_files(
    a: Sequence[Path], b: Sequence[Path], ground_truth: GroundTruth, with_diagnoses: bool = False
) -> tuple[Comparison, list[Diagnosis]]:
    """Compare the detections, after NMS, in files of A and of B: COCO results or .npz; a file is one training.

    With `with_diagnoses` also the diagnoses of the first file of each, for a report. Progress is shown on stderr.

    Raises:
        InputError: a file is missing, malformed, of another split, without boxes or given twice; A and B are not
            equally many; or the ground truth has no objects.
    """
    _check(a, b)
    _check_objects(ground_truth)
    diagnoses: list[Diagnosis] = []

    def measured(path: Path, progress: ProgressCallback) -> Measured:
        detections = read_detections(path, ground_truth, progress)
        overlaps = best_overlaps(detections, ground_truth, progress)
        within = measure_alignment(detections, overlaps, ground_truth).within
        found = measure(str(path), detections, within, ground_truth, progress)
        if with_diagnoses and path in (a[0], b[0]):
            diagnoses.append(diagnose(ground_truth, detections, progress=progress))
        return found

    return _compared(a, b, ground_truth, measured), diagnoses


def compare_runs(
    a: Sequence[Path],
    b: Sequence[Path],
    root: Path,
    split: str = "val",
    layout: str | None = None,
    val_fraction: float | None = None,
    device: str = "auto",
    with_diagnoses: bool = False,
) -> tuple[Comparison, list[Diagnosis]]:
    """Compare the runs of A and of B on a split of `root`, each by its own settings.

    The order within objects is that of the candidates before NMS, as in `diagnose_run`. With `with_diagnoses` also the
    diagnoses of the first run of each, for a report. Progress is shown on stderr.

    Raises:
        InputError: no such run or split, bad data, runs of different classes or with different images in the split, a
            run given twice or without boxes, A and B not equally many, or no objects in the split.
    """
    from retinaconf.inference.detector import load
    from retinaconf.inference.joint_score import joint_score

    _check(a, b)
    detectors = {run: load(run, device) for run in (*a, *b)}
    first = detectors[a[0]]
    for run, detector in detectors.items():
        if (detector.category_ids, detector.classes) != (first.category_ids, first.classes):
            raise InputError(
                f"{run}: its classes are not those of {a[0]} ({other_category(detector, first)}); compare runs that "
                "were trained on the same classes"
            )
    ground_truth: GroundTruth | None = None
    for run, detector in detectors.items():
        data, kept, check = detector.config.data, val_list(run), CheckedImages(run).check
        truth = read_split(root, split, data, layout, val_fraction, kept, detector, run, check=check)
        if ground_truth is not None and truth.fingerprint() != ground_truth.fingerprint():
            raise InputError(
                f"{run}: its split {split} of {root} has other images or boxes than that of {a[0]}, as each run keeps "
                "its own list or leaves out bad records; compare them on a split that the data set itself names"
            )
        ground_truth = ground_truth or truth
    assert ground_truth is not None
    _check_objects(ground_truth)
    diagnoses: list[Diagnosis] = []

    def measured(run: Path, progress: ProgressCallback) -> Measured:
        if with_diagnoses and run in (a[0], b[0]):
            of_run = diagnose_run(
                run, root, split, images=sys.maxsize, layout=layout, device=device, val_fraction=val_fraction
            )
            diagnoses.append(of_run)
            assert of_run.before is not None
            return measure(str(run), of_run.after.boxes, of_run.before.alignment.within, ground_truth, progress)
        detector, seen = detectors[run], 0
        config = detector.inference_config()

        def done(images: int) -> None:
            nonlocal seen
            seen += images
            progress(f"images, {run}", seen, len(ground_truth))

        (found,), candidates = detections_and_candidates(
            detector, ground_truth, config, [joint_score(config)], str(run), done
        )
        within = measure_alignment(candidates, best_overlaps(candidates, ground_truth), ground_truth).within
        return measure(str(run), found, within, ground_truth, progress)

    return _compared(a, b, ground_truth, measured), diagnoses


def _compared(
    a: Sequence[Path],
    b: Sequence[Path],
    ground_truth: GroundTruth,
    measured: Callable[[Path, ProgressCallback], Measured],
) -> Comparison:
    with terminal_progress() as progress:
        of_a, of_b = ([measured(path, progress) for path in side] for side in (a, b))
        return compare(of_a, of_b, ground_truth)


def _check(a: Sequence[Path], b: Sequence[Path]) -> None:
    if len(a) != len(b) or not a:
        raise InputError(f"{len(a)} on side A and {len(b)} on side B; give as many of each, paired in their order")
    seen: set[str] = set()
    for path in (*a, *b):
        if os.path.realpath(path) in seen:
            raise InputError(f"{path}: is given twice; give two different detectors to compare")
        seen.add(os.path.realpath(path))


def _check_objects(ground_truth: GroundTruth) -> None:
    if ground_truth.crowd.all():  # also where there are no boxes
        raise InputError(f"{ground_truth.source}: no objects in it; compare on a split with annotated objects")
