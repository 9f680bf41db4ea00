"""Runs of the paper's experiments: their settings, their training, and their evaluation, each done once."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from retinaconf.config import Config, read_config
from retinaconf.data.ground_truth import GroundTruth
from retinaconf.data.images import check_images
from retinaconf.data.layouts import describe, find_layout, load_split
from retinaconf.data.loader import steps_per_epoch
from retinaconf.diagnosis.average_precision import AveragePrecision, image_draws
from retinaconf.diagnosis.candidates import Candidates
from retinaconf.diagnosis.matching import match_detections
from retinaconf.errors import InputError
from retinaconf.evaluation.coco import METRICS, CocoEvaluator
from retinaconf.files import write_aside
from retinaconf.inference.dataset import DetectionTable
from retinaconf.inference.detector import load
from retinaconf.inference.evaluate import same_categories
from retinaconf.inference.joint_score import JointScore
from retinaconf.model.backbone import Backbone
from retinaconf.paper.items import Training, joints_of
from retinaconf.recipes import DETECTORS
from retinaconf.training.checkpoint import CONFIG, LAST, MODEL, read_state
from retinaconf.training.checkpoint import METRICS as METRICS_LOG
from retinaconf.training.run import train_run

REPLICATES = 500  # bootstrap draws of the images
TRIED = 8  # images that are evaluated where trainings end within their first epoch


@dataclass(frozen=True)
class Evaluation:
    """One run by one joint score: COCO's ten numbers (None where nothing decides one), and AP on each draw."""

    metrics: dict[str, float | None]
    draws: np.ndarray  # (B,), NaN where a draw has no object


class Experiments:
    """The folder `out/runs` and the data that its runs are trained and evaluated on."""

    def __init__(
        self,
        out: Path,
        root: Path,
        base: Config,
        split: str = "val",
        schedule: str = "1x",
        max_steps: int | None = None,
        device: str = "auto",
    ):
        """See that the data are there, and that the folder's runs are of the same data.

        Raises:
            InputError: bad data, a missing split, or a folder with runs on other data.
        """
        self.folder, self.root, self.split, self.device = out / "runs", root, split, device
        self.base, self.schedule, self.max_steps = base, schedule, max_steps
        skip_bad, layout = base.data.skip_bad, base.data.layout
        train_set = load_split(root, "train", skip_bad, layout)
        truth = check_images(load_split(root, split, skip_bad, layout), skip_bad)
        self.is_coco = find_layout(root, layout).name.startswith("COCO") and len(truth.classes) == 80
        self.description = describe(root, truth, layout)
        if truth.crowd.all():
            raise InputError(f"{truth.source}: no boxes, so nothing to evaluate on; choose another --split")
        self._epoch_steps = steps_per_epoch(len(check_images(train_set, skip_bad)), base.data.batch_size)
        if max_steps is not None and max_steps < self._epoch_steps:  # it tries things out, as in `train`
            truth = truth.subset(np.unique(truth.image_index[~truth.crowd])[:TRIED])
            self.base = _with_weights_at_hand(base)
        self.ground_truth = truth
        self._digest = _digest(truth)
        self._same_data(out / "data.json", _digest(train_set))
        self._made: dict[tuple[Training, int], Path] = {}
        self._evaluated: dict[tuple[Training, int], dict[JointScore, Evaluation]] = {}

    def config(self, training: Training, seed: int) -> Config:
        """The settings of a run: the base's, the detector's, the training's own."""
        changes = dict(DETECTORS[training.detector]) | dict(training.changes) | {"seed": seed}
        if training.longer and self.schedule != "2x":
            schedule = self.base.schedule
            changes |= {
                "schedule.epochs": 2 * schedule.epochs,
                "schedule.milestones": tuple(2 * epoch for epoch in schedule.milestones),
            }
        return self.base.changed(**changes)

    def run(self, training: Training, seed: int) -> Path:
        """The folder of a finished run: found by its settings, or trained, going on where it was stopped.

        Raises:
            InputError: training is impossible.
            Interrupted: it was asked to stop; the same command goes on.
        """
        if (training, seed) not in self._made:
            found = [path for path in self.found(training, seed) if (path / MODEL).exists()]
            self._made[training, seed] = found[0] if found else self._train(training, seed)
        return self._made[training, seed]

    def found(self, training: Training, seed: int) -> list[Path]:
        """Folders of runs with these settings that took all their steps, with their weights or without them."""
        config = self.config(training, seed)
        steps = config.schedule.epochs * self._epoch_steps
        steps = min(steps, self.max_steps or steps)
        return [
            path.parent
            for path in sorted(self.folder.glob(f"*/{CONFIG}"))
            if _settings(read_config(path)) == _settings(config) and _steps_taken(path.parent) == steps
        ]

    def _train(self, training: Training, seed: int) -> Path:
        config = self.config(training, seed)
        key = json.dumps([_settings(config), self.max_steps], sort_keys=True)
        told = [name.rpartition(".")[2] if value is True else str(value) for name, value in training.changes]
        words = [training.detector, *told] + ["2x"] * training.longer
        name = "-".join([*words, f"seed{seed}", hashlib.sha256(key.encode()).hexdigest()[:8]])
        print(f"training {name}", flush=True)
        train_run(config, self.root, self.folder / name, True, self.max_steps, self.device)
        return self.folder / name

    def evaluate(self, training: Training, seed: int) -> dict[JointScore, Evaluation]:
        """A run by every joint score that some item uses, from one pass of the network; kept beside the run."""
        if (training, seed) not in self._evaluated:
            names = {joint: joint.name for joint in joints_of(training)}
            kept = self.measured(training, seed, "evaluation", _evaluate, tuple(names.values()))
            self._evaluated[training, seed] = {joint: _evaluation(kept[name]) for joint, name in names.items()}
        return self._evaluated[training, seed]

    def measured(
        self,
        training: Training,
        seed: int,
        what: str,
        measure: Callable[[Experiments, Path, Training], dict[str, Any]],
        wanted: tuple[str, ...] = (),
    ) -> dict[str, Any]:
        """What `measure` finds of a run, kept beside it as JSON: measured once, or again if a `wanted` key is missing.

        Of a run whose weights have been deleted, what was kept is used; only where it is not enough is it trained anew.
        """
        for run in self.found(training, seed):
            kept = self._kept(run, what)
            if kept and all(key in kept for key in wanted):
                return kept
        run = self.run(training, seed)
        print(f"{what} of {run.name}", flush=True)
        kept = measure(self, run, training)
        self._keep(run, what, kept)
        return kept

    def _kept(self, run: Path, what: str) -> dict[str, Any]:
        """What was computed of a run on this split before, of the weights that it has now, if it has; {} if nothing."""
        path = run / f"{what}-{self.split}.json"
        try:
            document = json.loads(path.read_text())
            of, results = document["of"], document["results"]
        except (OSError, ValueError, KeyError, TypeError):
            return {}
        same_weights = not (run / MODEL).exists() or of.get("weights") == _weights_digest(run)
        return results if same_weights and of.get("data") == self._digest else {}

    def _keep(self, run: Path, what: str, results: dict[str, Any]) -> None:
        document = {"of": {"weights": _weights_digest(run), "data": self._digest}, "results": results}
        path = run / f"{what}-{self.split}.json"
        write_aside(path, lambda aside: aside.write_text(json.dumps(document) + "\n"))

    def _same_data(self, path: Path, digest: str) -> None:
        if path.exists():
            known = json.loads(path.read_text())
            if known["train"] != digest:
                raise InputError(f"{path.parent}: its runs are of other data ({known['root']}); choose another --out")
            return
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(f"{self.folder}: cannot be made ({error.strerror}); choose another --out") from None
        document = {"root": str(self.root), "train": digest}
        write_aside(path, lambda aside: aside.write_text(json.dumps(document, indent=1) + "\n"))


