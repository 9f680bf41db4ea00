"""A run on data that names no splits keeps which images are its `val`, and every command takes them from there."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from retinaconf.commands.retrofit import retrofit
from retinaconf.data.layouts import load_split
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


@pytest.mark.ci
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


@pytest.mark.ci
def test_a_run_without_its_list(voc: Path, tmp_path: Path, tiny_flags: list[str], run_cli: Callable[..., Any]):
    run = tmp_path / "run"
    words = ["train", "conf-r50-1x", "--data", voc, "--out", run, *tiny_flags, "--max-steps", "1"]
    assert run_cli(*words).code == 0
    (run / "val.txt").unlink()
    result = run_cli(*words, "--resume")
    assert result.code == 1
    assert "the run's data had boxes in a split 'val', and these have none (nor has the run a val.txt)" in result.err
    state = torch.load(run / "last.ckpt", weights_only=True)
    del state["data"]  # as version 0.1
    torch.save(state, run / "last.ckpt")
    (run / "metrics.jsonl").write_text('{"kind": "val", "step": 1, "epoch": 1, "AP": 0.5}\n')
    result = run_cli(*words, "--resume")
    assert result.code == 1
    assert "not known which images of these data it validates on (val.txt is missing" in result.err
    result = run_cli("evaluate", run, "--data", voc, "--val-fraction", "0.5")
    assert "4 of the 8 images are val, drawn in balance of the classes; " in result.out
    assert f"{run} keeps no list of them, and may have been trained on them" in result.out

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
    said = "4 images, {} boxes, 3 classes; no split 'val' there: "
    said += "4 of the 8 images are val, drawn in balance of the classes"
    report = json.loads((tmp_path / "check.json").read_text())
    for split in ("train", "val"):
        line = said.format(report["splits"][split]["boxes"])
        assert report["found"][split].endswith(line)
        assert report["found"][split] in result.out


def as_roboflow(flat: Path, root: Path) -> Path:
    (root / "train").mkdir(parents=True)
    document = json.loads((flat / "train.json").read_text())
    for image in document["images"]:
        shutil.copy(flat / "images" / image["file_name"], root / "train")
    (root / "train/_annotations.coco.json").write_text(json.dumps(document))
    return root


def as_flat(flat: Path, root: Path) -> Path:
    shutil.copytree(flat, root)
    (root / "val.json").unlink()
    return root


@pytest.mark.parametrize("layout", [pytest.param(as_flat, marks=pytest.mark.slow), as_roboflow])
@pytest.mark.ci
def test_a_tenth_of_train_is_held_out_where_there_is_no_val(
    make_data: Callable[..., Path],
    layout: Callable[[Path, Path], Path],
    tmp_path: Path,
    tiny_flags: list[str],
    run_cli: Callable[..., Any],
):
    data, run = layout(make_data(tmp_path / "made", train=20), tmp_path / "data"), tmp_path / "run"
    words = ["train", "conf-r50-1x", "--data", data, "--out", run, *tiny_flags, "--max-steps"]
    result = run_cli(*words, "5")
    assert result.code == 0, result.err
    assert result.out.count("no split 'val' there: 2 of the 20 images are val, drawn in balance of the classes") == 2
    held_out = (run / "val.txt").read_text().split()
    record = next(json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines() if '"val"' in line)

    # What anybody adds later belongs to `train`, and is not validated on.
    result = run_cli("evaluate", run, "--data", data, "--json", tmp_path / "val.json")
    report = json.loads((tmp_path / "val.json").read_text())
    assert (report["images"], report["metrics"]["AP"]) == (2, record["AP"])
    assert f"2 of the 20 images are val, as {run / 'val.txt'} lists" in result.out
    run_cli("diagnose", run, "--data", data, "--json", tmp_path / "diagnosis.json")
    assert json.loads((tmp_path / "diagnosis.json").read_text())["data"]["images"] == 2
    run_cli("evaluate", run, "--data", data, "--split", "train", "--json", tmp_path / "train.json")
    assert json.loads((tmp_path / "train.json").read_text())["images"] == 18
    (run / "val.txt").write_text("".join(f"{name}.png\n" for name in held_out))  # as a person may write it
    result = run_cli(*words, "6", "--resume")
    assert (result.code, result.err) == (0, "")


def test_files_that_are_listed_twice_are_on_one_side(tiny_data: Path):
    document = json.loads((tiny_data / "train.json").read_text())
    copies = [image | {"id": image["id"] + 5000} for image in document["images"]]
    (tiny_data / "train.json").write_text(json.dumps(document | {"images": document["images"] + copies}))
    (tiny_data / "val.json").unlink()
    train, val = (load_split(tiny_data, split, val_fraction=0.3) for split in ("train", "val"))
    assert (len(train), len(val)) == (12, 4)
    assert not set(train.file_names) & set(val.file_names)


def test_a_run_that_held_nothing_out_goes_on_so(tiny_data: Path, tmp_path: Path, tiny_config: Any):
    """As all runs without a split `val` before images were held out; their configuration said 0.2."""
    (tiny_data / "val.json").unlink()
    run, config = tmp_path / "run", tiny_config()
    train_run(config.changed(**{"data.val_fraction": 0.0}), tiny_data, run, max_steps=2, device="cpu")
    flat = json.loads((run / "config.json").read_text())
    (run / "config.json").write_text(json.dumps(flat | {"data.val_fraction": 0.2}))
    train_run(config, tiny_data, run, resume=True, max_steps=3, device="cpu")
    assert not (run / "val.txt").exists()
    assert (run / "log.txt").read_text().count("no split 'val'; training without validation") == 2
