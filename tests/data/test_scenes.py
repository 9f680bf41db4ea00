import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.ops import box_iou

from retinaconf.data import scenes
from retinaconf.data.ground_truth import GroundTruth
from retinaconf.data.images import check_images
from retinaconf.data.layouts import load_split
from retinaconf.data.scenes import write_scenes
from retinaconf.errors import InputError


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_scenes(tmp_path_factory.mktemp("demo") / "scenes", train=24, val=12)


@pytest.fixture(scope="module")
def train(folder: Path) -> GroundTruth:
    return check_images(load_split(folder, "train"))


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.ci
def test_a_data_set_of_ten_classes(folder: Path, train: GroundTruth):
    val = check_images(load_split(folder, "val"))
    assert (len(train), len(val)) == (24, 12)
    assert train.classes == val.classes == tuple("0123456789")
    assert set(train.labels.tolist()) == set(range(10))
    assert not set(train.image_ids.tolist()) & set(val.image_ids.tolist())
    assert (train.image_sizes == [240, 320]).all()
    for truth in (train, val):
        counts = np.diff(truth.offsets)
        assert counts.min() >= 3
        assert counts.max() <= 7
        assert (truth.boxes[:, :2] >= 0).all()
        assert (truth.boxes[:, 2:] <= [320, 240]).all()


def test_many_scales_and_real_overlaps(train: GroundTruth):
    heights = train.boxes[:, 3] - train.boxes[:, 1]
    assert np.percentile(heights, 5) < 50
    assert np.percentile(heights, 95) > 85
    close = same = 0
    for start, stop in zip(train.offsets, train.offsets[1:]):
        boxes, labels = torch.from_numpy(train.boxes[start:stop]), train.labels[start:stop]
        iou = box_iou(boxes, boxes).fill_diagonal_(0).numpy()
        assert iou.max() <= 0.75
        close += int((iou > 0.3).sum()) // 2
        same += int(((iou > 0.3) & (labels[:, None] == labels)).sum()) // 2
    assert close > 0.4 * len(train)
    assert same > 0.1 * len(train)


def test_boxes_are_tight_around_the_visible_ink():
    # On black, where shadows do not show, all ink must lie in a box, and each box must reach ink on all sides.
    material = scenes._material(0)["train"]
    black = scenes._Material(material.digits, material.labels, [Image.new("RGB", (400, 300))])
    for seed in range(5):
        image, labels, boxes = scenes._scene(np.random.default_rng(seed), (240, 320), black)
        assert len(labels) == len(boxes) >= 3
        ink = np.asarray(image).max(axis=2) > 12  # half of the darkest outline
        covered = np.zeros_like(ink)
        for x0, y0, x1, y1 in boxes:
            covered[max(y0 - 2, 0) : y1 + 2, max(x0 - 2, 0) : x1 + 2] = True  # a contour fades over two pixels
            part = ink[y0:y1, x0:x1]
            assert part[0].any()
            assert part[-1].any()
            assert part[:, 0].any()
            assert part[:, -1].any()
        assert not (ink & ~covered).any()


def test_a_tight_box_shrinks_with_what_hides_the_digit(monkeypatch: pytest.MonkeyPatch):
    # Two solid squares, the second over the right third of the first, whose box must end where the second begins.
    def square(*_: object) -> scenes._Glyph:
        full = np.ones((40, 40))
        return scenes._Glyph(3, np.full((40, 40, 3), 255.0), full, full)

    spots = iter([(100, 100), (100, 126), *[(100, 100)] * 100])  # further ones would hide the first two
    monkeypatch.setattr(scenes, "_glyph", square)
    monkeypatch.setattr(scenes, "_place", lambda *_: next(spots))
    material = scenes._Material(np.zeros((1, 8, 8)), np.zeros(1, int), [Image.new("RGB", (400, 300))])
    _, labels, boxes = scenes._scene(np.random.default_rng(0), (240, 320), material)
    assert labels == [3, 3]
    assert boxes == [(100, 100, 126, 140), (126, 100, 166, 140)]


def test_training_and_validation_share_nothing():
    material = scenes._material(0)
    train, val = ({sample.tobytes() for sample in material[split].digits} for split in ("train", "val"))
    assert len(train) + len(val) == 1797
    assert not train & val
    columns = [
        {np.asarray(piece)[:, x].tobytes() for piece in material[split].photographs for x in range(piece.width)}
        for split in ("train", "val")
    ]
    assert not columns[0] & columns[1]


def test_the_same_parameters_give_the_same_files(folder: Path, tmp_path: Path):
    again, fewer = (write_scenes(tmp_path / name, train=3, val=1) for name in ("again", "fewer"))
    assert contents(again) == contents(fewer)
    assert contents(fewer)["images/train-0002.jpg"] == contents(folder)["images/train-0002.jpg"]
    other = write_scenes(tmp_path / "other", train=3, val=1, seed=1)
    assert contents(other)["images/train-0002.jpg"] != contents(folder)["images/train-0002.jpg"]


def test_a_whole_folder_is_used_again_and_another_is_replaced(tmp_path: Path):
    folder = write_scenes(tmp_path / "demo", train=2, val=1, size=(160, 200))
    (folder / "images" / "train-0000.jpg").write_bytes(b"")
    write_scenes(folder, train=2, val=1, size=(160, 200))
    assert (folder / "images" / "train-0000.jpg").stat().st_size == 0
    write_scenes(folder, train=2, val=2, size=(160, 200))
    assert len(check_images(load_split(folder, "train"))) == 2
    assert len(load_split(folder, "val")) == 2


@pytest.mark.parametrize("name", ["notes.txt", "train.json", "images/mine.jpg"])
def test_a_folder_with_anything_else_is_left_alone(tmp_path: Path, name: str):
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_text(json.dumps({"info": {"description": "mine"}}))
    with pytest.raises(InputError, match="holds something else"):
        write_scenes(tmp_path, train=1, val=1)
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == [tmp_path / name]
    own = write_scenes(tmp_path / "demo", train=1, val=1, size=(120, 120))
    (own / name.replace("train.json", "extra.json")).touch()
    with pytest.raises(InputError, match="holds something else"):
        write_scenes(own, train=2, val=1, size=(120, 120))


def test_an_interrupted_run_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    calls = []

    def failing_scene(*arguments: object) -> object:
        calls.append(arguments)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return real_scene(*arguments)

    real_scene = scenes._scene
    monkeypatch.setattr(scenes, "_scene", failing_scene)
    with pytest.raises(KeyboardInterrupt):
        write_scenes(tmp_path / "demo", train=4, val=1, size=(120, 120))
    assert list(tmp_path.iterdir()) == []


def test_bad_parameters(tmp_path: Path):
    for wrong in ({"train": 0}, {"val": -1}, {"seed": -1}, {"size": (60, 320)}):
        with pytest.raises(InputError, match="scenes: cannot make"):
            write_scenes(tmp_path / "demo", **{"train": 1, "val": 1, **wrong})
    assert list(tmp_path.iterdir()) == []
