"""How far a long diagnosis has come."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

ProgressCallback = Callable[[str, int, int], None]  # what is being done, how much is done, of how much


def silent(what: str, done: int, total: int) -> None:
    """Show nothing."""


@contextmanager
def terminal_progress() -> Iterator[ProgressCallback]:
    """A bar a stage on stderr; one plain line a stage where stderr is not a terminal."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

    console = Console(stderr=True)
    tasks: dict[str, TaskID] = {}
    if not console.is_terminal:

        def line(what: str, done: int, total: int) -> None:
            if what not in tasks:
                tasks[what] = TaskID(len(tasks))
                console.print(f"{what} ...", markup=False, highlight=False)

        yield line
        return

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console) as bars:

        def bar(what: str, done: int, total: int) -> None:
            if what not in tasks:
                tasks[what] = bars.add_task(what, total=total)
            bars.update(tasks[what], completed=done, total=total)

        yield bar
