"""The loader's worker processes: when one is killed or stopped, a clear end instead of a hang."""

from __future__ import annotations

import atexit
import multiprocessing
import signal
import threading
from collections.abc import Iterator
from multiprocessing.connection import wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import TypeVar
from weakref import WeakSet

from torch.utils.data import DataLoader

from retinaconf.errors import InputError

STOPS = (signal.SIGINT, signal.SIGTERM)
CHECK_SECONDS = 5  # between looks at the workers; one that is found stopped twice is ended
ADVICE = {
    signal.SIGKILL: "memory has probably run out; lower --data.workers",
    signal.SIGBUS: "shared memory (/dev/shm) has probably run out; enlarge it, or set --data.workers 0",
}
T = TypeVar("T")
_started: WeakSet[BaseProcess] = WeakSet()


def leave_signals_to_the_main_process(worker: int) -> None:
    """A terminal's Ctrl-C and a scheduler's SIGTERM reach every process; the batches under way must still arrive."""
    for number in STOPS:
        signal.signal(number, signal.SIG_IGN)


def watched(loader: DataLoader[T]) -> Iterator[T]:
    """What `loader` yields.

    Raises:
        InputError: a worker was killed or stopped. That is noticed within 20 seconds.
    """
    others, handler = multiprocessing.active_children(), signal.getsignal(signal.SIGCHLD)
    before = signal.pthread_sigmask(signal.SIG_BLOCK, STOPS)  # a worker has this until it ignores them
    try:
        batches = iter(loader)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    workers = [child for child in multiprocessing.active_children() if child not in others]
    if threading.current_thread() is threading.main_thread():
        # torch's handler raises wherever the main process is when a worker dies: within an optimizer's step, or while
        # a file is written. Without it the loader finds out when it wants the next batch, within five seconds.
        signal.signal(signal.SIGCHLD, handler or signal.SIG_DFL)
    _started.update(workers)
    stopped: set[BaseProcess] = set()
    threading.Thread(target=_end_stopped, args=(workers, stopped), daemon=True).start()
    try:
        yield from batches
        return
    except InputError:  # of an image
        raise
    except Exception:  # of many kinds: nothing comes, half a batch comes, a connection is refused
        dead = wait([worker.sentinel for worker in workers], timeout=1) if workers else []
        if not dead:
            raise
    # Raised here, it does not hold the other one, whose traceback would keep the other workers alive.
    raise InputError(_ending(next(worker for worker in workers if worker.sentinel in dead), stopped))


@atexit.register
def _end_all() -> None:
    """End workers that an uncaught exception has left: Python would send them SIGTERM, and wait without end."""
    for worker in _started:
        worker.kill()


def _end_stopped(workers: list[BaseProcess], stopped: set[BaseProcess]) -> None:
    """Kill workers that a signal has stopped, and add them to `stopped`, until all have ended.

    The main process would wait without end for a stopped worker; that one is dead it notices.
    """
    alive = {worker.sentinel: worker for worker in workers}
    suspects: set[BaseProcess] = set()
    while alive:
        for sentinel in wait(list(alive), timeout=CHECK_SECONDS):
            del alive[sentinel]  # type: ignore[arg-type]
        now = {worker for worker in alive.values() if _is_stopped(worker)}
        for worker in now & suspects:
            stopped.add(worker)
            worker.kill()
        suspects = now


def _is_stopped(process: BaseProcess) -> bool:
    """Whether a signal has stopped the process; False on systems without /proc."""
    try:
        return Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()[0] == "T"
    except OSError:
        return False


def _ending(worker: BaseProcess, stopped: set[BaseProcess]) -> str:
    worker.join(timeout=1)  # its connections close a moment before its exit code is known
    code = worker.exitcode or 0
    if worker in stopped:
        return "a process that loads images was stopped by a signal"
    if code >= 0:
        return f"a process that loads images ended by itself (code {code})"
    number = signal.Signals(-code)
    return f"a process that loads images was killed ({number.name}): {ADVICE.get(number, 'start again')}"
