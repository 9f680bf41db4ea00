"""Training, top to bottom."""

from __future__ import annotations

import json
import math
import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from lightning_fabric import Fabric
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from retinaconf.config import Config
from retinaconf.data.ground_truth import GroundTruth
from retinaconf.data.loader import steps_per_epoch, training_batches
from retinaconf.device import find_device
from retinaconf.errors import InputError, Interrupted
from retinaconf.evaluation.coco import CocoEvaluator, Metrics
from retinaconf.files import write_aside
from retinaconf.inference.detector import Detector
from retinaconf.model.anchors import anchor_boxes, level_shapes
from retinaconf.model.retinanet import RetinaNet
from retinaconf.training.checkpoint import (
    LAST,
    METRICS,
    MODEL,
    Weights,
    data_of_run,
    metrics_line,
    read_state,
    see_same_data,
    write_state,
    write_weights,
)
from retinaconf.training.losses import detection_losses
from retinaconf.training.matching import match
from retinaconf.training.progress import Progress
from retinaconf.training.schedule import build_optimizer, describe, learning_rate

LOG_EVERY = 10  # steps between lines of training metrics
CHECKPOINT_SECONDS = 600  # `last.ckpt` is written at every epoch's end, and this often in between


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
        precision={"32": "32-true"}.get(config.precision, config.precision),  # type: ignore[arg-type]
    )
    fabric.launch()
    return fabric


