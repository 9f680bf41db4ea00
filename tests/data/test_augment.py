"""Which draws are made: their range, their share, what they depend on."""

import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from retinaconf.config import PRESETS, Config, DataConfig, config_from_flat
from retinaconf.data.augment import augmentation
from retinaconf.data.ground_truth import GroundTruth, ground_truth_from_coco
from retinaconf.data.loader import epoch_plans, evaluation_batches, training_batches
from retinaconf.data.transforms import Augmentation, Mosaic, apply, are_targets

ALL_KNOBS = {"vertical_flip": 0.5, "turn": 0.75, "crop": 0.5, "zoom_out": 0.5, "mosaic": 0.4, "jpeg": 0.5, "blur": 0.5}


def truth(boxes: list[list[float]], size: tuple[int, int] = (100, 150), count: int = 1, crowd: int = 0) -> GroundTruth:
    """`count` images of one size, each with the same boxes xyxy."""
    images = [{"id": i, "height": size[0], "width": size[1]} for i in range(count)]
    annotations = [
        {"image_id": i, "category_id": 1, "bbox": [x1, y1, x2 - x1, y2 - y1], "iscrowd": crowd}
        for i in range(count)
        for x1, y1, x2, y2 in boxes
    ]
    return ground_truth_from_coco({"images": images, "annotations": annotations, "categories": [{"id": 1}]}, None, "t")


def draws(gt: GroundTruth, config: DataConfig, count: int = 400) -> list[Any]:
    return [augmentation(gt, 0, config, seed, 0) for seed in range(count)]


# --- resizing and the horizontal flip ------------------------------------------------------------------------------


def test_random_draws_stay_in_range_and_cover_it():
    config = DataConfig(short_side=200, long_side=400, scale=(0.5, 2), flip=0.25)
    some = draws(truth([]), config)
    heights = np.array([draw.height for draw in some])
    assert heights.min() >= 100
    assert heights.max() <= 400
    # Log-uniform: as many shrink as grow.
    assert 0.4 < np.mean(heights < 200) < 0.6
    assert heights.min() < 110
    assert heights.max() > 360
    assert 0.15 < np.mean([draw.flip for draw in some]) < 0.35
    for draw in some:
        assert abs(draw.width - draw.height * 1.5) <= 1.25


@pytest.mark.parametrize(("flip", "expected"), [(0.0, {False}), (1.0, {True})])
def test_flip_probabilities_0_and_1_are_certain(flip: float, expected: set[bool]):
    assert {draw.flip for draw in draws(truth([], (9, 9)), DataConfig(flip=flip), 50)} == expected


def test_the_default_draws_what_version_0_1_drew():
    """Its rule, written out again: a factor and a flip from the generator of (seed, epoch, 2, image)."""
    gt, config = truth([[10, 10, 90, 90]], count=30), DataConfig(short_side=64, long_side=96, scale=(0.5, 2))
    for image in range(30):
        rng = np.random.default_rng([7, 3, 2, image])
        factor = np.exp(rng.uniform(np.log(0.5), np.log(2)))
        expected = Augmentation(round(64 * factor), round(96 * factor), rng.random() < 0.5)
        assert augmentation(gt, image, config, 7, 3) == expected


# --- presets and knobs ---------------------------------------------------------------------------------------------


def test_a_knob_replaces_its_presets_number_and_0_switches_it_off():
    config = Config().changed(**{"data.augment": "strong", "data.mosaic": 0.0, "data.turn": 0.75})
    assert config.data.knobs == PRESETS["strong"]._replace(mosaic=0.0, turn=0.75)
    assert config_from_flat(json.loads(json.dumps(config.flat()))) == config
    assert config.flat()["data.crop"] is None  # another preset decides anew
    assert config.changed(**{"data.augment": "none"}).data.knobs == PRESETS["none"]._replace(turn=0.75)


def test_a_configuration_of_version_0_1_flips_as_it_did():
    flat = {name: value for name, value in Config().flat().items() if name in ("data.flip", "data.scale")}
    for flip in (0.0, 0.5, 0.7):
        assert config_from_flat(flat | {"data.flip": flip}).data.knobs == PRESETS["none"]._replace(flip=flip)
    assert Config().data.knobs == PRESETS["flip"] == PRESETS["none"]._replace(flip=0.5)


def test_turns_are_for_no_preset_and_none_is_nothing():
    gt = truth([[10, 10, 90, 90]], count=4)
    for name in PRESETS:
        parts: list[Augmentation] = []
        for draw in draws(gt, DataConfig(augment=name)):
            parts += [part for _, part in draw.parts] if isinstance(draw, Mosaic) else [draw]
        assert not any(part.turns or part.upside_down for part in parts)
        if name == "none":
            assert set(parts) == {Augmentation(600, 900)}
        if name in ("light", "strong"):
            assert any(part.crop for part in parts)
            assert any(part.place for part in parts)