def _evaluate(experiments: Experiments, run: Path, training: Training) -> dict[str, Any]:
    truth, joints = experiments.ground_truth, joints_of(training)
    detector = load(run, None if experiments.device == "auto" else experiments.device)
    same_categories(detector, run, truth)
    evaluator = CocoEvaluator(truth)
    found = {}
    for joint, table in zip(joints, detector.detect(truth, detector.config.inference, joints)):
        overall = evaluator(table.image_index, table.boxes, table.scores, table.labels).overall
        found[joint.name] = {
            "metrics": {name: _known(overall[name]) for name in METRICS},
            "draws": [None if np.isnan(value) else round(value, 5) for value in replicates(table, truth)],
        }
    return found


def replicates(table: DetectionTable, truth: GroundTruth) -> list[float]:
    """AP on each bootstrap draw of the images, NaN where a draw has no object; the same draws for any detector."""
    curve = AveragePrecision(match_detections(candidates(table, Path("detections")), truth), truth)
    draws = image_draws(np.arange(len(truth)), len(truth), REPLICATES, 0)
    return [float(curve(draw).mean()) for draw in draws]


def candidates(table: DetectionTable, run: Path) -> Candidates:
    """A detector's boxes as the diagnosis takes them."""
    boxes, scores = table.boxes.astype(np.float64), table.scores.astype(np.float64)
    return Candidates(table.image_index, table.labels, boxes, scores, source=str(run))


def _with_weights_at_hand(base: Config) -> Config:
    """The settings, with random weights where ImageNet's cannot be had: enough where no training means anything."""
    if base.model.weights != "imagenet":
        return base
    try:
        Backbone(base.model.backbone, freeze_stem=False)
    except InputError as error:
        print(f"{error}. Trying things out, this starts from random ones", flush=True)
        return base.changed(**{"model.weights": "none"})
    return base


def _evaluation(kept: dict[str, Any]) -> Evaluation:
    return Evaluation(kept["metrics"], np.array(kept["draws"], dtype=np.float64))  # null becomes NaN


def _settings(config: Config) -> dict[str, Any]:
    """What decides a result: loading does not."""
    return {name: value for name, value in config.flat().items() if name != "data.workers"}


def _steps_taken(run: Path) -> int | None:
    """By the checkpoint, or without it by what was logged; None where a file is missing or damaged."""
    try:
        if (run / LAST).exists():
            return int(read_state(run / LAST)["step"])
        return int(json.loads((run / METRICS_LOG).read_text().splitlines()[-1])["step"])
    except (OSError, ValueError, KeyError, IndexError):
        return None


def _weights_digest(run: Path) -> str:
    return hashlib.sha256((run / MODEL).read_bytes()).hexdigest()


def _digest(ground_truth: GroundTruth) -> str:
    """Of everything that a result on this ground truth depends on but the images' pixels."""
    digest = hashlib.sha256(json.dumps([ground_truth.classes, ground_truth.file_names.tolist()]).encode())
    for name in ("image_ids", "image_sizes", "image_index", "boxes", "labels", "crowd"):
        digest.update(np.ascontiguousarray(getattr(ground_truth, name)).tobytes())
    return digest.hexdigest()[:16]


def _known(value: float) -> float | None:
    return None if np.isnan(value) else value
