"""What somebody does who comes with a YOLO folder and wants a model out, command by command."""

import json
import shutil
import subprocess
import sys

import numpy as np
import pytest
import yaml
from PIL import Image

onnxruntime = pytest.importorskip("onnxruntime")


def as_yolo(coco, folder):
    """The flat COCO data set `coco` as a YOLO folder; images without boxes have no label file."""
    for split in ("train", "val"):
        document = json.loads((coco / f"{split}.json").read_text())
        column = {category["id"]: n for n, category in enumerate(document["categories"])}
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
                    lines.append(" ".join(map(str, (column[annotation["category_id"]], *relative))))
            if lines:
                labels = folder / "labels" / split / f"{picture.stem}.txt"
                labels.parent.mkdir(parents=True, exist_ok=True)
                labels.write_text("\n".join(lines) + "\n")
    names = dict(enumerate(category["name"] for category in document["categories"]))
    (folder / "data.yaml").write_text(yaml.safe_dump({"train": "images/train", "val": "images/val", "names": names}))
    return folder


def test_from_a_yolo_folder_to_onnxruntime(tiny_data, tiny_flags, tmp_path):
    data = as_yolo(tiny_data, tmp_path / "yolo")

    def retinaconf(*words):
        command = [sys.executable, "-m", "retinaconf", *map(str, words)]
        result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300)
        assert result.returncode == 0, result.stderr
        return result.stdout

    findings = tmp_path / "findings.json"
    retinaconf("check", "--data", data, "--short-side", 64, "--long-side", 128, "--json", findings)
    assert findings.exists()

    low = ("--inference.score-threshold", 0.02)  # after two steps nothing scores much
    said = retinaconf("train", "conf-lite0", "--data", data, "--out", "run", *tiny_flags, *low, "--max-steps", 2)
    assert "YOLO" in said

    retinaconf("evaluate", "run", "--data", data, "--json", "val.json")
    report = json.loads((tmp_path / "val.json").read_text())
    assert report["images"] == 4
    assert 0 <= report["metrics"]["AP"] <= 1

    picture = sorted((data / "images" / "val").iterdir())[-1]
    retinaconf("predict", "run", picture, "--out", "found", "--score-threshold", 0)
    records = json.loads((tmp_path / "found" / "detections.json").read_text())
    assert (tmp_path / "found" / f"{picture.stem}.jpg").exists()

    assert "as in torch" in retinaconf("export", "run", "--out", "model.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx")
    about = session.get_modelmeta().custom_metadata_map
    assert json.loads(about["classes"]) == ["red", "green", "blue"]
    photo = Image.open(picture).convert("RGB")
    scale = min(int(about["short_side"]) / min(photo.size), int(about["long_side"]) / max(photo.size))
    width, height = (round(side * scale) for side in photo.size)
    images = np.zeros((1, 3, -(-height // 32) * 32, -(-width // 32) * 32), np.float32)
    resized = np.asarray(photo.resize((width, height), Image.Resampling.BILINEAR))
    images[0, :, :height, :width] = resized.transpose(2, 0, 1)
    outputs = session.run(None, {"images": images, "sizes": np.array([[height, width]])})
    found = dict(zip((output.name for output in session.get_outputs()), outputs))
    assert found["counts"][0] == len(records) > 0
    scores = sorted((record["score"] for record in records), reverse=True)
    np.testing.assert_allclose(found["scores"][0, : len(scores)], scores, atol=1e-4)
