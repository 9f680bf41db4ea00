import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from as_coco import as_coco
from hotcoco import COCO
from PIL import Image

from retinaconf.data.ground_truth import Fault
from retinaconf.data.images import check_images
from retinaconf.data.layouts import describe, load_split
from retinaconf.data.voc import _names_in, read_voc, voc_splits
from retinaconf.errors import InputError
from retinaconf.run_folder import write_val_list


def element(name: str, box: object, difficult: int = 0) -> str:
    corners = zip(("xmin", "ymin", "xmax", "ymax"), box) if isinstance(box, tuple) else [("xmin", box)]
    inner = "".join(f"<{tag}>{value}</{tag}>" for tag, value in corners)
    part = "<part><name>head</name><bndbox><xmin>2</xmin></bndbox></part>"  # VOC's person layout: not an object
    return f"<object><name>{name}</name><difficult>{difficult}</difficult><bndbox>{inner}</bndbox>{part}</object>"


def annotate(root: Path, stem: str, *objects: str, size: tuple[int, int] = (40, 30)) -> None:
    (root / "Annotations").mkdir(parents=True, exist_ok=True)
    (root / "JPEGImages").mkdir(exist_ok=True)
    Image.new("RGB", size).save(root / "JPEGImages" / f"{stem}.jpg")
    (root / "Annotations" / f"{stem}.xml").write_text(
        f"<annotation><filename>{stem}.jpg</filename><size><width>{size[0]}</width><height>{size[1]}</height>"
        f"<depth>3</depth></size>{''.join(objects)}</annotation>"
    )


def image_set(root: Path, split: str, text: str) -> None:
    (root / "ImageSets/Main").mkdir(parents=True, exist_ok=True)
    (root / "ImageSets/Main" / f"{split}.txt").write_text(text)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    annotate(tmp_path, "a", element("dog", (1, 1, 40, 30)), element("cat", (10, 5, 12, 5), difficult=1))
    annotate(tmp_path, "b", element("cat", (2.5, 3, 20, 9)))
    annotate(tmp_path, "c")
    annotate(tmp_path, "d", element("emu", (3, 3, 9, 9)))
    image_set(tmp_path, "train", "a\nc\n\n")
    image_set(tmp_path, "val", "b\n")
    image_set(tmp_path, "cat_train", "a  1\nc -1\n")
    return tmp_path


def test_a_box_includes_both_its_end_pixels(root: Path):
    truth = check_images(load_split(root, "train"))
    assert truth.file_names.tolist() == ["a.jpg", "c.jpg"]
    assert truth.boxes.tolist() == [[0, 0, 40, 30], [9, 4, 12, 5]]
    assert truth.areas.tolist() == [1200, 3]
    assert truth.classes == ("cat", "dog", "emu")  # of the whole folder, so that every split has the same
    assert truth.category_ids == (1, 2, 3)
    assert truth.labels.tolist() == [1, 0]
    assert not truth.crowd.any()
    assert describe(root, truth) == (
        f"PASCAL VOC layout in {root}: ImageSets/Main/train.txt, 2 images, 2 boxes, 3 classes"
    )
    assert voc_splits(root) == ["train", "val"]
    with pytest.raises(InputError, match=r"no split 'test' in this PASCAL VOC layout; it has train, val"):
        load_split(root, "test")


def test_boxes_agree_with_hotcoco(root: Path):
    theirs = COCO.from_voc(str(root)).dataset
    names = {image["id"]: image["file_name"] for image in theirs["images"]}
    classes = {category["id"]: category["name"] for category in theirs["categories"]}
    expected = {(names[a["image_id"]], classes[a["category_id"]], *a["bbox"]) for a in theirs["annotations"]}
    got = set()
    for split in ("train", "val"):
        document = as_coco(read_voc(root, split))
        names = {image["id"]: image["file_name"] for image in document["images"]}
        classes = {category["id"]: category["name"] for category in document["categories"]}
        got |= {(names[a["image_id"]], classes[a["category_id"]], *a["bbox"]) for a in document["annotations"]}
    assert got == {row for row in expected if row[0] != "d.jpg"}  # which is in no split


def test_difficult_objects_are_objects(root: Path):
    truth = load_split(root, "train")
    assert truth.crowd.tolist() == [False, False]
    assert truth.classes == ("cat", "dog", "emu")


def test_a_zero_tells_that_boxes_are_edges_already(tmp_path: Path):
    annotate(tmp_path, "a", element("dog", (0, 5, 40, 30)))
    annotate(tmp_path, "b", element("dog", (3, 4, 20, 9)))
    image_set(tmp_path, "train", "b")
    assert load_split(tmp_path, "train").boxes.tolist() == [[3, 4, 20, 9]]


