import json
from pathlib import Path

import pytest
from PIL import Image

from retinaconf.data.images import check_images
from retinaconf.data.layouts import describe, find_layout, load_split
from retinaconf.errors import InputError

SHARED = Path(__file__).parents[2].parent / "shared" / "data"


def coco(*names: str, box: tuple[float, ...] = (1, 2, 3, 4)) -> str:
    return json.dumps(
        {
            "images": [{"id": i, "file_name": name, "height": 30, "width": 40} for i, name in enumerate(names)],
            "annotations": [{"id": i, "image_id": i, "category_id": 7, "bbox": box} for i in range(len(names))],
            "categories": [{"id": 7, "name": "cat"}],
        }
    )


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def picture(path: Path, width: int = 40, height: int = 30) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (width, height)).save(path)


def coco_2017(root: Path) -> None:
    write(root / "annotations/instances_train2017.json", coco("a.jpg", "b.jpg"))
    write(root / "annotations/instances_val2017.json", coco("c.jpg"))
    for name in ("train2017/a.jpg", "train2017/b.jpg", "val2017/c.jpg"):
        picture(root / name)


def flat(root: Path) -> None:
    write(root / "train.json", coco("a.jpg", "b.jpg"))
    write(root / "val.json", coco("c.jpg"))
    for name in ("a.jpg", "b.jpg", "c.jpg"):
        picture(root / "images" / name)


def flat_beside(root: Path) -> None:
    write(root / "train.json", coco("pictures/a.jpg", "b.jpg"))
    write(root / "val.json", coco("c.jpg"))
    for name in ("pictures/a.jpg", "b.jpg", "c.jpg"):
        picture(root / name)


def roboflow(root: Path) -> None:
    write(root / "train/_annotations.coco.json", coco("a.jpg", "b.jpg"))
    write(root / "valid/_annotations.coco.json", coco("c.jpg"))
    for name in ("train/a.jpg", "train/b.jpg", "valid/c.jpg"):
        picture(root / name)


@pytest.mark.parametrize(
    ("make", "key", "line"),
    [
        (coco_2017, "coco", "COCO 2017 layout in {}: annotations/instances_val2017.json, 1 images, 1 boxes, 1 classes"),
        (flat, "flat", "flat COCO layout in {}: val.json, 1 images, 1 boxes, 1 classes"),
        (flat_beside, "flat", "flat COCO layout in {}: val.json, 1 images, 1 boxes, 1 classes"),
        (
            roboflow,
            "roboflow",
            "Roboflow COCO layout in {}: valid/_annotations.coco.json, 1 images, 1 boxes, 1 classes",
        ),
    ],
)
def test_coco_layouts_are_found_by_looking(tmp_path: Path, make, key: str, line: str):
    make(tmp_path)
    assert find_layout(tmp_path).key == key
    train, val = check_images(load_split(tmp_path, "train")), check_images(load_split(tmp_path, "val", layout=key))
    assert (len(train), len(val)) == (2, 1)
    assert val.boxes.tolist() == [[1, 2, 4, 6]]
    assert val.category_ids == (7,)
    assert describe(tmp_path, val) == line.format(tmp_path)
    with pytest.raises(InputError, match=r"no split 'test' in this .* layout; it has train, val"):
        load_split(tmp_path, "test")


def test_a_folder_with_two_layouts_needs_a_choice(tmp_path: Path):
    flat(tmp_path)
    roboflow(tmp_path)
    with pytest.raises(InputError, match=r"choose with --data\.layout flat or roboflow"):
        load_split(tmp_path, "train")
    assert load_split(tmp_path, "val", layout="roboflow").source.endswith("valid/_annotations.coco.json")


def test_nothing_recognised(tmp_path: Path):
    with pytest.raises(InputError, match="none: no such folder"):
        load_split(tmp_path / "none", "train")
    with pytest.raises(InputError, match=r"no data set recognised; looked for annotations/instances_\{train,val\}2017"):
        load_split(tmp_path, "train")
    flat(tmp_path / "inner")
    with pytest.raises(InputError, match=r"did you mean .*inner\?"):
        load_split(tmp_path, "train")
    with pytest.raises(InputError, match="not a Roboflow COCO layout; it would have"):
        load_split(tmp_path / "inner", "train", layout="roboflow")
    with pytest.raises(InputError, match="no such layout; choose from coco, flat, roboflow, voc, yolo"):
        load_split(tmp_path / "inner", "train", layout="cocoo")


# --- names that are a little otherwise ------------------------------------------------------------------------------


def voc(root: Path, annotations: str, images: str, names: str = "abcde") -> None:
    for n, name in enumerate(names):
        box = f"<bndbox><xmin>1</xmin><ymin>2</ymin><xmax>{9 + n}</xmax><ymax>9</ymax></bndbox>"
        write(
            root / annotations / f"{name}.xml",
            f"<annotation><filename>{name}.jpg</filename><object><name>cat</name>{box}</object></annotation>",
        )
        picture(root / images / f"{name}.jpg")


