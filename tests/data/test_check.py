import io
import json
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from retinaconf.cell_anchors import SCALES
from retinaconf.commands.check import print_report
from retinaconf.data.check import Report, check
from retinaconf.data.findings import REMEDIES, Finding
from retinaconf.errors import InputError
from retinaconf.recipes import RECIPES

SMALL = RECIPES["retinanet-r50-1x"].changed(**{"data.short_side": 96, "data.long_side": 128})
Expected = dict[tuple[str, str, str], list[str]]  # what each record of a finding names, by severity, kind and split


def scene(seed: int) -> Image.Image:
    coarse = np.random.default_rng(seed).integers(0, 256, (9, 12, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize((128, 96), Image.Resampling.BICUBIC)


class Folder:
    """A clean data set in the flat COCO layout, to be damaged."""

    def __init__(self, root: Path) -> None:
        self.root = root
        (root / "images").mkdir(parents=True)
        self.train, self.val = self.split("train", 0, 16), self.split("val", 100, 6)

    def split(self, name: str, first: int, count: int) -> dict[str, Any]:
        document: dict[str, Any] = {"images": [], "annotations": []}
        document["categories"] = [{"id": 1, "name": "cat"}, {"id": 2, "name": "dog"}]
        for image_id in range(first, first + count):
            scene(image_id).save(self.root / "images" / f"{image_id}.png")
            document["images"].append({"id": image_id, "file_name": f"{image_id}.png", "width": 128, "height": 96})
            for category, x in ((1, 8), (2, 64)):
                self.box(document, image_id, [x, 24, 40, 40], category)
        return document

    @staticmethod
    def box(document: dict[str, Any], image_id: int, box: list[float], category: int = 1, **more: Any) -> None:
        record = {"id": len(document["annotations"]) + 1, "image_id": image_id, "category_id": category, "bbox": box}
        document["annotations"].append({**record, **more})

    def image(self, name: object) -> Path:
        return self.root / "images" / f"{name}.png"

    def check(self) -> Report:
        for name, document in (("train", self.train), ("val", self.val)):
            (self.root / f"{name}.json").write_text(json.dumps(document))
        return check(self.root, SMALL)


# --- damage: each changes the folder, and says what is to be found ---------------------------------------------------


def truncated(folder: Folder) -> Expected:
    data = folder.image(0).read_bytes()
    folder.image(0).write_bytes(data[: len(data) // 2])
    return {("error", "truncated-image", "train"): ["images/0.png"]}


def damaged_in_the_middle(folder: Folder) -> Expected:
    data = bytearray(folder.image(100).read_bytes())
    data[2000:2400] = bytes(400)
    folder.image(100).write_bytes(data)
    return {("error", "truncated-image", "val"): ["images/100.png"]}


def missing(folder: Folder) -> Expected:
    folder.image(1).unlink()
    folder.image(101).unlink()
    return {("error", "missing-image", "train"): ["1.png"], ("error", "missing-image", "val"): ["101.png"]}


def no_image(folder: Folder) -> Expected:
    folder.image(2).write_text("<html>404</html>")
    folder.image(3).write_bytes(b"")
    folder.train["images"][13]["file_name"] = "13\0.png"
    found = ["2.png: not an image", "3.png: is empty", r"13\x00.png: cannot be read (embedded null"]
    return {("error", "unreadable-image", "train"): found}


def misleading_names(folder: Folder) -> Expected:
    """The kind of a fault does not depend on the words of its message."""
    name = "truncated no such image file.png"
    folder.image(14).rename(folder.root / "images" / name)
    folder.train["images"][14]["file_name"] = name
    folder.box(folder.train, 14, [5, 5, 10])
    return {("error", "bad-annotation", "train"): ["has bbox [5, 5, 10], not four"]}


def no_rgb(folder: Folder) -> Expected:
    """Its header is in order; only the pixels show that it cannot be used."""
    Image.fromarray(np.full((96, 128), 1 << 20, dtype=np.int32)).save(folder.image(12), format="TIFF")
    return {("error", "unreadable-image", "train"): ["12.png: pixel values from 1048576"]}


def size_mismatch(folder: Folder) -> Expected:
    folder.train["images"][4]["width"] = 256
    return {("error", "size-mismatch", "train"): ["4.png: the image is 128 x 96 pixels, its annotation says 256 x 96"]}


def rotated(folder: Folder) -> Expected:
    exif = Image.Exif()
    exif[0x0112] = 6
    scene(5).save(folder.image(5), exif=exif)
    return {("note", "rotated-image", "train"): ["5.png: EXIF orientation 6"]}


def copied_within(folder: Folder) -> Expected:
    folder.image(6).write_bytes(folder.image(7).read_bytes())
    return {("warning", "duplicate-image", "train"): [f"7.png: has the same content as {folder.image(6)}"]}


def listed_twice(folder: Folder) -> Expected:
    folder.val["images"][2]["file_name"] = "103.png"
    return {("warning", "duplicate-image", "val"): ["103.png: is listed twice"]}


def copied_across(folder: Folder) -> Expected:
    folder.image(104).write_bytes(folder.image(8).read_bytes())
    return {("warning", "shared-image", "val"): [f"104.png: has the same content as {folder.image(8)}, of train"]}


def listed_in_both(folder: Folder) -> Expected:
    folder.val["images"][3]["file_name"] = "12.png"
    return {("warning", "shared-image", "val"): ["12.png: is in train, too"]}


def similar_across(folder: Folder) -> Expected:
    scene(9).resize((64, 48)).resize((128, 96)).save(folder.image(105))
    return {("warning", "shared-image", "val"): [f"105.png: shows the same as {folder.image(9)}, of train"]}


def degenerate(folder: Folder) -> Expected:
    folder.box(folder.train, 10, [5, 5, 0, 10])
    folder.box(folder.train, 10, [5, 5, 10, -3])
    return {("warning", "degenerate-box", "train"): ["10.png) has width 0", "10.png) has height -3"]}


def bad_records(folder: Folder) -> Expected:
    folder.box(folder.train, 10, [5, 5, 10])
    folder.box(folder.train, 10, [5, 5, 10, float("nan")])
    folder.box(folder.train, 999, [5, 5, 10, 10])
    folder.box(folder.train, 10, [5, 5, 10, 10], category=9)
    found = ["[5, 5, 10], not four", "must be finite", "names image 999", "names category 9"]
    return {("error", "bad-annotation", "train"): found}


def outside(folder: Folder) -> Expected:
    folder.box(folder.train, 10, [100, 60, 40, 30])
    folder.box(folder.train, 10, [200, 60, 30, 30])
    folder.box(folder.train, 10, [-0.5, 1, 30, 30])  # rounding: no fault
    found = ["10.png, cat at x, y, w, h 100, 60, 40, 30 leaves the image of 128 x 96", "is outside the image"]
    return {("warning", "outside-box", "train"): found}


def tiny(folder: Folder) -> Expected:
    folder.box(folder.val, 103, [50, 50, 3, 20], 2)
    return {("warning", "tiny-box", "val"): ["103.png, dog at x, y, w, h 50, 50, 3, 20 is 3.0 x 20.0 pixels"]}


def thinner_than_a_pixel(folder: Folder) -> Expected:
    folder.box(folder.train, 13, [50, 50, 0.5, 20], 2)
    folder.box(folder.val, 103, [-30, 50, 30.001, 20], 2)
    return {
        ("warning", "thin-box", "train"): ["13.png, dog at x, y, w, h 50, 50, 0.5, 20 is 0.500 x 20.000 pixels"],
        ("warning", "thin-box", "val"): ["-30, 50, 30.001, 20 is 0.001 x 20.000 pixels"],
        ("warning", "outside-box", "val"): ["-30, 50, 30.001, 20 leaves the image"],
    }


def box_twice(folder: Folder) -> Expected:
    folder.box(folder.train, 11, [8.4, 24, 40, 40], 1)
    folder.box(folder.train, 11, [8, 24, 40, 40], 1, iscrowd=1)  # a crowd region may
    folder.box(folder.train, 11, [8, 24, 40, 40], 2)  # another class may
    folder.box(folder.train, 11, [12, 24, 40, 40], 1)  # a neighbour
    return {("warning", "duplicate-box", "train"): ["11.png, cat at x, y, w, h 8.4, 24, 40, 40 occurs twice"]}


def unused(folder: Folder) -> Expected:
    for document in (folder.train, folder.val):
        document["categories"].append({"id": 3, "name": "emu"})
    found = ["no box of class emu"]
    return {("warning", "unused-class", "train"): found, ("note", "unused-class", "val"): found}


def rare(folder: Folder) -> Expected:
    for document in (folder.train, folder.val):
        document["categories"].append({"id": 3, "name": "emu"})
        folder.box(document, document["images"][-1]["id"], [20, 50, 40, 40], 3)
    return {("note", "rare-class", "train"): ["class emu has 1 boxes"]}


def other_classes(folder: Folder) -> Expected:
    folder.val["categories"][1]["name"] = "wolf"
    return {("warning", "different-classes", "val"): ["category 2 is wolf, in train it is dog"]}


def same_name(folder: Folder) -> Expected:
    for document in (folder.train, folder.val):
        document["categories"][1]["name"] = "cat"
    found = ["several categories have the name cat"]
    return {("warning", "duplicate-class", "train"): found, ("warning", "duplicate-class", "val"): found}


def no_boxes(folder: Folder) -> Expected:
    folder.train["annotations"] = []
    return {("error", "no-boxes", "train"): ["train.json: no box in it"]}


def thin(folder: Folder) -> Expected:
    for image in range(8):
        folder.box(folder.train, image, [2, 76, 120, 8])
    return {("warning", "unfit-anchors", "train"): ["20.0% of the boxes overlap no anchor by IoU 0.5"]}


ALONE: list[Callable[[Folder], Expected]] = [
    misleading_names,
    no_boxes,
    same_name,
    thin,
]  # these would change what others find
TOGETHER: list[Callable[[Folder], Expected]] = [
    truncated,
    damaged_in_the_middle,
    missing,
    no_image,
    no_rgb,
    size_mismatch,
    rotated,
    copied_within,
    listed_twice,
    copied_across,
    similar_across,
    degenerate,
    bad_records,
    outside,
    tiny,
    box_twice,
    rare,
]


def compare(report: Report, expected: Expected) -> None:
    found = {(one.severity, one.kind, one.split): one.records for one in report.findings}
    assert found.keys() == expected.keys()
    for key, records in found.items():
        named = [[part for part in expected[key] if part in record] for record in records]
        assert sorted(named) == sorted(
            [part] for part in expected[key]
        )  # each record names one fault, and all are named
    assert report.failed == any(severity == "error" for severity, _, _ in expected)


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    return Folder(tmp_path / "data")


def test_nothing_is_found_in_a_clean_folder(folder: Folder):
    report = folder.check()
    compare(report, {})
    train = report.splits["train"]
    assert (train.images, train.boxes, train.images_without_boxes, train.crowd_regions) == (16, 32, 0, 0)
    assert train.class_boxes == train.class_images == {"cat": 16, "dog": 16}
    assert train.box_sizes["32 to 64"] == 32
    assert sum(train.box_sizes.values()) == 32
    assert (train.best_anchor_below_half, train.no_anchor) == (0, 0)


@pytest.mark.parametrize("damage", [*TOGETHER, *ALONE, unused, other_classes, listed_in_both, thinner_than_a_pixel])
def test_each_fault_is_found_and_no_other(folder: Folder, damage: Callable[[Folder], Expected]):
    expected = damage(folder)
    compare(folder.check(), expected)


def test_all_faults_at_once(folder: Folder):
    expected: Expected = {}
    for damage in TOGETHER:
        for key, parts in damage(folder).items():
            expected.setdefault(key, []).extend(parts)
    compare(folder.check(), expected)


def unfit(report: Report) -> list[Finding]:
    return [finding for finding in report.findings if finding.kind == "unfit-anchors"]


def test_anchors_are_proposed_where_shape_is_the_cause_and_no_larger_input(folder: Folder):
    thin(folder)
    report = folder.check()
    (finding,) = unfit(report)
    assert finding.remedy == "train with --model.anchor-ratios 0.1 0.5 1 2"
    (record,) = finding.records
    assert "100% are more than 3 times as long as wide, 0% smaller" in record
    assert "At 144 x 192 it is 20.0%; with --model.anchor-ratios 0.1 0.5 1 2 (12 anchors a cell, not 9) 0.0%" in record
    assert report.proposal == {"model.anchor_ratios": [0.1, 0.5, 1, 2], "model.anchor_scales": [*SCALES]}
    assert report.splits["train"].below_half_with_proposal == report.splits["val"].below_half_with_proposal == 0
    assert unfit(check(folder.root, SMALL.changed(**report.proposal))) == []


def test_nothing_is_said_of_anchors_that_are_not_matched_by_iou(folder: Folder, capsys: pytest.CaptureFixture[str]):
    thin(folder)
    folder.check()  # writes it
    report = check(folder.root, SMALL.changed(**{"matching.assigner": "atss"}))
    assert unfit(report) == []
    assert report.proposal is None
    assert report.splits["train"].best_anchor_below_half is None
    print_report(report, Console())
    assert "no anchor fits" not in capsys.readouterr().out
    print_report(folder.check(), Console())
    assert "no anchor fits" in capsys.readouterr().out


def test_a_larger_input_is_advised_where_it_helps(folder: Folder):
    for image in range(8):
        folder.box(folder.train, image, [2, 70, 20, 18])
    report = folder.check()
    (finding,) = unfit(report)
    larger = check(folder.root, SMALL.changed(**{"data.short_side": 144, "data.long_side": 192}))
    assert unfit(larger) == []
    assert "0% are more than 3 times as long as wide, 100% smaller than half" in finding.records[0]
    assert "At 144 x 192 it is 0.0%" in finding.records[0]
    assert "train at a larger --data.short-side" in finding.remedy
    assert report.proposal is not None  # smaller anchors would do, too
    assert "--model.anchor-scales" in finding.remedy


def test_nothing_is_advised_where_nothing_helps(folder: Folder):
    for image in range(8):
        folder.box(folder.train, image, [0, 80, 128, 4.5])  # 28 times as long as high
    report = folder.check()
    (finding,) = unfit(report)
    assert report.proposal is None
    assert finding.remedy == REMEDIES["unfit-anchors"]
    assert "At 144 x 192 it is 20.0%" in finding.records[0]
    assert "--" not in finding.records[0] + finding.remedy


@pytest.mark.parametrize("spread", [2.0, 40.0])
def test_duplicate_boxes_are_those_of_a_slow_loop(folder: Folder, spread: float):
    random = np.random.default_rng(0)
    folder.train["annotations"] = []
    for image, category in random.integers(0, 2, (300, 2)).tolist():
        box = random.uniform([1, 1, 1, 5], [1 + spread, 1 + spread, 40, 44]).round(1)
        folder.box(folder.train, image, box.tolist(), category + 1)
        if random.random() < 0.3:
            copy = box + random.uniform(-1.2, 1.2, 4).round(1)
            folder.box(folder.train, image, copy.clip(0.1).tolist(), category + 1)
    expected = []
    records = folder.train["annotations"]
    for late, one in enumerate(records):
        for other in records[:late]:
            if (one["image_id"], one["category_id"]) == (other["image_id"], other["category_id"]):
                (x, y, w, h), (x0, y0, w0, h0) = one["bbox"], other["bbox"]
                edges = (x - x0, y - y0, x + w - x0 - w0, y + h - y0 - h0)
                if max(map(abs, edges)) <= min(1, 0.05 * min(w0, h0)):
                    expected.append(", ".join(f"{value:.5g}" for value in one["bbox"]))
                    break
    found = [one.records for one in folder.check().findings if one.kind == "duplicate-box"]
    assert sorted(record.split("w, h ")[1].removesuffix(" occurs twice") for record in found[0]) == sorted(expected)
    assert len(expected) > 5


@pytest.mark.ci
def test_memory_grows_with_the_boxes_of_an_image_and_not_with_their_pairs(folder: Folder):
    for n in range(5000):
        folder.box(folder.train, 0, [n % 100 * 1.2, n // 100 * 1.2, 30, 30])
    tracemalloc.start()
    folder.check()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 60e6  # all pairs of four edges: 800 MB


def test_every_finding_has_a_remedy_and_the_report_is_json(folder: Folder):
    for damage in TOGETHER:
        damage(folder)
    report = folder.check()
    document = json.loads(json.dumps(report.to_json(), allow_nan=False))
    assert document["failed"] is True
    assert document["splits"]["train"]["class_boxes"]["cat"] > 0
    assert [one["severity"] for one in document["findings"]] == [one.severity for one in report.findings]
    assert all(one["remedy"] == REMEDIES[one["kind"]] for one in document["findings"])
    assert all(one["count"] == len(one["records"]) for one in document["findings"])
    assert all("\n" not in record for one in document["findings"] for record in one["records"])


def test_what_is_left_out_is_counted(folder: Folder):
    truncated(folder)
    missing(folder)
    folder.box(folder.train, 2, [5, 5, 10])
    folder.box(folder.train, 3, [5, 5, 10, 0])  # always left out, so it does not count
    report = folder.check()
    train, val = report.splits["train"], report.splits["val"]
    assert (train.images, train.images_left_out, train.annotations_left_out) == (14, 2, 1)
    assert (val.images_left_out, val.annotations_left_out) == (1, 0)


def test_the_printed_report(folder: Folder):
    for damage in TOGETHER:
        damage(folder)
    folder.train["categories"][0]["name"] = "[bold]cat"  # not markup
    console = Console(width=200, record=True, file=io.StringIO())
    print_report(folder.check(), console)
    text = console.export_text()
    for part in ("flat COCO layout in", "[bold]cat", "error truncated-image in train: 1", "    images/0.png: trunc"):
        assert part in text
    assert "training would stop: 7 errors" in text


def test_missing_and_unreadable_splits(folder: Folder):
    folder.check()
    (folder.root / "val.json").unlink()
    report = check(folder.root, SMALL.changed(**{"data.val_fraction": 0.0}))
    compare(report, {("warning", "missing-split", "val"): ["has train"]})
    report = check(folder.root, SMALL)
    assert ("val", "missing-split") not in {(one.split, one.kind) for one in report.findings}
    assert report.splits["train"].images + report.splits["val"].images == len(folder.train["images"])
    (folder.root / "val.json").write_text("{")
    compare(check(folder.root, SMALL), {("error", "unreadable-split", "val"): ["val.json: not valid JSON"]})
    (folder.root / "images").rename(folder.root.parent / "pictures")
    kinds = {(one.kind, one.split) for one in check(folder.root, SMALL).findings}
    assert kinds == {("unreadable-split", "train"), ("unreadable-split", "val")}
    with pytest.raises(InputError, match="no data set recognised"):
        check(folder.root.parent / "pictures")


def test_an_empty_split(folder: Folder):
    folder.val["images"], folder.val["annotations"] = [], []
    compare(folder.check(), {("warning", "no-boxes", "val"): ["val.json: no box in it"]})


def test_a_yolo_folder(tmp_path: Path):
    (tmp_path / "data.yaml").write_text("train: images/train\nval: images/val\nnames: [cat]\n")
    for split, count in (("train", 10), ("val", 3)):
        (tmp_path / "images" / split).mkdir(parents=True)
        (tmp_path / "labels" / split).mkdir(parents=True)
        for i in range(count):
            scene(i + len(split)).save(tmp_path / "images" / split / f"{i}.png")
            (tmp_path / "labels" / split / f"{i}.txt").write_text("0 0.5 0.5 0.4 0.4\n")
    for i in range(3):
        scene(50 + i).save(tmp_path / "images/val" / f"{i}.png")
    compare(check(tmp_path, SMALL), {})
    (tmp_path / "labels/val/0.txt").write_text("0 0.5 0.5 0.4 0.4\n1 0.5 0.5 0.4 0.4\n0 0.5 0.5 0 0.1")
    data = (tmp_path / "images/val/1.png").read_bytes()
    (tmp_path / "images/val/1.png").write_bytes(data[:500])
    expected = {
        ("error", "bad-annotation", "val"): ["labels/val/0.txt: line 2 has class 1"],
        ("warning", "degenerate-box", "val"): ["labels/val/0.txt: line 3 has width 0"],
        ("error", "truncated-image", "val"): ["images/val/1.png"],
    }
    compare(check(tmp_path, SMALL), expected)
