"""Training, top to bottom."""

from __future__ import annotations

import math
import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from lightning_fabric import Fabric
from torch import nn

from retinaconf.config import Config
from retinaconf.data.changes import Files
from retinaconf.data.ground_truth import GroundTruth
from retinaconf.data.loader import steps_per_epoch, training_batches
from retinaconf.detections import Detections
from retinaconf.device import find_device
from retinaconf.errors import InputError, Interrupted
from retinaconf.evaluation.coco import CocoEvaluator, Metrics
from retinaconf.inference.detector import Detector
from retinaconf.model.head import PRIOR
from retinaconf.model.retinanet import RetinaNet
from retinaconf.run_folder import CHECKED, LAST, MODEL, Weights, checkpoints, write_weights
from retinaconf.training.assigners import assigner_at
from retinaconf.training.checkpoint import data_of_run, load_optimizer, read_last, restoring, see_same_data, write_state
from retinaconf.training.ema import MovingAverage
from retinaconf.training.epochs import write_epoch
from retinaconf.training.joint_loss import class_prior
from retinaconf.training.metrics_log import MetricsLog
from retinaconf.training.page import write_page
from retinaconf.training.patience import is_over, verdict
from retinaconf.training.precision import compile_network, fused_on, lay_out, precision_on, remarks
from retinaconf.training.progress import Progress
from retinaconf.training.replay import Watch, diverged
from retinaconf.training.schedule import build_optimizer, describe, learning_rate
from retinaconf.training.start import begin, is_run
from retinaconf.training.step import take_step
from retinaconf.training.worst_pictures import Shown, best_boxes, from_state

LOG_EVERY = 10  # steps between lines of training metrics
CHECKPOINT_SECONDS = 600  # `last.ckpt` is written at every epoch's end, and this often in between
SAME_STOP_SECONDS = 2  # a scheduler signals all processes, and torchrun signals its own again: one wish to stop


def launch(config: Config, device: str = "auto") -> Fabric:
    """Devices, precision and processes. Under torchrun, this process is one of those that it started.

    Raises:
        InputError: there is no such device.
    """
    found = find_device(device)
    fabric = Fabric(
        accelerator=found.type,
        devices=int(os.environ.get("LOCAL_WORLD_SIZE", 1)) if not found.index else [found.index],
        num_nodes=int(os.environ.get("GROUP_WORLD_SIZE", 1)),
        precision=precision_on(found, config.precision).replace("32", "32-true"),  # type: ignore[arg-type]
    )
    fabric.launch()
    return fabric


@contextmanager
def with_other_processes(fabric: Fabric) -> Iterator[None]:
    """Say in one line that another process of the run has died: the next exchange with it fails.

    Raises:
        InputError: it has.
    """
    try:
        yield
    except RuntimeError as error:
        if fabric.world_size == 1 or not (isinstance(error, torch.distributed.DistError) or "gloo" in str(error)):
            raise
        raise InputError(
            "another process of this run has ended, and said why if it could; once that is mended, the same command "
            "with --resume continues from the last checkpoint"
        ) from None


