"""`train --dry-run`: what a run will take, measured in its first steps."""

from __future__ import annotations

import re
import time
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from lightning_fabric import Fabric

from retinaconf.config import Config
from retinaconf.data.ground_truth import GroundTruth
from retinaconf.data.loader import steps_per_epoch, training_batches
from retinaconf.errors import InputError, Interrupted
from retinaconf.training.loop import train
from retinaconf.training.progress import Progress
from retinaconf.training.schedule import DECAY, warmup_steps

STEPS = 20  # that are measured


class Clock(Progress):
    """Shows progress, and remembers when each step was done."""

    def __init__(self, silent: bool):
        super().__init__(silent=silent)
        self.times = [time.monotonic()]

    def step(self, step: int, epoch: float) -> None:
        """A step is done."""
        super().step(step, epoch)
        self.times.append(time.monotonic())

    def seconds_per_step(self) -> float:
        """The mean without the first quarter, which starts processes and compiles; of a single step, all it took."""
        taken = len(self.times) - 1
        first = min(taken - 1, 1 + taken // 4)
        return (self.times[-1] - self.times[first]) / (taken - first)


def dry_run(
    config: Config, train_set: GroundTruth, fabric: Fabric, progress: Progress, max_steps: int | None = None
) -> None:
    """Take the first steps of a training, throw its weights away, and say what the whole will take.

    Raises:
        InputError: the training cannot start, or its loss is no longer finite.
        Interrupted: SIGINT or SIGTERM came.
    """
    epoch_steps = steps_per_epoch(len(train_set), config.data.batch_size)
    steps = config.schedule.epochs * epoch_steps
    ends = min(steps, max_steps or steps)
    clock = Clock(silent=not fabric.is_global_zero)
    with TemporaryDirectory() as folder:
        try:
            train(config, train_set, None, Path(folder), fabric, clock, min(STEPS, ends))
        except InputError as error:
            raise InputError(f"{error} (of a dry run, no file is kept)") from None
        except Interrupted:
            raise Interrupted("the dry run was stopped; nothing of it is kept") from None
    measured = [clock.seconds_per_step(), _seconds_of_loading(config, train_set, fabric), _peak_memory(fabric.device)]
    gathered = fabric.all_gather(torch.tensor(measured, device=fabric.device))
    assert isinstance(gathered, torch.Tensor)
    step, loading, memory = gathered.reshape(-1, len(measured)).amax(0).tolist()  # of the slowest, the largest process
    progress.say(f"dry run of {min(STEPS, ends)} steps; nothing is kept")
    progress.say(_batch(config, fabric.world_size))
    progress.say(_steps(config, epoch_steps, ends))
    progress.say(_memory(memory, fabric.device))
    progress.say(_time(config, step, loading, ends))


def _batch(config: Config, processes: int) -> str:
    size, parts = config.data.batch_size, config.optimizer.accumulate
    return (
        f"effective batch: {size} images = {processes} {'process' if processes == 1 else 'processes'} x "
        f"{parts} {'pass' if parts == 1 else 'passes'} x {size // (processes * parts)}"
    )


def _steps(config: Config, epoch_steps: int, ends: int) -> str:
    schedule = config.schedule
    steps = schedule.epochs * epoch_steps
    falls = [f"{epoch * epoch_steps:,}" for epoch in schedule.milestones if epoch < schedule.epochs]
    decay = "falls along a cosine to the last step"
    if schedule.decay == "step":
        decay = f"x{DECAY:g} after step {' and '.join(falls)}" if falls else "does not fall"
    early = f"; --max-steps ends it after step {ends:,}" if ends < steps else ""
    return (
        f"steps: {steps:,} = {schedule.epochs} epochs x {epoch_steps:,}; learning rate: warm-up to step "
        f"{warmup_steps(config, epoch_steps):,}, {decay}{early}"
    )


def _memory(memory: float, device: torch.device) -> str:
    if not memory:
        return "memory: not measured on this system"
    if device.type == "cuda":
        total = torch.cuda.get_device_properties(device).total_memory
        return f"memory: {memory / 2**30:.2f} GiB at most in tensors, of {total / 2**30:.1f} GiB on the GPU"
    return f"memory: {memory / 2**30:.2f} GiB at most in a training process; processes that load images come on top"


def _time(config: Config, step: float, loading: float, ends: int) -> str:
    batch = config.data.batch_size
    limit = ", which is the limit: see --data.workers" if loading > step else ""
    seconds = max(step, loading)
    return (
        f"time: {seconds:.3g} s a step, {batch / seconds:.3g} images/s (images are loaded at {batch / loading:.3g} "
        f"images/s{limit}); {ends:,} steps take {_duration(seconds * ends)}, start and validation not included"
    )


def _duration(seconds: float) -> str:
    minutes = round(seconds / 60)
    return f"{minutes // 60:,} h {minutes % 60} min" if minutes >= 60 else f"{seconds / 60:.1f} min"


def _seconds_of_loading(config: Config, train_set: GroundTruth, fabric: Fabric) -> float:
    """Seconds in which a step's images are loaded while nothing else is done.

    Batches that are loaded before they are needed would hide a slow loader from the few steps that are measured.
    Workers deliver in turns, so whole turns are counted, after a first one, which starts them.
    """
    parts, workers = config.optimizer.accumulate, max(1, config.data.workers)
    turns = -(-STEPS // workers)
    batches = workers * (1 + turns)
    steps = -(-batches // parts)
    of = (parts, fabric.global_rank, fabric.world_size)
    times = [time.monotonic() for _ in training_batches(train_set, config.data, config.seed, 0, steps, *of)]
    return (times[batches - 1] - times[workers - 1]) / (workers * turns) * parts


def _peak_memory(device: torch.device) -> float:
    """Bytes: of tensors on a GPU; on a CPU of this process; 0 where the system does not tell."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    status = Path("/proc/self/status")
    found = re.search(r"VmHWM:\s+(\d+) kB", status.read_text()) if device.type == "cpu" and status.exists() else None
    return 1024.0 * int(found[1]) if found else 0.0
