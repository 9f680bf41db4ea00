"""`retinaconf retrofit`: a trained RetinaNet into one with a quality branch."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from rich.progress import Progress as Bar
from tyro.conf import Positional

from retinaconf.commands.options import Device, LayoutKey
from retinaconf.errors import InputError, reason
from retinaconf.files import asides, locked

if TYPE_CHECKING:
    from retinaconf.config import Config
    from retinaconf.data.ground_truth import GroundTruth
    from retinaconf.inference.detector import Detector
    from retinaconf.training.branch_fit import Branch
    from retinaconf.training.progress import Progress

Quality = Literal["classification", "localization"]  # the tower that carries the branch
PASSES = 2  # over the training images, each time resized and mirrored anew
UNJUDGED_ALPHA = 0.4  # the paper's, where no validation split says better


def retrofit(
    run: Positional[Path],
    /,
    data: Path,
    out: Path,
    quality: Quality = "classification",
    seed: int = 0,
    layout: LayoutKey | None = None,
    val_fraction: float | None = None,
    device: Device = "auto",
) -> None:
    """Add a quality branch to a trained RetinaNet. Only the branch learns: boxes and class scores stay the same.

    Args:
        run: the folder of a run without a quality branch.
        data: the data set's folder; the branch learns on its train split, alpha is chosen on val.
        out: the new run's folder; it appears when everything is done.
        quality: tower that carries the branch.
        seed: of the augmentation, and of the images that choose the weight decay.
        layout: of the data set's folder. Without it, the folder's content decides.
        val_fraction: share of the images that is val, if neither data set nor run says which. Without it, the run's.
        device: where to compute.

    Raises:
        InputError: the run has a branch or a joint head, the data are bad or of other categories, or `out` exists.
    """
    from retinaconf.data.checked import CheckedImages
    from retinaconf.data.layouts import describe
    from retinaconf.data.splits import read_train_and_val
    from retinaconf.inference.choose_alpha import choose_alpha
    from retinaconf.inference.detector import Detector, load
    from retinaconf.run_folder import (
        CONFIG,
        LOG,
        METRICS_LOG,
        MODEL,
        VAL,
        Weights,
        metrics_line,
        val_list,
        write_config,
        write_val_list,
        write_weights,
    )
    from retinaconf.training.progress import Progress
    from retinaconf.training.run import report_dropped

    if out.exists() and not (out.is_dir() and not any(out.iterdir())):
        raise InputError(f"{out}: exists already; choose another --out")
    if seed < 0:
        raise InputError(f"--seed {seed}: give at least 0")
    detector = load(run, device)
    config = _with_branch(detector.config, quality, run)
    checked = CheckedImages(run)
    train_set, val_set = read_train_and_val(
        data, config.data, layout, val_fraction, val_list(run), like=detector, whose=run, check=checked.check
    )

    with _appearing_whole(out) as folder:
        progress = Progress(folder / LOG)
        progress.say(describe(data, train_set, layout))
        if val_set is not None:
            doubt = val_set.val_split.unknown_to(run) if val_set.val_split is not None else ""
            progress.say(describe(data, val_set, layout) + doubt)
        report_dropped([*train_set.dropped, *(() if val_set is None else val_set.dropped)], progress)
        try:
            branch = _learn(detector, quality, train_set, seed, progress)
        except FloatingPointError as error:
            raise InputError(f"{run}: {error}; its training has failed, train it anew") from None
        state = detector.state | {"head.quality_conv.weight": branch.weight, "head.quality_conv.bias": branch.bias}
        records: list[dict[str, Any]] = [
            {"kind": "retrofit", "step": step, "epoch": PASSES, "seed": seed, **tried}
            for step, tried in enumerate(branch.tried, 1)
        ]
        if val_set is None or val_set.crowd.all():
            what = "no split 'val'" if val_set is None else "no boxes in the split 'val'"
            progress.say(f"{data}: {what} to choose alpha on; it is the paper's, {UNJUDGED_ALPHA}")
            alpha = UNJUDGED_ALPHA
        else:
            weights = Weights(config, detector.classes, detector.category_ids, state)
            with _bar(progress) as bar:
                task = bar.add_task("validation", total=len(val_set))
                choice = choose_alpha(Detector(weights, detector.device), val_set, lambda n: bar.advance(task, n))
            for line in choice.findings(len(val_set)):
                progress.say(line)
            alpha, metrics = choice.alpha, choice.metrics
            record = {"kind": "val", "step": len(records), "epoch": PASSES, "alpha": alpha, **metrics.overall}
            records.append(record | {"per_class": metrics.per_class})
        config = config.changed(**{"inference.alpha": alpha})
        write_config(folder / CONFIG, config)
        if train_set.val_split is not None:
            write_val_list(folder / VAL, train_set.val_split.names)
        checked.write(folder)
        write_weights(folder / MODEL, state, config, detector.classes, detector.category_ids)
        (folder / METRICS_LOG).write_text("".join(metrics_line(record) for record in records))
        progress.say(f"{out}: alpha {alpha:g}; `retinaconf evaluate {out}` and the others take it from there")


def _with_branch(config: Config, quality: Quality, run: Path) -> Config:
    """The configuration of the new run, alpha aside.

    Raises:
        InputError: the detector of `run` is none to be retrofitted.
    """
    if config.model.quality != "none":
        is_tower = config.model.quality != "distribution"
        where = f"on its {config.model.quality} tower" if is_tower else "on the distributions of its boxes"
        raise InputError(f"{run}: has a quality branch already, {where}; give a RetinaNet")
    if config.model.class_target != "label":
        raise InputError(f"{run}: its class score is the joint score already (joint head); give a RetinaNet")
    return config.changed(**{"model.quality": quality, "loss.quality": "ce", "inference.joint": "product"})


@contextmanager
def _appearing_whole(folder: Path) -> Iterator[Path]:
    """A folder to write into, which takes the name `folder` at the end, or goes where something fails."""
    place = Path(os.path.realpath(folder))  # where a link leads
    for left in asides(place):
        with suppress(InputError, OSError), locked(left / "log.txt"):  # by a process that was killed
            shutil.rmtree(left)
    aside = place.with_name(f".{place.name}.{os.getpid()}")
    try:
        aside.mkdir(parents=True)
        with locked(aside / "log.txt"):
            yield aside
            aside.rename(place)
    except OSError as error:
        raise InputError(f"{folder}: cannot be written ({reason(error)}); choose another --out") from None
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def _learn(detector: Detector, quality: Quality, train_set: GroundTruth, seed: int, progress: Progress) -> Branch:
    from retinaconf.data.loader import steps_per_epoch, training_batches
    from retinaconf.inference.detector import BATCH
    from retinaconf.training.branch_fit import collect, fit_branch

    started = time.monotonic()
    # Without mosaics, whose cells would be of other images than those held out.
    data = detector.config.data.model_copy(update={"batch_size": min(BATCH, len(train_set)), "mosaic": 0.0})
    steps = PASSES * steps_per_epoch(len(train_set), data.batch_size)
    with _bar(progress) as bar:
        task = bar.add_task("features", total=steps * data.batch_size)
        batches = training_batches(train_set, data, seed, 0, steps)
        cells = collect(
            detector.model, quality, batches, detector.device, detector.config, lambda n: bar.advance(task, n)
        )
    images = len(cells.images.unique())
    if images < 2:
        raise InputError(f"{train_set.source}: {images} images with objects; give at least 2")
    progress.say(
        f"{images} of {len(train_set)} images: {cells.positives} positive anchors at "
        f"{len(cells.images)} cells, {cells.patches.nbytes / 2**20:.0f} MiB, in {time.monotonic() - started:.0f} s"
    )
    started = time.monotonic()
    branch = fit_branch(cells, seed)
    held_out = min(tried["held_out"] for tried in branch.tried)
    progress.say(
        f"{branch.weight.numel() + branch.bias.numel():,} parameters on the {quality} tower; cross entropy on images "
        f"held out {held_out:.4f}, of a constant {branch.constant_loss:.4f}; weight decay {branch.weight_decay:g}; "
        f"in {time.monotonic() - started:.0f} s"
    )
    return branch


def _bar(progress: Progress) -> Bar:
    return Bar(console=progress.console, transient=True, disable=not progress.console.is_terminal)
