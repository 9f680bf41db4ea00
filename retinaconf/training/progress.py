"""What a run says while it is in progress: a bar on a terminal, plain lines elsewhere, all lines in `log.txt`."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bar

from retinaconf.errors import plain
from retinaconf.files import append_line

LINE_SECONDS = 30  # between lines of losses where there is no terminal


class Progress:
    """Reports to the terminal and to a file; `silent` in all processes but the first."""

    def __init__(self, log: Path | None = None, silent: bool = False):
        self.console = Console(quiet=silent, highlight=False, soft_wrap=True)
        self.log = None if silent else log
        self.best = -1.0  # AP so far
        self._header_said = False

    def say(self, line: str, show: bool = True) -> None:
        """Print a line and keep it; or only keep it."""
        line = plain(line)
        if show:
            self.console.print(line, markup=False, emoji=False)
        if self.log is not None:
            append_line(self.log, line + "\n")

    @contextmanager
    def training(self, first: int, steps: int, batch_size: int) -> Iterator[None]:
        """Show steps `first` to `steps` of `batch_size` images while the block runs."""
        self._bar = Bar(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[losses]}"),
            TimeRemainingColumn(),
            console=self.console,
            transient=True,
            disable=not self.console.is_terminal,
        )
        self._task = self._bar.add_task("training", total=steps, completed=first, losses="")
        self._steps, self._batch_size = steps, batch_size
        self._window = (first, time.monotonic())  # where the measurement of speed begins
        self._epoch = (0, 0.0)  # images and seconds since the last one
        self._line_at = time.monotonic()
        with self._bar:
            yield

    def step(self, step: int, epoch: float) -> None:
        """`step` steps are done, `epoch` passes over the images."""
        self._bar.update(self._task, completed=step, description=f"epoch {epoch:.1f}")

    def losses(self, step: int, means: Mapping[str, float]) -> None:
        """New losses are known."""
        now = time.monotonic()
        images, seconds = (step - self._window[0]) * self._batch_size, max(1e-9, now - self._window[1])
        speed = images / seconds
        self._window = (step, now)
        self._epoch = (self._epoch[0] + images, self._epoch[1] + seconds)
        line = "  ".join(f"{name} {value:.3f}" for name, value in means.items()) + f"  {speed:.1f} images/s"
        self._bar.update(self._task, losses=line)
        if not self.console.is_terminal and now - self._line_at > LINE_SECONDS:
            self._line_at = now
            left = (self._steps - step) * self._batch_size / speed / 60
            self.say(f"step {step}/{self._steps}  {line}  {left:.0f} min left")

    def speed(self) -> float | None:
        """Images a second in the training steps since the last call, None without any."""
        (images, seconds), self._epoch = self._epoch, (0, 0.0)
        return images / seconds if images else None

    def go_on(self, step: int) -> None:
        """From here on time counts as training again: not that of validation."""
        self._window = (step, time.monotonic())

    def validated(self, epoch: float, metrics: Mapping[str, float]) -> None:
        """A row of the validation table."""
        if not self._header_said:
            self._header_said = True
            self.say("epoch  " + "  ".join(f"{name:>5}" for name in metrics))
        better = metrics["AP"] >= self.best
        self.best = max(self.best, metrics["AP"])
        row = "  ".join(f"{value:5.3f}" if value == value else "    -" for value in metrics.values())
        self.say(f"{epoch:5.4g}  {row}" + ("  best" if better else ""))
