"""Runs of the paper's experiments: their settings, their training, and their evaluation, each done once.

What is measured of a run is one line of `out/measured/TRAINING.jsonl`: the run's name, its complete settings and number
of steps, the digests of its weights and of the data, and the results. Tables are made from these lines alone, so that a
run folder can be deleted once it is measured. Lines are only ever appended; of two for the same thing the later counts.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from retinaconf.config import Config, config_from_flat
from retinaconf.data.ground_truth import GroundTruth
from retinaconf.data.images import check_images
from retinaconf.data.layouts import describe, find_layout, load_split
from retinaconf.data.loader import steps_per_epoch
from retinaconf.data.splits import read_split
from retinaconf.errors import InputError, reason
from retinaconf.evaluation.coco import METRICS, CocoEvaluator
from retinaconf.evaluation.compare import bootstrap_ap
from retinaconf.files import append_line, finite, write_json
from retinaconf.inference.detector import load
from retinaconf.model.backbone import Backbone
from retinaconf.paper.items import Row, Training, rows_of
from retinaconf.recipes import DETECTORS
from retinaconf.run_folder import CONFIG, METRICS_LOG, MODEL, checkpoints, read_config
from retinaconf.training.checkpoint import read_last
from retinaconf.training.run import train_run

TRIED = 8  # images that are evaluated where trainings end within their first epoch


@dataclass(frozen=True)
class Evaluation:
    """One run by one joint score: COCO's ten numbers (None where nothing decides one), and AP on each draw."""

    metrics: dict[str, float | None]
    draws: np.ndarray  # (B,), NaN where a draw has no object


