"""Trainings that are killed at random moments and continued: equal, to the bit, to those that nothing has stopped.

Weights, optimizer, averaged weights and losses since the last line are in `last.ckpt`, whose values are all compared;
metrics and the best weights have files; and the trained detectors find the same boxes.
"""

import os
import random
import shutil
import signal
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from children import Child, Training, at_call, training
from detectors import ONE_ANCHOR

from retinaconf.evaluation.coco import CocoEvaluator
from retinaconf.inference.detector import Detector
from retinaconf.training import checkpoint, loop, metrics_log
from retinaconf.training import step as step_module

pytestmark = pytest.mark.torture

EPOCH, IMAGES = 6, 12
SETTINGS: dict[str, Any] = {
    "data.batch_size": 2,
    "optimizer.reference_batch": 2,
    "optimizer.lr": 3e-3,
    "schedule.epochs": 2,
    "inference.score_threshold": 0.001,  # so that two epochs find something
}
ONE = ONE_ANCHOR | {"model.level_scale": True, "loss.box": "giou"}
SGD = {"optimizer.name": "sgd", "schedule.decay": "step", "schedule.milestones": [1]}
TRAININGS: dict[str, dict[str, Any]] = {
    "conf": {},
    "l1 with SGD and accumulation": {"loss.quality": "l1", "optimizer.accumulate": 2, **SGD},
    "smooth-l1 with EMA and 2 workers": {"loss.quality": "smooth-l1", "optimizer.ema": 0.9, "data.workers": 2},
    "l2 in bf16": {"loss.quality": "l2", "precision": "bf16-mixed"},
    "IoU-aware with gfocal": {"model.quality": "localization", "loss.quality": "gfocal", "optimizer.ema": 0.9},
    "ce-weighted, all together": {
        "loss.quality": "ce-weighted",
        "optimizer.accumulate": 2,
        "optimizer.ema": 0.9,
        "precision": "bf16-mixed",
        "data.workers": 2,
    },
    "varifocal with strong augmentation": {"loss.quality": "varifocal", "data.augment": "strong", "data.workers": 2},
    "gfocal-all": {"loss.quality": "gfocal-all", "optimizer.weight_decay": 0.05},
    "ce-near": {"loss.quality": "ce-near", "loss.detach_quality_target": True},
    "ce-ranked": {"loss.quality": "ce-ranked", "loss.rank": 0.5, "optimizer.ema": 0.9},
    "RetinaNet": {"model.quality": "none", "inference.alpha": 0.0, "loss.box": "giou", **SGD},
    "joint with ATSS": {
        "model.quality": "none",
        "inference.alpha": 0.0,
        "model.class_target": "iou",
        "matching.assigner": "atss",
        "optimizer.accumulate": 2,
        **ONE,
    },
    "task-aligned": {
        "model.box": "distribution",
        "model.quality": "distribution",
        "matching.assigner": "task-aligned",
        "loss.joint": "product",
        "loss.rank": 0.5,
        "optimizer.ema": 0.9,
        "data.workers": 2,
        **ONE,
    },
}
KILL, TERM, INT = signal.SIGKILL, signal.SIGTERM, signal.SIGINT


class Moment(NamedTuple):
    """Where a signal meets a training: at a random time of its life, or at a random call of this part."""

    phase: str
    number: signal.Signals
    twice: bool = False  # a second signal acts at once


MOMENTS = [
    [Moment("at any time", KILL)],
    [Moment("at any time", TERM)],
    [Moment("at any time", INT)],
    [Moment("in a step", KILL)],
    [Moment("in a step", TERM)],
    [Moment("in the writing of a checkpoint", KILL)],
    [Moment("in the writing of a checkpoint", INT, twice=True)],
    [Moment("in validation", KILL)],
    [Moment("in validation", INT)],
    [Moment("at any time", KILL), Moment("at any time", KILL)],
]


def arm(moment: Moment, draw: random.Random) -> None:
    """Let this process send itself the signal at a random call in the phase."""

    def strike(*_: Any) -> None:
        for _ in range(1 + moment.twice):
            os.killpg(0, moment.number)

    def tear(state: Any, aside: Path) -> None:
        os.truncate(aside, draw.randrange(os.path.getsize(aside) + 1))
        strike()

    after = draw.random() < 0.5
    if draw.random() < 0.5:
        loop.CHECKPOINT_SECONDS = 0  # a checkpoint after every step
    if moment.twice:
        loop.SAME_STOP_SECONDS = 0  # the second signal is no echo of the first
    if moment.phase == "in a step":
        parts = [(step_module, "detection_losses"), (loop, "take_step"), (torch.optim.Optimizer, "zero_grad")]
        at_call(*draw.choice(parts), draw.randint(1, 2 * EPOCH - 1), strike, after)
    elif moment.phase == "in the writing of a checkpoint":
        part = draw.choice([(torch, "save"), (checkpoint, "damage_of"), (os, "fsync"), (os, "replace")])
        inside = (tear, True) if part[1] == "save" else (strike, after)
        call = draw.randint(1, 2) if part[1] == "replace" else 1  # the old one away, the new one into its place
        at_call(loop, "write_state", draw.randint(1, 4), lambda *_: at_call(*part, call, *inside))
    elif moment.phase == "in validation":
        parts = [(Detector, "__init__"), (Detector, "detect"), (CocoEvaluator, "__call__")]
        parts += [(loop, name) for name in ("write_weights", "write_epoch", "write_page")]
        at_call(*draw.choice(parts), draw.randint(1, 2), strike, after)