def train(
    config: Config,
    train_set: GroundTruth,
    val_set: GroundTruth | None,
    run: Path,
    fabric: Fabric,
    progress: Progress,
    max_steps: int | None = None,
) -> None:
    """Train a detector into the folder `run`, going on from its `last.ckpt` if there is one.

    The weights kept are the best by AP on `val_set`, which has boxes, or without it the last. After `max_steps` steps
    in all the run ends early, with its schedule as if it went on; within the first epoch, without validation.

    Raises:
        InputError: the batch does not divide among processes and passes, or the loss is no longer finite.
        Interrupted: SIGINT or SIGTERM came; the run is saved.
    """
    parts = config.optimizer.accumulate
    if config.data.batch_size % (parts * fabric.world_size):
        raise InputError(
            f"data.batch-size {config.data.batch_size} does not divide by {fabric.world_size} processes x "
            f"optimizer.accumulate {parts}; change one of them"
        )
    torch.manual_seed(config.seed)
    network = RetinaNet(config.model, len(train_set.classes))
    network.to(memory_format=_memory_format(network, config, fabric.device))
    averaged = AveragedModel(network, multi_avg_fn=_ema(config.optimizer.ema)) if config.optimizer.ema else None
    if fabric.device.type == "cpu" and config.precision != "32":
        depthwise_in_32_bits(network)
    optimizer = build_optimizer(network, config)

    epoch_steps = steps_per_epoch(len(train_set), config.data.batch_size)
    last_step = min(config.schedule.epochs * epoch_steps, max_steps or math.inf)
    assert isinstance(last_step, int)
    categories, data = (train_set.category_ids, train_set.classes), data_of_run(train_set, val_set)
    step, best = 0, -1.0
    if (run / LAST).exists():
        state = read_state(run / LAST)
        see_same_data(run / LAST, state, train_set, val_set)
        if state["step"] > last_step:
            raise InputError(
                f"{run / LAST}: the run has taken {state['step']} steps already, more than the {last_step} of "
                "this command; give a larger --max-steps, or the data of the run"
            )
        network.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        if averaged is not None:
            averaged.load_state_dict(state["averaged"])
        step, best = state["step"], state["best"]
        progress.best = best
        progress.say(f"going on at step {step} of {last_step}")
    if fabric.is_global_zero:
        _forget_metrics_after(run / METRICS, step)
    progress.say(describe(config, epoch_steps))

    model, optimizer = fabric.setup(network, optimizer)
    if averaged is not None:
        averaged.to(fabric.device)
    evaluator = CocoEvaluator(val_set) if val_set is not None else None
    batches = training_batches(
        train_set, config.data, config.seed, step, last_step, parts, fabric.global_rank, fabric.world_size
    )

    def save() -> None:
        if fabric.is_global_zero:
            state = {"step": step, "best": best, "categories": categories, "data": data}
            state |= {"model": network.state_dict(), "optimizer": optimizer.state_dict()}
            write_state(run / LAST, state | ({"averaged": averaged.state_dict()} if averaged is not None else {}))

    network.train()
    saved_at = time.monotonic()
    logged: list[dict[str, Tensor]] = []
    with _stop_signals() as stop_wanted, progress.training(step, last_step, config.data.batch_size):
        while step < last_step:
            rate = learning_rate(config, step, epoch_steps)
            for group in optimizer.param_groups:
                group["lr"] = rate

            # Matching needs no network, so the positives of the whole batch are counted first: however the batch is
            # divided among processes and passes, the loss is the same.
            passes = [next(batches).to(fabric.device) for _ in range(parts)]
            matches = [
                match(
                    anchor_boxes(level_shapes(*b.images.shape[2:]), fabric.device, network.cell_anchors),
                    b.boxes,
                    b.labels,
                )
                for b in passes
            ]
            counted = torch.tensor([sum(m.positives for m in matches), stop_wanted()], device=fabric.device)
            positives, stop = (int(n) for n in fabric.all_reduce(counted, reduce_op="sum"))

            sums: dict[str, Tensor] = {}
            for part, (batch, matched) in enumerate(zip(passes, matches), 1):
                with fabric.no_backward_sync(model, enabled=part < parts):
                    outputs = model(batch.images, batch.sizes)
                    losses = detection_losses(
                        outputs, matched, batch.boxes, config.model, config.loss, max(1, positives)
                    )
                    # Gradients are averaged over processes; the losses are already shares of the whole batch's.
                    fabric.backward(torch.stack(list(losses.values())).sum() * fabric.world_size)
                for name, loss in losses.items():
                    sums[name] = sums.get(name, torch.zeros((), device=fabric.device)) + loss.detach()
            if config.optimizer.clip_norm:
                fabric.clip_gradients(model, optimizer, max_norm=config.optimizer.clip_norm, error_if_nonfinite=False)
            optimizer.step()
            optimizer.zero_grad()
            if averaged is not None:
                averaged.update_parameters(network)
            step += 1

            logged.append(sums)
            # An epoch's end closes the window, so that a run resumed from there logs the same.
            if step % LOG_EVERY == 0 or step % epoch_steps == 0 or step == last_step:
                means = _means(fabric, logged)
                logged = []
                if not math.isfinite(sum(means.values())):
                    raise InputError(
                        f"the loss is not finite at step {step}; lower --optimizer.lr (now {rate:g}), set "
                        f"--optimizer.clip-norm, or go back to --precision 32. {run / LAST} holds an earlier state"
                    )
                record = {"step": step, "epoch": step / epoch_steps, "lr": rate, **means}
                _append(fabric, run / METRICS, {"kind": "train", **record})
                progress.losses(step, means)
            progress.step(step, step / epoch_steps)

            if step % epoch_steps == 0 or step == last_step:
                kept = network if averaged is None else averaged.module
                metrics = None
                # Stopped within its first epoch, a run tries things out; a pass over COCO's val would take far longer.
                if evaluator is not None and step >= epoch_steps:
                    metrics = _validate(fabric, kept, evaluator, config)
                    _append(fabric, run / METRICS, _validation_record(step, epoch_steps, metrics))
                    progress.validated(step, step / epoch_steps, metrics.overall)
                # Without validation the last weights are the best there are.
                score = math.inf if metrics is None else metrics.overall["AP"]
                if fabric.is_global_zero and (score >= best or not (run / MODEL).exists()):
                    write_weights(run / MODEL, kept.state_dict(), config, train_set.classes, train_set.category_ids)
                best = best if metrics is None else max(best, score)
                save()
                saved_at = time.monotonic()
            elif stop:
                save()
                raise Interrupted(f"stopped at step {step} of {last_step}; the same command with --resume goes on")
            elif time.monotonic() - saved_at > CHECKPOINT_SECONDS:
                save()
                saved_at = time.monotonic()


