import gc
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from retinaconf.config import DataConfig
from retinaconf.data import loader, workers
from retinaconf.data.ground_truth import GroundTruth
from retinaconf.data.layouts import load_split
from retinaconf.data.loader import training_batches
from retinaconf.errors import InputError


@pytest.fixture(scope="module")
def gt(tmp_path_factory: pytest.TempPathFactory, make_data: Callable[..., Path]) -> GroundTruth:
    return load_split(make_data(tmp_path_factory.mktemp("workers"), train=8, val=0), "train")


@pytest.fixture
def batches(gt: GroundTruth, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Many batches, by two workers, of which the first has come."""
    monkeypatch.setattr(workers, "CHECK_SECONDS", 0.5)
    config = DataConfig(short_side=64, long_side=96, batch_size=4, workers=2)
    batches = training_batches(gt, config, 0, 0, 1000)
    next(batches)
    return batches


def signalled(number: int) -> None:
    pid = multiprocessing.active_children()[0].pid
    assert pid is not None
    os.kill(pid, number)


@pytest.mark.parametrize(
    ("number", "reason"),
    [
        (signal.SIGKILL, r"was killed \(SIGKILL\): memory has probably run out; lower --data.workers"),
        (signal.SIGBUS, r"was killed \(SIGBUS\): shared memory \(/dev/shm\) has probably run out"),
        pytest.param(signal.SIGSTOP, "was stopped by a signal", marks=pytest.mark.slow),
    ],
)
@pytest.mark.ci
def test_a_worker_that_dies_or_stops_ends_in_one_line_and_none_is_left(batches: Any, number: int, reason: str):
    signalled(number)
    started = time.monotonic()
    with pytest.raises(InputError, match=f"^a process that loads images {reason}") as caught:
        list(batches)
    assert "\n" not in str(caught.value)
    del batches
    gc.collect()
    assert time.monotonic() - started < 30
    assert multiprocessing.active_children() == []


def test_the_main_process_is_not_torn_out_of_its_work_by_a_workers_death(batches: Any):
    """It may be in the middle of an optimizer's step."""
    signalled(signal.SIGKILL)
    deadline = time.monotonic() + 0.7
    while time.monotonic() < deadline:
        time.sleep(0.01)
    with pytest.raises(InputError, match="was killed"):
        list(batches)


def signalled_at_its_start(number: int, worker: int) -> None:
    os.kill(os.getpid(), number)
    workers.leave_signals_to_the_main_process(worker)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_to_a_worker_that_has_just_started_ends_nothing(
    gt: GroundTruth, monkeypatch: pytest.MonkeyPatch, number: int
):
    """It reaches all processes, also one that has not yet got as far as to ignore it."""
    monkeypatch.setattr(loader, "leave_signals_to_the_main_process", partial(signalled_at_its_start, number))
    config = DataConfig(short_side=64, long_side=96, batch_size=4, workers=2)
    assert len(list(training_batches(gt, config, 0, 0, 4))) == 4
    assert signal.pthread_sigmask(signal.SIG_BLOCK, ()) == set()


@pytest.mark.skipif(sys.platform != "linux", reason="forks are for Linux")
def test_workers_are_forks_whatever_python_starts_by_default(gt: GroundTruth):
    """They share the annotations, and have blocked the signals from their first moment."""
    usual = multiprocessing.get_start_method()
    multiprocessing.set_start_method("forkserver", force=True)
    try:
        batches = training_batches(gt, DataConfig(short_side=64, batch_size=4, workers=1), 0, 0, 1000)
        next(batches)
        assert [type(worker).__name__ for worker in multiprocessing.active_children()] == ["ForkProcess"]
        batches.close()
    finally:
        multiprocessing.set_start_method(usual, force=True)


def test_a_worker_that_is_stopped_for_a_moment_is_left_alone(batches: Any):
    signalled(signal.SIGSTOP)
    time.sleep(0.1)
    signalled(signal.SIGCONT)
    time.sleep(1.3)  # two looks at it
    for _ in range(20):
        next(batches)
    batches.close()


CRASH = """
import sys
from pathlib import Path
from retinaconf.config import DataConfig
from retinaconf.data.layouts import load_split
from retinaconf.data.loader import training_batches
config = DataConfig(short_side=64, batch_size=4, workers=1)
batches = training_batches(load_split(Path(sys.argv[1]), "train"), config, 0, 0, 1000)
next(batches)
raise ZeroDivisionError
"""


@pytest.mark.slow
def test_workers_do_not_keep_a_program_that_has_crashed_from_ending(gt: GroundTruth):
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-c", CRASH, str(Path(gt.source).parent)]
    result = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    assert result.returncode == 1
    assert result.stderr.strip().endswith("ZeroDivisionError")
