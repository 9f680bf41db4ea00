"""A run from its data to its folder: what `retinaconf train` does."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext, suppress
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np

from retinaconf.config import Config
from retinaconf.data.checked import CheckedImages
from retinaconf.data.ground_truth import Fault, GroundTruth
from retinaconf.data.layouts import describe, load_split
from retinaconf.data.splits import read_train_and_val
from retinaconf.data.val_split import name_of, read_list
from retinaconf.errors import InputError, UsageError, extras_needed_by, reason
from retinaconf.files import asides, locked, write_json
from retinaconf.run_folder import (
    CHECKED,
    CONFIG,
    ENVIRONMENT,
    LAST,
    LOG,
    METRICS_LOG,
    METRICS_TABLE,
    MODEL,
    PAGE,
    PREVIOUS,
    RUN_FILES,
    SAMPLES,
    VAL,
    checkpoints,
    read_config,
    read_metrics,
    val_list,
    val_list_text,
    write_config,
    write_val_list,
)
from retinaconf.training.dry_run import dry_run
from retinaconf.training.environment import differences, environment, read_environment
from retinaconf.training.loop import launch, train, with_other_processes
from retinaconf.training.progress import Progress
from retinaconf.training.samples import write_samples
from retinaconf.training.start import is_run

MAX_ALPHA = 0.9  # of a product that is trained: beyond, its class score would have to start at less than 1e-17
DROPPED_SHOWN = 10  # dropped records named on the terminal; all are in log.txt


def train_run(
    config: Config,
    root: Path,
    run: Path,
    resume: bool = False,
    max_steps: int | None = None,
    device: str = "auto",
    tensorboard: bool = False,
    like: Path | None = None,
    dry: bool = False,
) -> None:
    """Train on the splits `train` and, if there is one, `val` of `root` into the folder `run`.

    Every annotation is read and every image decoded first, so that a bad file stops no step; a run that continues
    decodes what has changed. With `like`, what differs from that run in versions, device or data is said. A `dry` run
    takes the first steps, says what the whole would take, and neither reads nor writes `run`.

    Raises:
        InputError: bad data; a product that is to be trained without one of its factors; a folder that holds another
            run or files of none, that another process trains in, or that cannot be written.
        Interrupted: the run was asked to stop; it is saved.
    """
    if config.loss.joint == "product" and not 0 < config.inference.alpha <= MAX_ALPHA:
        raise InputError(
            f"loss.joint product trains the score that ranks, and inference.alpha {config.inference.alpha:g} leaves "
            f"the quality or the class score out of it; set it above 0 and up to {MAX_ALPHA} (such as 0.4)"
        )
    if max_steps is not None and max_steps < 1:
        raise UsageError(f"--max-steps {max_steps}: give at least 1")
    if dry and resume:
        raise UsageError("--dry-run measures the first steps of a new run; leave out --resume")
    if tensorboard:
        with extras_needed_by("train --tensorboard"):
            import_module("tensorboard")  # the run itself imports it much later
    # The data first: nothing is written for a run that cannot start.
    layout = config.data.layout
    begun = (run / CONFIG).exists() and not dry
    kept = val_list(run) if begun else _val_list_of_start(config, root)
    # A run that keeps no list has held nothing out.
    fraction = 0.0 if begun and kept is None else config.data.val_fraction
    checked = CheckedImages(None if dry else run)
    train_set, val_set = read_train_and_val(
        root, config.data.model_copy(update={"val_fraction": fraction}), layout, val_list=kept, check=checked.check
    )
    dropped = [*train_set.dropped, *(val_set.dropped if val_set is not None else ())]

    fabric = launch(config, device)
    now = environment(root, train_set, val_set, fabric, config.seed, max_steps)
    before = read_environment(like) if like is not None else now
    writes = fabric.is_global_zero and not dry
    with (
        _opened(run, config, train_set, val_set, resume, now) if writes else nullcontext(),
        with_other_processes(fabric),
    ):
        fabric.barrier()
        progress = Progress(None if dry else run / LOG, silent=not fabric.is_global_zero)
        progress.say(describe(root, train_set, layout))
        if val_set is not None and not val_set.crowd.all():
            progress.say(describe(root, val_set, layout))
        else:
            unused = "; schedule.patience is not used" if config.schedule.patience else ""
            what = "no split 'val'" if val_set is None else "no boxes in the split 'val'"
            progress.say(f"{root}: {what}; training without validation, the last weights are kept{unused}")
            val_set = None
        if warning := differences(before, now):
            progress.say(warning)
        report_dropped(dropped, progress)
        counts = np.bincount(train_set.labels[~train_set.crowd], minlength=len(train_set.classes))
        if without := [name for name, count in zip(train_set.classes, counts) if not count]:
            progress.say(f"warning: no box of {', '.join(without)} in {train_set.source}; nothing is learned of it")
        if dry:
            dry_run(config, train_set, fabric, progress, max_steps)
            return
        if fabric.is_global_zero:
            checked.write(run)
        if fabric.is_global_zero and not checkpoints(run):
            progress.say(write_samples(run / SAMPLES, train_set, config))
        train(config, train_set, val_set, run, fabric, progress, max_steps, tensorboard)
        if (
            resume and fabric.is_global_zero and (run / ENVIRONMENT).exists()
        ):  # it may have ended elsewhere the first time
            write_json(run / ENVIRONMENT, read_environment(run) | {"max_steps": max_steps})


def _val_list_of_start(config: Config, root: Path) -> Path | None:
    """The list of `val` of the run that a new one starts from, which has learned from the other images.

    Only where `train` has all the images in it: other data may share some names, as those of images that are numbered.
    """
    listing = val_list(Path(config.model.weights)) if is_run(config.model.weights) else None
    if listing is None:
        return None
    names = load_split(root, "train", config.data.skip_bad, config.data.layout).file_names
    _, missing = read_list(listing, {name_of(name) for name in names})
    return None if missing else listing


@contextmanager
def _opened(
    run: Path, config: Config, train_set: GroundTruth, val_set: GroundTruth | None, resume: bool, now: dict[str, Any]
) -> Iterator[None]:
    """The folder of a new run or of the one to continue, held against other processes.

    If a new run cannot begin, its files are removed again; no file that was there before is removed or replaced.
    """
    _see_that_it_fits(run, config, train_set, val_set, resume)
    had_folder = run.exists()
    with ExitStack() as stack:
        try:
            run.mkdir(parents=True, exist_ok=True)
            stack.enter_context(locked(run / LOG))
        except OSError as error:
            raise InputError(f"{run}: cannot be written ({reason(error)}); choose another --out") from None
        _see_that_it_fits(run, config, train_set, val_set, resume)  # another process may have been at work until now
        is_new = not (run / CONFIG).exists()
        for name in RUN_FILES:
            for left in asides(run / name):  # by a process that was killed: the lock says that none is at work
                left.unlink()
        try:
            if is_new:
                if train_set.val_split is not None:
                    write_val_list(run / VAL, train_set.val_split.names)
                write_config(run / CONFIG, config)  # the last: with it the folder holds a run, whose list is complete
            if not checkpoints(run):  # one that was killed before its first checkpoint begins again, here and now
                write_json(run / ENVIRONMENT, now)
            yield
        except InputError:
            # No step was taken, for a wrong backbone, say: the same --out can be used again.
            if is_new and not ((run / METRICS_LOG).exists() or checkpoints(run)):
                with suppress(OSError):  # a folder that can no longer be written: what is said is why
                    for name in (CONFIG, ENVIRONMENT, CHECKED, LOG, VAL):
                        (run / name).unlink(missing_ok=True)
                    shutil.rmtree(run / SAMPLES, ignore_errors=True)
                    if not had_folder and not any(run.iterdir()):
                        run.rmdir()
            raise


def _see_that_it_fits(
    run: Path, config: Config, train_set: GroundTruth, val_set: GroundTruth | None, resume: bool
) -> None:
    """See that the folder `run` has no files of a run, or with `resume` those of this very run."""
    if not (run / CONFIG).exists():
        others = (LAST, PREVIOUS, MODEL, METRICS_LOG, METRICS_TABLE, PAGE, LOG, VAL, SAMPLES)
        # A start that was killed before it wrote `config.json` has left these as this one would write them.
        own = {LOG: "", VAL: val_list_text(train_set.val_split.names) if train_set.val_split is not None else None}
        if found := [name for name in others if os.path.lexists(run / name) and not _holds(run / name, own.get(name))]:
            raise InputError(
                f"{run}: holds {found[0]} but no {CONFIG}, so it is not a run that can be continued, and nothing there "
                f"is overwritten; restore {CONFIG}, or choose another --out"
            )
        return
    if not resume:
        raise InputError(f"{run} holds a run already; continue it with --resume, or choose another --out")
    if (run / MODEL).exists() and not checkpoints(run):  # it would be trained from the start, and lost
        raise InputError(f"{run}: holds a model and no {LAST} to continue from; choose another --out")
    has_validated = any(record["kind"] == "val" for record in read_metrics(run / METRICS_LOG))
    drawn_anew = train_set.val_split is not None and train_set.val_split.kept_in is None
    if drawn_anew or (has_validated and val_set is None):  # version 0.1 did not keep which images it drew
        raise InputError(
            f"{run}: it is not known which images of these data it validates on ({VAL} is missing or of other data); "
            "restore the file, or choose another --out"
        )
    old, new = read_config(run / CONFIG).deciding(), config.deciding()  # another machine may load otherwise
    different = [name for name in new if new[name] != old[name]]
    if different:
        raise InputError(
            f"{run / CONFIG}: {different[0]} is {old[different[0]]!r} there and {new[different[0]]!r} here; "
            "resume with the settings of the run, or choose another --out"
        )


def _holds(file: Path, text: str | None) -> bool:
    """Whether a file has this text and no other."""
    return text is not None and file.is_file() and file.read_bytes() == text.encode()


def report_dropped(dropped: list[Fault], progress: Progress) -> None:
    """Say which records were left out: the first on the terminal, all in the log."""
    for fault in dropped[:DROPPED_SHOWN]:
        progress.say(f"{fault}; dropped")
    if len(dropped) > DROPPED_SHOWN:
        progress.say(f"... and {len(dropped) - DROPPED_SHOWN} more, all in the run's {LOG}")
        for fault in dropped[DROPPED_SHOWN:]:
            progress.say(f"{fault}; dropped", show=False)
