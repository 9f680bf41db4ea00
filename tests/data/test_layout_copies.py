"""One data set in four layouts: the same ground truth, and the same AP for the same detections."""

import json
import os
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any
from xml.sax.saxutils import escape

import numpy as np
import pytest

from retinaconf.data.check import check
from retinaconf.data.ground_truth import GroundTruth
from retinaconf.data.images import check_images
from retinaconf.data.layouts import find_layout, load_split
from retinaconf.detections import Detections
from retinaconf.evaluation.coco import CocoEvaluator

IMAGES = {"train": 24, "val": 12}  # of each split, the first
NO_EXTENT = {"id": 10**6, "category_id": 2, "bbox": [100.0, 100.0, 0.0, 30.0], "area": 0.0, "iscrowd": 0}
Documents = dict[str, dict[str, Any]]  # COCO dictionaries by split


@pytest.fixture(scope="module")
def documents(shared_data: Path) -> Documents:
    """Blood cells, and a box without width in the first image, as the set's source has some."""
    parts: Documents = {}
    for split, count in IMAGES.items():
        whole = json.loads((shared_data / "bccd" / f"{split}.json").read_text())
        images = whole["images"][:count]
        ids = {image["id"] for image in images}
        boxes = [box for box in whole["annotations"] if box["image_id"] in ids]
        boxes.insert(1, NO_EXTENT | {"image_id": images[0]["id"]})
        parts[split] = {"images": images, "annotations": boxes, "categories": whole["categories"]}
    return parts


