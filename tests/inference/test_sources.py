from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from retinaconf.errors import InputError
from retinaconf.inference.sources import find_files

FILES = [
    "a.jpg",
    "b.PNG",
    "notes.txt",
    "deep/c.jpg",
    "deep/er/d.jpeg",
    "deep/er/clip.mp4",
    "odd [1].jpg",
    "with space.jpg",
]


@pytest.fixture
def photos(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in FILES:
        (tmp_path / "photos" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "photos" / name).touch()
    monkeypatch.chdir(tmp_path)
    return tmp_path / "photos"


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("photos/a.jpg", ["a.jpg"]),
        ("photos/notes.txt", ["notes.txt"]),  # named outright: reading it will say what is wrong
        ("photos/*.jpg", ["a.jpg", "odd [1].jpg", "with space.jpg"]),
        ("photos/**/*.jpg", ["a.jpg", "deep/c.jpg", "odd [1].jpg", "with space.jpg"]),
        ("photos/deep/**", ["deep/c.jpg", "deep/er/clip.mp4", "deep/er/d.jpeg"]),
        ("photos/[ab].*", ["a.jpg", "b.PNG"]),
        ("photos/odd [1].jpg", ["odd [1].jpg"]),  # a file, although it reads as a pattern
        ("photos/?.jpg", ["a.jpg"]),
        ("photos/deep", ["deep/c.jpg", "deep/er/d.jpeg"]),  # of folders the images
    ],
)
def test_names_patterns_and_folders(photos: Path, source: str, expected: list[str]):
    assert find_files([source]) == [Path("photos") / name for name in expected]
    assert find_files([Path(source)]) == find_files([source])


def test_each_file_once_in_the_order_given(photos: Path):
    found = find_files(["photos/deep/c.jpg", "photos/**/*.jpg", "photos/a.jpg"])
    assert [file.name for file in found] == ["c.jpg", "a.jpg", "odd [1].jpg", "with space.jpg"]


def test_local_addresses(photos: Path):
    file = photos / "with space.jpg"
    assert "%20" in file.as_uri()
    assert find_files([file.as_uri()]) == [file]
    assert find_files([(photos / "deep").as_uri()]) == [photos / "deep/c.jpg", photos / "deep/er/d.jpeg"]


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("https://example.org/cat.jpg", "https://example.org/cat.jpg: addresses on the network are not read; download"),
        ("HTTP://example.org/*.jpg", "HTTP://example.org/*.jpg: addresses on the network are not read; download"),
        ("s3://bucket/cat.jpg", "s3://bucket/cat.jpg: addresses on the network are not read; download it first"),
        ("rtsp://camera/1", "rtsp://camera/1: addresses on the network are not read; download it first"),
        ("photos/*.tiff", "photos/*.tiff: no image matches this pattern"),
        ("photos/*.txt", "photos/*.txt: no image matches this pattern"),
        ("photos/e.jpg", "photos/e.jpg: no such file or folder"),
        ("file:///nowhere/e.jpg", "file:///nowhere/e.jpg: no such file or folder"),
    ],
)
def test_what_is_not_there(photos: Path, source: str, message: str):
    with pytest.raises(InputError) as caught:
        find_files([source])
    assert str(caught.value).startswith(message)


def test_from_the_command_line(photos: Path, run_cli: Callable[..., Any], trained: Any, tmp_path: Path):
    pattern = f"{trained.data}/images/val-[12].*"
    assert run_cli("predict", trained.run, pattern, "--out", tmp_path / "out", "--device", "cpu").code == 0
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["detections.json", "val-1.jpg", "val-2.jpg"]
    for source in ("https://example.org/cat.jpg", "photos/*.tiff"):
        result = run_cli("predict", trained.run, source, "--out", tmp_path / "none")
        assert (result.code, result.err.count("\n")) == (1, 1)
        assert source in result.err  # both slashes of an address
        assert not (tmp_path / "none").exists()


def test_patterns_do_not_follow_links_in_circles(photos: Path):
    (photos / "again").symlink_to(photos)
    (photos / "itself.jpg").symlink_to(photos / "itself.jpg")
    (photos / ".hidden.jpg").touch()
    assert [file.name for file in find_files(["photos/**/*.jpg"])] == [
        "a.jpg",
        "c.jpg",
        "odd [1].jpg",
        "with space.jpg",
    ]
    assert find_files(["photos/.*.jpg"]) == [Path("photos/.hidden.jpg")]
