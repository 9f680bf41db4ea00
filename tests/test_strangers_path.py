"""What somebody does who comes with a YOLO folder and wants a model out, command by command."""

import json
import shutil

import numpy as np
import pytest
import yaml
from PIL import Image

import retinaconf

onnxruntime = pytest.importorskip("onnxruntime")


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


def test_from_a_yolo_folder_to_onnxruntime(run_cli, tiny_data, tiny_flags, tmp_path, monkeypatch):
    """A detector of one class, without a branch, with one anchor a cell."""
    data = as_yolo(tiny_data, tmp_path / "yolo")
    monkeypatch.chdir(tmp_path)

    def retinaconf(*words):
        result = run_cli(*words)
        assert (result.code, result.err) == (0, ""), result.err
        return result.out

    retinaconf("check", "--data", data, "--short-side", 64, "--long-side", 128, "--json", "findings.json")
    assert (tmp_path / "findings.json").exists()

    plain = ("--model.quality", "none", "--inference.alpha", 0, "--model.anchor-ratios", 1, "--model.anchor-scales", 8)
    low = ("--inference.score-threshold", 0.005)  # after two steps nothing scores much
    words = ("train", "retinanet-lite0", "--data", data, "--out", "run", *tiny_flags, *plain, *low, "--max-steps", 2)
    assert "YOLO" in retinaconf(*words)

    printed = retinaconf("tune", "run", "--data", data, "--recall", 0.5)
    assert "no quality branch, so there is no alpha to choose" in printed

    retinaconf("evaluate", "run", "--data", data, "--json", "val.json")
    report = json.loads((tmp_path / "val.json").read_text())
    assert report["images"] == 4
    assert 0 <= report["metrics"]["AP"] <= 1

    words = ("train", "run", "--data", tiny_data, "--out", "finer", "--max-steps", 2)
    line = "backbone, pyramid, towers, box: kept; class: 0 of 3 by name, new: red, green, blue"
    assert line in retinaconf(*words)

    pictures = sorted((data / "images" / "val").iterdir())
    retinaconf("predict", "run", *pictures, "--out", "found", "--score-threshold", 0)
    records = json.loads((tmp_path / "found" / "detections.json").read_text())

    assert "as in torch" in retinaconf("export", "run", "--out", "model.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx")
    about = session.get_modelmeta().custom_metadata_map
    assert json.loads(about["classes"]) == ["thing"]
    assert 0 < json.loads(about["thresholds"])[0] < 1
    assert [value.name for value in session.get_inputs()] == ["images", "sizes"]
    assert [value.name for value in session.get_overridable_initializers()] == ["score_threshold"]  # no alpha
    for picture in pictures:
        assert (tmp_path / "found" / f"{picture.stem}.jpg").exists()
        photo = Image.open(picture).convert("RGB")
        scale = min(int(about["short_side"]) / min(photo.size), int(about["long_side"]) / max(photo.size))
        width, height = (round(side * scale) for side in photo.size)
        images = np.zeros((1, 3, -(-height // 32) * 32, -(-width // 32) * 32), np.float32)
        resized = np.asarray(photo.resize((width, height), Image.Resampling.BILINEAR))
        images[0, :, :height, :width] = resized.transpose(2, 0, 1)
        outputs = session.run(None, {"images": images, "sizes": np.array([[height, width]])})
        found = dict(zip((output.name for output in session.get_outputs()), outputs))
        assert "quality" not in found
        of_picture = [record for record in records if record["file_name"] == str(picture)]
        assert found["counts"][0] == len(of_picture) > 0
        by_score = sorted(of_picture, key=lambda record: -record["score"])
        scores = [record["score"] for record in by_score]
        np.testing.assert_allclose(found["scores"][0, : len(scores)], scores, atol=1e-4)
        confidence = [record["confidence"] for record in by_score]
        np.testing.assert_allclose(found["confidence"][0, : len(scores)], confidence, atol=1e-3)


def test_from_a_roboflow_folder_without_val_to_a_better_detector(run_cli, trained, tiny_data, tmp_path, monkeypatch):
    """Somebody goes on from a detector, and asks whether the new one beats the old one."""
    shutil.copytree(tiny_data / "images", tmp_path / "export/train")
    shutil.copy(tiny_data / "train.json", tmp_path / "export/train/_annotations.coco.json")
    monkeypatch.chdir(tmp_path)

    def stages(*words):
        result = run_cli(*words)
        assert result.code == 0, result.err
        return result.out

    assert "Roboflow" in stages("check", "--data", "export", "--short-side", 64, "--long-side", 128)
    said = stages("train", trained.run, "--data", "export", "--out", "new", "--max-steps", 2)
    assert "class: 3 of 3 by name (red, green, blue)" in said
    assert "no split 'val' there" in said
    sides = ("new", trained.run, "--data", "export")
    assert "A: new\n" in stages("compare", *sides, "--json", "compared.json")
    held_out = (tmp_path / "new/val.txt").read_text().splitlines()
    assert json.loads((tmp_path / "compared.json").read_text())["images"] == len(held_out)
    stages("predict", "new", "export/train/val-*.png", "--out", "found")
    assert len(list((tmp_path / "found").glob("*.jpg"))) == 4
    assert "as in torch" in retinaconf.export("new", "model.onnx")
    assert (tmp_path / "model.onnx").exists()
