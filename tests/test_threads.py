"""Work on several threads keeps its order, and items are drawn as they are needed."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator

import pytest

from retinaconf.threads import MOST_THREADS, in_threads


def test_results_come_in_order_and_items_are_not_drawn_ahead() -> None:
    drawn: list[int] = []

    def items() -> Iterator[int]:
        for item in range(1, 101):
            drawn.append(item)
            yield item

    def work(item: int) -> int:
        time.sleep(0.002 if item % 5 == 0 else 0)
        return item * item

    for done, result in enumerate(in_threads(work, items()), start=1):
        assert result == done * done
        assert len(drawn) <= done + 2 * MOST_THREADS


def test_a_thread_goes_on_while_the_first_result_is_awaited(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.cpu_count", lambda: 2)
    others_done = threading.Event()

    def work(item: int) -> bool:
        if item == 3:
            others_done.set()
        return others_done.wait(10) if item == 0 else True

    assert all(in_threads(work, range(4)))


def test_work_within_work_stays_on_its_thread() -> None:
    def inner(item: int) -> tuple[int, int]:
        return item, threading.get_ident()

    def outer(item: int) -> tuple[int, list[tuple[int, int]]]:
        return threading.get_ident(), list(in_threads(inner, range(item)))

    for size, (thread, results) in enumerate(in_threads(outer, range(20))):
        assert thread != threading.get_ident()
        assert results == [(item, thread) for item in range(size)]


def test_an_error_is_raised() -> None:
    with pytest.raises(ZeroDivisionError):
        list(in_threads(lambda item: 1 / item, [2, 1, 0, 1]))
