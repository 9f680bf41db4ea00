"""Checkpoints that are damaged, and disks that fail: said in one line, and nothing that was saved is lost."""

import ctypes
import errno
import os
import random
import resource
import shutil
import signal
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from children import Child, Training, at_call, training, unequal

from retinaconf.training.checkpoint import read_last
from retinaconf.training.progress import Progress

pytestmark = pytest.mark.torture

EPOCH = 6
SETTINGS: dict[str, Any] = {
    "data.batch_size": 2,
    "optimizer.reference_batch": 2,
    "optimizer.lr": 3e-3,
    "optimizer.ema": 0.9,
    "schedule.epochs": 2,
    "inference.score_threshold": 0.001,
}
CASES = 6  # of each kind that needs trainings
DAMAGES = 40  # of each kind


@pytest.fixture(scope="module")
def one(
    tmp_path_factory: pytest.TempPathFactory, make_data: Callable[..., Path], tiny_settings: dict[str, Any]
) -> Training:
    folder = tmp_path_factory.mktemp("disks")
    return training(folder, make_data(folder / "data", train=2 * EPOCH, val=3), tiny_settings | SETTINGS)


# --- damaged checkpoints -------------------------------------------------------------------------------------------


def flip(content: bytearray, draw: random.Random) -> None:
    content[draw.randrange(len(content))] ^= 1 << draw.randrange(8)


def garble(content: bytearray, draw: random.Random) -> None:
    begin = draw.randrange(len(content))
    end = min(len(content), begin + draw.randint(1, 4096))
    content[begin:end] = draw.randbytes(end - begin)


def zero(content: bytearray, draw: random.Random) -> None:
    """Some pages that have not reached the disk."""
    begin = draw.randrange(0, len(content), 4096)
    end = min(len(content), begin + 4096 * draw.randint(1, 8))
    content[begin:end] = bytes(end - begin)


def tear(content: bytearray, draw: random.Random) -> None:
    del content[draw.randrange(len(content)) :]


def tear_and_fill(content: bytearray, draw: random.Random) -> None:
    """The length has reached the disk, the end has not."""
    begin = draw.randrange(len(content))
    content[begin:] = bytes(len(content) - begin)