class Experiments:
    """The folders `out/runs` and `out/measured`, and the data that the runs are trained and evaluated on."""

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
        self.folder, self.kept, self.root, self.split, self.device = out / "runs", out / "measured", root, split, device
        self.base, self.schedule, self.max_steps = base, schedule, max_steps
        data, layout = base.data, base.data.layout
        train_set = load_split(root, "train", data.skip_bad, layout, val_fraction=data.val_fraction)
        truth = read_split(root, split, data, layout, like=train_set, whose=train_set.source)
        self.is_coco = find_layout(root, layout).name.startswith("COCO") and len(truth.classes) == 80
        self.description = describe(root, truth, layout)
        if truth.crowd.all():
            raise InputError(f"{truth.source}: no boxes, so nothing to evaluate on; choose another --split")
        usable = check_images(train_set, data.skip_bad, data.max_skipped)
        self._epoch_steps = steps_per_epoch(len(usable), base.data.batch_size)
        if max_steps is not None and max_steps < self._epoch_steps:  # it tries things out, as in `train`
            truth = truth.subset(np.unique(truth.image_index[~truth.crowd])[:TRIED])
            self.base = _with_weights_at_hand(base)
        self.ground_truth = truth
        self._digest = _digest(truth)
        self._same_data(out / "data.json", _digest(train_set))
        self._made: dict[tuple[Training, int], Path] = {}
        self._evaluated: dict[tuple[Training, int], dict[str, Evaluation]] = {}

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
        """The folder of a finished run: found by its settings, or trained, continued where it was stopped.

        Raises:
            InputError: training is impossible.
            Interrupted: it was asked to stop; the same command continues it.
        """
        if (training, seed) not in self._made:
            self._made[training, seed] = self.finished(training, seed) or self._train(training, seed)
        return self._made[training, seed]

    def finished(self, training: Training, seed: int) -> Path | None:
        """The folder of a run with these settings and its weights, if there is one."""
        settings = self.config(training, seed).deciding()
        for path in sorted(self.folder.glob(f"*/{CONFIG}")):
            it_is = (path.parent / MODEL).exists() and read_config(path).deciding() == settings
            if it_is and _steps_taken(path.parent) == self._steps(training, seed):
                return path.parent
        return None

    def _steps(self, training: Training, seed: int) -> int:
        steps = self.config(training, seed).schedule.epochs * self._epoch_steps
        return min(steps, self.max_steps or steps)

    def _train(self, training: Training, seed: int) -> Path:
        config = self.config(training, seed)
        key = json.dumps([config.deciding(), self.max_steps], sort_keys=True)
        name = f"{training.name}-seed{seed}-{hashlib.sha256(key.encode()).hexdigest()[:8]}"
        print(f"training {name}", flush=True)
        train_run(config, self.root, self.folder / name, True, self.max_steps, self.device)
        return self.folder / name

    def evaluate(self, row: Row, seed: int) -> Evaluation:
        """A row's run. It is evaluated at once by all that some item's row judges it by (`Row.judged_by`)."""
        known = self._evaluated.setdefault((row.training, seed), {})
        if row.judged_by not in known:
            results = self.measured(row.training, seed, "evaluation", _evaluate, (row.judged_by,))
            known |= {name: _evaluation(result) for name, result in results.items()}
        return known[row.judged_by]

    def measured(
        self,
        training: Training,
        seed: int,
        what: str,
        measure: Callable[[Experiments, Path, Training], dict[str, Any]],
        wanted: tuple[str, ...] = (),
    ) -> dict[str, Any]:
        """What `measure` finds of a run: measured once, or again if a `wanted` key is missing."""
        if (kept := self.kept_of(training, seed, what, wanted)) is not None:
            return kept
        run = self.run(training, seed)
        print(f"{what} of {run.name}", flush=True)
        results = measure(self, run, training)
        line: dict[str, Any] = {"run": run.name, "what": what, "split": self.split, "data": self._digest}
        line |= {"weights": _weights_digest(run), "steps": self._steps(training, seed)}
        line |= {"config": self.config(training, seed).flat(), "results": results}
        self.kept.mkdir(exist_ok=True)
        path = self.kept / f"{training.name}.jsonl"
        append_line(path, json.dumps(line, separators=(",", ":")) + "\n")
        return results

    def kept_of(self, training: Training, seed: int, what: str, wanted: tuple[str, ...] = ()) -> dict[str, Any] | None:
        """What was measured of a run before, with all `wanted` keys."""
        for line in reversed(self.lines(training, seed)):
            is_it = (line["what"], line["split"], line["data"]) == (what, self.split, self._digest)
            if is_it and all(key in line["results"] for key in wanted):
                results: dict[str, Any] = line["results"]
                return results
        return None

    def lines(self, training: Training, seed: int) -> list[dict[str, Any]]:
        """What has been measured of a run with these settings and steps, and with the weights that it has, if any."""
        path = self.kept / f"{training.name}.jsonl"
        settings, steps = self.config(training, seed).deciding(), self._steps(training, seed)
        found = []
        for text in path.read_text().splitlines() if path.exists() else []:
            try:
                line = json.loads(text)
                is_it = config_from_flat(line["config"]).deciding() == settings and line["steps"] == steps
                weights = line["weights"]
            except (ValueError, KeyError, TypeError, InputError):  # half a line of a command that was killed
                continue
            run = self.folder / line["run"]
            if is_it and (not (run / MODEL).exists() or weights == _weights_digest(run)):
                found.append(line)
        return found

    def _same_data(self, path: Path, digest: str) -> None:
        if path.exists():
            try:
                known = json.loads(path.read_text())
                trained_on, other_root = known["train"], known["root"]
            except (OSError, ValueError, KeyError, TypeError):
                raise InputError(f"{path}: was not written by this command; choose another --out") from None
            if trained_on != digest:
                raise InputError(f"{path.parent}: its runs are of other data ({other_root}); choose another --out")
            return
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(f"{self.folder}: cannot be made ({reason(error)}); choose another --out") from None
        write_json(path, {"root": str(self.root), "train": digest})


def _evaluate(experiments: Experiments, run: Path, training: Training) -> dict[str, Any]:
    truth, rows = experiments.ground_truth, rows_of(training).values()
    detector = load(run, experiments.device)
    evaluator = CocoEvaluator(truth)
    found = {}
    for finish in dict.fromkeys(row.finish for row in rows):  # each a pass of the network, for all joint scores
        judged = {row.judged_by: row.joint for row in rows if row.finish == finish}
        tables = detector.detect(truth, detector.inference_config(**dict(finish)), list(judged.values()))
        for name, table in zip(judged, tables):
            overall = evaluator(table).overall
            found[name] = {
                "metrics": finite({name: overall[name] for name in METRICS}),
                "draws": finite([round(value, 5) for value in bootstrap_ap(table, truth)]),
            }
    return found


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


def _steps_taken(run: Path) -> int | None:
    """By the checkpoint, or without it by what was logged; None where a file is missing or damaged."""
    try:
        if checkpoints(run):
            state, _ = read_last(run)
            return int(state.get("validated", state["step"]))  # version 0.1 saved after validation only
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