def voc_with_lists(root: Path) -> None:
    voc(root, "annotations", "jpegs")
    for split, names in (("train", "a\nb\nc\nd\n"), ("val", "e\n")):
        write(root / "imagesets" / f"{split}.txt", names)
    write(root / "readme.txt", "about")
    picture(root / "masks/a.png")  # the name without suffix is no image of the data set


def coco_of_another_year(root: Path) -> None:
    write(root / "annots/instances_train2014.json", coco("a.jpg", "b.jpg"))
    write(root / "annots/instances_val2014.json", coco("c.jpg"))
    write(root / "annots/captions_val2014.json", coco("c.jpg"))
    for name in ("a.jpg", "b.jpg", "c.jpg"):
        picture(root / "imgs" / name)


def coco_without_a_year(root: Path) -> None:
    write(root / "annotations/instances_train.json", coco("a.jpg", "b.jpg"))
    write(root / "annotations/instances_val.json", coco("c.jpg"))
    write(root / "old/instances_train.json", coco("a.jpg"))  # not the usual folder
    for name in ("train/a.jpg", "train/b.jpg", "val/c.jpg"):
        picture(root / name)


def flat_in_a_folder(root: Path) -> None:
    write(root / "annotations/train.json", coco("a.jpg", "b.jpg"))
    write(root / "annotations/val.json", coco("c.jpg"))
    for name in ("train/a.jpg", "train/b.jpg", "val/c.jpg"):
        picture(root / "images" / name)


def yolo(root: Path) -> None:
    write(root / "cells.yml", "train: imgs/train\nval: imgs/val\nnames: [cat]\n")
    write(root / "settings.yaml", "lr: 0.1\n")
    for name in ("train/a", "train/deep/b", "val/c"):
        picture(root / "imgs" / f"{name}.jpg")
        write(root / "annots" / f"{name}.txt", "0 0.5 0.5 0.5 0.5\n")


@pytest.mark.parametrize(
    ("make", "images", "line"),
    [
        (
            lambda root: voc(root, "annots", "imgs"),
            [4, 1],
            "PASCAL VOC layout in {}: annots, 1 images, 1 boxes, 1 classes; annotations from annots, images from imgs; "
            "no split 'val' there: 1 of the 5 images are val, drawn in balance of the classes",
        ),
        (
            lambda root: voc(root, "all", "all"),
            [4, 1],
            "PASCAL VOC layout in {}: all, 1 images, 1 boxes, 1 classes; annotations from all, images from all; "
            "no split 'val' there: 1 of the 5 images are val, drawn in balance of the classes",
        ),
        (
            voc_with_lists,
            [4, 1],
            "PASCAL VOC layout in {}: imagesets/val.txt, 1 images, 1 boxes, 1 classes; "
            "annotations from annotations, images from jpegs, splits from imagesets",
        ),
        (
            coco_of_another_year,
            [2, 1],
            "COCO 2017 layout in {}: annots/instances_val2014.json, 1 images, 1 boxes, 1 classes; "
            "annotations from annots, images from imgs",
        ),
        (
            coco_without_a_year,
            [2, 1],
            "COCO 2017 layout in {}: annotations/instances_val.json, 1 images, 1 boxes, 1 classes",
        ),
        (
            flat_in_a_folder,
            [2, 1],
            "flat COCO layout in {}: annotations/val.json, 1 images, 1 boxes, 1 classes; "
            "annotations from annotations, images from images/val",
        ),
        (
            yolo,
            [2, 1],
            "YOLO layout in {}: cells.yml, 1 images, 1 boxes, 1 classes; "
            "classes from cells.yml, labels from annots/val",
        ),
    ],
)
def test_content_decides_where_names_are_otherwise(tmp_path: Path, make, images: list[int], line: str):
    make(tmp_path)
    splits = [check_images(load_split(tmp_path, split, val_fraction=0.2)) for split in ("train", "val")]
    assert [len(truth) for truth in splits] == [len(truth.boxes) for truth in splits] == images
    assert describe(tmp_path, splits[1]) == line.format(tmp_path)


def test_usual_names_go_before_content(tmp_path: Path):
    voc(tmp_path, "Annotations", "JPEGImages")
    voc(tmp_path, "annots", "imgs", "xyz")
    coco_of_another_year(tmp_path)
    truth = load_split(tmp_path, "train")
    assert (truth.source, truth.image_folder) == (str(tmp_path / "Annotations"), tmp_path / "JPEGImages")
    assert truth.taken == ()
    # Its images are missing. Masks of the same names are none of them.
    for name in "abcde":
        (tmp_path / "JPEGImages" / f"{name}.jpg").rename(tmp_path / "JPEGImages" / f"other-{name}.jpg")
        picture(tmp_path / "SegmentationClass" / f"{name}.png")
    with pytest.raises(InputError, match=r"JPEGImages/a\.jpg: no such image file"):
        check_images(load_split(tmp_path, "train"))


