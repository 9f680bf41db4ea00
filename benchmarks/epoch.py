"""Where the time of a training goes, epoch by epoch: steps, waiting for images, validation, what is written.

    python benchmarks/epoch.py RECIPE --data ROOT [--epochs 3] [--set NAME=VALUE ...] [--device auto] [--json FILE]

A whole training of a few epochs, by `retinaconf train`'s own code, into a folder that is then removed. The first epoch
also pays for what comes once: worker processes, the first pass on each image size, and on a GPU its start.

A GPU works on while the CPU goes on, so its time counts where the CPU waits for it: the steps, and the passes.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

from retinaconf.config import Config
from retinaconf.errors import InputError
from retinaconf.evaluation.coco import CocoEvaluator
from retinaconf.inference.detector import Detector
from retinaconf.recipes import recipe
from retinaconf.training import loop
from retinaconf.training.progress import Progress
from retinaconf.training.run import train_run

WHOLE, OTHER = "whole epoch", "all else"
# A part's name, and the function whose time it is: where that is looked up, and by which name. Indented: of validation.
PARTS: dict[str, tuple[Any, str]] = {
    "steps": (loop, "take_step"),
    "validation": (loop, "_validate"),
    "  its network and post-processing": (Detector, "detect"),
    "  its metrics": (CocoEvaluator, "__call__"),
    "checkpoints": (loop, "write_state"),
    "the best weights": (loop, "write_weights"),
    "the page": (loop, "write_page"),
}
WAITING = "waiting for images"
Seconds = dict[str, float]


class Clock:
    """Seconds of each part of each epoch."""

    def __init__(self) -> None:
        self.epochs: list[Seconds] = []
        self._now: Seconds = {}
        self._began = time.perf_counter()

    def timed(self, part: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """The function, whose time is that of `part`."""

        def run(*args: Any, **kwargs: Any) -> Any:
            start = time.perf_counter()
            try:
                return function(*args, **kwargs)
            finally:
                self._now[part] = self._now.get(part, 0.0) + time.perf_counter() - start

        return run

    def waited(self, batches: Callable[..., Iterator[Any]]) -> Callable[..., Iterator[Any]]:
        """Batches, of which each takes what it is waited for."""

        def run(*args: Any, **kwargs: Any) -> Iterator[Any]:
            return iter(self.timed(WAITING, partial(next, batches(*args, **kwargs), None)), None)

        return run

    def end_epoch(self) -> None:
        now = time.perf_counter()
        whole, apart = now - self._began, sum(took for part, took in self._now.items() if part[0] != " ")
        self.epochs.append({WHOLE: whole, **dict.fromkeys((WAITING, *PARTS), 0.0), **self._now, OTHER: whole - apart})
        self._now, self._began = {}, now


@contextmanager
def measured() -> Iterator[Clock]:
    """A clock of the trainings within the block."""
    clock = Clock()
    go_on = Progress.go_on

    def epoch_over(progress: Progress, step: int) -> None:
        go_on(progress, step)
        clock.end_epoch()

    with ExitStack() as patches:
        for part, (place, name) in PARTS.items():
            patches.enter_context(patch.object(place, name, clock.timed(part, getattr(place, name))))
        patches.enter_context(patch.object(loop, "training_batches", clock.waited(loop.training_batches)))
        patches.enter_context(patch.object(Progress, "go_on", epoch_over))
        yield clock


def measure(config: Config, root: Path, device: str) -> list[Seconds]:
    """Seconds of each epoch by part; the first begins with the reading of the data."""
    with tempfile.TemporaryDirectory() as folder, measured() as clock:
        train_run(config, root, Path(folder) / "run", device=device)
    return clock.epochs


def changed(word: str) -> tuple[str, Any]:
    """A setting's name and value; lists in JSON, `data.scale=[0.5,1.5]`.

    Raises:
        InputError: the word is not NAME=VALUE, or its list is not JSON.
    """
    name, equals, value = word.partition("=")
    if not equals:
        raise InputError(f"--set {word}: give NAME=VALUE")
    try:
        return name, json.loads(value) if value.startswith("[") else value
    except json.JSONDecodeError:
        raise InputError(f"--set {word}: give the list in JSON, as data.scale=[1,1]") from None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe")
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument(
        "--set", nargs="*", default=[], metavar="NAME=VALUE", help="such as data.workers=8 or data.scale=[1,1]"
    )
    parser.add_argument("--device", default="auto")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    try:
        changes = dict(changed(word) for word in options.set)
        config = recipe(options.recipe).changed(**changes, **{"schedule.epochs": options.epochs})
        epochs = measure(config, options.data, options.device)
    except InputError as error:
        parser.error(str(error))
    print(f"{'seconds':36}" + "".join(f"{f'epoch {number}':>10}" for number in range(1, len(epochs) + 1)))
    for part in epochs[0]:
        print(f"{part:36}" + "".join(f"{epoch[part]:10.2f}" for epoch in epochs))
    if options.json:
        options.json.write_text(json.dumps(epochs, indent=1) + "\n")


if __name__ == "__main__":
    main()
