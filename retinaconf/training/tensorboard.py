"""The lines of `metrics.jsonl` as curves in TensorBoard, on request (`train --tensorboard`)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from retinaconf.errors import extras_needed_by

FOLDER = "tensorboard"  # in a run


class TensorBoard:
    """Event files in a run's folder `tensorboard`.

    Raises:
        InputError: TensorBoard is not installed.
    """

    def __init__(self, run: Path, records: list[dict[str, Any]]):
        """Go on after `records`, the lines of a run that is resumed; all of them, where no event files are there."""
        with extras_needed_by("train --tensorboard"):
            from torch.utils.tensorboard import SummaryWriter

        folder = run / FOLDER
        known = folder.is_dir() and any(folder.iterdir())
        step = max((record["step"] for record in records), default=0)
        # What a killed run has written beyond its checkpoint is hidden: these steps are taken again.
        self._writer = SummaryWriter(str(folder), purge_step=step + 1 if known else None)
        for record in () if known else records:
            self.add(record)

    def add(self, record: dict[str, Any]) -> None:
        """Show a line of `metrics.jsonl`."""
        for name, value in record.items():
            if isinstance(value, dict):
                for part, of_part in value.items():
                    self._scalar(f"{record['kind']} AP by class/{part}", of_part, record["step"])
            elif name not in ("kind", "step"):
                self._scalar(f"{record['kind']}/{name}", value, record["step"])
        self._writer.flush()

    def _scalar(self, name: str, value: float | None, step: int) -> None:
        if value is not None:
            self._writer.add_scalar(name, value, step)
