"""A run on data that names no splits keeps which images are its `val`, and every command takes them from there."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from retinaconf.commands.retrofit import retrofit
from retinaconf.training.run import train_run

NAMES = ("blue", "green", "red")  # as PASCAL VOC orders them, by name


@pytest.fixture
def voc(tiny_data: Path, tmp_path: Path) -> Path:
    """The eight training images as PASCAL VOC without `ImageSets`."""
    document = json.loads((tiny_data / "train.json").read_text())
    names = {category["id"]: category["name"] for category in document["categories"]}
    root = tmp_path / "voc"
    (root / "Annotations").mkdir(parents=True)
    shutil.copytree(tiny_data / "images", root / "JPEGImages")
    for image in document["images"]:
        objects = ""
        for one in document["annotations"]:
            if one["image_id"] == image["id"]:
                x, y, w, h = one["bbox"]
                corners = f"<xmin>{x + 1}</xmin><ymin>{y + 1}</ymin><xmax>{x + w}</xmax><ymax>{y + h}</ymax>"
                objects += f"<object><name>{names[one['category_id']]}</name><bndbox>{corners}</bndbox></object>"
        text = f"<annotation><filename>{image['file_name']}</filename>{objects}</annotation>"
        (root / "Annotations" / f"{Path(image['file_name']).stem}.xml").write_text(text)
    return root


def add_images(voc: Path) -> None:
    for n in range(4):
        for folder, suffix in (("Annotations", "xml"), ("JPEGImages", "png")):
            shutil.copy(voc / folder / f"train-{n}.{suffix}", voc / folder / f"more-{n}.{suffix}")


def test_a_run_validates_on_the_same_images_when_others_are_added(
    voc: Path, tmp_path: Path, tiny_flags: list[str], run_cli: Callable[..., Any]
):
    run = tmp_path / "run"
    words = ["train", "conf-r50-1x", "--data", voc, "--out", run, *tiny_flags, "--max-steps"]
    result = run_cli(*words, "1", "--data.val-fraction", "0.3")
    assert result.code == 0, result.err
    val = (run / "val.txt").read_text().split()
    assert len(val) == 2
    assert set(val) < {f"train-{n}" for n in range(8)}
    assert "2 of the 8 images are val, drawn in balance of the classes" in result.out
    add_images(voc)
    for split, images in (("val", 2), ("train", 10)):
        report = tmp_path / "report.json"
        result = run_cli("evaluate", run, "--data", voc, "--split", split, "--json", report)
        assert result.code == 0, result.err
        assert json.loads(report.read_text())["images"] == images
        assert f"2 of the 12 images are val, as {run / 'val.txt'} lists" in result.out
    detections = tmp_path / "detections.json"
    result = run_cli("diagnose", run, "--data", voc, "--json", detections)
    assert json.loads(detections.read_text())["data"]["images"] == 2
    for command in ("evaluate", "diagnose"):
        result = run_cli(command, run, "--data", voc, "--val-fraction", "0.5")
        assert result.code == 1
        assert f"--val-fraction 0.5: {run / 'val.txt'} says which images are val; leave the option out" in result.err

    result = run_cli(*words, "2", "--data.val-fraction", "0.3", "--resume")
    assert "Annotations has 10 images, and the run's data had 6" in result.err
    for file in voc.rglob("more-*"):
        file.unlink()
    result = run_cli(*words, "2", "--data.val-fraction", "0.3", "--resume")
    assert result.code == 0, result.err
    assert (run / "val.txt").read_text().split() == val


def test_a_run_without_its_list(voc: Path, tmp_path: Path, tiny_flags: list[str], run_cli: Callable[..., Any]):
    run = tmp_path / "run"
    words = ["train", "conf-r50-1x", "--data", voc, "--out", run, *tiny_flags, "--max-steps", "1"]
    assert run_cli(*words).code == 0
    (run / "val.txt").unlink()
    result = run_cli(*words, "--resume")
    assert result.code == 1
    assert "not known which images of these data it validates on (val.txt is missing" in result.err
    result = run_cli("evaluate", run, "--data", voc, "--val-fraction", "0.5")
    assert "4 of the 8 images are val, drawn in balance of the classes; " in result.out
    assert f"{run} keeps no list of those that it was trained on" in result.out

    (tmp_path / "new").mkdir()
    (tmp_path / "new/val.txt").write_text("mine")
    result = run_cli("train", "conf-r50-1x", "--data", voc, "--out", tmp_path / "new", *tiny_flags)
    assert "new: holds val.txt but no config.json" in result.err
    assert (tmp_path / "new/val.txt").read_text() == "mine"


def test_a_start_that_fails_leaves_no_list(voc: Path, tmp_path: Path, tiny_config: Any):
    with pytest.raises(Exception, match="no such model"):
        train_run(tiny_config(**{"model.backbone": "resnet99"}), voc, tmp_path / "run", device="cpu")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("gone", [False, True], ids=["more images", "other images with some of the names"])
def test_a_run_keeps_the_list_of_the_run_that_it_starts_from(
    voc: Path, write_run: Callable[..., Path], tmp_path: Path, run_cli: Callable[..., Any], gone: bool
):
    base = write_run(tmp_path / "base", dict(enumerate(NAMES, start=1)))
    (base / "val.txt").write_text("train-3\ntrain-4\n" + "train-99\n" * gone)
    add_images(voc)
    result = run_cli("train", base, "--data", voc, "--out", tmp_path / "run", "--max-steps", 1, "--device", "cpu")
    assert result.code == 0, result.err
    kept = (tmp_path / "run/val.txt").read_text() == "train-3\ntrain-4\n"
    assert kept == (f"2 of the 12 images are val, as {base / 'val.txt'} lists" in result.out) == (not gone)


def test_a_retrofitted_run_keeps_the_list(voc: Path, write_run: Callable[..., Path], tmp_path: Path):
    plain = {"model.quality": "none", "inference.alpha": 0.0, "loss.quality": "l2", "inference.joint": "cls"}
    base = write_run(tmp_path / "base", dict(enumerate(NAMES, start=1)), **plain)
    (base / "val.txt").write_text("train-3\ntrain-4\n")
    add_images(voc)
    retrofit(base, voc, tmp_path / "run", device="cpu")
    assert (tmp_path / "run/val.txt").read_text() == "train-3\ntrain-4\n"
    assert "2 of the 12 images are val, as" in (tmp_path / "run/log.txt").read_text()


def test_check_says_what_is_drawn(voc: Path, tmp_path: Path, run_cli: Callable[..., Any]):
    result = run_cli("check", "--data", voc, "--val-fraction", "0.5", "--json", tmp_path / "check.json")
    said = "4 images, {} boxes, 3 classes; no splits named there: "
    said += "4 of the 8 images are val, drawn in balance of the classes"
    report = json.loads((tmp_path / "check.json").read_text())
    for split in ("train", "val"):
        line = said.format(report["splits"][split]["boxes"])
        assert report["found"][split].endswith(line)
        assert report["found"][split] in result.out
