"""Images that a run has found good are not decoded again, unless anything about them is other."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from retinaconf.data import checked
from retinaconf.data.checked import CheckedImages
from retinaconf.data.images import check_image, check_images
from retinaconf.data.layouts import load_split
from retinaconf.errors import InputError
from retinaconf.run_folder import CHECKED

NAME = os.fsdecode(b"l\xe4nge\n.png")  # no UTF-8, and no text for one line


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the files that are decoded; all are old enough to be known for good."""
    names: list[str] = []

    def check(path: Path, size: tuple[int, int] | None = None) -> tuple[int, int]:
        names.append(Path(path).name)
        return check_image(path, size)

    monkeypatch.setattr(checked, "check_image", check)
    monkeypatch.setattr(checked, "SETTLED_SECONDS", -1)
    return names


def picture(file: Path, grey: int = 0, size: tuple[int, int] = (8, 6)) -> Path:
    """Of the same number of bytes for every grey."""
    Image.fromarray(np.full((size[1], size[0], 3), grey, np.uint8)).save(file, "BMP")
    return file


def replaced(file: Path) -> None:
    """By another picture, whose file has the same size and the same time of writing."""
    before = file.stat()
    other = picture(file.with_name("other"), 9)
    assert other.stat().st_size == before.st_size
    os.utime(other, ns=(before.st_atime_ns, before.st_mtime_ns))
    other.replace(file)
    assert file.stat().st_mtime_ns == before.st_mtime_ns


CHANGES: dict[str, Callable[[Path], Any]] = {
    "written again": lambda file: picture(file, 7),
    "longer": lambda file: file.write_bytes(file.read_bytes() + b"more"),
    "touched": lambda file: os.utime(file),
    "older": lambda file: os.utime(file, (1, 1)),
    "replaced with its times": replaced,
}


@pytest.mark.parametrize("change", CHANGES)
def test_only_what_has_changed_is_decoded_again(tmp_path: Path, decoded: list[str], change: str):
    files = [picture(tmp_path / name) for name in ("a.png", "b.png", NAME)]
    first = CheckedImages(tmp_path)
    assert [first.check(file, (6, 8)) for file in files] == [(6, 8)] * 3
    first.write(tmp_path)
    assert decoded == ["a.png", "b.png", NAME]

    again = CheckedImages(tmp_path)
    assert [again.check(file, (6, 8)) for file in files] == [(6, 8)] * 3
    assert len(decoded) == 3
    CHANGES[change](files[1])
    assert [again.check(file, (6, 8)) for file in files] == [(6, 8)] * 3
    assert decoded[3:] == ["b.png"]
    again.write(tmp_path)
    assert [CheckedImages(tmp_path).check(file, (6, 8)) for file in files] == [(6, 8)] * 3
    assert len(decoded) == 4


def test_a_known_image_is_still_held_against_its_annotation(tmp_path: Path, decoded: list[str]):
    file, known = picture(tmp_path / "a.png"), CheckedImages()
    assert known.check(file) == known.check(file, (0, 0)) == known.check(file, (6, 8)) == (6, 8)
    known.known = known.found
    with pytest.raises(InputError, match="the image is 8 x 6 pixels, its annotation says 9 x 6"):
        known.check(file, (6, 9))
    file.unlink()
    with pytest.raises(InputError, match="no such image file"):
        known.check(file, (6, 8))


def test_bad_images_and_those_just_written_are_checked_every_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    young, known = picture(tmp_path / "young.png"), CheckedImages()
    known.check(young)
    (tmp_path / "bad.png").write_bytes(young.read_bytes()[:60])
    monkeypatch.setattr(time, "time", lambda: young.stat().st_ctime + 10)
    with pytest.raises(InputError, match="truncated"):
        known.check(tmp_path / "bad.png")
    assert known.found == {}
    known.check(young)
    assert len(known.found) == 1


