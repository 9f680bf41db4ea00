"""Work on several threads: NumPy and torch let go of Python's lock while they compute."""

from __future__ import annotations

import ctypes
import os
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

MOST_THREADS = 4  # each holds its own intermediate arrays

Item = TypeVar("Item")
Result = TypeVar("Result")


_this_thread = threading.local()
_malloc_trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None  # none in musl


def in_threads(work: Callable[[Item], Result], items: Iterable[Item]) -> Iterator[Result]:
    """`work` of each item, in their order; an item is drawn shortly before it is needed.

    Within such work, further work stays on its thread: no more threads than cores, and little memory between them.
    """
    if hasattr(_this_thread, "works"):
        yield from map(work, items)
        return
    threads = min(MOST_THREADS, os.cpu_count() or 1)
    with ThreadPoolExecutor(threads, initializer=setattr, initargs=(_this_thread, "works", True)) as pool:
        waiting: deque[Future[Result]] = deque()
        for item in items:
            waiting.append(pool.submit(work, item))
            if len(waiting) > 2 * threads:  # a short item does not wait for a long one before it
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


def give_back_memory() -> None:
    """Give freed memory back to the system: after large arrays, glibc keeps much of what each thread has freed."""
    if _malloc_trim is not None:
        _malloc_trim(0)
