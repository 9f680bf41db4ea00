"""One step of training: forward and backward passes over a batch, and the optimizer's step."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from lightning_fabric import Fabric
from torch import Tensor

from retinaconf.config import Config
from retinaconf.data.loader import Batch
from retinaconf.model.anchors import Grid, anchor_grid, level_shapes
from retinaconf.model.retinanet import Outputs
from retinaconf.training.assigners import BY_ANCHORS, Assigner
from retinaconf.training.losses import detection_losses
from retinaconf.training.matching import Matches


class Taken(NamedTuple):
    """What a step has computed."""

    losses: dict[str, Tensor]  # by name, () each, as far as this process has computed them
    loss: Tensor  # () over all of them and all processes
    gradient: Tensor  # () the largest absolute value; 0 in fp16, where one that is not finite is dealt with by scaling
    finite: Tensor  # () bool: whether both are, and so whether the step has changed the weights

    def what_is_not_finite(self) -> str:
        """The part of the step that is to blame, and its verb."""
        return "gradient is" if self.loss.isfinite() else "loss is"

    def in_words(self) -> str:
        """All values, to the last digit."""
        parts = ", ".join(f"{name} {value.item()!r}" for name, value in self.losses.items())
        return f"loss {self.loss.item()!r} ({parts}), gradient {self.gradient.item()!r}"


def take_step(
    fabric: Fabric, model: Any, optimizer: Any, passes: Sequence[Batch], assign: Assigner, config: Config
) -> Taken:
    """Take a step with `model` and `optimizer`, set up by `fabric`, on `passes`, the parts of this process's batch.

    Losses summed over all processes are those of the whole batch. If one or a gradient is not finite, this step leaves
    the weights as they are; with a fused optimizer so do all later steps. For each pass the CPU waits once for a GPU,
    for the number of positives: before the network runs, if the assigner allows it, so that the CPU then stays ahead.
    """
    sums: dict[str, Tensor] = {}
    normaliser = torch.zeros((), device=fabric.device)
    for part, batch in enumerate(passes, 1):
        with fabric.no_backward_sync(model, enabled=part < len(passes)):
            if assign in BY_ANCHORS:
                shapes = level_shapes(*batch.images.shape[2:])
                grid = anchor_grid(shapes, batch.images.device, config.model.cell_anchors)
                matches = _matched(assign, grid, batch, config)
            outputs = model(batch.images, batch.sizes)
            if assign not in BY_ANCHORS:
                matches = _matched(assign, outputs, batch, config)
            # Losses are divided by the normaliser of the whole batch, so that it may be split among processes and
            # passes in any way. What earlier passes gave was divided by less.
            counted: Any = fabric.all_reduce(matches.normaliser, reduce_op="sum")
            before, normaliser = normaliser, normaliser + counted
            if part > 1:
                share = before.clamp(min=1) / normaliser.clamp(min=1)
                torch._foreach_mul_([p.grad for p in model.parameters() if p.grad is not None], share)
                sums = {name: loss * share for name, loss in sums.items()}
            losses = detection_losses(outputs, matches, batch.boxes, batch.labels, config, normaliser.clamp(min=1))
            del outputs  # the largest tensor of a step are the class logits, and the backward pass does not need them
            # Gradients are averaged over processes; the losses are already shares of the whole batch's.
            fabric.backward(torch.stack(list(losses.values())).sum() * fabric.world_size)
        for name, loss in losses.items():
            sums[name] = sums.get(name, torch.zeros((), device=fabric.device)) + loss.detach()
    total: Any = fabric.all_reduce(torch.stack(list(sums.values())).sum(), reduce_op="sum")
    gradient = _largest_gradient(fabric, model)
    taken = Taken(sums, total, gradient, total.isfinite() & gradient.isfinite())
    if optimizer.param_groups[0]["fused"]:  # its kernel looks at `found_inf`, so that the CPU need not wait
        earlier = getattr(optimizer.optimizer, "found_inf", torch.zeros((), device=fabric.device))
        optimizer.optimizer.found_inf = torch.maximum(earlier, (~taken.finite).float())
    elif not taken.finite:
        optimizer.zero_grad()
        return taken
    if config.optimizer.clip_norm:
        fabric.clip_gradients(
            model,
            optimizer,
            max_norm=config.optimizer.clip_norm,
            error_if_nonfinite=False,
        )
    optimizer.step()
    optimizer.zero_grad()
    return taken


def _matched(assign: Assigner, known: Grid | Outputs, batch: Batch, config: Config) -> Matches:
    matches = assign(known, batch.boxes, batch.labels, config)
    _ = matches.index  # here the CPU waits
    return matches


def _largest_gradient(fabric: Fabric, model: Any) -> Tensor:
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    if not gradients or getattr(fabric.strategy.precision, "scaler", None) is not None:
        return torch.zeros((), device=fabric.device)
    return torch.stack(torch._foreach_norm(gradients, math.inf)).max()
