import json
import math
import os
import stat
import threading
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any
from zipfile import ZIP_DEFLATED, ZIP_STORED, ZipFile

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from retinaconf.errors import InputError
from retinaconf.files import append_line, parse_json, read_json, read_text, see_no_bomb, write_aside, write_json


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_file_appears_whole_and_replaces_the_old_one(tmp_path: Path):
    file = tmp_path / "a.txt"
    seen: list[tuple[str, list[str]]] = []

    def write(aside: Path) -> None:
        aside.write_text("new")
        seen.append((file.read_text() if file.exists() else "", names(tmp_path)))

    write_aside(file, write)
    write_aside(file, write)
    assert file.read_text() == "new"
    assert names(tmp_path) == ["a.txt"]
    aside = f".a.txt.{os.getpid()}"
    assert seen == [("", [aside]), ("new", [aside, "a.txt"])]


def test_json_has_null_for_what_is_not_finite(tmp_path: Path):
    value = {"a": [1.5, math.nan, {"b": (math.inf, -math.inf, 3)}], "c": None, "d": "NaN", "e": np.float64("nan")}
    write_json(tmp_path / "a.json", value)
    read = json.loads((tmp_path / "a.json").read_text(), parse_constant=lambda name: pytest.fail(name))
    assert read == {"a": [1.5, None, {"b": [None, None, 3]}], "c": None, "d": "NaN", "e": None}


def test_lines_are_added_and_half_a_line_is_ended(tmp_path: Path):
    file = tmp_path / "log.txt"
    append_line(file, "one\n")
    append_line(file, "two\n")
    assert file.read_text() == "one\ntwo\n"
    file.write_text("one\ntw")  # a kill, or a full disk
    append_line(file, "three\n")
    assert file.read_text() == "one\ntw\nthree\n"
    with pytest.raises(InputError, match=r"/dev/full: cannot be written \(No space left on device\); free space"):
        append_line(Path("/dev/full"), "one\n")


def half(error: Exception) -> Callable[[Path], None]:
    def write(aside: Path, *args: Any) -> None:
        aside.write_text("half")
        raise error

    return write


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (OSError(28, "No space left on device"), "No space left on device"),
        (RuntimeError("PytorchStreamWriter failed writing file data/0\nsecond line"), "PytorchStreamWriter failed"),
        (OSError("encoder error -2"), "encoder error -2"),
        (OSError(), "OSError"),
        (RuntimeError(""), "RuntimeError"),
    ],
    ids=["system", "torch", "pillow", "empty", "torch, empty"],
)
def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path: Path, error: Exception, reason: str):
    file = tmp_path / "a.txt"
    file.write_text("old")
    with pytest.raises(InputError, match=rf"a\.txt: cannot be written \({reason}.*\); free") as caught:
        write_aside(file, half(error))
    assert "\n" not in str(caught.value)
    assert file.read_text() == "old"
    assert names(tmp_path) == ["a.txt"]


def test_other_errors_are_left_as_they_are(tmp_path: Path):
    with pytest.raises(ZeroDivisionError):
        write_aside(tmp_path / "a.txt", half(ZeroDivisionError()))
    with pytest.raises(KeyboardInterrupt):
        write_aside(tmp_path / "a.txt", half(KeyboardInterrupt()))  # type: ignore[arg-type]
    assert names(tmp_path) == []


def test_a_folder_that_is_not_there(tmp_path: Path):
    with pytest.raises(InputError, match="cannot be written"):
        write_aside(tmp_path / "none/a.txt", lambda aside: aside.write_text("x"))
    assert names(tmp_path) == []


@pytest.fixture
def group_may_read() -> Iterator[None]:
    old = os.umask(0o027)
    yield
    os.umask(old)


WRITERS: dict[str, Callable[[Path], object]] = {
    "text": lambda aside: aside.write_text("x"),
    "safetensors": partial(save_file, {"w": torch.ones(2)}),
}


