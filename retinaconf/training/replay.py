"""`not-finite.safetensors`: the step whose loss or gradient was not finite, kept to be taken again."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch
from lightning_fabric import Fabric
from torch import nn

from retinaconf.config import Config
from retinaconf.data.ground_truth import GroundTruth
from retinaconf.data.loader import Batch
from retinaconf.errors import InputError
from retinaconf.model.retinanet import with_weights
from retinaconf.run_folder import METRICS_LOG, MODEL, NOT_FINITE, read_weights, write_weights
from retinaconf.training.assigners import assigner_at
from retinaconf.training.precision import fused_on, lay_out
from retinaconf.training.schedule import build_optimizer
from retinaconf.training.step import Taken, take_step

IMAGES_NAMED = 16


class Watch:
    """Stops a run at the step whose loss or gradient is not finite. All processes call the methods together.

    `take_step` leaves the weights alone in such a step, and if the optimizer is `fused`, in all later ones. Then the
    answer is copied from the GPU while the next step is being prepared, and read after that: nothing waits for it.
    """

    def __init__(
        self, fabric: Fabric, network: nn.Module, train_set: GroundTruth, config: Config, run: Path, fused: bool
    ):
        self.fabric, self.network, self.train_set, self.config, self.run = fabric, network, train_set, config, run
        self.fused = fused
        self._last: tuple[int, int, Sequence[Batch], Taken] | None = None
        self._finite = torch.tensor(True)  # of the last step; on the CPU if `fused`, once `_copied` has happened
        self._copied: torch.cuda.Event | None = None

    def add(self, step: int, epoch: int, passes: Sequence[Batch], taken: Taken) -> None:
        """Take in step `step`, of epoch `epoch` from 0.

        Raises:
            InputError: as `look`, for this step, or if the optimizer is fused, for the one before.
        """
        if self.fused:
            self.look()
        self._last, self._finite = (step, epoch, passes, taken), taken.finite
        if not self.fused:
            self.look()
        elif taken.finite.is_cuda:
            self._finite = taken.finite.to("cpu", non_blocking=True)
            self._copied = torch.cuda.Event()
            self._copied.record()

    def look(self) -> None:
        """See that the last step was finite.

        Raises:
            InputError: it was not. Its batch and the weights before it are in `not-finite.safetensors`.
        """
        if self._copied is not None:
            self._copied.synchronize()
        if self._last is None or bool(self._finite):
            return
        step, epoch, passes, taken = self._last
        file = self.run / NOT_FINITE
        if self.fabric.global_rank:
            file = file.with_stem(f"{file.stem}-{self.fabric.global_rank}")
        names = [str(self.train_set.file_names[i]) for batch in passes for i in batch.index.tolist()]
        more = f" and {len(names) - IMAGES_NAMED} more" if len(names) > IMAGES_NAMED else ""
        state = dict(self.network.state_dict())
        for part, batch in enumerate(passes):
            state |= {f"batch.{part}.{name}": getattr(batch, name) for name in (f.name for f in fields(batch))}
        about = {"step": step, "epoch": epoch, "images": names}
        write_weights(file, state, self.config, self.train_set.classes, self.train_set.category_ids, replay=about)
        raise diverged(
            f"{taken.what_is_not_finite()} not finite at step {step}: {taken.in_words()}, on "
            f"{', '.join(names[:IMAGES_NAMED])}{more}. `retinaconf train --replay {file}` computes it again;",
            self.config,
            self.run,
        )


def diverged(what: str, config: Config, run: Path) -> InputError:
    """The message of a run that cannot continue: the same steps would diverge again."""
    remedies = [f"a lower --optimizer.lr (now {config.optimizer.lr:g})"]
    remedies += [] if config.optimizer.clip_norm else ["--optimizer.clip-norm 10"]
    remedies += [] if config.precision == "32" else ["--precision 32"]
    best = f", {run / MODEL} the best weights before" if (run / MODEL).exists() else ""
    return InputError(
        f"the {what} train anew into another --out with {' or '.join(remedies)}. "
        f"{run / METRICS_LOG} holds the losses{best}"
    )


def replay(file: Path, config: Config, fabric: Fabric) -> str:
    """Take the step in a `not-finite.safetensors` again, with other settings if `config` has some; a line about it.

    Of a run of several processes, a file has the images of one of them, and the losses are of these.

    Raises:
        InputError: the file has no step in it, or the settings do not fit its weights.
    """
    weights = read_weights(file)
    if weights.replay is None:
        raise InputError(f"{file}: holds no batch; give a {NOT_FINITE} that a run has left")
    batches: dict[str, dict[str, Any]] = {}
    for name in [name for name in weights.state if name.startswith("batch.")]:
        _, part, field = name.split(".")
        batches.setdefault(part, {})[field] = weights.state.pop(name)
    try:
        network = with_weights(config.model, len(weights.classes), weights.state)
    except InputError as error:
        raise InputError(
            f"{file}: its weights do not fit the settings ({error}); leave out the --model settings"
        ) from None
    lay_out(network, config, fabric.device)
    optimizer = build_optimizer(network, config, fused=fused_on(fabric.device, config.precision))
    model, optimizer = fabric.setup(network, optimizer)
    network.train()
    for batch in batches.values():  # a file has no memory format, and rounding depends on it
        batch["images"] = batch["images"].contiguous(memory_format=torch.channels_last)
    passes = [Batch(**batches[part]).to(fabric.device) for part in sorted(batches, key=int)]
    about = weights.replay
    taken = take_step(fabric, model, optimizer, passes, assigner_at(config, about["epoch"]), config)
    return f"step {about['step']} on {', '.join(about['images'])}: {taken.in_words()}"