def two_annotations(root: Path) -> None:
    voc(root, "annots", "imgs")
    voc(root, "annots-2", "imgs", "xyz")


def two_images(root: Path) -> None:
    voc(root, "Annotations", "large")
    voc(root, "Annotations", "small")


def two_lists(root: Path) -> None:
    voc(root, "Annotations", "JPEGImages")
    for folder in ("lists", "ImageSets/Layout"):
        write(root / folder / "train.txt", "a\n")


def two_specifications(root: Path) -> None:
    yolo(root)
    write(root / "other.yaml", (root / "cells.yml").read_text())


def two_labels(root: Path) -> None:
    yolo(root)
    write(root / "more/train/a.txt", "0 0.5 0.5 0.5 0.5\n")
    write(root / "more/train/deep/b.txt", "0 0.5 0.5 0.5 0.5\n")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            two_annotations,
            "PASCAL VOC annotations are in annots and annots-2; give the right place its usual name, Ann",
        ),
        (two_images, "images with the annotated names are in large and small; give .* usual name, JPEGImages, or move"),
        (two_lists, "lists of the images of each split are in lists and ImageSets/Layout; .*, ImageSets/Main, or move"),
        (
            two_specifications,
            r"YOLO's classes and splits are in cells\.yml and other\.yaml; .* usual name, data\.yaml,",
        ),
        (two_labels, "labels with the images' names are in annots/train and more/train; .* usual name, labels, or"),
    ],
)
def test_what_is_in_two_places_is_refused(tmp_path: Path, make, message: str):
    make(tmp_path)
    with pytest.raises(InputError, match=message):
        load_split(tmp_path, "train")


def test_other_xml_and_json_are_no_annotations(tmp_path: Path):
    write(tmp_path / "pages/a.xml", "<html></html>")
    write(tmp_path / "pages/b.xml", "<annot")
    write(tmp_path / "settings/train.json", '{"lr": 0.1}')
    write(tmp_path / "run.yaml", "names: [cat]\n")
    with pytest.raises(InputError, match="no data set recognised"):
        load_split(tmp_path, "train")


def test_skip_bad_reaches_the_reader(tmp_path: Path):
    write(tmp_path / "train.json", coco("a.jpg", box=(1, 2, 3)))
    with pytest.raises(InputError, match=r"annotation 0 \(image a.jpg\) has bbox"):
        load_split(tmp_path, "train")
    assert len(load_split(tmp_path, "train", skip_bad=True).dropped) == 1


@pytest.mark.skipif(not SHARED.is_dir(), reason="the folder ../shared/data is absent")
@pytest.mark.parametrize(
    ("folder", "split", "images", "boxes"),
    [
        ("bccd", "train", 205, 2804),
        ("bccd", "test", 72, 945),
        ("voc-animals", "val", 864, 1624),
        ("coco-mini", "train", 343, 2974),
        ("coco-mini", "val", 100, 823),
    ],
)
@pytest.mark.ci
def test_real_data(folder: str, split: str, images: int, boxes: int):
    truth = check_images(load_split(SHARED / folder, split))
    assert (len(truth), len(truth.boxes) + len(truth.dropped)) == (images, boxes)


@pytest.mark.parametrize(
    ("make", "file", "name"),
    [
        (coco_2017, "annotations/instances_val2017.json", "c.jpg"),
        (flat, "val.json", "c.jpg"),
        (roboflow, "valid/_annotations.coco.json", "c.jpg"),
    ],
)
@pytest.mark.parametrize("place", ["../../outside.jpg", "{}/outside.jpg", "images/../../../outside.jpg"])
def test_an_image_outside_of_the_folder_is_refused(tmp_path: Path, make, file: str, name: str, place: str):
    root = tmp_path / "root"
    make(root)
    picture(tmp_path / "outside.jpg")
    document = (root / file).read_text()
    place = place.format(tmp_path)
    (root / file).write_text(document.replace(f'"{name}"', f'"{place}"'))
    with pytest.raises(InputError, match=rf"names {place}, which is not in .*; move the file there, and correct"):
        load_split(root, "val")


def test_links_and_names_that_stay_in_the_folder_are_fine(tmp_path: Path):
    root = tmp_path / "root"
    flat(root)
    (root / "images/c.jpg").rename(tmp_path / "outside.jpg")
    (root / "images/c.jpg").symlink_to(tmp_path / "outside.jpg")
    (root / "loop").symlink_to(root / "loop")
    for name in ("c.jpg", "../images/c.jpg", str(root / "images/c.jpg")):
        write(root / "val.json", coco(name))
        assert len(check_images(load_split(root, "val"))) == 1
