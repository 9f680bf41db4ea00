"""Writing files so that nobody ever sees half of one."""

from __future__ import annotations

import errno
import json
import math
import os
import re
import shutil
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from glob import escape
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, BinaryIO
from zipfile import ZipFile

from retinaconf.errors import InputError, reason

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")  # a half of a pair, as JSON writes it
UNFOLDED = 100  # times the size of an archive; boxes and weights never shrink so much
_locks: set[int] = set()  # file descriptors that hold one


def _leave_locks() -> None:
    """In a forked worker, which may outlive its parent and would go on to hold the parent's locks."""
    for lock in _locks:
        os.close(lock)


if fcntl is not None:
    os.register_at_fork(after_in_child=_leave_locks)


def write_aside(path: Path, write: Callable[[Path], object], keep: Path | None = None) -> None:
    """Let `write` fill a file beside `path`, flush it to the disk, and rename it to `path`.

    A link stays, and the file that it points to is replaced. The file keeps the mode of the one that it replaces; a new
    one has the mode that files usually get. A device or a pipe is not replaced: what was written is copied into it.
    With `keep`, the file that is replaced is renamed to `keep`, which is on the same disk.

    Raises:
        InputError: the folder is missing, the disk is full, or the like; what was at `path` is still there.
    """
    try:
        if path.is_dir():
            raise IsADirectoryError(errno.EISDIR, "Is a directory")
        if not path.exists() or path.is_file():
            _replace(Path(os.path.realpath(path)), write, keep)
        else:
            with TemporaryDirectory() as folder:
                write(Path(folder) / path.name)
                with (Path(folder) / path.name).open("rb") as written, path.open("wb") as device:
                    shutil.copyfileobj(written, device)
    except (OSError, RuntimeError) as error:  # torch reports a full disk as a RuntimeError
        raise _cannot_write(path, error) from None


def open_regular(path: Path) -> BinaryIO:
    """Open a file that a stranger may have named, to read it: a pipe or a device could go on for ever.

    Raises:
        OSError: it cannot be read, or it is no regular file.
    """
    if "\0" in str(path):
        raise OSError(errno.EINVAL, "embedded null character in its name")
    mode = path.stat().st_mode
    if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):  # the system refuses a folder by itself
        raise OSError(errno.EINVAL, "not a regular file")
    return path.open("rb")


def see_no_bomb(archive: ZipFile) -> None:
    """See that what an archive unfolds to stays in proportion to the archive, before it unfolds.

    Raises:
        ValueError: it does not.
    """
    assert archive.fp is not None
    packed, unpacked = os.fstat(archive.fp.fileno()).st_size, sum(part.file_size for part in archive.infolist())
    if unpacked > UNFOLDED * packed:
        raise ValueError(f"it would unfold from {packed:,} to {unpacked:,} bytes")


def read_text(path: Path, errors: str = "strict") -> str:
    """The text in a file, in UTF-8; `errors` as `bytes.decode` takes it.

    Raises:
        OSError: it cannot be read, or is no regular file.
        UnicodeDecodeError: it is no such text.
    """
    with open_regular(path) as stream:
        return stream.read().decode("utf-8-sig", errors)


def read_json(path: Path) -> Any:
    """The value in a JSON file.

    Raises:
        OSError: it cannot be read, or is no regular file.
        ValueError: as `parse_json`.
    """
    with open_regular(path) as stream:
        content = stream.read()
    return parse_json(content.decode(json.detect_encoding(content)))


def parse_json(text: str) -> Any:
    """The value of a JSON text.

    Raises:
        ValueError: it is not JSON, is nested too deeply, or has half of a surrogate pair, which no file takes as text.
    """
    try:
        value = json.loads(text)
        if _SURROGATE.search(text):
            json.dumps(value, ensure_ascii=False).encode()
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    except UnicodeEncodeError:
        raise ValueError("a text in it has half of a surrogate pair, which is no character") from None
    return value


def write_json(path: Path, value: Any) -> None:
    """Write a value as JSON, a line for each of its parts, as `write_aside` does. NaN and infinity become null."""
    text = json.dumps(finite(value), indent=1) + "\n"
    write_aside(path, lambda aside: aside.write_text(text))


def finite(value: Any) -> Any:
    """The same value for JSON, which knows neither NaN nor infinity: None takes their place."""
    if isinstance(value, dict):
        return {name: finite(part) for name, part in value.items()}
    if isinstance(value, list | tuple):
        return [finite(part) for part in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def append_line(path: Path, line: str) -> None:
    """Add a line, which ends with a newline, to a file, made if it is not there.

    Half a line that a kill or a full disk has left is ended first.

    Raises:
        InputError: the disk is full, or the like.
    """
    try:
        with path.open("a+b") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(0, size - 1))
            begun = size > 0 and file.read(1) != b"\n"
            file.write(("\n" * begun + line).encode())
    except OSError as error:
        raise _cannot_write(path, error) from None


def _cannot_write(path: Path, error: Exception) -> InputError:
    return InputError(f"{path}: cannot be written ({reason(error)}); free space there, or choose another place")


def _replace(file: Path, write: Callable[[Path], object], keep: Path | None) -> None:
    aside = file.with_name(f".{file.name}.{os.getpid()}")
    try:
        aside.touch()
        mode = (file if file.exists() else aside).stat().st_mode
        write(aside)  # safetensors makes the file anew, for its owner only
        with aside.open("rb") as written:
            os.fsync(written.fileno())
        if aside.stat().st_mode != mode:
            aside.chmod(stat.S_IMODE(mode))
        if keep is not None and file.exists():
            os.replace(file, keep)
        os.replace(aside, file)
    finally:
        if aside.parent.is_dir():
            aside.unlink(missing_ok=True)


def asides(path: Path) -> list[Path]:
    """What processes that were killed, or are still at work, have beside `path` to write it aside."""
    place = Path(os.path.realpath(path))
    return [aside for aside in place.parent.glob(f".{escape(place.name)}.*") if aside.suffix[1:].isdigit()]


@contextmanager
def locked(file: Path) -> Iterator[None]:
    """Hold a lock on `file`, made if it is not there, until the block or the process ends.

    Where the system or the file system has no locks, nothing is held.

    Raises:
        InputError: another process holds it.
        OSError: the file cannot be made.
    """
    lock = os.open(file, os.O_RDWR | os.O_CREAT, 0o666)
    _locks.add(lock)
    try:
        if fcntl is not None:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise InputError(
                    f"{file.parent}: another process is at work in this folder; wait until it has ended, or choose "
                    "another folder"
                ) from None
            except OSError:  # no locks here
                pass
        yield
    finally:
        _locks.discard(lock)
        os.close(lock)
