"""What each step of the ladder changes: the order of an object's boxes, what NMS costs, calibration, and speed.

A step is a row of `paper ladder`. AP is evaluated as for every other item; what is measured here says why it changes.
"""

from __future__ import annotations

import platform
import statistics
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from retinaconf.config import InferenceConfig
from retinaconf.data.ground_truth import GroundTruth
from retinaconf.data.loader import Batch, evaluation_batches
from retinaconf.diagnosis.inputs import detections_and_candidates
from retinaconf.diagnosis.measures.alignment import measure_alignment
from retinaconf.diagnosis.measures.casualties import nms_casualties
from retinaconf.diagnosis.measures.nms import nms
from retinaconf.diagnosis.measures.oracles import ranked_by_iou
from retinaconf.diagnosis.measures.post_processing import PostProcessing
from retinaconf.diagnosis.measures.task_alignment import count_boxes
from retinaconf.evaluation import compare
from retinaconf.evaluation.average_precision import curves_of, image_draws
from retinaconf.evaluation.calibration import calibrate, finite_mean
from retinaconf.evaluation.compare import paired_difference
from retinaconf.evaluation.overlaps import best_overlaps
from retinaconf.files import finite
from retinaconf.inference.detector import Detector, load
from retinaconf.inference.joint_score import joint_score
from retinaconf.inference.postprocess import postprocess
from retinaconf.model.retinanet import RetinaNet
from retinaconf.paper.items import RETINANET, Finish, Item, Training
from retinaconf.paper.misalignment import sample
from retinaconf.paper.runs import Experiments
from retinaconf.training.assigners import assigner_at
from retinaconf.training.loop import launch
from retinaconf.training.losses import detection_losses
from retinaconf.training.precision import lay_out

OBJECT_IOU = 0.5  # boxes of an object's class with at least this IoU are its own
MEASURES = ("concordance", "lost_iou", "oracle_gain", "laece_0")
VOTING = (("vote", True),)
ROUNDS = 9  # in which a step and RetinaNet take turns, so that what else the machine does meets both
TIMED = 4  # images of the batch that is timed


def steps(experiments: Experiments, item: Item, seeds: range) -> dict[str, dict[str, Any]]:
    """By row, what is measured of its training. Voting alone has no row: of the measures it changes only
    what a ranking by IoU would add.

    - `measures`: of each of `MEASURES` its `seeds`, their `mean`, and `over`: by row, of the row before and of
      each RetinaNet, the paired `difference` with its 95% `interval`. LaECE_0 has no `over`.
    - `task_alignment`: TOOD's figures, the mean over seeds of each.
    - `speed`: `training` and `inference` in images a second, each with `ratio`, the speed divided by RetinaNet's that
      took turns with it; `machine`. Of the first seed; None where the weights of its run are gone.
    """
    rows = {row.name: row for row in item.rows if row.finish != VOTING}
    found = {
        name: [
            experiments.measured(row.training, seed, "alignment" + row.ending, partial(_measure, finish=row.finish))
            for seed in seeds
        ]
        for name, row in rows.items()
    }
    document: dict[str, dict[str, Any]] = {}
    for name, row in rows.items():
        rivals = (item.before.get(name), *item.controls.get(name, ()))
        others = [other for other in dict.fromkeys(rivals) if other in found]
        timed = "speed" + row.ending
        speed = experiments.kept_of(row.training, seeds[0], timed)
        if speed is None and all(experiments.finished(one, seeds[0]) for one in (row.training, RETINANET)):
            timing = partial(_speed, seed=seeds[0], finish=row.finish)
            speed = experiments.measured(row.training, seeds[0], timed, timing)
        measures = {}
        for measure in MEASURES:
            values = [results[measure]["value"] for results in found[name]]
            measures[measure] = {
                "seeds": values,
                "mean": _mean(values),
                "over": {
                    other: _difference(found[name], found[other], measure)
                    for other in others
                    if other != name and "draws" in found[name][0][measure]
                },
            }
        theirs = [results["task_alignment"] for results in found[name]]
        task_alignment = {key: _mean([figures[key] for figures in theirs]) for key in theirs[0]}
        document[name] = {"measures": measures, "task_alignment": task_alignment, "speed": speed}
    return document


def _mean(values: list[float | None]) -> float | None:
    mean: float | None = finite(finite_mean(np.array(values, dtype=np.float64)))
    return mean


def _difference(ours: list[dict[str, Any]], theirs: list[dict[str, Any]], measure: str) -> dict[str, Any]:
    def column(key: str) -> np.ndarray:
        """(seeds,) or (seeds, draws); null becomes NaN."""
        a, b = (np.array([one[measure][key] for one in results], dtype=np.float64) for results in (ours, theirs))
        return np.asarray(a - b)

    difference = paired_difference(column("value"), column("draws"))
    found: dict[str, Any] = finite({"difference": difference.mean, "interval": [difference.low, difference.high]})
    return found


