import json
import subprocess
import sys
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
def test_real_data(folder: str, split: str, images: int, boxes: int):
    truth = check_images(load_split(SHARED / folder, split))
    assert (len(truth), len(truth.boxes) + len(truth.dropped)) == (images, boxes)


def test_importing_does_not_import_torch():
    code = "import sys, retinaconf.data.layouts; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
