"""One step of training: forward and backward passes over a batch, and the optimizer's step."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from lightning_fabric import Fabric
from torch import Tensor

from retinaconf.config import Config
from retinaconf.data.loader import Batch
from retinaconf.training.assigners import Assigner
from retinaconf.training.losses import detection_losses


def take_step(
    fabric: Fabric, model: Any, optimizer: Any, passes: Sequence[Batch], assign: Assigner, config: Config
) -> dict[str, Tensor]:
    """Take a step with `model` and `optimizer`, set up by `fabric`, on `passes`, the parts of this process's batch.

    Returns the losses by name, () each, as far as this process has computed them: summed over all processes they are
    those of the whole batch. For each pass the CPU waits once for a GPU, for the number of positives.
    """
    sums: dict[str, Tensor] = {}
    normaliser = torch.zeros((), device=fabric.device)
    for part, batch in enumerate(passes, 1):
        with fabric.no_backward_sync(model, enabled=part < len(passes)):
            outputs = model(batch.images, batch.sizes)
            matches = assign(outputs, batch.boxes, batch.labels, config)
            # Losses are divided by the normaliser of the whole batch, so that it may be split among processes and
            # passes in any way. What earlier passes gave was divided by less.
            counted: Any = fabric.all_reduce(matches.normaliser, reduce_op="sum")
            before, normaliser = normaliser, normaliser + counted
            if part > 1:
                share = before.clamp(min=1) / normaliser.clamp(min=1)
                torch._foreach_mul_([p.grad for p in model.parameters() if p.grad is not None], share)
                sums = {name: loss * share for name, loss in sums.items()}
            losses = detection_losses(outputs, matches, batch.boxes, batch.labels, config, normaliser.clamp(min=1))
            # Gradients are averaged over processes; the losses are already shares of the whole batch's.
            fabric.backward(torch.stack(list(losses.values())).sum() * fabric.world_size)
        for name, loss in losses.items():
            sums[name] = sums.get(name, torch.zeros((), device=fabric.device)) + loss.detach()
    if config.optimizer.clip_norm:
        fabric.clip_gradients(
            model,
            optimizer,
            max_norm=config.optimizer.clip_norm,
            error_if_nonfinite=False,
        )
    optimizer.step()
    optimizer.zero_grad()
    return sums
