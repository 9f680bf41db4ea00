"""The ranking score, Soft-NMS, the calibration and the thresholds of a detector, chosen on a validation split."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rich.progress import Progress

from retinaconf.config import SOFT_NMS_IOU, InferenceConfig
from retinaconf.data.checked import CheckedImages
from retinaconf.data.ground_truth import GroundTruth
from retinaconf.data.splits import read_split
from retinaconf.errors import InputError, UsageError
from retinaconf.evaluation.average_precision import curves_of
from retinaconf.evaluation.gains import Gain, choose, measure_gains
from retinaconf.evaluation.matching import match_detections
from retinaconf.evaluation.score_map import Unseen, calibration_report, fit, measure_unseen
from retinaconf.evaluation.thresholds import (
    RIGHT,
    Goal,
    Shown,
    choose_thresholds,
    measure_shown,
    shown_by_halves,
)
from retinaconf.evaluation.tuning import Tuning
from retinaconf.files import locked
from retinaconf.inference.detector import Detector
from retinaconf.inference.joint_score import joint_score, sweep
from retinaconf.run_folder import LOG, MODEL, read_weights, val_list, write_weights


def tune(
    run: str | Path,
    data: str | Path,
    *,
    precision: float | None = None,
    recall: float | None = None,
    layout: str | None = None,
    val_fraction: float | None = None,
    device: str = "auto",
) -> dict[str, Any]:
    """Choose alpha, Soft-NMS, a calibrated confidence and thresholds by class on `val`, and keep them in the run.

    Returns the report that `retinaconf tune --json` writes.

    Keys: `run`, `data`, `images`, `objects`; `ranking` (`own` and `chosen`, and of the `best` on one half of the images
    its `AP` on the other half, the `own_AP` there, the `gain` and its 95% `interval`; null without a quality);
    `soft_nms` (`chosen`, and on all images `own_AP` without it, `AP` with it, the `gain` and its 95% `interval`; null
    for a run that has it by itself); `calibration`, as `calibration_report` has it; `thresholds`: `goal`, `common` and
    `by_class`, by name `threshold` (null: the common one), `best` (null, or what there is where the goal is not
    reached), and, on images that did not choose it, `precision`, `recall` and their 95% intervals (not there for too
    few images).

    Args:
        run: the run folder, or its `model.safetensors`, which is written anew with the same weights.
        data: the data set's folder, in any layout.
        precision: give each class the lowest threshold that reaches this precision. Without it, the one of lowest LRP.
        recall: give each class the highest threshold that reaches this recall. Without it, the one of lowest LRP.
        layout: of the data set's folder. Without it, the folder's content decides.
        val_fraction: share of the images that is `val`, if neither data set nor run says which. Without it, the run's.
        device: `auto`, `cpu`, `cuda` or `mps`.

    Raises:
        InputError: both a precision and a recall, or one that is not in (0, 1]; no such run, another process works on
            it, no split val, bad data, other categories than the run's, or nothing to tune on.
    """
    if precision is not None and recall is not None:
        raise UsageError("tune --precision and --recall: a threshold is chosen for one of them; leave one out")
    for option, value in {"--precision": precision, "--recall": recall}.items():
        if value is not None and not 0 < value <= 1:
            raise UsageError(f"tune {option} {value:g}: give a share above 0, up to 1")
    run, root, goal = Path(run), Path(data), Goal(precision, recall)
    file = run / MODEL if run.is_dir() else run
    log = file.with_name(LOG)
    with locked(log) if log.exists() else nullcontext():  # a training there would replace the weights
        weights = read_weights(run)._replace(tuning=None)  # chosen anew
        detector = Detector(weights, device)
        settings = detector.config.data
        check = CheckedImages(run).check
        val_set = read_split(
            root, "val", settings, layout, val_fraction, val_list(run), like=detector, whose=run, check=check
        )
        with Progress(transient=True) as bar:
            passes = 1 if detector.config.inference.soft_nms else 2
            task = bar.add_task("images", total=passes * len(val_set))
            tuned = choose_all(detector, val_set, goal, lambda n: bar.advance(task, n))
        write_weights(file, weights.state, weights.config, weights.classes, weights.category_ids, tuned.tuning.values())
    drawn = val_set.val_split
    return {
        "run": str(run),
        "data": val_set.source + (f" ({drawn}{drawn.unknown_to(run)})" if drawn is not None else ""),
        "images": len(val_set),
        "objects": int((~val_set.crowd).sum()),
        "ranking": _ranking(tuned),
        "soft_nms": tuned.soft_gain and {"chosen": tuned.tuning.soft_nms, **_gain(tuned.soft_gain)},
        "calibration": calibration_report(tuned.tuning.score_map, tuned.unseen),
        "thresholds": _thresholds(tuned, detector.classes, detector.category_ids),
    }


@dataclass(frozen=True)
class Tuned:
    """What was chosen on all images, and what it is worth on images that it was not chosen on."""

    tuning: Tuning
    own: InferenceConfig  # how the detector ranks by itself
    best: InferenceConfig | None  # best on one half of the images; None for a detector with nothing to choose among
    gain: Gain | None  # in AP, of the best over the detector's own score, on the other half
    soft_gain: Gain | None  # in AP, of Soft-NMS, on all images; None for a detector that has it by itself
    unseen: Unseen | None  # calibration, each half of the images by the map of the other; None for too few images
    shown: list[Shown] | None  # precision and recall, each half by the thresholds of the other; None for too few


def choose_all(
    detector: Detector, val_set: GroundTruth, goal: Goal, done: Callable[[int], None] = lambda images: None
) -> Tuned:
    """Tune a detector that is not tuned on I images; `done` is told how many images each batch had.

    Another alpha is taken only where it surely ranks better: chosen on one half of the images, its gain in AP on the
    other half has an interval above 0. It is then the best on all images. Soft-NMS is one setting, so its
    gain is measured on all images.

    Raises:
        InputError: the detector finds nothing on these images, or they have no objects.
    """
    if val_set.crowd.all():  # known before the time that a pass takes
        raise InputError(f"{val_set.source}: no objects in it; tune on a split with annotated objects")
    own = detector.inference_config()
    settings = _settings(detector)
    tables = detector.detect(val_set, own, [joint_score(config) for config in settings], done=done)
    config, table = own, tables[0]
    best = gain = None
    if len(settings) > 1:
        curves = list(curves_of(tables, val_set))
        choice = choose(curves, curves[:1], val_set)
        best, gain = settings[choice.best], choice.gains[0]
        if gain.interval[0] > 0:
            chosen = int(np.nanargmax([curve(np.ones(len(val_set))).mean() for curve in curves]))
            config, table = settings[chosen], tables[chosen]
    soft_gain, has_softened = None, False
    if not own.soft_nms:
        soft = config.model_copy(update={"soft_nms": True, "nms_iou": SOFT_NMS_IOU})
        (softened,) = detector.detect(val_set, soft, [joint_score(soft)], done=done)
        images = np.argsort(val_set.image_ids, kind="stable")
        (soft_gain,) = measure_gains(list(curves_of([table, softened], val_set)), [(0, 1)], images, len(images))
        if soft_gain.interval[0] > 0:
            has_softened, table = True, softened
    score_map = fit(table, val_set)
    matches = match_detections(table, val_set, np.array([RIGHT]))
    thresholds = choose_thresholds(matches, 0, val_set, goal)
    assert thresholds is not None  # `fit` has found detections and objects
    shown = shown_by_halves(table, matches, 0, val_set, goal)
    return Tuned(
        Tuning(config.joint, config.alpha, has_softened, score_map, thresholds),
        own,
        best,
        gain,
        soft_gain,
        measure_unseen(table, val_set),
        None if shown is None else measure_shown(shown, matches, 0, val_set),
    )


def _settings(detector: Detector) -> list[InferenceConfig]:
    """The detector's own way to rank, and, where it has a quality, the others of equation (11) and `proportional`.

    The first of equally good ones is taken.
    """
    own = detector.inference_config()
    if detector.config.model.quality == "none":
        return [own]
    wanted = [
        ("proportional" if joint.proportional else "product", joint.quality_exponent)
        for joint in sweep()
        if joint.proportional or joint.alpha is not None
    ]
    others = [detector.inference_config(joint=joint, alpha=alpha) for joint, alpha in wanted]
    return [own, *(config for config in others if config != own)]


def _ranking(tuned: Tuned) -> dict[str, Any]:
    def named(config: InferenceConfig | None) -> dict[str, Any] | None:
        return None if config is None else {"joint": config.joint, "alpha": config.alpha}

    return {
        "own": named(tuned.own),
        "chosen": {"joint": tuned.tuning.joint, "alpha": tuned.tuning.alpha},
        "best": named(tuned.best),
        **_gain(tuned.gain),
    }


def _gain(gain: Gain | None) -> dict[str, Any]:
    return {
        "own_AP": gain and gain.before,
        "AP": gain and gain.after,
        "gain": gain and gain.points,
        "interval": gain and gain.interval,
    }


def _thresholds(tuned: Tuned, classes: tuple[str, ...], category_ids: tuple[int, ...]) -> dict[str, Any]:
    thresholds = tuned.tuning.thresholds
    shown = {one.name: asdict(one) for one in tuned.shown or []}
    by_class = {
        name: {
            "threshold": thresholds.by_class.get(id_),
            "best": thresholds.unreached.get(id_),
            **{key: value for key, value in shown.get(name, {}).items() if key != "name"},
        }
        for name, id_ in zip(classes, category_ids)
    }
    return {"goal": thresholds.goal, "common": thresholds.common, "by_class": by_class}