def spoilt(text: str) -> list[str]:
    """Files as damage and strangers leave them."""
    document = json.loads(text)
    (name, values) = next(iter(document["images"].items()))
    others = [
        [],
        {},
        3,
        None,
        {"images": [], "digest": checked._digest([])},
        {"images": 3, "digest": checked._digest(3)},
    ]
    for entry in (None, [1], ["6"] * 8, [*values[:-1], 7.5], [*values[:-1], True]):
        images = document["images"] | {name: entry}
        others.append({"images": images, "digest": checked._digest(images)})
    one_digit = text.replace(f"{values[0]}, ", f"{values[0] + 1}, ", 1)
    return ["", "\0", text[:-1], text[: len(text) // 2], one_digit, "[" * 10_000, *map(json.dumps, others)]


def test_a_damaged_file_is_ignored_and_written_anew(tmp_path: Path, decoded: list[str]):
    file, first = picture(tmp_path / "a.png"), CheckedImages()
    first.check(file, (6, 8))
    first.write(tmp_path)
    sound = (tmp_path / CHECKED).read_text()
    for text in spoilt(sound):
        assert text != sound
        (tmp_path / CHECKED).write_text(text)
        decoded.clear()
        again = CheckedImages(tmp_path)
        assert again.check(file, (6, 8)) == (6, 8)
        assert decoded == ["a.png"], text[:80]
        again.write(tmp_path)
        assert (tmp_path / CHECKED).read_text() == sound
    (tmp_path / CHECKED).unlink()
    (tmp_path / CHECKED).mkdir()
    assert CheckedImages(tmp_path).known == {}


@pytest.mark.parametrize("layout", ["flat", "yolo"])
def test_splits_are_the_same_when_nothing_is_decoded(tmp_path: Path, make_data: Any, decoded: list[str], layout: str):
    if layout == "flat":
        make_data(tmp_path / "data", train=4, val=2)
    else:
        for part in ("images", "labels"):
            (tmp_path / "data" / part / "train").mkdir(parents=True)
        for name in "abcd":
            picture(tmp_path / f"data/images/train/{name}.png")
            (tmp_path / f"data/labels/train/{name}.txt").write_text("0 0.5 0.5 0.2 0.4\n")
        (tmp_path / "data/data.yaml").write_text("train: images/train\nnames: [cell]\n")
    first = CheckedImages()
    truths = [check_images(load_split(tmp_path / "data", "train", check=first.check), check=first.check)]
    first.write(tmp_path)
    assert len(decoded) == 4
    again = CheckedImages(tmp_path)
    truths.append(check_images(load_split(tmp_path / "data", "train", check=again.check), check=again.check))
    assert len(decoded) == 4
    assert truths[0].fingerprint() == truths[1].fingerprint()
    assert truths[1].images_checked


@pytest.mark.ci
def test_a_run_that_continues_and_its_evaluation_decode_only_what_is_new(
    run_cli: Callable[..., Any], tiny_data: Path, tiny_flags: list[str], tmp_path: Path, decoded: list[str]
):
    words = ("train", "conf-lite0", "--data", tiny_data, "--out", tmp_path / "run", *tiny_flags, "--device", "cpu")
    assert run_cli(*words, "--max-steps", "1").code == 0
    images = len(decoded)
    assert images == len(list((tiny_data / "images").iterdir()))
    assert run_cli(*words, "--max-steps", "2", "--resume").code == 0
    assert run_cli("evaluate", tmp_path / "run", "--data", tiny_data, "--device", "cpu").code == 0
    assert len(decoded) == images
    file = sorted((tiny_data / "images").glob("val*"))[0]
    file.write_bytes(file.read_bytes()[:200])
    for again in ((*words, "--resume"), ("evaluate", tmp_path / "run", "--data", tiny_data, "--device", "cpu")):
        result = run_cli(*again)
        assert result.code == 1
        assert f"{file}: truncated" in result.err


@pytest.mark.ci
def test_a_retrofit_decodes_only_what_its_run_does_not_know(
    run_cli: Callable[..., Any], tiny_data: Path, tiny_flags: list[str], tmp_path: Path, decoded: list[str]
):
    words = ("train", "retinanet-lite0", "--data", tiny_data, "--out", tmp_path / "plain", *tiny_flags)
    words = (*words, "--model.quality", "none", "--inference.alpha", "0")
    assert run_cli(*words, "--device", "cpu", "--max-steps", "1").code == 0
    images = len(decoded)
    words = ("retrofit", tmp_path / "plain", "--data", tiny_data, "--out", tmp_path / "run", "--device", "cpu")
    assert run_cli(*words).code == 0
    assert run_cli("evaluate", tmp_path / "run", "--data", tiny_data, "--device", "cpu").code == 0
    assert len(decoded) == images


@pytest.mark.ci
def test_a_run_that_cannot_load_an_image_checks_all_of_them_again(
    run_cli: Callable[..., Any], tiny_data: Path, tiny_flags: list[str], tmp_path: Path, decoded: list[str]
):
    """What is wrong may be what size and times do not show, as a disk's bad block."""
    words = ("train", "conf-lite0", "--data", tiny_data, "--out", tmp_path / "run", *tiny_flags, "--device", "cpu")
    assert run_cli(*words, "--max-steps", "1").code == 0
    images = len(decoded)
    with pytest.MonkeyPatch.context() as patch:

        def unreadable(*args: Any) -> None:
            raise InputError("the disk has a bad block")

        patch.setattr("retinaconf.data.loader.read_image", unreadable)
        result = run_cli(*words, "--resume")
    assert (result.code, "bad block" in result.err) == (1, True)
    assert len(decoded) == images
    assert not (tmp_path / "run" / CHECKED).exists()
    assert run_cli(*words, "--max-steps", "2", "--resume").code == 0
    assert len(decoded) == 2 * images
