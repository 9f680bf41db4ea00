"""What the commands do, as functions: `retinaconf.train`, `compare` and `diagnose`.

They need torch only where a network runs. `evaluate` and `export`, which always do, are in modules of their own. A
mistake in the arguments is a `UsageError`, which is an `InputError`; its message names the option of the command, which
is called as the argument is.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from retinaconf.config import Config
from retinaconf.errors import UsageError, extras_needed_by
from retinaconf.outputs import check_outputs
from retinaconf.recipes import RECIPES
from retinaconf.run_folder import CONFIG, read_config

if TYPE_CHECKING:
    from retinaconf.data.ground_truth import GroundTruth
    from retinaconf.diagnosis.measures.comparison import Comparison
    from retinaconf.diagnosis.measures.diagnose import Diagnosis

NOTHING: Mapping[str, Any] = MappingProxyType({})


@extras_needed_by("train")
def train(
    start: str | Path,
    data: str | Path,
    out: str | Path,
    settings: Mapping[str, Any] = NOTHING,
    *,
    resume: bool = False,
    max_steps: int | None = None,
    device: str = "auto",
    tensorboard: bool = False,
) -> Path:
    """Train a detector into the run folder `out`, which is returned: `retinaconf.load` takes it.

    Args:
        start: a recipe's name, or a run to start from: its folder, its `model.safetensors` or its name on the Hub.
        data: the data set's folder, in any layout.
        out: the run folder.
        settings: what differs from those of `start`, by dotted name: `{"schedule.epochs": 6, "data.short_side": 480}`.
        resume: continue the run in `out` where it stopped, with the same settings.
        max_steps: stop after this many steps in total; within the first epoch, without validation.
        device: `auto`, `cpu`, `cuda` or `mps`.
        tensorboard: also write the curves for TensorBoard, into the run's folder `tensorboard`.

    Raises:
        InputError: no such recipe or run, a setting that does not fit, bad data, or `out` holds another run.
        Interrupted: the run was asked to stop; it is saved.
    """
    from retinaconf.training.run import train_run

    out = Path(out)
    config = settings_of(str(start), out, resume).changed(**settings)
    train_run(config, Path(data), out, resume, max_steps, device, tensorboard)
    return out


def settings_of(start: str, out: Path | None = None, resume: bool = False) -> Config:
    """The settings of a recipe, of a run as those of one that starts from it, or of the run in `out` to continue.

    The last makes a run independent of the one that it has started from.

    Raises:
        UsageError: there is no such recipe or run.
        InputError: the run cannot be read.
    """
    if start in RECIPES:
        return RECIPES[start]
    if resume and out is not None and (out / CONFIG).is_file():
        config = read_config(out / CONFIG)
        if config.model.weights == start or os.path.realpath(out) == os.path.realpath(start):
            return config
    if not Path(start).exists() and Path(start).parent.exists():  # otherwise it may be a name on the Hub
        raise unknown_start(start)

    from retinaconf.inference.detector import load
    from retinaconf.training.start import settings_from

    return settings_from(load(start, "cpu").config, start)


def unknown_start(start: str) -> UsageError:
    """What is wrong with a name that is of no recipe and of no run."""
    return UsageError(
        f"no recipe {start!r}; there are {', '.join(RECIPES)}; or give, as the first word, a run to start from: its "
        "folder, or its name on the Hugging Face Hub"
    )


def compare(
    *runs: str | Path,
    data: str | Path | None = None,
    split: str = "val",
    detections: Sequence[str | Path] = (),
    ground_truth: str | Path | None = None,
    against: Sequence[str | Path] = (),
    images: str | Path | None = None,
    report: str | Path | None = None,
    layout: str | None = None,
    val_fraction: float | None = None,
    device: str = "auto",
) -> Comparison:
    """Which of two detectors is better: `compare("runs/a", "runs/b", data=ROOT)`, or of files by `detections=(a, b)`.

    `differences` of what is returned has B - A for AP and the other numbers: `mean`, and `low` and `high` of the 95%
    interval. `per_class` has that of AP by class. Progress is shown on stderr. Files need no torch.

    Args:
        runs: two run folders, A and B; with `against`, those of A only.
        data: the data set's folder, in any layout; it may also hold the ground truth of files.
        split: split of the data set.
        detections: COCO results or .npz of A and B after NMS, in place of runs; with `against`, of A only.
        ground_truth: for files, the COCO ground truth of the same images.
        against: several trainings of B, as many runs or files as of A, paired in their order.
        images: folder of the images that `ground_truth` lists, for the report's pictures.
        report: a file for the HTML report of `diagnose` on both detectors, on the first training of each.
        layout: of the data set's folder. Without it, the folder's content decides.
        val_fraction: share of the images that is `val`, if neither data set nor run says which. Without it, the run's.
        device: `auto`, `cpu`, `cuda` or `mps`; for runs.

    Raises:
        InputError: arguments that do not go together, no such run, file or split, bad data, or `report` is one of the
            files that are read.
    """
    from retinaconf.diagnosis.compare import compare_files, compare_runs
    from retinaconf.diagnosis.report.page import write_report

    given, others, page = _paths(runs or detections), _paths(against), _path(report)
    check_outputs([page], [*given, *others, _path(data), _path(ground_truth), _path(images)])
    if bool(runs) == bool(detections):
        raise UsageError("compare: give either two runs, A B --data ROOT, or --detections A B with --ground-truth GT")
    if not others and len(given) != 2:
        what = "runs" if runs else "files"
        raise UsageError(
            f"compare: {len(given)} {what}; give two, A and B, or several of A and as many of B with --against"
        )
    a, b = (given, others) if others else (given[:1], given[1:])
    if runs:
        _refuse({"--ground-truth": ground_truth, "--images": images}, "it is for files, and these are runs")
        if data is None:
            raise UsageError("compare A B: give the data set with --data ROOT")
        with extras_needed_by("compare A B"):
            found, diagnoses = compare_runs(
                a, b, Path(data), split, layout, val_fraction, device, with_diagnoses=page is not None
            )
    else:
        truth = _truth("compare", ground_truth, images, data, split, layout, val_fraction)
        found, diagnoses = compare_files(a, b, truth, with_diagnoses=page is not None)
    if page is not None:
        write_report(page, diagnoses)
    return found


def diagnose(
    run: str | Path | None = None,
    data: str | Path | None = None,
    split: str = "val",
    *,
    detections: Sequence[str | Path] = (),
    candidates: Sequence[str | Path] = (),
    ground_truth: str | Path | None = None,
    images: str | Path | None = None,
    report: str | Path | None = None,
    alpha: float | None = None,
    nms_iou: float | None = None,
    score_threshold: float | None = None,
    layout: str | None = None,
    val_fraction: float | None = None,
    device: str = "auto",
) -> list[Diagnosis]:
    """Where a detector's score and its boxes disagree: of a run on a data set, or of any detector from files.

    One diagnosis for each detector: one of a run, one or two of files. What its numbers mean: docs/diagnosis.md. Files
    need no torch.

    Args:
        run: a run folder; its boxes before NMS are computed.
        data: the data set's folder, in any layout; it may also hold the ground truth of files.
        split: split of the data set.
        detections: COCO results of a detector after NMS; two files compare two detectors.
        candidates: boxes before NMS, COCO results or .npz; two files compare two detectors.
        ground_truth: for files, the COCO ground truth of the same images.
        images: folder of the images that `ground_truth` lists, for the report's pictures.
        report: a file for the HTML report.
        alpha: for a run, exponent of the quality in the joint score, instead of its own.
        nms_iou: for files, IoU above which NMS removes a box; 0.5 if it is not given.
        score_threshold: for files, score that a candidate must exceed; 0 if it is not given.
        layout: of the data set's folder. Without it, the folder's content decides.
        val_fraction: share of the images that is `val`, if neither data set nor run says which. Without it, the run's.
        device: `auto`, `cpu`, `cuda` or `mps`; for a run.

    Raises:
        InputError: arguments that do not go together, no such run, file or split, bad data, or `report` is one of the
            files that are read.
    """
    from retinaconf.diagnosis.inputs import diagnose_files, diagnose_run
    from retinaconf.diagnosis.measures.post_processing import PostProcessing
    from retinaconf.diagnosis.report.page import write_report

    after, before, page = _paths(detections), _paths(candidates), _path(report)
    check_outputs([page], [*map(_path, (run, data, ground_truth, images)), *after, *before])
    from_files = bool(after or before)
    if (run is not None) == from_files:
        raise UsageError("diagnose: give either RUN --data ROOT, or --detections or --candidates with --ground-truth")
    if run is not None:
        of_files: dict[str, object] = {"--ground-truth": ground_truth, "--images": images}
        of_files |= {"--nms-iou": nms_iou, "--score-threshold": score_threshold}
        _refuse(of_files, "it is for the diagnosis of files, and this is one of a run")
        if data is None:
            raise UsageError("diagnose RUN: give the data set with --data ROOT")
        with extras_needed_by("diagnose RUN"):
            found = [
                diagnose_run(
                    Path(run), Path(data), split, alpha, layout=layout, device=device, val_fraction=val_fraction
                )
            ]
    else:
        _refuse({"--alpha": alpha}, "it is for the diagnosis of a run, and this is one of files")
        truth = _truth("diagnose", ground_truth, images, data, split, layout, val_fraction)
        process = PostProcessing(
            PostProcessing.score_threshold if score_threshold is None else score_threshold,
            PostProcessing.nms_iou if nms_iou is None else nms_iou,
        )
        found = diagnose_files(truth, after, before, process)
    if page is not None:
        write_report(page, found)
    return found


def _truth(
    command: str,
    ground_truth: str | Path | None,
    images: str | Path | None,
    data: str | Path | None,
    split: str,
    layout: str | None,
    val_fraction: float | None,
) -> GroundTruth:
    """What files of detections are about: a COCO file with the folder of its images, or a split of a data set."""
    from retinaconf.config import DataConfig
    from retinaconf.data.layouts import load_split
    from retinaconf.diagnosis.inputs import read_truth

    if ground_truth is not None and data is None:
        _refuse({"--layout": layout, "--val-fraction": val_fraction}, "it is for --data")
        return read_truth(Path(ground_truth), _path(images))
    if data is None or ground_truth is not None:
        raise UsageError(f"{command} --detections: give either --ground-truth GT or --data ROOT with --split")
    _refuse({"--images": images}, "it is for --ground-truth, and --data has the images")
    fraction = DataConfig().val_fraction if val_fraction is None else val_fraction
    return load_split(Path(data), split, layout=layout, val_fraction=fraction)


def _refuse(options: Mapping[str, object], why: str) -> None:
    """See that none of the options is given."""
    for option, value in options.items():
        if value is not None:
            raise UsageError(f"{option}: {why}; leave it out")


def _path(path: str | Path | None) -> Path | None:
    return None if path is None else Path(path)


def _paths(paths: Sequence[str | Path]) -> list[Path]:
    if isinstance(paths, str | Path):  # a str is a sequence, too: of letters
        raise UsageError(f"{str(paths)!r}: give a list of paths, such as [{str(paths)!r}]")
    return [Path(path) for path in paths]
