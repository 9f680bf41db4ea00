import os
from collections.abc import Callable
from pathlib import Path

import pytest

from retinaconf.data.changes import Files
from retinaconf.data.layouts import load_split


def voc(root: Path) -> Path:
    (root / "Annotations").mkdir(parents=True)
    (root / "images").mkdir()
    box = "<bndbox><xmin>1</xmin><ymin>1</ymin><xmax>9</xmax><ymax>9</ymax></bndbox>"
    (root / "Annotations/a.xml").write_text(f"<annotation><object><name>cat</name>{box}</object></annotation>")
    (root / "images/a.jpg").touch()
    (root / "ImageSets/Main").mkdir(parents=True)
    (root / "ImageSets/Main/train.txt").write_text("a\n")
    return root


def yolo(root: Path, make_data: Callable[..., Path]) -> Path:
    make_data(root, train=2, val=0)
    (root / "train.json").unlink()
    (root / "data.yaml").write_text("train: images\nnames: [cat]\n")
    (root / "labels").mkdir()
    (root / "labels/train-0.txt").write_text("0 0.5 0.5 0.2 0.2\n")
    return root


def again(file: Path) -> None:
    """Write a file again, with what it has, a second later."""
    os.utime(file, (file.stat().st_atime, file.stat().st_mtime + 1))


def test_annotation_files_of_every_layout_that_change_are_named(tmp_path: Path, make_data: Callable[..., Path]):
    roots = {"flat": make_data(tmp_path / "flat"), "voc": voc(tmp_path / "voc")}
    roots["yolo"] = yolo(tmp_path / "yolo", make_data)
    read = {
        "flat": ["train.json"],
        "voc": ["Annotations/a.xml", "ImageSets/Main/train.txt"],
        "yolo": ["data.yaml", "labels/train-0.txt", "labels/train-1.txt"],
    }
    for layout, root in roots.items():
        files = Files([load_split(root, "train")])
        assert files.changes() == []
        for name in read[layout]:
            again(root / name) if (root / name).exists() else (root / name).touch()  # one that was not there
            (warning,) = files.changes()
            assert warning == (
                f"warning: {root / name} changed since the run read the data; it keeps the boxes that it has read, and "
                "continues with --resume only on these"
            )
        assert files.changes() == []  # each change is told once


@pytest.mark.parametrize("same_time", [False, True])
def test_images_that_change_or_disappear_are_named(tiny_data: Path, same_time: bool):
    files = Files([load_split(tiny_data, split) for split in ("train", "val")])
    replaced = [tiny_data / f"images/{name}.png" for name in ("train-1", "train-2", "train-4", "val-0")]
    for file in replaced:
        before = file.stat()
        file.write_bytes(file.read_bytes() + b"\0")
        os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns + (not same_time)))
    (tiny_data / "images/val-1.png").unlink()
    changed, missing = files.changes()
    named = ", ".join(map(str, replaced[:3]))
    assert changed.startswith(f"warning: {named} and 1 more file changed since the run began; ")
    assert missing.startswith(f"warning: {tiny_data / 'images/val-1.png'} disappeared since the run began; restore")
    assert files.changes() == []
