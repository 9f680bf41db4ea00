"""The optimizer, and its learning rate as a function of the step: nothing to restore when a run resumes."""

from __future__ import annotations

import math
from collections.abc import Collection
from typing import Any

import torch
from torch import nn

from retinaconf.config import Config

DECAY = 0.1  # at each milestone
COSINE_END = 0.01  # share of the learning rate that is left at the end
LONGEST_WARMUP = 0.1  # share of a run: a longer one would leave a short run no steps at its full learning rate


def build_optimizer(
    model: nn.Module, config: Config, kept: Collection[str] = (), fused: bool | None = None
) -> torch.optim.Optimizer:
    """SGD or AdamW over the parameters that learn; AdamW decays weights, not norms and biases.

    The parameters named in `kept` have groups of their own if their learning rate differs: `rate` is its share there.
    `fused` is torch's: all of a step in one kernel; None leaves the choice to torch.
    """
    settings = config.optimizer
    slow = set(kept) if settings.kept_lr != 1 else set()
    learning = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    groups = _groups([p for name, p in learning if name not in slow], config)
    if slow:
        slower = _groups([p for name, p in learning if name in slow], config)
        groups += [group | {"rate": settings.kept_lr} for group in slower]
    if settings.name == "sgd":
        return torch.optim.SGD(groups, lr=0.0, momentum=settings.momentum, fused=fused)
    return torch.optim.AdamW(groups, lr=0.0, fused=fused)


def _groups(parameters: list[nn.Parameter], config: Config) -> list[dict[str, Any]]:
    decay = config.optimizer.weight_decay
    if config.optimizer.name == "sgd":
        return [{"params": parameters, "weight_decay": decay}]
    return [
        {"params": [p for p in parameters if p.ndim > 1], "weight_decay": decay},
        {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
    ]


def peak_learning_rate(config: Config) -> float:
    """The learning rate after warm-up, scaled in proportion to the batch."""
    return config.optimizer.lr * config.data.batch_size / config.optimizer.reference_batch


def warmup_steps(config: Config, steps_per_epoch: int) -> int:
    """The steps in which the learning rate rises: as many as are set, but at most a tenth of the run."""
    return min(config.schedule.warmup_steps, int(LONGEST_WARMUP * config.schedule.epochs * steps_per_epoch))


def learning_rate(config: Config, step: int, steps_per_epoch: int) -> float:
    """The learning rate of step `step`, counted from 0."""
    schedule = config.schedule
    peak = peak_learning_rate(config)
    rising = warmup_steps(config, steps_per_epoch)
    warmup = min(1.0, step / rising) if rising else 1.0
    rate = peak * (schedule.warmup_start + (1 - schedule.warmup_start) * warmup)
    if schedule.decay == "step":
        return rate * DECAY ** sum(step >= epoch * steps_per_epoch for epoch in schedule.milestones)
    progress = step / (schedule.epochs * steps_per_epoch)
    return rate * (COSINE_END + (1 - COSINE_END) * (1 + math.cos(math.pi * progress)) / 2)


def describe(config: Config, steps_per_epoch: int) -> str:
    """The schedule in force, in words and numbers, with the learning rate that the warm-up reaches."""
    schedule, optimizer = config.schedule, config.optimizer
    decay = (
        f"x{DECAY:g} after epochs {', '.join(map(str, schedule.milestones))}"
        if schedule.decay == "step"
        else f"cosine to {COSINE_END:.0%}"
    )
    rising = warmup_steps(config, steps_per_epoch)
    reached = f" to {learning_rate(config, rising, steps_per_epoch):.3g}" if rising else ""
    warmup = f"{rising} warm-up {'step' if rising == 1 else 'steps'}"
    shortened = rising < schedule.warmup_steps
    why = f" (schedule.warmup-steps {schedule.warmup_steps} is more than a tenth of the run)" if shortened else ""
    return (
        f"{optimizer.name}, learning rate {optimizer.lr:g} x {config.data.batch_size}/{optimizer.reference_batch} "
        f"= {peak_learning_rate(config):g}, {warmup}{reached}{why}, {decay}; "
        f"{schedule.epochs} epochs x {steps_per_epoch} steps of {config.data.batch_size} images"
    )