def _memory_format(network: nn.Module, config: Config, device: torch.device) -> torch.memory_format:
    """Channels last where it makes a training step faster: depthwise convolutions, tensor cores.

    Measured by `benchmarks/speed.py`; a step of ResNet-50 on a CPU takes longer with it.
    """
    depthwise = any(isinstance(module, nn.Conv2d) and module.groups > 1 for module in network.modules())
    tensor_cores = device.type == "cuda" and config.precision != "32"
    return torch.channels_last if depthwise or tensor_cores else torch.contiguous_format


def depthwise_in_32_bits(network: nn.Module) -> None:
    """Leave depthwise convolutions out of mixed precision, in place. For CPUs: there their backward pass in bfloat16
    takes several times as long as in 32 bits, more than the rest of the step gains (`benchmarks/precision.py`).
    """

    def in_32_bits(forward: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
        def call(x: Tensor) -> Tensor:
            with torch.autocast("cpu", enabled=False):
                return forward(x.float())

        return call

    for module in network.modules():
        if isinstance(module, nn.Conv2d) and module.groups > 1:
            module.forward = in_32_bits(module.forward)  # type: ignore[method-assign, assignment]


def _validate(fabric: Fabric, network: nn.Module, evaluator: CocoEvaluator, config: Config) -> Metrics:
    """COCO metrics of the network as it is, on the split of `evaluator`: to the last digit those of `evaluate`.

    They are computed by a `Detector`, as they will be later: in 32 bits whatever the precision of training, in its
    batches and its memory format. All of these change the last bits of a score, and lower precision more than those.
    """
    gt = evaluator.ground_truth
    # The weights that the first process will save: the running statistics of norms differ among processes.
    state = fabric.broadcast({name: tensor.cpu() for name, tensor in network.state_dict().items()})
    detector = Detector(Weights(config, gt.classes, gt.category_ids, state), fabric.device)
    (table,) = detector.detect(gt, config.inference)
    return evaluator(table.image_index, table.boxes, table.scores, table.labels)


def _ema(decay: float) -> Any:
    """Exponential moving average; early on its decay is less, so that it forgets the first weights."""

    @torch.no_grad()
    def update(averaged: list[Tensor], current: list[Tensor], updates: Tensor) -> None:
        n = float(updates)
        torch._foreach_lerp_(averaged, current, 1 - min(decay, (1 + n) / (10 + n)))

    return update


def _means(fabric: Fabric, logged: list[dict[str, Tensor]]) -> dict[str, float]:
    """Mean of each loss over the steps since the last line, over all processes; and their total."""
    table = torch.stack([torch.stack(list(sums.values())) for sums in logged]).mean(0)
    table = fabric.all_reduce(table, reduce_op="sum")  # type: ignore[assignment]
    means = dict(zip(logged[0], table.tolist()))
    return {"loss": sum(means.values()), **means}


def _validation_record(step: int, epoch_steps: int, metrics: Metrics) -> dict[str, Any]:
    record = {"kind": "val", "step": step, "epoch": step / epoch_steps, **metrics.overall}
    return record | {"per_class": metrics.per_class}


def _append(fabric: Fabric, path: Path, record: dict[str, Any]) -> None:
    if fabric.is_global_zero:
        with path.open("a") as file:
            file.write(metrics_line(record))


def _forget_metrics_after(path: Path, step: int) -> None:
    """Drop the lines of steps that a resumed run will take again, and half a line of a killed one."""
    if not path.exists():
        return
    lines = []
    for line in path.read_text().splitlines():
        try:
            if json.loads(line)["step"] <= step:
                lines.append(line + "\n")
        except ValueError:
            continue
    write_aside(path, lambda aside: aside.write_text("".join(lines)))


@contextmanager
def _stop_signals() -> Iterator[Any]:
    """Collect SIGINT and SIGTERM while the step is finished; a second one acts at once."""
    received: list[int] = []

    def remember(number: int, frame: Any) -> None:
        received.append(number)
        signal.signal(number, previous[number])

    previous: dict[int, Any] = {number: signal.signal(number, remember) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield lambda: len(received) > 0
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