def exchange(content: bytearray, draw: random.Random) -> None:
    """Two pages, one in the place of the other."""
    a, b = (4096 * n for n in draw.sample(range(len(content) // 4096), 2))
    content[a : a + 4096], content[b : b + 4096] = content[b : b + 4096], content[a : a + 4096]


def lengthen(content: bytearray, draw: random.Random) -> None:
    content += draw.randbytes(draw.randint(1, 9000))


@pytest.fixture(scope="module")
def stopped(one: Training, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that was stopped at step 9; its checkpoint before is of step 6."""
    run = tmp_path_factory.mktemp("stopped") / "run"

    def act() -> None:
        at_call(Progress, "step", EPOCH + 3, lambda *_: os.kill(os.getpid(), signal.SIGTERM))
        one.command(run)()

    child = Child(act, run.with_suffix(".said"))
    assert child.wait() == 1
    assert "stopped at step 9 of 12" in child.said.read_text()
    return run


@pytest.mark.parametrize("damage", [flip, garble, zero, tear, tear_and_fill, exchange, lengthen])
def test_a_damaged_checkpoint_is_recognised_or_as_good_as_whole(
    stopped: Path, one: Training, tmp_path: Path, damage: Callable[..., None], record_property: Callable[..., None]
):
    """Never is another state read; of those that are recognised, some runs are continued to the end."""
    run, draw = tmp_path / "run", random.Random(damage.__name__)
    shutil.copytree(stopped, run)
    whole, before = (torch.load(stopped / name) for name in ("last.ckpt", "last.ckpt.previous"))
    content = (stopped / "last.ckpt").read_bytes()
    counts, continued = Counter[str](), 0
    for _ in range(DAMAGES):
        damaged = bytearray(content)
        damage(damaged, draw)
        (run / "last.ckpt").write_bytes(damaged)
        state, warning = read_last(run)
        recognised = warning.startswith(f"warning: {run / 'last.ckpt'}: ")
        assert warning.endswith("the run continues from the checkpoint before it") == recognised
        assert unequal(state, before if recognised else whole) == []
        counts["recognised" if recognised else "harmless"] += 1
        if recognised and continued < 1:
            continued += 1
            copy = tmp_path / f"run-{continued}"
            shutil.copytree(run, copy)
            assert one.continued(copy) == []
            assert warning.removeprefix(f"warning: {run}") in copy.with_suffix(".said").read_text()
    what = damage.__name__.replace("_", " ")
    record_property(f"damaged checkpoints ({what}): never another state", (counts.total(), DAMAGES))
    record_property(f"of these ({what}) recognised, the others harmless", (counts["recognised"], DAMAGES))
    record_property("of the recognised continued to the end: the whole run", (continued, continued))
    assert counts["recognised"] > 0 or damage is lengthen


# --- disks that fail -------------------------------------------------------------------------------------------------


class Count:
    """Trainings that failed as they should, and were then continued."""

    def __init__(self) -> None:
        self.cases, self.faults = 0, list[Any]()

    def add(self, one: Training, run: Path, said: Path, code: int) -> None:
        """See what a failed command said, and continue its run where nothing stands in the way any more."""
        self.cases += 1
        words = said.read_text()
        last = words.splitlines()[-1]
        told = last.startswith("retinaconf: ") and "cannot be written (" in last and "Traceback" not in words
        different = one.continued(run)
        if code != 1 or not told or different:
            self.faults.append((run.name, code, words, different))
        shutil.rmtree(run)

    def tell(self, record_property: Callable[..., None], what: str) -> None:
        record_property(f"{what}: one line, and continued the whole run", (self.cases - len(self.faults), self.cases))
        assert self.faults == []


@pytest.mark.parametrize(("fault", "every"), [(errno.ENOSPC, 1), (errno.EIO, 3)], ids=["full", "broken"])
def test_each_file_that_cannot_be_written(
    one: Training, tmp_path: Path, fault: int, every: int, record_property: Callable[..., None]
):
    """The system says so at the latest when a file is flushed."""

    def fail(*_: Any) -> None:
        raise OSError(fault, os.strerror(fault))

    count = Count()
    for number in range(1, 100, every):
        run = tmp_path / f"run-{number}"

        def act(number: int = number, run: Path = run) -> None:
            at_call(os, "fsync", number, fail)
            one.command(run)()

        code = (child := Child(act, tmp_path / "said")).wait()
        if code == 0:
            break
        count.add(one, run, child.said, code)
    assert count.cases >= 12 // every
    count.tell(record_property, f"disks that fail at each file ({os.strerror(fault)})")


def test_a_limit_on_file_sizes(one: Training, tmp_path: Path, record_property: Callable[..., None]):
    largest, draw, count = (one.whole / "last.ckpt").stat().st_size, random.Random("limit"), Count()
    for number in range(CASES):
        run, limit = tmp_path / f"run-{number}", draw.randrange(5000, largest)

        def act(run: Path = run, limit: int = limit) -> None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))
            one.command(run)()

        code = (child := Child(act, tmp_path / "said")).wait()
        count.add(one, run, child.said, code)
    count.tell(record_property, "limits on file sizes")


def obey_modes() -> None:
    """Give up the right of root to write where nobody may (capabilities(7))."""
    header, none = (ctypes.c_uint32 * 2)(0x20080522, 0), (ctypes.c_uint32 * 6)()
    assert ctypes.CDLL(None).capset(header, none) == 0


def test_a_folder_that_turns_read_only(one: Training, tmp_path: Path, record_property: Callable[..., None]):
    draw, count = random.Random("read-only"), Count()
    for number in range(CASES):
        run, step = tmp_path / f"run-{number}", draw.randint(1, 2 * EPOCH)

        def act(run: Path = run, step: int = step) -> None:
            obey_modes()
            at_call(Progress, "step", step, lambda *_: run.chmod(0o555))
            one.command(run)()

        code = (child := Child(act, tmp_path / "said")).wait()
        run.chmod(0o755)
        count.add(one, run, child.said, code)
    count.tell(record_property, "folders that turn read-only")


def mount(folder: Path, size: int, flags: int = 0) -> None:
    """A file system in memory, or another size for it, in a user and mount namespace of this process (mount(2))."""
    if ctypes.CDLL(None, use_errno=True).mount(b"none", str(folder).encode(), b"tmpfs", flags, f"size={size}".encode()):
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


NEW_NAMESPACES, REMOUNT = 0x10000000 | 0x20000, 32


def alone(disk: Path, size: int) -> None:
    user, group = os.getuid(), os.getgid()
    if ctypes.CDLL(None, use_errno=True).unshare(NEW_NAMESPACES):
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    Path("/proc/self/setgroups").write_text("deny")
    Path("/proc/self/uid_map").write_text(f"0 {user} 1")
    Path("/proc/self/gid_map").write_text(f"0 {group} 1")
    mount(disk, size)


def test_a_disk_that_is_full(one: Training, tmp_path: Path, record_property: Callable[..., None]):
    """A real one, of a random size that is too small."""
    (disk := tmp_path / "disk").mkdir()
    if Child(lambda: alone(disk, 1 << 20), tmp_path / "said").wait():
        pytest.skip(f"file systems cannot be mounted here: {(tmp_path / 'said').read_text().splitlines()[-1]}")
    needed = sum(file.stat().st_size for file in one.whole.rglob("*") if file.is_file())
    draw, count = random.Random("full"), Count()
    for number in range(CASES):
        run, size = tmp_path / f"run-{number}", draw.randrange(1 << 16, needed)

        def act(run: Path = run, size: int = size) -> None:
            alone(disk, size)
            code = Child(one.command(disk / "run"), tmp_path / "said").wait()
            mount(disk, 4 * needed, REMOUNT)
            shutil.copytree(disk / "run", run) if (disk / "run").exists() else run.mkdir()
            raise SystemExit(code)

        code = Child(act, tmp_path / "outer").wait()
        count.add(one, run, tmp_path / "said", code)
    count.tell(record_property, "disks that are full")