def link(images: Path, name: str, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    os.symlink(images / name, folder / name)


def boxes_of(document: dict[str, Any], image: dict[str, Any]) -> list[tuple[str, list[float]]]:
    names = {category["id"]: category["name"] for category in document["categories"]}
    return [(names[a["category_id"]], a["bbox"]) for a in document["annotations"] if a["image_id"] == image["id"]]


def flat(root: Path, documents: Documents, images: Path) -> None:
    for split, document in documents.items():
        for image in document["images"]:
            link(images, image["file_name"], root / "images")
        (root / f"{split}.json").write_text(json.dumps(document))


def roboflow(root: Path, documents: Documents, images: Path) -> None:
    """As Roboflow exports: category 0 is the project and has no boxes, ids count from 0, no area that is not w * h."""
    for split, document in documents.items():
        folder = root / ("valid" if split == "val" else split)
        for image in document["images"]:
            link(images, image["file_name"], folder)
        new_id = {image["id"]: i for i, image in enumerate(document["images"])}
        changed = {
            "images": [image | {"id": new_id[image["id"]]} for image in document["images"]],
            "annotations": [
                annotation | {"id": i, "image_id": new_id[annotation["image_id"]]}
                for i, annotation in enumerate(document["annotations"])
            ],
            "categories": [{"id": 0, "name": "cells", "supercategory": "none"}, *document["categories"]],
        }
        (folder / "_annotations.coco.json").write_text(json.dumps(changed))


def voc(root: Path, documents: Documents, images: Path) -> None:
    """Pixels count from 1 and both ends are inside: x, x + w in edges is x + 1, x + w."""
    (root / "Annotations").mkdir(parents=True)
    (root / "ImageSets/Main").mkdir(parents=True)
    for split, document in documents.items():
        stems = []
        for image in document["images"]:
            link(images, image["file_name"], root / "JPEGImages")
            stems.append(Path(image["file_name"]).stem)
            objects = [
                f"<object><name>{escape(name)}</name><difficult>0</difficult><bndbox><xmin>{x + 1:.0f}</xmin>"
                f"<ymin>{y + 1:.0f}</ymin><xmax>{x + w:.0f}</xmax><ymax>{y + h:.0f}</ymax></bndbox></object>"
                for name, (x, y, w, h) in boxes_of(document, image)
            ]
            size = f"<size><width>{image['width']}</width><height>{image['height']}</height><depth>3</depth></size>"
            text = f"<annotation><filename>{image['file_name']}</filename>{size}{''.join(objects)}</annotation>"
            (root / "Annotations" / f"{stems[-1]}.xml").write_text(text)
        (root / "ImageSets/Main" / f"{split}.txt").write_text("\n".join(stems))


def yolo(root: Path, documents: Documents, images: Path, digits: int = 6) -> None:
    """Class indices in another order than the category ids."""
    names = ["WBC", "Platelets", "RBC"]
    (root / "labels").mkdir(parents=True)
    (root / "data.yaml").write_text(f"train: images/train\nval: images/val\nnames: {names}\n")
    for split, document in documents.items():
        (root / "labels" / split).mkdir()
        for image in document["images"]:
            link(images, image["file_name"], root / "images" / split)
            width, height = image["width"], image["height"]
            lines = []
            for name, (x, y, w, h) in boxes_of(document, image):
                row = ((x + w / 2) / width, (y + h / 2) / height, w / width, h / height)
                lines.append(" ".join([str(names.index(name)), *(f"{value:.{digits}f}" for value in row)]))
            (root / "labels" / split / image["file_name"]).with_suffix(".txt").write_text("\n".join(lines))


def yolo_with_4_digits(root: Path, documents: Documents, images: Path) -> None:
    yolo(root, documents, images, digits=4)


# Largest error of a coordinate in pixels. YOLO rounds a centre and a size, of which an edge is centre +- size / 2; the
# images have 640 pixels.
COPIES: dict[str, tuple[Callable[[Path, Documents, Path], None], str, float]] = {
    "VOC": (voc, "voc", 0.0),
    "Roboflow": (roboflow, "roboflow", 0.0),
    "YOLO, 6 digits": (yolo, "yolo", 0.75e-6 * 640),
    "YOLO, 4 digits": (yolo_with_4_digits, "yolo", 0.75e-4 * 640),
}


def correspondence(original: GroundTruth, copy: GroundTruth) -> tuple[np.ndarray, np.ndarray]:
    """Rows of the copy's images, by name, and its labels, by name, in the order of the original's."""
    names = [Path(str(name)).name for name in copy.file_names]
    images = np.array([names.index(str(name)) for name in original.file_names])
    return images, np.array([copy.classes.index(name) for name in original.classes])


@pytest.mark.parametrize("split", IMAGES)
@pytest.mark.parametrize(("make", "key", "error"), COPIES.values(), ids=COPIES)
def test_ground_truth(
    documents: Documents, shared_data: Path, tmp_path: Path, split: str, make: Any, key: str, error: float
):
    images = shared_data / "bccd/images"
    flat(tmp_path / "flat", documents, images)
    make(tmp_path / "copy", documents, images)
    assert find_layout(tmp_path / "copy").key == key
    original, copy = (check_images(load_split(tmp_path / name, split)) for name in ("flat", "copy"))
    rows, labels = correspondence(original, copy)
    assert len(copy) == len(original) == IMAGES[split]
    copy = copy.subset(rows)  # boxes keep their order within an image
    assert len(original.boxes) > 100
    np.testing.assert_array_equal(copy.image_sizes, original.image_sizes)
    np.testing.assert_array_equal(copy.offsets, original.offsets)
    np.testing.assert_array_equal(copy.labels, labels[original.labels])
    np.testing.assert_allclose(copy.boxes, original.boxes, rtol=0, atol=error + 1e-9)
    # (w + 2 e) (h + 2 e) - w h, with w and h at most 640
    np.testing.assert_allclose(copy.areas, original.areas, rtol=0, atol=4 * 640 * error + 1e-6)
    assert not copy.crowd.any()


@pytest.mark.parametrize("skip_bad", [False, True])
def test_a_box_without_width_is_left_out_and_listed_in_every_layout(
    documents: Documents, shared_data: Path, tmp_path: Path, skip_bad: bool
):
    for name, make in (("flat", flat), ("voc", voc), ("roboflow", roboflow), ("yolo", yolo)):
        make(tmp_path / name, documents, shared_data / "bccd/images")
        truth = load_split(tmp_path / name, "val", skip_bad)
        assert len(truth.boxes) == len(documents["val"]["annotations"]) - 1
        (fault,) = truth.dropped
        assert fault.kind == "degenerate-box"
        assert "has width 0" in fault.message
        assert (truth.boxes[:, 2:] > truth.boxes[:, :2]).all()


def detections(truth: GroundTruth) -> Detections:
    """Two shaken copies of each box, some of another class. Scores are all different."""
    random = np.random.default_rng(0)
    boxes = np.concatenate([truth.boxes, truth.boxes])
    sides = np.tile(boxes[:, 2:] - boxes[:, :2], 2)
    boxes = boxes + random.normal(0, 0.08, boxes.shape) * sides
    labels = np.concatenate([truth.labels, truth.labels])
    labels = np.where(random.random(len(labels)) < 0.1, (labels + 1) % len(truth.classes), labels)
    scores = random.permutation(len(labels)) / len(labels)
    return Detections(np.concatenate([truth.image_index] * 2), labels, boxes, scores)


@pytest.mark.parametrize(("make", "key", "error"), COPIES.values(), ids=COPIES)
def test_average_precision(documents: Documents, shared_data: Path, tmp_path: Path, make: Any, key: str, error: float):
    images = shared_data / "bccd/images"
    flat(tmp_path / "flat", documents, images)
    make(tmp_path / "copy", documents, images)
    original, copy = (check_images(load_split(tmp_path / name, "train")) for name in ("flat", "copy"))
    rows, label_of = correspondence(original, copy)
    found = detections(original)
    expected = CocoEvaluator(original)(found)
    got = CocoEvaluator(copy)(replace(found, image_index=rows[found.image_index], labels=label_of[found.labels]))
    assert 0.2 < expected.overall["AP"] < 0.8
    assert set(got.per_class) >= set(expected.per_class)
    # An IoU that lies within the error of one of the ten thresholds may fall on its other side. Of the 900 detections
    # some do with 4 digits (0.05 pixels), and change a number by up to 0.0002; with 6 digits none does.
    atol = 1e-6 if error < 0.01 else 1e-3
    for name, value in expected.overall.items():
        assert got.overall[name] == pytest.approx(value, abs=atol, nan_ok=True), name
    for name, value in expected.per_class.items():
        assert got.per_class[name] == pytest.approx(value, abs=atol), name


def test_check_finds_the_same_in_every_layout(documents: Documents, shared_data: Path, tmp_path: Path):
    counts = Counter(a["category_id"] for a in documents["train"]["annotations"] if a["bbox"][2] > 0)
    expected_boxes = {category["name"]: counts[category["id"]] for category in documents["train"]["categories"]}
    found = {}
    for name, make in (("flat", flat), ("voc", voc), ("roboflow", roboflow), ("yolo", yolo)):
        make(tmp_path / name, documents, shared_data / "bccd/images")
        report = check(tmp_path / name)
        found[name] = {(one.severity, one.kind, one.split): len(one.records) for one in report.findings}
        boxes = report.splits["train"].class_boxes
        assert {name: count for name, count in boxes.items() if count} == expected_boxes
    # BloodImage_00037 and BloodImage_00038 show one field of cells.
    expected = {("warning", "degenerate-box", split): 1 for split in IMAGES} | {("warning", "shared-image", "val"): 1}
    assert found["flat"] == found["voc"] == found["yolo"] == expected
    # The category that Roboflow names after the project has no boxes.
    unused = {("warning", "unused-class", "train"): 1, ("note", "unused-class", "val"): 1}
    assert found["roboflow"] == expected | unused
