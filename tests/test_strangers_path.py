"""What somebody does who comes with a folder of images and wants a model out, command by command."""

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import yaml

import retinaconf


def as_yolo(coco, folder):
    """The flat COCO data set `coco` as a YOLO folder of one class; images without boxes have no label file."""
    for split in ("train", "val"):
        document = json.loads((coco / f"{split}.json").read_text())
        for image in document["images"]:
            picture = folder / "images" / split / image["file_name"]
            picture.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(coco / "images" / image["file_name"], picture)
            lines = []
            for annotation in document["annotations"]:
                if annotation["image_id"] == image["id"] and not annotation["iscrowd"]:
                    x, y, w, h = annotation["bbox"]
                    sides = (image["width"], image["height"]) * 2
                    relative = [value / side for value, side in zip((x + w / 2, y + h / 2, w, h), sides)]
                    lines.append(" ".join(map(str, (0, *relative))))
            if lines:
                labels = folder / "labels" / split / f"{picture.stem}.txt"
                labels.parent.mkdir(parents=True, exist_ok=True)
                labels.write_text("\n".join(lines) + "\n")
    names = {"train": "images/train", "val": "images/val", "names": {0: "thing"}}
    (folder / "data.yaml").write_text(yaml.safe_dump(names))
    return folder


def as_roboflow(coco, folder):
    """The split `train` of the flat COCO data set `coco` as Roboflow exports it: without `val`."""
    shutil.copytree(coco / "images", folder / "train")
    shutil.copy(coco / "train.json", folder / "train/_annotations.coco.json")
    return folder


@pytest.fixture
def stages(run_cli, tmp_path, monkeypatch):
    """A command in an empty folder, which must succeed; returns what it prints."""
    monkeypatch.chdir(tmp_path)

    def run(*words):
        result = run_cli(*words)
        assert result.code == 0, result.err
        return result.out

    return run


@pytest.fixture
def data(stages, tiny_data, tiny_flags, tmp_path):
    """A YOLO folder, and in `run` its detector of one class, without a branch, with one anchor a cell; tuned."""
    data = as_yolo(tiny_data, tmp_path / "yolo")
    sides = ("--short-side", 64, "--long-side", 128)
    stages("check", "--data", data, *sides, "--json", "findings.json")
    assert Path("findings.json").exists()

    plain = ("--model.quality", "none", "--inference.alpha", 0, "--model.anchor-ratios", 1, "--model.anchor-scales", 8)
    low = ("--inference.score-threshold", 0.005)  # after two steps nothing scores much
    words = ("train", "retinanet-lite0", "--data", data, "--out", "run", *tiny_flags, *plain, *low, "--max-steps", 2)
    assert "YOLO" in stages(*words)

    printed = stages("tune", "run", "--data", data, "--recall", 0.5)
    assert "no quality branch, so there is no alpha to choose" in printed
    return data


@pytest.mark.ci
def test_from_a_yolo_folder_to_a_better_detector(stages, data, trained, tiny_data, tmp_path):
    """One of three classes, which starts from the one of one class."""
    stages("evaluate", "run", "--data", data, "--json", "val.json")
    report = json.loads(Path("val.json").read_text())
    assert report["images"] == 4
    assert 0 <= report["metrics"]["AP"] <= 1

    export = as_roboflow(tiny_data, tmp_path / "export")
    assert "Roboflow" in stages("check", "--data", export, "--short-side", 64)
    printed = stages("train", "run", "--data", export, "--out", "finer", "--max-steps", 2)
    assert "backbone, pyramid, towers, box: kept; class: 0 of 3 by name, new: red, green, blue" in printed
    assert "no split 'val' there" in printed
    words = ("compare", "finer", trained.run, "--data", export, "--json", "compared.json")
    assert "A: finer\n" in stages(*words)
    held_out = Path("finer/val.txt").read_text().splitlines()
    assert json.loads(Path("compared.json").read_text())["images"] == len(held_out)


@pytest.mark.slow  # an export takes long; test_export.py and test_snippet.py are about another one
def test_from_a_yolo_folder_to_onnxruntime(stages, data):
    """The page about export says how the file is used: its lines find what `predict` found."""
    onnxruntime = pytest.importorskip("onnxruntime")
    stages("predict", "run", "yolo/images/val/*.png", "--out", "found", "--score-threshold", 0)
    records = json.loads(Path("found/detections.json").read_text())

    assert "as in torch" in retinaconf.export("run", "model.onnx")
    session = onnxruntime.InferenceSession("model.onnx")
    about = session.get_modelmeta().custom_metadata_map
    assert json.loads(about["classes"]) == ["thing"]
    assert 0 < json.loads(about["thresholds"])[0] < 1
    assert [value.name for value in session.get_inputs()] == ["images", "sizes"]
    assert [value.name for value in session.get_overridable_initializers()] == ["score_threshold"]  # no alpha
    outputs = [value.name for value in session.get_outputs()]
    assert outputs == ["counts", "boxes", "scores", "labels", "class_scores", "confidence"]  # no quality
    page = (Path(__file__).parents[1] / "docs/export.md").read_text()
    (snippet,) = re.findall(r"^```python\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)
    pictures = sorted((data / "images" / "val").iterdir())
    assert len(pictures) == 4
    for picture in pictures:
        assert Path("found", f"{picture.stem}.jpg").exists()
        shutil.copy(picture, "photo.jpg")
        exec(snippet, found := {})
        of_picture = [record for record in records if record["file_name"] == f"yolo/images/val/{picture.name}"]
        by_score = sorted(of_picture, key=lambda record: -record["score"])
        count = found["counts"][0]
        assert count == len(by_score) > 0
        scores = [record["score"] for record in by_score]
        np.testing.assert_allclose(found["scores"][0, :count], scores, atol=1e-4)
        confidence = [record["confidence"] for record in by_score]
        np.testing.assert_allclose(found["rest"][1][0, :count], confidence, atol=1e-3)
