"""COCO's numbers of a run on a split of a data set."""

from __future__ import annotations

from dataclasses import asdict, replace
from json import dumps
from pathlib import Path
from typing import Any

import numpy as np
from rich.progress import Progress

from retinaconf.data.checked import CheckedImages
from retinaconf.data.ground_truth import GroundTruth
from retinaconf.data.layouts import describe
from retinaconf.data.splits import read_split
from retinaconf.detections import Detections
from retinaconf.errors import InputError
from retinaconf.evaluation.calibration import calibrate
from retinaconf.evaluation.coco import CocoEvaluator, Metrics
from retinaconf.evaluation.matching import match_detections
from retinaconf.evaluation.thresholds import RIGHT, Thresholds, measure_shown
from retinaconf.files import finite, write_aside
from retinaconf.inference.detector import load
from retinaconf.inference.joint_score import joint_score
from retinaconf.inference.joint_score import sweep as all_joints
from retinaconf.outputs import check_outputs
from retinaconf.run_folder import val_list


def evaluate(
    run: str | Path,
    data: str | Path,
    split: str = "val",
    *,
    alpha: float | None = None,
    sweep: bool = False,
    detections: str | Path | None = None,
    layout: str | None = None,
    val_fraction: float | None = None,
    device: str = "auto",
) -> dict[str, Any]:
    """COCO's ten numbers of a run on a split: the report that `retinaconf evaluate --json` writes.

    Keys: `run`, `data`, `split`, `found` (in words, what was taken for the split), `images`, `left_out` (what of it
    cannot be used, as `LeftOut`), `joint` (the joint score's name), `metrics` (the ten numbers, fractions, null where
    nothing decides one), `per_class` (AP by class), of a tuned run `tuned` (see `measure_tuning`), and with a sweep
    `sweep`: a list of `joint`, `alpha` (null for other methods), `metrics` and `per_class`, all from one pass of the
    network.

    Args:
        run: the run folder.
        data: the data set's folder, in any layout.
        split: `train`, `val` or `test`.
        alpha: exponent of the quality in the joint score, instead of the run's own.
        sweep: also every alpha from 0.0 to 0.9 and every joint method.
        detections: a file for the detections that `metrics` is about: COCO results with the image and category ids of
            the data set, `class_score` and, where the run has them, `quality` and `confidence`.
        layout: of the data set's folder. Without it, the folder's content decides.
        val_fraction: share of the images that is `val`, if neither data set nor run says which. Without it, the run's.
        device: `auto`, `cpu`, `cuda` or `mps`.

    Raises:
        InputError: no such run or split, bad data, other categories than the run's, an `alpha` that does not fit, or
            `detections` cannot be written or is one of the files that are read.
    """
    run, root, file = Path(run), Path(data), None if detections is None else Path(detections)
    check_outputs([file], [run, root, root / f"{split}.json"])
    if file is not None and not file.parent.is_dir():  # known before the hours that a pass may take
        raise InputError(f"{file}: cannot be written, there is no folder {file.parent}; make it first")
    detector = load(run, device)
    config = detector.inference_config(**({} if alpha is None else {"alpha": alpha}))
    check = CheckedImages(run).check
    ground_truth = read_split(
        root, split, detector.config.data, layout, val_fraction, val_list(run), like=detector, whose=run, check=check
    )

    configured = joint_score(config)
    joints = [configured]
    if sweep:
        if detector.config.model.quality == "none":
            raise InputError(f"{run}: has no quality branch, so there is nothing to sweep; evaluate it without --sweep")
        joints += [joint for joint in all_joints() if joint != configured]
    with Progress(transient=True) as bar:
        task = bar.add_task("images", total=len(ground_truth))
        tables = detector.detect(ground_truth, config, joints, done=lambda n: bar.advance(task, n))
    if file is not None:
        results = dumps(tables[0].to_coco(ground_truth.image_ids))
        write_aside(file, lambda aside: aside.write_text(results + "\n"))
    evaluator = CocoEvaluator(ground_truth)
    metrics = {joint: evaluator(table) for joint, table in zip(joints, tables)}

    report: dict[str, Any] = {"run": str(run), "data": str(root), "split": split}
    found = describe(root, ground_truth, layout)
    if ground_truth.val_split is not None:
        found += ground_truth.val_split.unknown_to(run)
    if ground_truth.crowd.all():  # also where there are no boxes
        found += "; warning: no objects in it, so that nothing can be measured"
    report |= {"found": found, "images": len(ground_truth)}
    report["left_out"] = asdict(ground_truth.left_out)
    report |= {"joint": configured.name, **_as_json(metrics[configured])}
    tuning = detector.tuned_for(configured)
    if tuning is not None:
        report["tuned"] = measure_tuning(tables[0], ground_truth, tuning.thresholds)
    if sweep:
        report["sweep"] = [
            {"joint": joint.name, "alpha": joint.alpha, **_as_json(metrics[joint])} for joint in all_joints()
        ]
    return report


def measure_tuning(table: Detections, ground_truth: GroundTruth, thresholds: Thresholds) -> dict[str, Any]:
    """What the confidence and the thresholds of a tuned run are worth on these images.

    Keys: `AP_by_confidence`, `laece_0` and `laace_0` (each with `score` and `confidence`), `goal` of the thresholds,
    and by class, and for `all together`, `shown`: `precision`, `recall` and their 95% intervals.
    """
    assert table.confidence is not None
    by_confidence = replace(table, scores=table.confidence)
    errors = {name: calibrate(found, ground_truth) for name, found in (("score", table), ("confidence", by_confidence))}
    matches = match_detections(table, ground_truth, np.array([RIGHT]))
    shown = [asdict(one) for one in measure_shown(thresholds.keep(table), matches, 0, ground_truth)]
    return {
        "AP_by_confidence": CocoEvaluator(ground_truth)(by_confidence).overall["AP"],
        "laece_0": {name: error.mean_laece_0 for name, error in errors.items()},
        "laace_0": {name: error.mean_laace_0 for name, error in errors.items()},
        "goal": thresholds.goal,
        "shown": {one.pop("name"): one for one in shown},
    }


def _as_json(metrics: Metrics) -> dict[str, Any]:
    return {"metrics": finite(metrics.overall), "per_class": finite(metrics.per_class)}