def test_each_knob_is_its_share():
    gt = truth([[10, 10, 40, 90]], count=5)
    some = draws(gt, DataConfig(vertical_flip=0.3, turn=0.6, crop=0.2, zoom_out=0.5, mosaic=0.25), 2000)
    whole = [draw for draw in some if isinstance(draw, Augmentation)]
    close = {"abs": 0.04}  # of 2000 draws four standard deviations
    assert 1 - len(whole) / len(some) == pytest.approx(0.25, **close)
    assert np.mean([draw.upside_down for draw in whole]) == pytest.approx(0.3, **close)
    assert np.mean([draw.crop is not None for draw in whole]) == pytest.approx(0.2, **close)
    assert np.mean([draw.place is not None for draw in whole]) == pytest.approx(0.5 * 0.8, **close)
    assert [np.mean([draw.turns == n for draw in whole]) for n in range(4)] == pytest.approx([0.4, *[0.2] * 3], **close)


def test_a_transform_that_is_switched_on_changes_no_draw_of_the_others():
    gt = truth([[10, 10, 40, 90], [60, 5, 140, 95]], count=5)
    config = DataConfig(turn=0.5, crop=0.5, scale=(0.5, 2))
    for one, two in zip(draws(gt, config, 100), draws(gt, config.model_copy(update={"vertical_flip": 1.0}), 100)):
        assert two == replace(one, upside_down=True)


def test_only_seed_epoch_and_image_decide():
    gt, config = truth([[10, 10, 40, 90]], count=5), DataConfig(crop=1.0, scale=(0.5, 2))
    assert augmentation(gt, 2, config, 1, 3) == augmentation(gt, 2, config, 1, 3)
    assert len({augmentation(gt, i, config, s, e) for i in range(5) for s in range(4) for e in range(4)}) == 80


# --- crops ---------------------------------------------------------------------------------------------------------


def test_a_crop_holds_one_of_the_objects_in_full_and_is_at_least_half_as_wide():
    rng = np.random.default_rng(0)
    kept = set()
    for seed in range(300):
        corner, side = rng.uniform([0, 0], [120, 80], (3, 2)), rng.uniform(0.2, 60, (3, 2))
        boxes = np.concatenate([corner, np.minimum(corner + side, [150, 100])], axis=1)
        crop = augmentation(truth(boxes.tolist()), 0, DataConfig(crop=1.0), seed, 0).crop
        assert crop is not None
        x1, y1, x2, y2 = crop
        assert 0 <= x1 < x2 <= 150
        assert 0 <= y1 < y2 <= 100
        assert x2 - x1 >= 150 * 0.5 / (4 / 3) ** 0.5 - 1
        assert y2 - y1 >= 100 * 0.5 / (4 / 3) ** 0.5 - 1
        held = (boxes[:, :2] >= crop[:2]).all(axis=1) & (boxes[:, 2:] <= crop[2:]).all(axis=1)
        assert held.any()
        kept |= set(np.flatnonzero(held))
    assert kept == {0, 1, 2}


@pytest.mark.parametrize(
    "boxes", [[], [[0, 0, 150, 100]], [[149, 99, 150, 100]], [[-50, -50, -10, -10]], [[-9, -9, 900, 900]]], ids=str
)
@pytest.mark.parametrize("turn", [0.0, 0.75])
def test_crops_and_mosaics_of_pictures_with_odd_boxes(boxes: list[list[float]], turn: float):
    """No boxes, one around all, one pixel, one outside, one beyond."""
    gt = truth(boxes, count=2)
    image = Image.new("RGB", (150, 100))
    for seed in range(30):
        for config in (DataConfig(crop=1.0, turn=turn), DataConfig(mosaic=1.0, turn=turn)):
            draw = augmentation(gt, 0, config, seed, 0)
            for part in [part for _, part in draw.parts] if isinstance(draw, Mosaic) else [draw]:
                pixels, moved = apply(image, gt.boxes[: len(boxes)], part)
                assert pixels.shape == (part.height, part.width, 3)
                assert (moved >= 0).all()
                assert (moved <= [part.width, part.height] * 2).all()
                inside = [box for box in boxes if box[2] > 0]
                assert are_targets(moved).sum() == len(inside) or isinstance(draw, Mosaic)