def test_without_image_sets_a_share_of_the_images_is_val(tmp_path: Path):
    for i in range(37):
        annotate(tmp_path, f"p{i:03d}", element("dog", (1, 1, 9, 9)), size=(16, 16))
    for i in (11, 23):
        annotate(tmp_path, f"p{i:03d}", element("emu", (1, 1, 9, 9)), size=(16, 16))
    train, val = (load_split(tmp_path, split, val_fraction=0.2) for split in ("train", "val"))
    assert (len(train), len(val)) == (30, 7)
    assert not set(train.file_names) & set(val.file_names)
    assert [(truth.classes, set(truth.labels)) for truth in (train, val)] == [(("dog", "emu"), {0, 1})] * 2
    assert describe(tmp_path, val) == (
        f"PASCAL VOC layout in {tmp_path}: Annotations, 7 images, 7 boxes, 2 classes; no split 'val' there: 7 of the "
        "37 images are val, drawn in balance of the classes"
    )
    assert len(load_split(tmp_path, "val", val_fraction=0.5)) == 18
    assert len(load_split(tmp_path, "train", val_fraction=0)) == 37
    for split in ("test", "val"):
        with pytest.raises(InputError, match=f"no split '{split}' in this PASCAL VOC layout; it has train"):
            load_split(tmp_path, split, val_fraction=0)
    for share in (-0.1, 1.0, float("nan")):
        with pytest.raises(InputError, match=r"val_fraction = .*: give a share of at least 0 and below 1"):
            load_split(tmp_path, "val", val_fraction=share)


def test_a_list_of_val_stays_what_it_is_when_images_come_and_go(tmp_path: Path):
    for name in "abcdefgh":
        annotate(tmp_path, name, element("dog", (1, 1, 9, 9)))
    kept = tmp_path / "run/val.txt"
    kept.parent.mkdir()
    kept.write_text("b\ng\n")
    annotate(tmp_path, "new one", element("dog", (1, 1, 9, 9)))
    train, val = (load_split(tmp_path, split, val_list=kept) for split in ("train", "val"))
    assert val.file_names.tolist() == ["b.jpg", "g.jpg"]
    assert train.file_names.tolist() == ["a.jpg", "c.jpg", "d.jpg", "e.jpg", "f.jpg", "h.jpg", "new one.jpg"]
    assert describe(tmp_path, val).endswith(f"2 of the 9 images are val, as {kept} lists")

    (tmp_path / "Annotations/g.xml").unlink()
    assert len(load_split(tmp_path, "train", val_list=kept)) == 7
    with pytest.raises(InputError, match=r"val\.txt: names g, and .*Annotations has no such image; restore"):
        load_split(tmp_path, "val", val_list=kept)
    assert str(load_split(tmp_path, "val", True, val_list=kept).left_out) == "1 image left out"

    kept.write_text("of\nother\ndata\n")
    drawn = [load_split(tmp_path, "val", val_fraction=0.2, val_list=listing).val_split for listing in (kept, None)]
    assert drawn[0] == drawn[1]
    image_set(tmp_path, "val", "a\n")  # what the data set says goes first
    kept.write_text("b\n")
    assert load_split(tmp_path, "val", val_list=kept).file_names.tolist() == ["a.jpg"]


def test_too_few_images_to_split(tmp_path: Path):
    annotate(tmp_path, "a", element("dog", (1, 1, 9, 9)))
    assert len(load_split(tmp_path, "train", val_fraction=0.2)) == 1
    with pytest.raises(InputError, match="no split 'val' in this PASCAL VOC layout; it has train"):
        load_split(tmp_path, "val", val_fraction=0.2)


def test_images_are_found_by_the_annotations_name(tmp_path: Path):
    annotate(tmp_path, "a.1", element("dog", (1, 1, 9, 9)))
    (tmp_path / "JPEGImages").rename(tmp_path / "images")
    (tmp_path / "images/a.1.jpg").rename(tmp_path / "images/a.1.png")
    image_set(tmp_path, "train", "a.1.png 1\n")
    assert load_split(tmp_path, "train").path(0) == tmp_path / "images" / "a.1.png"


def test_a_missing_size_is_filled_in_from_the_image(root: Path):
    path = root / "Annotations/b.xml"
    path.write_text(path.read_text().replace("<width>40</width>", ""))
    truth = load_split(root, "val")
    assert truth.image_sizes.tolist() == [[30, 0]]
    assert check_images(truth).image_sizes.tolist() == [[30, 40]]


@pytest.mark.parametrize(
    ("objects", "message"),
    [
        (element("cat", ("one", 1, 2, 3)), "object 2 has name 'cat' and box one, 1, 2, 3; it needs"),
        (element("cat", 5), "box 5, None, None, None"),
        (element("cat", (1, 1, "nan", 3)), "box 1, 1, nan, 3"),
        (element(" ", (1, 1, 2, 3)), "has name ''"),
    ],
)
def test_a_bad_object_raises_or_is_dropped(root: Path, objects: str, message: str):
    annotate(root, "b", element("cat", (2, 3, 20, 9)), objects)
    with pytest.raises(InputError) as caught:
        load_split(root, "val")
    assert message in str(caught.value)
    assert "b.xml" in str(caught.value)
    truth = load_split(root, "val", skip_bad=True)
    assert truth.boxes.tolist() == [[1, 2, 20, 9]]
    assert truth.dropped[0].kind == "bad-annotation"
    assert message in truth.dropped[0].message
    assert len(load_split(root, "train").boxes) == 2  # not of this split