def strike(one: Training, run: Path, moment: Moment, draw: random.Random, *more: str) -> None:
    """Train until a signal has ended the training; one that ends before it does not count."""
    before = run.with_suffix(".before")
    for _ in range(50):
        shutil.rmtree(before, ignore_errors=True)
        if run.exists():
            shutil.copytree(run, before)
        armed = random.Random(draw.random())

        def act(armed: random.Random = armed) -> None:
            arm(moment, armed)
            one.command(run, *more)()

        child = Child(act, run.with_suffix(".said"))
        if moment.phase == "at any time":
            time.sleep(draw.uniform(0, one.seconds))
            child.kill(moment.number)
        code, said = child.wait(), child.said.read_text()
        if code:
            assert code == -moment.number or moment.number != KILL, said
            if code > 0:
                stopped = "retinaconf: interrupted" if moment.twice else "retinaconf: stopped at step "
                last = said.splitlines()[-1]
                assert code == 1, said
                assert last.startswith((stopped, "retinaconf: interrupted")), said
                assert "Traceback" not in said
            return
        shutil.rmtree(run)
        if before.exists():
            shutil.copytree(before, run)
    raise AssertionError(f"{moment} is met by no training")


@pytest.mark.parametrize("name", TRAININGS)
def test_killed_at_random_moments_and_continued_is_the_whole_run(
    name: str,
    tmp_path: Path,
    make_data: Callable[..., Path],
    tiny_settings: dict[str, Any],
    record_property: Callable[..., None],
):
    data = make_data(tmp_path / "data", train=IMAGES, val=3)
    one = training(tmp_path, data, tiny_settings | SETTINGS | TRAININGS[name])
    equal, all_of, faults = Counter[str](), Counter[str](), []
    for number, moments in enumerate(MOMENTS):
        draw, run = random.Random(f"{name} {number}"), tmp_path / f"run-{number}"
        for again, moment in enumerate(moments):
            strike(one, run, moment, draw, *(["--resume"] if again else []))
        different = one.continued(run)
        faults += [(moments, different)] if different else []
        for moment in moments:
            what = f"{moment.number.name}{' twice' * moment.twice} {moment.phase}"
            all_of[what] += 1
            equal[what] += not different
        for left in tmp_path.glob(f"run-{number}*"):
            shutil.rmtree(left) if left.is_dir() else left.unlink()
    for what, count in all_of.items():
        record_property(f"kills: {what}; continued, the run is the whole one", (equal[what], count))
    assert faults == []


def half_a_line(path: Path, line: str) -> None:
    with path.open("a") as file:
        file.write(line[: len(line) // 2])
    os.kill(os.getpid(), KILL)


@pytest.mark.parametrize("part", ["each renaming", "each line of metrics"])
def test_killed_at_each_write_and_continued_is_the_whole_run(
    part: str,
    tmp_path: Path,
    make_data: Callable[..., Path],
    tiny_settings: dict[str, Any],
    record_property: Callable[..., None],
):
    """Before each file appears under its name, from `val.txt` to the last page, and in the middle of each line."""
    data = make_data(tmp_path / "data", train=IMAGES + 4, val=0)
    one = training(tmp_path, data, tiny_settings | SETTINGS | {"data.val_fraction": 0.25, "optimizer.ema": 0.9})
    count, faults = 0, []
    for number in range(1, 100):
        run = tmp_path / f"run-{number}"

        def act(number: int = number, run: Path = run) -> None:
            if part == "each renaming":
                at_call(os, "replace", number, lambda *_: os.kill(os.getpid(), KILL))
            else:
                at_call(metrics_log, "append_line", number, half_a_line)
            one.command(run)()

        if Child(act, tmp_path / "said").wait() == 0:
            break
        count += 1
        different = one.continued(run)
        faults += [(number, different)] if different else []
        shutil.rmtree(run)
    assert count >= (15 if part == "each renaming" else 4)
    record_property(f"kills: SIGKILL at {part}; continued, the run is the whole one", (count - len(faults), count))
    assert faults == []
