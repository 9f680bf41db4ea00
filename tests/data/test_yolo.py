import os
from pathlib import Path

import numpy as np
import pytest
import torch
from as_coco import as_coco
from hotcoco import COCO
from PIL import Image
from torchvision.ops import box_convert

from retinaconf.data import images
from retinaconf.data.ground_truth import Fault
from retinaconf.data.layouts import describe, load_split
from retinaconf.errors import InputError


def picture(path: Path, size: tuple[int, int] = (40, 30), orientation: int = 1) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.new("RGB", size).save(path, exif=exif)


def labels(path: Path, *lines: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(lines))


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "data.yaml").write_text("train: images/train\nval: images/val\ntest:\nnc: 2\nnames: [cat, dog]\n")
    picture(tmp_path / "images/train/a.jpg")
    picture(tmp_path / "images/train/deep/er/b.PNG", (100, 50))
    picture(tmp_path / "images/train/empty.jpg")
    picture(tmp_path / "images/val/c.jpg")
    (tmp_path / "images/train/.DS_Store.jpg").touch()
    (tmp_path / "images/train/notes.md").touch()
    labels(tmp_path / "labels/train/a.txt", "1 0.5 0.5 0.25 0.2", "", "0 0.1 0.2 0.2 0.4 ")
    labels(tmp_path / "labels/train/deep/er/b.txt", "0 0.2 0.1 0.6 0.1 0.4 0.9")
    labels(tmp_path / "labels/val/c.txt", "0 0.5 0.5 1 1")
    return tmp_path


def test_fractions_become_pixels(root: Path):
    truth = load_split(root, "train")
    assert truth.file_names.tolist() == [f"images/train/{name}" for name in ("a.jpg", "deep/er/b.PNG", "empty.jpg")]
    assert truth.image_sizes.tolist() == [[30, 40], [50, 100], [30, 40]]
    np.testing.assert_allclose(truth.boxes, [[15, 12, 25, 18], [0, 0, 8, 12], [20, 5, 60, 45]], atol=1e-9)
    assert truth.labels.tolist() == [1, 0, 0]
    assert truth.offsets.tolist() == [0, 2, 3, 3]  # an image without a label file has no boxes
    assert (truth.classes, truth.category_ids) == (("cat", "dog"), (0, 1))
    assert describe(root, truth) == f"YOLO layout in {root}: data.yaml, 3 images, 3 boxes, 2 classes"
    with pytest.raises(InputError, match="no split 'test' in this YOLO layout; it has train, val"):
        load_split(root, "test")


def test_random_boxes_agree_with_torchvision_and_hotcoco(tmp_path: Path):
    random = np.random.default_rng(0)
    cxcywh = np.concatenate([random.uniform(0.3, 0.7, (50, 2)), random.uniform(0.01, 0.5, (50, 2))], axis=1)
    rows = [f"{i % 3} " + " ".join(f"{value:.9f}" for value in row) for i, row in enumerate(cxcywh)]
    picture(tmp_path / "x.jpg", (317, 211))
    labels(tmp_path / "x.txt", *rows)
    (tmp_path / "data.yaml").write_text("names: ['a', 'b', 'c']\ntrain: .\n")
    truth = load_split(tmp_path, "train")
    expected = box_convert(torch.from_numpy(cxcywh), "cxcywh", "xyxy").numpy() * [317, 211, 317, 211]
    np.testing.assert_allclose(truth.boxes, expected, atol=1e-5)
    theirs = COCO.from_yolo(str(tmp_path), images_dir=str(tmp_path)).dataset["annotations"]
    np.testing.assert_allclose(
        [a["bbox"] for a in as_coco(truth)["annotations"]], [a["bbox"] for a in theirs], atol=1e-5
    )


def test_boxes_refer_to_the_upright_picture(root: Path):
    picture(root / "images/val/c.jpg", (40, 30), orientation=6)
    truth = load_split(root, "val")
    assert truth.image_sizes.tolist() == [[40, 30]]
    assert truth.boxes.tolist() == [[0, 0, 30, 40]]