@pytest.mark.parametrize("size", [(1, 1), (1, 500), (500, 1), (2, 3)], ids=str)
def test_tiny_pictures(size: tuple[int, int]):
    gt = truth([[0, 0, size[1], size[0]]], size, count=2)
    image = Image.new("RGB", size[::-1])
    for seed in range(30):
        draw = augmentation(gt, 0, DataConfig(crop=0.5, zoom_out=0.5, turn=0.5, mosaic=0.5), seed, 0)
        for part in [part for _, part in draw.parts] if isinstance(draw, Mosaic) else [draw]:
            assert apply(image, gt.boxes[:1], part)[0].shape == (part.height, part.width, 3)


def test_a_crowd_region_is_no_object_to_keep():
    """A crop that had to hold it would be the whole picture."""
    some = draws(truth([[0, 0, 150, 100]], crowd=1), DataConfig(crop=1.0), 50)
    assert np.mean([draw.crop != (0, 0, 150, 100) for draw in some]) > 0.9


# --- mosaics -------------------------------------------------------------------------------------------------------


def test_a_mosaic_has_the_size_of_its_image_and_its_image_somewhere():
    gt = truth([[10, 10, 60, 90]], count=9)
    config = DataConfig(short_side=64, long_side=96, mosaic=1.0, scale=(0.5, 2))
    sizes = {(one.height, one.width) for one in draws(gt, config.model_copy(update={"mosaic": 0.0}))}
    some = draws(gt, config)
    assert {(one.height, one.width) for one in some} == sizes
    places = np.array([[row == 0 for row, _ in one.parts] for one in some])
    assert (places.any(axis=1)).all()
    assert places.mean(axis=0) == pytest.approx([0.25 + 0.75 / 9] * 4, abs=0.09)
    for one in some:
        (_, a), (_, b), (_, c), (_, d) = one.parts
        assert (a.height, c.height, a.width, b.width) == (b.height, d.height, c.width, d.width)


def test_a_mosaic_shows_objects_in_half_to_whole_size_and_not_stretched():
    gt = truth([[60, 40, 90, 60]], count=9)
    scales = []
    for one in draws(gt, DataConfig(short_side=300, long_side=450, mosaic=1.0), 100):
        for _, part in one.parts:
            assert part.crop is not None
            x1, y1, x2, y2 = part.crop
            across, down = part.width / (x2 - x1), part.height / (y2 - y1)
            assert across == pytest.approx(down, rel=0.04)  # crops are whole pixels, of 30 and more
            scales.append(across)
            assert x1 <= 60 < 90 <= x2
            assert y1 <= 40 < 60 <= y2
    # Usually 3; a part that would show more than there is shows the object larger.
    assert min(scales) > 1.5 * 0.97
    assert 1.7 < np.median(scales) < 2.6


# --- pixels and boxes together -------------------------------------------------------------------------------------

COLOURS = np.array([(250, 20, 20), (20, 250, 20), (20, 20, 250), (240, 240, 10), (10, 240, 240), (240, 10, 240)])


@pytest.fixture(scope="module")
def painted(tmp_path_factory: pytest.TempPathFactory) -> GroundTruth:
    """Six black pictures, each with one rectangle of a colour of its own, which is its class."""
    folder = tmp_path_factory.mktemp("painted")
    boxes = [
        [20, 30, 70, 80],
        [5, 5, 40, 60],
        [90, 40, 140, 95],
        [60, 10, 66, 90],
        [0, 0, 150, 30],
        [100, 70, 150, 100],
    ]
    images, annotations = [], []
    for i, (x1, y1, x2, y2) in enumerate(boxes):
        pixels = np.zeros((100, 150, 3), np.uint8)
        pixels[y1:y2, x1:x2] = COLOURS[i]
        Image.fromarray(pixels).save(folder / f"{i}.png")
        images.append({"id": i, "file_name": f"{i}.png", "height": 100, "width": 150})
        annotations.append({"image_id": i, "category_id": i, "bbox": [x1, y1, x2 - x1, y2 - y1]})
    document = {"images": images, "annotations": annotations, "categories": [{"id": i} for i in range(6)]}
    return ground_truth_from_coco(document, folder, "painted")


def painted_box(pixels: np.ndarray, label: int) -> list[float] | None:
    """The extent of what is nearer to the label's colour than to black or grey."""
    near = np.abs(pixels.astype(int) - COLOURS[label]).sum(axis=2) < 200
    y, x = np.nonzero(near)
    return [x.min(), y.min(), x.max() + 1, y.max() + 1] if len(x) else None


