"""What a check finds in real data: as it is, and damaged in every way at once."""

import functools
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image, ImageEnhance

from retinaconf.data.check import Report, check
from retinaconf.recipes import RECIPES


@pytest.fixture(scope="module")
def reports(shared_data: Path) -> Callable[[str], Report]:
    """The report of a folder, made once."""
    return functools.cache(lambda name: check(shared_data / name, RECIPES["retinanet-r50-1x"]))


@pytest.mark.parametrize(
    ("name", "images", "expected"),
    [
        # The official split has two pictures of one field of cells, a little shifted, in train and val.
        ("bccd", 364, {("shared-image", "val"): 1}),
        pytest.param("voc-animals", 2561, {}, marks=pytest.mark.slow),
        (
            "coco-mini",
            443,
            {
                ("tiny-box", "train"): 9,
                ("unfit-anchors", "train"): 1,
                ("rare-class", "train"): 16,
                ("tiny-box", "val"): 3,
                ("unfit-anchors", "val"): 1,
                ("unused-class", "val"): 7,
            },
        ),
    ],
)
@pytest.mark.ci
def test_real_data(reports: Callable[[str], Report], name: str, images: int, expected: dict[tuple[str, str], int]):
    report = reports(name)
    assert sum(one.images for one in report.splits.values()) == images
    assert {(one.kind, one.split): len(one.records) for one in report.findings} == expected
    assert not report.failed


def test_the_shared_field_of_cells(reports: Callable[[str], Report]):
    (finding,) = reports("bccd").findings
    assert "BloodImage_00037.jpg: shows the same as" in finding.records[0]
    assert finding.records[0].endswith("BloodImage_00038.jpg, of train")


@pytest.mark.parametrize("split", ["train", "val"])
def test_coco_counted_by_hand(reports: Callable[[str], Report], shared_data: Path, split: str):
    """Crowds, images without boxes, classes and tiny boxes, from the JSON alone."""
    document = json.loads((shared_data / f"coco-mini/annotations/instances_{split}2017.json").read_text())
    objects = [box for box in document["annotations"] if not box["iscrowd"]]
    sizes = {image["id"]: (image["width"], image["height"]) for image in document["images"]}
    report = reports("coco-mini")
    statistics = report.splits[split]
    assert statistics.crowd_regions == len(document["annotations"]) - len(objects) > 10
    assert statistics.boxes == len(objects)
    assert statistics.images_without_boxes == len(sizes) - len({box["image_id"] for box in objects}) > 0
    per_class = {c["name"]: sum(box["category_id"] == c["id"] for box in objects) for c in document["categories"]}
    assert statistics.class_boxes == per_class

    def side(box: dict[str, Any]) -> float:
        short, long = sorted(sizes[box["image_id"]])
        return min(box["bbox"][2:]) * min(600 / short, 1000 / long)

    records = {(one.kind, one.split): one.records for one in report.findings}
    assert len(records["tiny-box", split]) == sum(side(box) < 4 for box in objects)
    names = [name for name, count in per_class.items() if count == 0]
    unused = [record.rpartition("class ")[2] for record in records.get(("unused-class", split), ())]
    assert sorted(unused) == sorted(names)
    rare = [name for name, count in per_class.items() if 0 < count < 10]
    assert len(records.get(("rare-class", split), ())) == (len(rare) if split == "train" else 0)


class Photographs:
    """Forty photographs of voc-animals, fifteen of them `val`, all objects one class; to be damaged."""

    def __init__(self, source: Path, root: Path):
        self.root, self.source = root, source / "images"
        (root / "images").mkdir(parents=True)
        self.train, self.val = self.split(source, "train", 25), self.split(source, "val", 15)

    def split(self, source: Path, name: str, count: int) -> dict[str, Any]:
        whole = json.loads((source / f"{name}.json").read_text())
        images = whole["images"][:count]
        chosen = {image["id"] for image in images}
        for image in images:
            shutil.copyfile(self.source / image["file_name"], self.root / "images" / image["file_name"])
        boxes = [a | {"category_id": 1} for a in whole["annotations"] if a["image_id"] in chosen]
        return {"images": images, "annotations": boxes, "categories": [{"id": 1, "name": "animal"}]}

    def file(self, document: dict[str, Any], number: int) -> Path:
        return self.root / "images" / document["images"][number]["file_name"]

    def box(self, document: dict[str, Any], number: int, box: list[float], category: int = 1) -> None:
        record = {"id": 10**7 + len(document["annotations"]), "image_id": document["images"][number]["id"]}
        document["annotations"].append(record | {"category_id": category, "bbox": box, "iscrowd": 0})

    def check(self) -> Report:
        for name, document in (("train", self.train), ("val", self.val)):
            (self.root / f"{name}.json").write_text(json.dumps(document))
        return check(self.root, RECIPES["retinanet-r50-1x"])