@pytest.mark.parametrize(
    "yaml",
    [
        "val: images/val",
        "val: [images/val]",
        "val: val.txt",
        "valid: images/val",
        "val: ../images/val",
        "val: ./images/val/",
        "path: images\nval: val",
        "path: /no/such/place\nval: images/val",
        "path: {root}/images\nval: val",
        "val: {root}/images/val",
    ],
)
@pytest.mark.parametrize("names", ["{0: cat, 1: dog}", "[cat, dog]", "\n  0: cat\n  1: dog", "{'0': cat, '1': dog}"])
def test_ways_to_name_images_and_classes(root: Path, yaml: str, names: str):
    (root / "val.txt").write_text("./images/val/c.jpg\n\n")
    (root / "data.yaml").write_text(yaml.replace("{root}", str(root)) + f"\nnames: {names}\n")
    truth = load_split(root, "val")
    assert [(root / name).resolve() for name in truth.file_names] == [(root / "images/val/c.jpg").resolve()]
    assert truth.boxes.tolist() == [[0, 0, 40, 30]]
    assert truth.classes == ("cat", "dog")


def test_several_folders_and_the_last_images_folder_counts(tmp_path: Path):
    (tmp_path / "data.yaml").write_text("train: [one/images, two/images]\nnames: {3: cat, 1: dog}\n")
    for folder in ("one", "two"):
        picture(tmp_path / folder / "images/images.jpg")
        labels(tmp_path / folder / "labels/images.txt", "3 0.5 0.5 0.5 0.5")
    truth = load_split(tmp_path, "train")
    assert len(truth) == len(truth.boxes) == 2
    assert (truth.classes, truth.category_ids) == (("dog", "cat"), (1, 3))
    assert truth.labels.tolist() == [1, 1]


def test_keypoints_after_the_box_are_left_out(root: Path):
    labels(root / "labels/val/c.txt", "0 0.5 0.5 0.5 0.5 " + "0.1 0.9 " * 5)
    (root / "data.yaml").write_text("val: images/val\nnames: [person]\nkpt_shape: [5, 2]\n")
    assert load_split(root, "val").boxes.tolist() == [[10, 7.5, 30, 22.5]]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("0 0.5 0.5 0.5", "has 4 columns; it needs"),
        ("0 0.5 0.5 0.5 0.5 0.9", "has 6 columns"),
        ("0", "has 1 columns"),
        ("cat 0.5 0.5 0.5 0.5", "not numbers"),
        ("2 0.5 0.5 0.5 0.5", "has class 2, which 'names' does not list"),
        ("0.5 0.5 0.5 0.5 0.5", "has class 0.5"),
        ("nan 0.5 0.5 0.5 0.5", "has class nan"),
        ("0 20 15 10 10", "not fractions"),
        ("0 0.5 0.5 nan 0.5", "not fractions"),
        ("0 -0.5 0.5 0.5 0.5", "not fractions"),
    ],
)
def test_a_bad_line_raises_or_is_dropped(root: Path, line: str, message: str):
    labels(root / "labels/val/c.txt", "0 0.5 0.5 1 1", line)
    with pytest.raises(InputError) as caught:
        load_split(root, "val")
    assert f"{Path('labels/val/c.txt')}: line 2 " in str(caught.value)
    assert message in str(caught.value)
    truth = load_split(root, "val", skip_bad=True)
    assert truth.boxes.tolist() == [[0, 0, 40, 30]]
    assert truth.dropped[0].kind == "bad-annotation"
    assert message in truth.dropped[0].message


def test_images_are_decoded_once(root: Path, monkeypatch: pytest.MonkeyPatch):
    truth = load_split(root, "train")
    monkeypatch.setattr(images, "check_image", lambda path, size: pytest.fail(f"{path} is decoded again"))
    again = images.check_images(truth)
    assert again.image_sizes.tolist() == truth.image_sizes.tolist()
    assert again.boxes.tolist() == truth.boxes.tolist()


@pytest.mark.parametrize("name", ["images/val/c.jpg", "labels/val/c.txt", "data.yaml"])
def test_a_pipe_is_not_waited_for(root: Path, name: str):
    (root / name).unlink()
    os.mkfifo(root / name)
    with pytest.raises(InputError, match=r"not a regular file|not a YOLO layout"):
        load_split(root, "val", layout="yolo")


def test_a_box_without_extent_is_dropped(root: Path):
    labels(root / "labels/val/c.txt", "0 0.5 0.5 1 1", "0 0.5 0.5 0 0.2")
    truth = load_split(root, "val")
    assert len(truth.boxes) == 1
    assert truth.dropped == (Fault("degenerate-box", f"{root / 'labels/val/c.txt'}: line 2 has width 0, height 0.2"),)


