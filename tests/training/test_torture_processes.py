"""Trainings on two processes of which one is killed, and loading processes whose training is killed."""

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from children import MINUTE, SAME, Child, at_call, both, command, differing

from retinaconf.inference.detector import Detector
from retinaconf.training import loop

pytestmark = pytest.mark.torture

SETTINGS = ["--data.batch-size", 4, "--optimizer.lr", 1e-3, "--optimizer.ema", 0.9, "--schedule.epochs", 2]


def test_a_killed_process_ends_the_other_one_within_a_minute_and_costs_no_run(
    tmp_path: Path, make_data: Callable[..., Path], tiny_flags: list[str], record_property: Callable[..., None]
):
    data = make_data(tmp_path / "data", train=12, val=3)

    def train(run: Path, *more: str) -> None:
        words = ["train", "conf-r50-1x", "--data", data, "--out", run, "--device", "cpu", *tiny_flags, *SETTINGS, *more]
        command(*words)()

    whole = tmp_path / "whole"
    assert [child.wait(5 * MINUTE) for child in both(lambda _: train(whole), tmp_path / "said")] == [0, 0]
    cases = [(loop, "take_step", 2), (loop, "take_step", 5), (Detector, "detect", 1), (loop, "write_state", 3)]
    right = 0
    for number, (owner, name, call) in enumerate(cases):
        for killed in (0, 1) if name == "take_step" else (0,):
            run = tmp_path / f"run-{number}-{killed}"

            def act(
                rank: int, run: Path = run, killed: int = killed, where: tuple[Any, str, int] = (owner, name, call)
            ):
                if rank == killed:
                    at_call(*where, lambda *_: os.kill(os.getpid(), signal.SIGKILL))
                train(run)

            children = both(act, tmp_path / "said")
            assert children[killed].wait(5 * MINUTE) == -signal.SIGKILL
            begun = time.monotonic()
            said = children[1 - killed]
            assert said.wait(MINUTE) == 1, said.said.read_text()
            assert time.monotonic() - begun < MINUTE
            words = said.said.read_text()
            assert words.splitlines()[-1].startswith("retinaconf: another process of this run has ended")
            assert "Traceback" not in words
            ends = [
                child.wait(5 * MINUTE) for child in both(lambda _, run=run: train(run, "--resume"), tmp_path / "said")
            ]
            assert ends == [0, 0]
            assert differing(run, whole, [name for name in SAME if (whole / name).exists()]) == []
            right += 1
    record_property("a process of two killed: the other ends in time, and continued the whole run", (right, right))


def test_loading_processes_end_with_a_training_that_is_killed(
    tmp_path: Path, make_data: Callable[..., Path], tiny_flags: list[str], record_property: Callable[..., None]
):
    data, run = make_data(tmp_path / "data"), tmp_path / "run"
    words = ["train", "conf-r50-1x", "--data", data, "--out", run, "--device", "cpu", *tiny_flags, "--data.workers", 2]

    def act() -> None:
        at_call(loop, "take_step", 2, lambda *_: os.kill(os.getpid(), signal.SIGKILL))
        command(*words)()

    child = Child(act, tmp_path / "said")
    assert child.wait() == -signal.SIGKILL
    begun = time.monotonic()
    while left := members(child.pid):
        assert time.monotonic() - begun < MINUTE, left
        time.sleep(0.1)
    again = Child(command(*words, "--resume"), tmp_path / "said")  # the lock has died with its process
    assert again.wait(5 * MINUTE) == 0
    record_property("loading processes of a killed training end in time", (2, 2))


def members(session: int) -> list[int]:
    """The processes of a session that are at work (proc_pid_stat(5))."""
    found = []
    for file in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, _, _, its_session, *_ = file.read_text().rpartition(")")[2].split()
        except OSError:  # it has just ended
            continue
        found += [int(file.parent.name)] if int(its_session) == session and state not in "ZX" else []
    return found