@pytest.mark.parametrize("knob", ["flip", "vertical_flip", "turn", "crop", "zoom_out", "mosaic", "all"])
def test_boxes_of_batches_frame_the_painted_pixels(painted: GroundTruth, knob: str):
    knobs = ALL_KNOBS | {"blur": 0.0, "jpeg": 0.0} if knob == "all" else {knob: 1.0}
    config = DataConfig(
        short_side=128, long_side=256, batch_size=3, workers=0, augment="none", scale=(0.7, 1.4), **knobs
    )
    framed = 0
    plans = [plan for epoch in range(10) for plan in epoch_plans(painted, config, 0, epoch)]
    for plan, batch in zip(plans, training_batches(painted, config, 0, 0, 20), strict=True):
        for n, (height, width) in enumerate(batch.sizes.tolist()):
            pixels = batch.images[n, :, :height, :width].permute(1, 2, 0).numpy()
            change = plan.augmentations[n]
            rows = [row for row, _ in change.parts] if isinstance(change, Mosaic) else [plan.index[n]]
            labels = batch.labels[n][batch.labels[n] >= 0].tolist()
            for label, box in zip(labels, batch.boxes[n].tolist()):
                assert 0 <= box[0] < box[2] <= width
                assert 0 <= box[1] < box[3] <= height
                if rows.count(label) == 1 and min(box[2] - box[0], box[3] - box[1]) > 4:
                    found = painted_box(pixels, label)
                    assert found is not None
                    np.testing.assert_allclose(found, box, atol=1.01)  # a resized edge is a grey pixel wide
                    framed += 1
    assert framed > 40


# --- batches -------------------------------------------------------------------------------------------------------


def test_turned_and_cropped_pictures_are_batched_by_their_new_shape():
    gt = truth([[40, 30, 90, 60]], (480, 640), count=640)
    config = DataConfig(short_side=600, long_side=1000, batch_size=16, turn=0.75, crop=0.5)
    plans = epoch_plans(gt, config, 0, 0)
    needed = sum(c.height * c.width for plan in plans for c in plan.augmentations)
    given = sum(plan.canvas[0] * plan.canvas[1] * len(plan.index) for plan in plans)
    assert given < 1.15 * needed  # 1.4 if they were sorted by the shapes of the files


@pytest.fixture
def two_threads() -> Iterator[None]:
    """As a training without workers has them."""
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(threads)


# Resizing knows neither workers nor processes: each way of it with something that is drawn and with nothing.
@pytest.mark.parametrize(
    ("preset", "resize"),
    [("none", "torchvision"), ("flip", "antialias"), ("light", "antialias"), ("strong", "torchvision")],
)
def test_batches_are_the_same_whatever_the_workers_and_processes(
    make_data: Callable[..., Path], tmp_path: Path, two_threads: None, preset: Any, resize: Any
):
    from retinaconf.data.layouts import load_split

    gt = load_split(make_data(tmp_path, train=6, val=0), "train")
    knobs: dict[str, Any] = {} if preset != "strong" else ALL_KNOBS
    config = DataConfig(short_side=64, long_side=96, batch_size=4, workers=0, augment=preset, resize=resize, **knobs)
    whole = list(training_batches(gt, config, 0, 0, 4))
    for name, other in {
        "workers": training_batches(gt, config.model_copy(update={"workers": 2}), 0, 0, 4),
        "resumed": (*whole[:1], *training_batches(gt, config, 0, 1, 4)),
    }.items():
        for one, two in zip(whole, other, strict=True):
            for column, value in vars(one).items():
                assert value.equal(getattr(two, column)), (name, column)
    parts = [list(training_batches(gt, config, 0, 0, 4, 2, rank, 2)) for rank in range(2)]
    for step, batch in enumerate(whole):
        for rank in range(2):
            for part in range(2):
                (n,) = range(part * 2 + rank, 4, 4)
                piece = parts[rank][step * 2 + part]
                assert piece.images.equal(batch.images[n : n + 1])
                assert piece.boxes[0].equal(batch.boxes[n, : piece.boxes.shape[1]])


@pytest.mark.parametrize("knob", ["colour", "hue", "blur", "jpeg"])
def test_colours_change_in_training_only_and_leave_boxes_and_padding(painted: GroundTruth, knob: str):
    plain = DataConfig(short_side=64, long_side=96, batch_size=3, workers=0, augment="none")
    changed = plain.model_copy(update={knob: 0.5 if knob == "hue" else 1.0})
    for one, two in zip(training_batches(painted, plain, 0, 0, 4), training_batches(painted, changed, 0, 0, 4)):
        assert not one.images.equal(two.images)
        assert one.boxes.equal(two.boxes)
        assert two.images[:, :, :, 96:].sum() == two.images[:, :, 64:].sum() == 0
    for one, two in zip(evaluation_batches(painted, plain, 3), evaluation_batches(painted, changed, 3)):
        assert one.images.equal(two.images)