def test_a_bad_image(root: Path):
    (root / "images/train/a.jpg").write_bytes(b"\xff\xd8")
    with pytest.raises(InputError, match=r"a\.jpg: .*--data\.skip-bad"):
        load_split(root, "train")
    truth = load_split(root, "train", skip_bad=True)
    assert [Path(name).name for name in truth.file_names] == ["b.PNG", "empty.jpg"]
    np.testing.assert_allclose(truth.boxes, [[20, 5, 60, 45]])
    assert len(truth.dropped) == 1


def test_what_is_left_out_is_counted(root: Path):
    (root / "images/train/a.jpg").write_bytes(b"\xff\xd8")
    (root / "labels/train/deep/er/b.txt").write_bytes(b"0 \xff")
    with pytest.raises(InputError, match=r"b\.txt: not a text file; mend it, or .*--data\.skip-bad"):
        load_split(root, "train")
    truth = load_split(root, "train", skip_bad=True)
    assert truth.file_names.tolist() == ["images/train/empty.jpg"]
    assert str(truth.left_out) == "2 images left out, with every box of cat, dog"
    labels(root / "labels/val/c.txt", "0 0.5 0.5 1 1", "1 0.5 0.5 1")
    assert str(load_split(root, "val", skip_bad=True).left_out) == "1 annotation left out, with every box of dog"


@pytest.mark.parametrize(
    ("yaml", "message"),
    [
        ("names: [a", "not valid YAML"),
        ("just text", "has no keys"),
        ("names: &a [x]\nval: images/val\nmore: [*a, *a]", "not valid YAML (an alias, which can stand for more than"),
        ("names: [a]\nnc: !!int abc", "not valid YAML (invalid literal for int()"),
        (f"names: [a]\nnc: {'9' * 5000}", "not valid YAML (Exceeds the limit"),
        (f"names: {'[' * 600}{']' * 600}", "not valid YAML (maximum recursion depth exceeded"),
        ("val: /dev/zero\nnames: [a]", "/dev/zero: cannot be read (not a regular file)"),
        ("val: images/val", "no 'names' in it"),
        ("val: images/val\nnames: []", "no 'names' in it"),
        ("val: images/val\nnames: {x: cat}", "an index that is not a whole number"),
        ("val: images/val\nnc: 3\nnames: [cat, dog]", "'nc' is 3, 'names' has 2 entries"),
        ("val: pictures\nnames: [cat]", "'val' names pictures, which does not exist; looked at"),
        ("val: pictures\nnames: [cat]", "; if there is no 'val', remove its line, and images of 'train' are held out"),
        ("val: labels\nnames: [cat]", "'val' names no image"),
        ("val: labels\nnames: [cat]", "; if there is no 'val', remove its line, and images of 'train' are held out"),
        ("val: elsewhere\nnames: [cat]", "none of the 1 images of 'val' has labels; expected"),
        ("val: gone.txt\nnames: [cat]", "nothing.jpg: no such image file"),
    ],
)
def test_a_bad_data_yaml(root: Path, yaml: str, message: str):
    picture(root / "elsewhere/x.jpg")
    (root / "gone.txt").write_text("nothing.jpg")
    (root / "data.yaml").write_text(yaml)
    with pytest.raises(InputError) as caught:
        load_split(root, "val")
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_list_of_images_outside_of_the_folder_is_refused(tmp_path: Path, root: Path):
    (root / "data.yaml").write_text("train: images/train\nval: val.txt\nnames: [cat, dog]\n")
    for line in ("../outside.jpg", "/etc/outside.jpg", "images/../../outside.jpg"):
        (root / "val.txt").write_text(f"images/val/c.jpg\n{line}\n")
        with pytest.raises(InputError, match=rf"val\.txt: names {line}, which is not in "):
            load_split(root, "val")
    (root / "data.yaml").write_text("train: images/train\nval: ../../../../etc/hostname\nnames: [cat, dog]\n")
    with pytest.raises(InputError, match=r"which is not in |does not exist"):
        load_split(root, "val")


def test_a_data_yaml_of_megabytes_is_not_read(root: Path):
    (root / "data.yaml").write_text("train: images/train\nnames: [cat, dog]\n" + "# \n" * 400_000)
    with pytest.raises(InputError, match=r"data\.yaml: not valid YAML \(larger than 1,048,576 bytes\)"):
        load_split(root, "train")