@pytest.fixture
def photographs(shared_data: Path, tmp_path: Path) -> Photographs:
    return Photographs(shared_data / "voc-animals", tmp_path / "data")


def test_every_planted_fault_is_found_and_none_invented(photographs: Photographs):
    assert photographs.check().findings == ()
    train, val, file = photographs.train, photographs.val, photographs.file
    planted: dict[tuple[str, str, str], list[str]] = {}

    def plant(severity: str, kind: str, document: dict[str, Any], number: int, *more: str) -> None:
        """What each record of a finding must name."""
        split = "train" if document is train else "val"
        planted.setdefault((severity, kind, split), []).extend(more or [file(document, number).name])

    for number, keep in ((0, 0.3), (1, 0.99)):
        data = file(train, number).read_bytes()
        file(train, number).write_bytes(data[: int(keep * len(data))])
        plant("error", "truncated-image", train, number)
    file(train, 2).write_text("<html>not found</html>")
    plant("error", "unreadable-image", train, 2)
    file(train, 3).unlink()
    plant("error", "missing-image", train, 3)
    train["images"][4]["width"] += 10
    plant("error", "size-mismatch", train, 4)

    # Stored on its side, as cameras do it: upright it is what was annotated.
    exif = Image.Exif()
    exif[0x0112] = 8
    Image.open(file(train, 5)).transpose(Image.Transpose.ROTATE_270).save(file(train, 5), exif=exif, quality=95)
    plant("note", "rotated-image", train, 5)

    shutil.copyfile(file(train, 7), file(train, 6))
    for key in ("width", "height"):
        train["images"][6][key] = train["images"][7][key]
    train["annotations"] = [a for a in train["annotations"] if a["image_id"] != train["images"][6]["id"]]
    plant("warning", "duplicate-image", train, 7)

    # In val what train has: the same file, compressed anew, halved, brightened.
    ways: list[Callable[[Image.Image], Image.Image] | None] = [
        None,
        lambda picture: picture,
        lambda picture: picture.resize((picture.width // 2, picture.height // 2)),
        lambda picture: ImageEnhance.Brightness(picture).enhance(1.15),
    ]
    for number, way in enumerate(ways):
        if way is None:
            shutil.copyfile(file(train, 8), file(val, number))
        else:
            way(Image.open(file(train, 8 + number))).save(file(val, number), quality=30)
        with Image.open(file(val, number)) as picture:
            val["images"][number] |= {"width": picture.width, "height": picture.height}
        val["annotations"] = [a for a in val["annotations"] if a["image_id"] != val["images"][number]["id"]]
        plant("warning", "shared-image", val, number)

    photographs.box(train, 12, [10, 10, 0, 20])
    plant("warning", "degenerate-box", train, 12)
    photographs.box(val, 12, [10, 10, 20, -1])
    plant("warning", "degenerate-box", val, 12)
    photographs.box(train, 13, [20, 20, 1.5, 60])
    plant("warning", "tiny-box", train, 13)
    photographs.box(train, 14, [-30, 20, 100, 100])
    photographs.box(train, 15, [5000, 20, 100, 100])
    plant("warning", "outside-box", train, 14)
    plant("warning", "outside-box", train, 15)
    first = next(a for a in train["annotations"] if a["image_id"] == train["images"][16]["id"])
    photographs.box(train, 16, [value + 0.2 for value in first["bbox"]])
    plant("warning", "duplicate-box", train, 16)
    photographs.box(train, 17, [10, 10, 50, 50], category=77)
    plant("error", "bad-annotation", train, 17, "names category 77")
    for document in (train, val):
        document["categories"].append({"id": 2, "name": "unicorn"})
    plant("warning", "unused-class", train, 0, "unicorn")
    plant("note", "unused-class", val, 0, "unicorn")

    found = {(one.severity, one.kind, one.split): one.records for one in photographs.check().findings}
    assert found.keys() == planted.keys()
    for key, names in planted.items():
        assert sorted([name for name in names if name in record] for record in found[key]) == sorted(
            [name] for name in names
        ), key