@pytest.mark.usefixtures("group_may_read")
@pytest.mark.parametrize("write", WRITERS.values(), ids=WRITERS)
def test_a_file_has_the_usual_mode_and_keeps_the_one_that_it_was_given(tmp_path: Path, write: Any):
    file = tmp_path / "file"
    write_aside(file, write)
    assert stat.S_IMODE(file.stat().st_mode) == 0o640
    file.chmod(0o604)
    write_aside(file, write)
    assert stat.S_IMODE(file.stat().st_mode) == 0o604


@pytest.mark.parametrize("exists", [True, False])
def test_a_link_is_written_through(tmp_path: Path, exists: bool):
    (tmp_path / "elsewhere").mkdir()
    if exists:
        (tmp_path / "elsewhere/b.txt").write_text("old")
    (tmp_path / "a.txt").symlink_to(Path("elsewhere/b.txt"))
    write_aside(tmp_path / "a.txt", lambda aside: aside.write_text("new"))
    assert (tmp_path / "a.txt").is_symlink()
    assert (tmp_path / "elsewhere/b.txt").read_text() == "new"
    assert names(tmp_path) == ["a.txt", "elsewhere"]
    assert names(tmp_path / "elsewhere") == ["b.txt"]


@pytest.mark.parametrize("linked", [False, True])
def test_a_pipe_is_written_to_and_stays_one(tmp_path: Path, linked: bool):
    os.mkfifo(pipe := tmp_path / "pipe")
    (tmp_path / "link").symlink_to(pipe)
    came: list[str] = []
    reader = threading.Thread(target=lambda: came.append(pipe.read_text()), daemon=True)
    reader.start()
    write_aside(tmp_path / "link" if linked else pipe, lambda aside: aside.write_text("new"))
    reader.join(10)
    assert came == ["new"]
    assert stat.S_ISFIFO(pipe.stat().st_mode)
    assert names(tmp_path) == ["link", "pipe"]


def test_a_folder_is_not_replaced(tmp_path: Path):
    (tmp_path / "a/b").mkdir(parents=True)
    with pytest.raises(InputError, match=r"a: cannot be written \(Is a directory\)"):
        write_aside(tmp_path / "a", lambda aside: aside.write_text("new"))
    assert names(tmp_path) == ["a"]


def test_a_folder_is_not_replaced_even_if_it_has_no_name():
    with pytest.raises(InputError, match=r"^/: cannot be written \(Is a directory\)"):
        write_json(Path("/"), {})


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[" * 5_000_000, "it is nested too deeply"),
        ("9" * 5_000, "Exceeds the limit"),
        ('["\\ud800"]', "half of a surrogate pair"),
        ('{"\\udc00": 1}', "half of a surrogate pair"),
        ("[", "Expecting value"),
    ],
)
def test_a_text_that_is_no_json_for_us(text: str, message: str):
    with pytest.raises(ValueError, match=message):
        parse_json(text)
    assert parse_json('["\\ud83d\\ude00", "\\\\ud800"]') == ["😀", "\\ud800"]


def test_a_pipe_is_not_read(tmp_path: Path):
    os.mkfifo(pipe := tmp_path / "pipe")
    for read in (read_json, read_text):
        with pytest.raises(OSError, match="not a regular file"):
            read(pipe)


def test_an_archive_that_unfolds_to_much_more(tmp_path: Path):
    for zeros, folds in ((1 << 18, True), (1 << 18, False)):
        with ZipFile(tmp_path / "a.zip", "w", ZIP_DEFLATED if folds else ZIP_STORED) as archive:
            archive.writestr("a", bytes(zeros))
        with ZipFile(tmp_path / "a.zip") as archive:
            if folds:
                with pytest.raises(ValueError, match=r"it would unfold from .* to 262,144 bytes"):
                    see_no_bomb(archive)
            else:
                see_no_bomb(archive)
