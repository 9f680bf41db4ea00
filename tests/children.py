"""Commands in child processes, forked after torch is imported, so that a training costs no more than itself.

What is done to a child before its command, such as ending it in the middle of a write, the parent does not see. The
parent must not have evaluated: hotcoco's threads do not live on in a fork, and an evaluation there would wait for them.
"""

from __future__ import annotations

import os
import signal
import socket
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

import retinaconf
from retinaconf.cli import main
from retinaconf.data.images import check_images
from retinaconf.data.layouts import load_split
from retinaconf.training import samples

SAME = ("metrics.jsonl", "model.safetensors", "config.json", "val.txt")
MINUTE = 60.0  # within which a command that is asked to stop must have ended


class Child:
    """A process that runs a function, in a session of its own; its output goes into the file `said`."""

    def __init__(self, act: Callable[[], object], said: Path):
        self.said = said
        self.pid = os.fork()
        if self.pid:
            return
        code = 70  # of an exception: no command ends so
        try:
            os.setsid()
            output = os.open(said, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
            os.dup2(output, 1)
            os.dup2(output, 2)
            sys.stdout, sys.stderr = (os.fdopen(n, "w", closefd=False) for n in (1, 2))
            signal.signal(signal.SIGINT, signal.default_int_handler)
            torch.set_num_threads(1)
            samples.SAMPLES = 2  # pictures take longer than steps
            act()
            code = 0
        except SystemExit as stop:
            code = int(stop.code or 0)
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)

    def kill(self, number: int) -> None:
        """Send a signal to the child and its own children, as a terminal and a scheduler do."""
        os.killpg(self.pid, number)

    def wait(self, seconds: float = MINUTE) -> int:
        """Its exit code, or minus the number of the signal that has ended it; it must end in time."""
        until = time.monotonic() + seconds
        while True:
            ended, status = os.waitpid(self.pid, os.WNOHANG)
            if ended:
                return os.waitstatus_to_exitcode(status)
            if time.monotonic() > until:
                os.killpg(self.pid, signal.SIGKILL)
                os.waitpid(self.pid, 0)
                raise AssertionError(f"still at work after {seconds} seconds; it said: {self.said.read_text()}")
            time.sleep(0.002)


def both(act: Callable[[int], object], said: Path) -> list[Child]:
    """Two processes of one training, as torchrun starts them."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]

    def of_rank(rank: int) -> Callable[[], None]:
        def run() -> None:
            where = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": 2, "LOCAL_WORLD_SIZE": 2, "GROUP_WORLD_SIZE": 1}
            where |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "TORCHELASTIC_RUN_ID": "none", "GROUP_RANK": 0}
            os.environ.update({name: str(value) for name, value in where.items()})
            act(rank)

        return run

    return [Child(of_rank(rank), said.with_suffix(f".{rank}")) for rank in (0, 1)]


def command(*words: object) -> Callable[[], None]:
    """A command, to be run by a child."""
    return lambda: main([str(word) for word in words])


def detections(run: Path, data: Path, out: Path) -> None:
    """Write what the detector of a run finds on three images."""
    detector = retinaconf.load(run, "cpu")
    images = check_images(load_split(data, "train").subset(range(3)))
    (table,) = detector.detect(images, detector.inference_config())
    columns = {name: getattr(table, name) for name in ("image_index", "boxes", "scores", "labels", "class_scores")}
    np.savez(out, **columns)


def at_call(owner: Any, name: str, number: int, act: Callable[..., object], after: bool = False) -> None:
    """Let `act` see the arguments of a call of a function, the one with this number, before or after it."""
    function, calls = getattr(owner, name), 0

    def counted(*args: Any, **kwargs: Any) -> Any:
        nonlocal calls
        calls += 1
        now = calls == number
        if now and not after:
            act(*args)
        result = function(*args, **kwargs)
        if now and after:
            act(*args)
        return result

    setattr(owner, name, counted)


def leaves(state: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """Every tensor and value in a checkpoint."""
    if isinstance(state, dict | list | tuple):
        for key, value in state.items() if isinstance(state, dict) else enumerate(state):
            yield from leaves(value, f"{name}.{key}")
    else:
        yield name, state


def unequal(state: Any, other: Any) -> list[str]:
    """The names of what is not equal, to the bit, in two checkpoints."""
    one, two = dict(leaves(state)), dict(leaves(other))
    names = sorted(one.keys() ^ two.keys())
    for name in one.keys() & two.keys():
        a, b = one[name], two[name]
        same = torch.equal(a, b) and a.dtype == b.dtype if isinstance(a, torch.Tensor) else a == b
        names += [] if same else [name]
    return names


def differing(run: Path, other: Path, files: Sequence[str] = ("metrics.jsonl", "model.safetensors")) -> list[str]:
    """What of two runs is not equal, to the bit: these files, and weights, optimizer and all else in `last.ckpt`."""
    names = unequal(*(torch.load(folder / "last.ckpt", weights_only=True) for folder in (run, other)))
    return names + [file for file in files if (run / file).read_bytes() != (other / file).read_bytes()]


class Training(NamedTuple):
    """A training by its command, and what it gives if nothing stops it."""

    words: list[str]  # of the command, all but --out
    data: Path
    whole: Path
    seconds: float  # that it took

    def command(self, run: Path, *more: str) -> Callable[[], None]:
        return command(*self.words, "--out", run, *more)

    def to_the_end(self, run: Path, *more: str) -> Callable[[], None]:
        """The command; then what the trained detector finds is written, too."""

        def act() -> None:
            try:
                self.command(run, *more)()
            except SystemExit as stop:
                if stop.code:
                    raise
            detections(run, self.data, run.with_suffix(".npz"))

        return act

    def continued(self, run: Path) -> list[str]:
        """Continue a run in a child; what it then has otherwise than the one that nothing has stopped."""
        child = Child(self.to_the_end(run, "--resume"), run.with_suffix(".said"))
        if code := child.wait(10 * MINUTE):
            return [f"exit code {code}: {child.said.read_text()}"]
        return self.differing(run)

    def differing(self, run: Path) -> list[str]:
        names = sorted({file.name for file in run.iterdir()} ^ {file.name for file in self.whole.iterdir()})
        if names:
            return names
        names = differing(run, self.whole, [name for name in SAME if (self.whole / name).exists()])
        found = [folder.with_suffix(".npz").read_bytes() for folder in (run, self.whole)]
        return names + ([] if found[0] == found[1] else ["detections"])


def training(folder: Path, data: Path, settings: Mapping[str, Any]) -> Training:
    """Train once, and see that it is what the tests take it for."""
    words = ["train", "conf-r50-1x", "--data", str(data), "--device", "cpu"]
    for name, value in settings.items():
        section, field = name.replace("_", "-").split(".") if "." in name else ("", name)
        values = [] if isinstance(value, bool) else map(str, value if isinstance(value, list) else [value])
        words += [f"--{section}{'.' if section else ''}{'no-' if value is False else ''}{field}", *values]
    made, begun = Training(words, data, folder / "whole", 0.0), time.monotonic()
    child = Child(made.to_the_end(made.whole), folder / "said")
    assert child.wait(10 * MINUTE) == 0, child.said.read_text()
    assert np.load(made.whole.with_suffix(".npz"))["scores"].size > 0
    return made._replace(seconds=time.monotonic() - begun)