def _measure(experiments: Experiments, run: Path, training: Training, finish: Finish = ()) -> dict[str, Any]:
    """Of at most 1,000 images: each of `MEASURES` with its `value` and, but for LaECE_0, on each draw of the images.

    - `concordance`: of two boxes of an object, how often the better-placed one has the higher score; the mean over
      objects. It does not depend on the score threshold.
    - `lost_iou`: IoU of an object's best box before NMS less that of the best one after it; the mean over objects.
    - `oracle_gain`: AP that ranking each object's boxes by their IoU would add.
    - `laece_0`: localization-aware calibration error of the detections.

    Also `task_alignment`, as `diagnose` has it.
    """
    truth = sample(experiments.ground_truth, np.random.default_rng(0))
    detector = load(run, experiments.device)
    config = detector.inference_config(**dict(finish))
    (detections,), candidates = detections_and_candidates(detector, truth, config, [joint_score(config)], str(run))
    overlaps = best_overlaps(candidates, truth)
    alignment = measure_alignment(candidates, overlaps, truth, OBJECT_IOU)
    within, rankings = alignment.within.per_object.concordance, alignment.rankings

    above = candidates.scores > config.score_threshold
    candidates, overlaps = candidates[above], overlaps.take(above)
    process = PostProcessing(config.score_threshold, config.nms_iou, config.detections, config.vote, config.soft_nms)
    columns = (candidates.image_index, candidates.labels, candidates.boxes, candidates.scores)
    suppressor = nms(*columns, process.nms_iou)
    casualties = nms_casualties(candidates, suppressor, overlaps.same_object, truth)
    lost = np.where((casualties.best_candidate >= 0) & ~truth.crowd, casualties.lost, np.nan)

    draws = np.concatenate(
        [np.ones((1, len(truth))), *image_draws(np.arange(len(truth)), len(truth), compare.DRAWS, 0)]
    )
    ranked = process(replace(candidates, scores=ranked_by_iou(candidates, overlaps, OBJECT_IOU)))
    as_is, oracle = curves_of((process.best(candidates, suppressor), ranked), truth)
    gain = oracle(draws).mean(axis=-1) - as_is(draws).mean(axis=-1)
    by_draw = {
        "concordance": mean_over_objects(within, truth, draws),
        "lost_iou": mean_over_objects(lost, truth, draws),
        "oracle_gain": gain,
    }
    found: dict[str, Any] = {
        name: {"value": float(values[0]), "draws": values[1:].round(5).tolist()} for name, values in by_draw.items()
    }
    found["laece_0"] = {"value": calibrate(detections, truth).mean_laece_0}
    found["task_alignment"] = vars(rankings) | vars(count_boxes(best_overlaps(detections, truth)))
    plain: dict[str, Any] = finite(found)
    return plain


def mean_over_objects(values: np.ndarray, truth: GroundTruth, draws: np.ndarray) -> np.ndarray:
    """(B,) means over the objects, (G,) of which NaN is left out, of the images as often as each (B, I) draw has them.

    NaN where a draw has none.
    """
    known = np.isfinite(values)
    images = truth.image_index[known]
    total = draws @ np.bincount(images, weights=values[known], minlength=len(truth))
    count = draws @ np.bincount(images, minlength=len(truth))
    return np.divide(total, count, out=np.full(len(draws), np.nan), where=count > 0)


def _speed(experiments: Experiments, run: Path, training: Training, seed: int, finish: Finish) -> dict[str, Any]:
    detectors = [load(path, experiments.device) for path in (run, experiments.run(RETINANET, seed))]
    device = detectors[0].device
    (batch, *_) = evaluation_batches(experiments.ground_truth, detectors[0].config.data, TIMED)
    batch = batch.to(device)
    threads = f"{platform.machine()} CPU, torch threads: {torch.get_num_threads()}"
    found: dict[str, Any] = {
        "machine": torch.cuda.get_device_name(device) if device.type == "cuda" else threads,
        "images": len(batch.index),
    }
    configs = [detectors[0].inference_config(**dict(finish)), detectors[1].inference_config()]
    sides = {
        "training": [_training_step(detector, batch) for detector in detectors],
        "inference": [_inference(detector, batch, config) for detector, config in zip(detectors, configs)],
    }
    for what, (our_side, their_side) in sides.items():
        ours, theirs = _seconds([our_side, their_side], device)
        ratio = statistics.median(their / our for our, their in zip(ours, theirs))
        found[what] = {"images_per_second": len(batch.index) / statistics.median(ours), "ratio": ratio}
    return found


def _training_step(detector: Detector, batch: Batch) -> Callable[[], None]:
    """A training step but for the optimizer's part, which all steps of the ladder share."""
    config = detector.config
    network = RetinaNet(config.model.model_copy(update={"weights": "none"}), len(detector.classes))
    network.load_state_dict(detector.state)
    lay_out(network, config, detector.device)
    model = launch(config, str(detector.device)).setup(network)
    assign = assigner_at(config, config.schedule.epochs - 1)
    network.train()

    def step() -> None:
        outputs = model(batch.images, batch.sizes)
        matches = assign(outputs, batch.boxes, batch.labels, config)
        losses = detection_losses(outputs, matches, batch.boxes, batch.labels, config, matches.normaliser.clamp(min=1))
        torch.stack(list(losses.values())).sum().backward()
        network.zero_grad()

    return step


def _inference(detector: Detector, batch: Batch, config: InferenceConfig) -> Callable[[], None]:
    """From loaded images to detections."""

    @torch.no_grad()
    def infer() -> None:
        postprocess(detector.outputs(batch.images, batch.sizes), batch.sizes, config, [joint_score(config)])

    return infer


def _seconds(sides: list[Callable[[], None]], device: torch.device) -> list[list[float]]:
    """Of each side the seconds in each of `ROUNDS`, after one that does not count."""
    seconds: list[list[float]] = [[] for _ in sides]
    for number in range(ROUNDS + 1):
        for side, took in zip(sides, seconds):
            start = time.perf_counter()
            side()
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            if number:
                took.append(time.perf_counter() - start)
    return seconds
