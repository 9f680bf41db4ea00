"""Files by a stranger: a message or a result, never a traceback, a hang, a bomb, code that runs, or a lost file.

`pytest -m torture tests/hostile` runs all cases, and a case that fails says how to run it alone.
"""

from __future__ import annotations

import random
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from forks import SECONDS, Ended, Forks
from kinds import KINDS
from seeds import write_seeds
from spoils import CANARY

CASES = 300  # of each kind
SLOW = ("train", "evaluate", "tune", "compare")  # commands
MEGABYTES = 1024  # beyond what the imports take


class Tree:
    """Valid files, of which each case spoils one and puts it back."""

    def __init__(self, root: Path, forks: Forks, flags: list[str]):
        self.root, self.forks, self.flags = root, forks, flags
        self.pictures = tuple(str(path.relative_to(root)) for path in sorted((root / "photos/images").iterdir()))

    def run(self, kind: str, number: int, quick: bool = False) -> str:
        """Run a case, with `quick` by commands that are not slow; returns what is wrong, or nothing."""
        rng = random.Random(f"{kind}-{number}")
        files = KINDS[kind].files or self.pictures
        file = self.root / rng.choice(files)
        every = KINDS[kind].commands
        commands = [one for one in every if not quick or not one.startswith(SLOW)] or every
        words = rng.choice(commands).replace("FILE", str(file.relative_to(self.root))).split()
        at = words.index("FLAGS") if "FLAGS" in words else len(words)
        words[at : at + 1] = self.flags if at < len(words) else []
        whole = file.read_bytes()
        kept = (
            {path: path.read_bytes() for path in (self.root / "run").iterdir() if path.is_file()}
            if "run" in words
            else {}
        )
        file.write_bytes(KINDS[kind].spoil(rng, whole))
        before = self._contents()
        try:
            ended = self.forks.run(*words, folder=self.root)
            fault = _fault(ended)
            after = self._contents()
            if self._may_write_run(words):
                before, after = (
                    {path: at for path, at in one.items() if path.parts[0] != "run"} for one in (before, after)
                )
            if not fault and before != after:
                fault = f"changed {sorted(str(path) for path, _ in set(before.items()) ^ set(after.items()))}"
            return f"retinaconf {' '.join(words)}\n{file}: {fault}\n{ended.err}" if fault else ""
        finally:
            if self._may_write_run(words):
                shutil.rmtree(self.root / "run")
                (self.root / "run").mkdir()
            for path, content in kept.items():
                path.write_bytes(content)
            file.write_bytes(whole)
            for folder in ("out", "tmp"):
                shutil.rmtree(self.root / folder)
                (self.root / folder).mkdir()
            (self.root / CANARY).unlink(missing_ok=True)

    @staticmethod
    def _may_write_run(words: list[str]) -> bool:
        return words[0] == "tune" or ("--out" in words and words[words.index("--out") + 1] == "run")

    def _contents(self) -> dict[Path, tuple[int, int]]:
        """Everything but what is in `out`."""
        paths = [path for path in self.root.rglob("*") if path.is_file()]
        files = {path.relative_to(self.root): path.stat() for path in paths}
        return {path: (at.st_size, at.st_mtime_ns) for path, at in files.items() if path.parts[0] != "out"}


def _fault(ended: Ended) -> str:
    """What must not be in how a command ended, or nothing."""
    if ended.seconds >= SECONDS or ended.code in (-9, -24):
        return f"took more than {SECONDS} seconds"
    if ended.code not in (0, 1, 2):
        return f"ended with {ended.code}"
    if "Traceback (most recent call last)" in ended.err + ended.out:
        return "a traceback"
    if ended.code and sum(line.startswith("retinaconf: ") for line in ended.err.splitlines()) != 1:
        return "not one line"
    if ended.code and (
        len(ended.err.splitlines()[-1]) > 2_000 or not ended.err.splitlines()[-1].startswith("retinaconf: ")
    ):
        return "a last line that is long, or not the message"
    return f"took {ended.megabytes} MB" if ended.megabytes > MEGABYTES else ""


@pytest.fixture(scope="session")
def tree(
    tmp_path_factory: pytest.TempPathFactory, make_data: Callable[..., Path], tiny_flags: list[str]
) -> Iterator[Any]:
    root = tmp_path_factory.mktemp("hostile")
    with Forks() as forks:
        write_seeds(root, make_data, tiny_flags, forks)
        yield Tree(root, forks, tiny_flags)


@pytest.mark.ci
@pytest.mark.parametrize("kind", KINDS)
def test_a_spread_of_hostile_files(tree: Tree, kind: str):
    """Some hundred cases over all kinds, more of those that take little time."""
    numbers = range(0, CASES, CASES // KINDS[kind].quick)
    faults = [(number, tree.run(kind, number, quick=True)) for number in numbers]
    assert not [f"{kind}-{number}: {fault}" for number, fault in faults if fault]


@pytest.mark.torture
@pytest.mark.parametrize("number", range(CASES))
@pytest.mark.parametrize("kind", KINDS)
def test_a_hostile_file(tree: Tree, kind: str, number: int, record_property: Callable[..., None]):
    fault = tree.run(kind, number)
    record_property(f"hostile files ({kind}) end in a result or a line", (int(not fault), 1))
    alone = f"pytest 'tests/hostile/test_hostile_files.py::test_a_hostile_file[{kind}-{number}]'"
    assert not fault, f"{fault}\nalone: {alone}"
