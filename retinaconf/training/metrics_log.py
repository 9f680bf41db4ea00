"""`metrics.jsonl`: a line every few training steps, a line every validation."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from lightning_fabric import Fabric
from torch import Tensor

from retinaconf.evaluation.coco import Metrics
from retinaconf.files import append_line, finite, write_aside
from retinaconf.run_folder import METRICS_LOG, metrics_line, read_metrics
from retinaconf.training.patience import Validation
from retinaconf.training.tensorboard import TensorBoard


class MetricsLog:
    """The file, and the losses of the steps since its last line. All processes call the methods together."""

    def __init__(self, run: Path, fabric: Fabric, epoch_steps: int, tensorboard: bool = False):
        self.path, self.fabric, self.epoch_steps = run / METRICS_LOG, fabric, epoch_steps
        self.validations: list[Validation] = []  # so far
        self._board: TensorBoard | None = None
        self._wants_board = tensorboard and fabric.is_global_zero
        self._shares: list[dict[str, Tensor]] = []  # of each step, by loss, the part that this process has computed

    def add(self, losses: dict[str, Tensor]) -> None:
        """Take in a step's losses, scalars, as far as this process has computed them."""
        self._shares.append(losses)

    def window(self) -> dict[str, Tensor]:
        """Each loss in the steps since the last line, (steps,), over all processes: what a resumed run needs."""
        if not self._shares:
            return {}
        table = torch.stack([torch.stack(list(losses.values())) for losses in self._shares])
        table = self.fabric.all_reduce(table, reduce_op="sum")  # type: ignore[assignment]
        return dict(zip(self._shares[0], table.unbind(1)))

    def go_on(self, window: dict[str, Tensor], steps: dict[str, int]) -> None:
        """Go on with a window, and drop the lines after the step of their kind, and half a line of a killed run."""
        whole = self.fabric.is_global_zero  # this process takes the window over, the others have no part in it
        columns = [column.to(self.fabric.device) * whole for column in window.values()]
        self._shares = [dict(zip(window, row)) for row in zip(*columns)]
        kept = [record for record in read_metrics(self.path) if record["step"] <= steps.get(record["kind"], -1)]
        self.validations = [Validation(one["epoch"], one["AP"]) for one in kept if one["kind"] == "val"]
        self.fabric.barrier()  # all have read it
        if self.fabric.is_global_zero and self.path.exists():
            write_aside(self.path, lambda aside: aside.write_text("".join(map(metrics_line, kept))))
        if self._wants_board:
            self._board = TensorBoard(self.path.parent, kept)

    def write_losses(self, step: int, rate: float) -> dict[str, float]:
        """A line with the means of the losses since the last line, and their total `loss`; returns these."""
        window = self.window()
        means = dict(zip(window, torch.stack([column.mean() for column in window.values()]).tolist()))
        means = {"loss": sum(means.values()), **means}
        self._shares = []
        self._append("train", step, {"lr": rate, **means})
        return means

    def write_validation(self, step: int, metrics: Metrics) -> None:
        """A line with COCO's metrics, overall and by class."""
        self.validations.append(Validation(step / self.epoch_steps, metrics.overall["AP"]))
        self._append("val", step, {**metrics.overall, "per_class": metrics.per_class})

    def _append(self, kind: str, step: int, record: dict[str, Any]) -> None:
        if self.fabric.is_global_zero:
            record = {"kind": kind, "step": step, "epoch": step / self.epoch_steps, **record}
            append_line(self.path, metrics_line(record))
            if self._board is not None:
                self._board.add(finite(record))