def test_a_box_without_extent_is_dropped(root: Path):
    annotate(root, "b", element("cat", (9, 3, 8, 9)), element("cat", (9, 3, 9, 9)))
    truth = load_split(root, "val")
    assert truth.boxes.tolist() == [[8, 2, 9, 9]]  # one pixel wide
    assert truth.dropped == (Fault("degenerate-box", f"{root / 'Annotations/b.xml'}: cat has width 0, height 7"),)


@pytest.mark.parametrize("content", [b"", b"<annotation>", b"\xff\xfe\x00", b'<?xml version="1.0" encoding="x"?><a/>'])
def test_a_file_that_is_not_xml(root: Path, content: bytes):
    (root / "Annotations/b.xml").write_bytes(content)
    with pytest.raises(InputError, match=r"b\.xml: not a readable XML file"):
        load_split(root, "val")
    truth = load_split(root, "val", skip_bad=True)
    assert len(truth) == 0
    assert len(truth.dropped) == 1


def test_a_file_that_is_not_xml_counts_in_its_own_split_and_its_class_stays(root: Path):
    whole = load_split(root, "train")
    file = root / "Annotations/b.xml"
    annotate(root, "b", element("owl &amp; eule", (1, 1, 9, 9)), element("cat", (2, 3, 20, 9)))
    file.write_text(file.read_text()[:-30])
    train, val = (load_split(root, split, skip_bad=True) for split in ("train", "val"))
    assert train.dropped == ()
    assert train.classes == val.classes == (*whole.classes, "owl & eule")
    assert str(val.left_out) == "1 image left out, with every box of cat, owl & eule"
    with pytest.raises(InputError, match=r"val\.txt: none of its 1 images can be used; the first: .*b\.xml"):
        check_images(val, skip_bad=True)


def test_a_listed_image_without_annotation(root: Path):
    image_set(root, "val", "b\nz\n")
    with pytest.raises(InputError, match=r"val\.txt: line 2 names z, and there is no Annotations/z\.xml"):
        load_split(root, "val")
    assert len(load_split(root, "val", skip_bad=True)) == 1


def test_no_objects_at_all(tmp_path: Path):
    annotate(tmp_path, "a")
    with pytest.raises(InputError, match="no object in any of its 1 files"):
        load_split(tmp_path, "train")


def test_image_ids_do_not_depend_on_the_split(root: Path):
    image_set(root, "val", "d\nb\n")
    truth = load_split(root, "val")
    assert dict(zip(truth.file_names.tolist(), truth.image_ids.tolist())) == {"d.jpg": 4, "b.jpg": 2}
    assert np.diff(truth.offsets).tolist() == [1, 1]


def test_an_image_outside_of_the_folder_is_refused(root: Path):
    file = root / "Annotations/b.xml"
    file.write_text(re.sub("<filename>.*</filename>", "<filename>../../b.png</filename>", file.read_text()))
    next(root.glob("JPEGImages/b.*")).unlink()
    with pytest.raises(InputError, match=r"Annotations: names \.\./\.\./b\.png, which is not in "):
        load_split(root, "val")


def test_names_that_are_no_text_can_be_drawn_listed_and_printed(tmp_path: Path, run_cli: Callable[..., Any]):
    """Bytes of an older encoding in the names of files, where Linux takes any."""
    for n in range(4):
        annotate(tmp_path, str(n), element("cat", (1, 1, 9, 9)))
        for folder, suffix in (("Annotations", "xml"), ("JPEGImages", "jpg")):
            file = tmp_path / folder / f"{n}.{suffix}"
            file.rename(file.with_stem(os.fsdecode(f"caf\xe9{n}".encode("latin1"))))
    truth = load_split(tmp_path, "val", val_fraction=0.5)
    write_val_list(tmp_path / "val.txt", truth.val_split.names)
    again = load_split(tmp_path, "val", val_list=tmp_path / "val.txt")
    assert again.file_names.tolist() == truth.file_names.tolist()
    assert len(again) == 2
    assert r"caf\udce90" in run_cli("check", "--data", tmp_path).out


def test_objects_within_objects_cost_no_time_in_their_square(root: Path):
    file = root / "Annotations" / "nested.xml"
    file.write_text("<annotation>" + "<object>" * 100_000 + "<name>a</name></object><object><name>b</name></object>")
    assert _names_in(file) == {"a", "b"}  # in 0.1 s, and in the square of the number in hours


def test_an_annotation_of_megabytes_is_not_read(root: Path):
    (root / "Annotations/b.xml").write_text("<annotation>" + "<object>" * 300_000)
    with pytest.raises(InputError, match=r"b\.xml: not a readable XML file \(larger than 2,097,152 bytes\)"):
        load_split(root, "val")
    assert load_split(root, "train", skip_bad=True).classes == ("cat", "dog", "emu")