def train(
    config: Config,
    train_set: GroundTruth,
    val_set: GroundTruth | None,
    run: Path,
    fabric: Fabric,
    progress: Progress,
    max_steps: int | None = None,
    tensorboard: bool = False,
) -> None:
    """Train a detector into the folder `run`, continuing from its `last.ckpt` if there is one.

    The weights kept are the best by AP on `val_set`, which has boxes, or without it the last. After `max_steps` steps
    in total the run ends early, with the schedule of the full run; within the first epoch, without validation. With
    `tensorboard` its curves are also written for TensorBoard.

    Raises:
        InputError: the batch does not divide among processes and passes, the weights to start from cannot be had or do
            not fit, an image cannot be loaded, or the loss or the weights are no longer finite. If an image cannot be
            loaded after a step, the run is saved.
        Interrupted: SIGINT or SIGTERM came; the run is saved.
    """
    parts = config.optimizer.accumulate
    if config.data.batch_size % (parts * fabric.world_size):
        raise InputError(
            f"data.batch-size {config.data.batch_size} does not divide by {fabric.world_size} processes x "
            f"optimizer.accumulate {parts}; change one of them"
        )
    torch.manual_seed(config.seed)
    resumes = bool(checkpoints(run))
    bare = resumes or is_run(config.model.weights)  # all weights come from there
    network = RetinaNet(config.model.model_copy(update={"weights": "none"} if bare else {}), len(train_set.classes))
    if config.loss.joint == "product":
        network.head.start_at(class_prior(PRIOR, config.inference.alpha))
    if resumes:
        state, warning = read_last(run)
        if warning:
            progress.say(warning)
        with restoring(run / LAST):
            see_same_data(run / LAST, state, train_set, val_set)
        learned_before = state.get("kept", ())  # names of the parameters that began with weights
    else:
        lines, learned_before = begin(network, config, train_set.classes)
        for line in lines:
            progress.say(line)
    lay_out(network, config, fabric.device)
    averaged = MovingAverage(network, config.optimizer.ema) if config.optimizer.ema else None
    fused = fused_on(fabric.device, config.precision)
    optimizer = build_optimizer(network, config, learned_before, fused)

    epoch_steps = steps_per_epoch(len(train_set), config.data.batch_size)
    last_step = min(config.schedule.epochs * epoch_steps, max_steps or math.inf)
    assert isinstance(last_step, int)
    categories, data = (train_set.category_ids, train_set.classes), data_of_run(train_set, val_set)
    # Weights and optimizer state are loaded where setup has put the parameters: it moves no optimizer state.
    model, optimizer = fabric.setup(network, optimizer)
    if config.compile:
        compile_network(network)
        progress.say(
            "compile: torch translates the network at the first step on each size of a padded batch, up to eight"
        )
    if averaged is not None:
        averaged.module.to(fabric.device)
    step, best, validated = 0, -1.0, 0  # `validated`: the last step whose weights were validated
    log, window = MetricsLog(run, fabric, epoch_steps, tensorboard), {}
    shown: list[Shown] = []  # of the last two validations
    with restoring(run / LAST):
        if resumes:
            if state["step"] > last_step:
                raise InputError(
                    f"{run / LAST}: the run has taken {state['step']} steps already, more than the {last_step} of "
                    "this command; give a larger --max-steps, or the data of the run"
                )
            network.load_state_dict(state["model"])
            load_optimizer(optimizer, state["optimizer"])
            if averaged is not None:
                averaged.load_state_dict(state["averaged"])
            if state.get("precision"):  # of fp16: the gradient scaler
                fabric.strategy.precision.load_state_dict(state["precision"])
            step, best = state["step"], state["best"]
            validated = state.get("validated", step)  # version 0.1 saved after validation only
            window = state.get("window", {})
            shown = [from_state(state["shown"], val_set)] if val_set is not None and "shown" in state else []
            progress.best = best
            progress.say(f"continuing at step {step} of {last_step}")
        log.go_on(window, {"train": step, "val": validated})
    progress.say(describe(config, epoch_steps))
    for line in remarks(fabric.device, config.precision):
        progress.say(line)

    evaluator = CocoEvaluator(val_set) if val_set is not None else None
    files = Files(split for split in (train_set, val_set) if split is not None) if fabric.is_global_zero else None
    batches = training_batches(
        train_set, config.data, config.seed, step, last_step, parts, fabric.global_rank, fabric.world_size
    )

    # Processes agree on what happens between steps through their CPUs, which need not wait for a GPU's step for that.
    cpus: Any = torch.distributed.new_group(backend="gloo") if fabric.world_size > 1 else None
    network.train()
    watch = Watch(fabric, network, train_set, config, run, bool(fused))
    first_step, saved_at = step, time.monotonic()

    @contextmanager
    def curve_kept() -> Iterator[None]:
        """Write the losses since the last line if the run has to end."""
        try:
            yield
        except InputError:
            if log.window():
                log.write_losses(step, rate)
            raise

    def save() -> None:
        """Write `last.ckpt`. All processes call it together."""
        nonlocal saved_at
        with curve_kept():
            watch.look()
        state: dict[str, Any] = {"step": step, "best": best, "validated": validated, "data": data}
        state |= {"categories": categories, "model": network.state_dict(), "optimizer": optimizer.state_dict()}
        state |= {"precision": fabric.strategy.precision.state_dict(), "window": log.window()}
        state |= {"averaged": averaged.state_dict()} if averaged is not None else {}
        state |= {"shown": shown[-1].state()} if shown else {}
        state |= {"kept": sorted(learned_before)} if learned_before else {}
        with curve_kept():
            if not (_is_finite(network) and (averaged is None or _is_finite(averaged))):
                raise diverged(f"weights are not finite at step {step};", config, run)
        if fabric.is_global_zero:
            write_state(run / LAST, state)
        saved_at = time.monotonic()

    with _stop_signals() as stop_wanted, progress.training(step, last_step, config.data.batch_size):
        while True:
            if validated < step and (step % epoch_steps == 0 or step == last_step):
                save()  # before validation: whatever ends it, no step is lost
                for warning in files.changes() if files is not None else ():
                    progress.say(warning)
                kept = network if averaged is None else averaged.module
                metrics = None
                # Stopped within its first epoch, a run tries things out; a pass over COCO's val would take far longer.
                if evaluator is not None and step >= epoch_steps:
                    try:
                        table, metrics = _validate(fabric, kept, evaluator, config)
                    except InputError as error:
                        raise InputError(f"{error}; {_stopped_at(step, last_step)}") from None
                    log.write_validation(step, metrics)
                    progress.validated(step / epoch_steps, metrics.overall)
                    boxes = best_boxes(table, evaluator.ground_truth)
                    shown = [*shown[-1:], Shown(step / epoch_steps, boxes)]
                # Without validation the last weights are the best there are.
                score = math.inf if metrics is None else metrics.overall["AP"]
                if fabric.is_global_zero and (score >= best or not (run / MODEL).exists()):
                    write_weights(run / MODEL, kept.state_dict(), config, train_set.classes, train_set.category_ids)
                best = best if metrics is None else max(best, score)
                validated = step
                if fabric.is_global_zero:
                    ended = step >= last_step or is_over(log.validations, config.schedule.patience)
                    write_page(run, config, write_epoch(run, progress.speed()), val_set, shown, ended)
                save()
                progress.go_on(step)
                continue
            if step >= last_step or (validated == step and is_over(log.validations, config.schedule.patience)):
                break

            failure = None
            try:
                passes = [next(batches).to(fabric.device) for _ in range(parts)]
            except InputError as error:
                failure, passes = error, []
            late = fabric.is_global_zero and time.monotonic() - saved_at > CHECKPOINT_SECONDS
            events = torch.tensor([stop_wanted(), late, failure is not None], dtype=torch.int)
            if cpus is not None:
                torch.distributed.all_reduce(events, group=cpus)
            stop, overdue, failures = events.tolist()
            if failures:
                failure = failure or InputError("another process failed")
                (run / CHECKED).unlink(missing_ok=True)  # which may have known the image as good
                if step == first_step:  # there is nothing to save
                    raise failure
                save()
                raise InputError(f"{failure}; {_stopped_at(step, last_step)}")
            if stop or overdue:
                save()
            if stop:
                raise Interrupted(_stopped_at(step, last_step))

            rate = learning_rate(config, step, epoch_steps)
            for group in optimizer.param_groups:
                group["lr"] = rate * group.get("rate", 1.0)
            assign = assigner_at(config, step // epoch_steps)
            taken = take_step(fabric, model, optimizer, passes, assign, config)
            if averaged is not None:
                averaged.update(network)
            step += 1

            log.add(taken.losses)
            with curve_kept():
                watch.add(step, (step - 1) // epoch_steps, passes, taken)
            # An epoch's end closes the window, so that validation comes after all the lines of its epoch.
            if step % LOG_EVERY == 0 or step % epoch_steps == 0 or step == last_step:
                means = log.write_losses(step, rate)
                progress.losses(step, means)
            progress.step(step, step / epoch_steps)
    if log.validations:
        progress.say(verdict(log.validations, config.schedule.patience, math.ceil(last_step / epoch_steps)))


def _is_finite(network: nn.Module) -> bool:
    return all(bool(tensor.isfinite().all()) for tensor in network.state_dict().values())


def _stopped_at(step: int, last_step: int) -> str:
    return f"stopped at step {step} of {last_step}; the same command with --resume continues"


def _validate(
    fabric: Fabric, network: nn.Module, evaluator: CocoEvaluator, config: Config
) -> tuple[Detections, Metrics]:
    """Detections and COCO metrics of the network as it is, on the split of `evaluator`.

    To the last digit they are those of `evaluate`: a `Detector` computes them, as it will later, in 32 bits whatever
    the precision of training, in its batches and its memory format. All of these change the last bits of a score, and
    lower precision more than those.
    """
    gt = evaluator.ground_truth
    # The weights that the first process will save: the running statistics of norms differ among processes.
    state = fabric.broadcast({name: tensor.cpu() for name, tensor in network.state_dict().items()})
    detector = Detector(Weights(config, gt.classes, gt.category_ids, state), fabric.device)
    (table,) = detector.detect(gt, config.inference)
    return table, evaluator(table)


@contextmanager
def _stop_signals() -> Iterator[Any]:
    """Collect SIGINT and SIGTERM while the step is finished; a later second one acts at once."""
    received: list[float] = []  # when

    def remember(number: int, frame: Any) -> None:
        received.append(time.monotonic())
        if received[-1] - received[0] > SAME_STOP_SECONDS:
            signal.signal(number, previous[number])
            signal.raise_signal(number)

    previous: dict[int, Any] = {number: signal.signal(number, remember) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield lambda: len(received) > 0
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
