import gc
import multiprocessing
import pickle
from collections.abc import Callable, Iterable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from retinaconf.cell_anchors import CellAnchors
from retinaconf.config import DataConfig
from retinaconf.data.ground_truth import GroundTruth, ground_truth_from_coco
from retinaconf.data.images import check_images
from retinaconf.data.layouts import load_split
from retinaconf.data.loader import (
    Batch,
    epoch_plans,
    evaluation_batches,
    padded,
    steps_per_epoch,
    training_batches,
)
from retinaconf.errors import InputError
from retinaconf.model.anchors import anchor_boxes, level_shapes
from retinaconf.model.boxes import decode, encode
from retinaconf.training.matching import match

CONFIG = DataConfig(short_side=64, long_side=96, batch_size=4, workers=0, scale=(0.8, 1.25))


@pytest.fixture(scope="module")
def gt(tmp_path_factory: pytest.TempPathFactory, make_data: Callable[..., Path]) -> GroundTruth:
    """14 images of three shapes: no multiple of the batch."""
    return load_split(make_data(tmp_path_factory.mktemp("loader"), train=14, val=0), "train")


def imaginary(sizes: list[tuple[int, int]]) -> GroundTruth:
    """Images of these (height, width), for what needs no pixels."""
    images = [{"id": i, "height": h, "width": w} for i, (h, w) in enumerate(sizes)]
    return ground_truth_from_coco({"images": images, "annotations": [], "categories": [{"id": 1}]}, None, "test")


def one_image(folder: Path, boxes: list[list[float]], size: tuple[int, int] = (64, 96)) -> GroundTruth:
    """A black picture in which the first box is red."""
    pixels = np.zeros((*size, 3), np.uint8)
    for x, y, w, h in np.array(boxes[:1], int):
        pixels[y : y + h, x : x + w, 0] = 255
    Image.fromarray(pixels).save(folder / "a.png")
    document = {
        "images": [{"id": 1, "file_name": "a.png", "height": size[0], "width": size[1]}],
        "annotations": [{"image_id": 1, "category_id": 1, "bbox": box} for box in boxes],
        "categories": [{"id": 1}],
    }
    return ground_truth_from_coco(document, folder, "test")


def assert_same(one: Iterable[Batch], two: Iterable[Batch]) -> None:
    one, two = list(one), list(two)
    assert len(one) == len(two) > 0
    for a, b in zip(one, two):
        for name, value in vars(a).items():
            assert torch.equal(value, getattr(b, name)), name


# --- what a batch holds --------------------------------------------------------------------------------------------


def test_a_batch_is_images_sizes_boxes_and_labels(gt: GroundTruth):
    for batch in training_batches(gt, CONFIG, 0, 0, 4):
        N, C, H, W = batch.images.shape
        assert (N, C, H % 32, W % 32) == (4, 3, 0, 0)
        assert (batch.images.dtype, batch.boxes.dtype) == (torch.uint8, torch.float32)
        assert (batch.labels.dtype, batch.sizes.dtype, batch.index.dtype) == (torch.int64,) * 3
        assert batch.boxes.shape == (*batch.labels.shape, 4)
        for image, (h, w), boxes, labels, index in zip(
            batch.images, batch.sizes.tolist(), batch.boxes, batch.labels, batch.index.tolist()
        ):
            assert image[:, :h, :w].float().mean() > 50  # the picture, top left
            assert image[:, h:].sum() == image[:, :, w:].sum() == 0  # nothing beside it
            rows = slice(*gt.offsets[index : index + 2])
            assert labels[labels >= 0].tolist() == gt.labels[rows][~gt.crowd[rows]].tolist()
            assert boxes[labels < 0].sum() == 0
            limit = torch.tensor([w, h, w, h])
            assert (boxes >= 0).all()
            assert (boxes <= limit).all()
            original = torch.from_numpy(gt.boxes[rows][~gt.crowd[rows]][:, 2:] - gt.boxes[rows][~gt.crowd[rows]][:, :2])
            scale = torch.tensor([w / gt.image_sizes[index, 1], h / gt.image_sizes[index, 0]])
            sides = boxes[labels >= 0][:, 2:] - boxes[labels >= 0][:, :2]
            torch.testing.assert_close(sides, (original * scale).float(), atol=1e-3, rtol=0)


@pytest.mark.parametrize("flip", [0.0, 1.0])
@pytest.mark.parametrize("short_side", [32, 64, 128])
def test_a_flip_moves_pixels_and_boxes_alike(tmp_path: Path, flip: float, short_side: int):
    gt = one_image(tmp_path, [[10, 20, 30, 16]])
    config = DataConfig(short_side=short_side, long_side=500, batch_size=1, workers=0, flip=flip)
    (batch,) = training_batches(gt, config, 0, 0, 1)
    scale = short_side / 64
    expected = (
        torch.tensor([56, 20, 86, 36] if flip else [10, 20, 40, 36]) * scale
    )  # mirrored in the image, not in the canvas
    torch.testing.assert_close(batch.boxes[0, 0], expected, atol=1e-4, rtol=0)
    y, x = torch.nonzero(batch.images[0, 0] > 127, as_tuple=True)
    extent = torch.stack([x.min(), y.min(), x.max() + 1, y.max() + 1]).float()
    torch.testing.assert_close(extent, expected, atol=0.5, rtol=0)


def test_boxes_are_clipped_and_those_outside_left_out(tmp_path: Path):
    gt = one_image(tmp_path, [[-20, 10, 50, 100], [96, 0, 10, 10], [-30, -30, 30, 30], [90, 60, 50, 50]])
    config = DataConfig(short_side=64, long_side=96, batch_size=1, workers=0, flip=0)
    (batch,) = training_batches(gt, config, 0, 0, 1)
    assert batch.boxes[0].tolist() == [[0, 10, 30, 64], [90, 60, 96, 64]]
    assert batch.labels[0].tolist() == [0, 0]


def test_boxes_of_less_than_a_pixel_are_no_targets_and_all_others_can_be_decoded(tmp_path: Path):
    """At half the size; the last but one lies over the left edge by all but 1/5000 of a pixel."""
    boxes = [[10, 10, 20, 20], [10, 10, 1.9, 20], [10, 10, 20, 0.5], [-10, 10, 10.0004, 20], [40, 8, 2, 40]]
    (batch,) = evaluation_batches(one_image(tmp_path, boxes), CONFIG.model_copy(update={"short_side": 32}), 1)
    assert batch.boxes.tolist() == [[[5, 5, 15, 15], [20, 4, 21, 24]]]
    anchors = anchor_boxes(level_shapes(*batch.images.shape[2:]), torch.device("cpu"), CellAnchors())
    matches = match(anchors, batch.boxes, batch.labels)
    positive = matches.labels[0] >= 0
    wanted = batch.boxes[0, matches.boxes[0, positive]]
    assert set(matches.boxes[0, positive].tolist()) == {0, 1}
    torch.testing.assert_close(decode(anchors[positive], encode(anchors[positive], wanted)), wanted)


def test_images_without_boxes_are_kept(tmp_path: Path):
    gt = one_image(tmp_path, [])
    (batch,) = training_batches(gt, DataConfig(batch_size=2, workers=0), 0, 0, 1)
    assert (batch.boxes.shape, batch.labels.shape, batch.images.shape[0]) == ((2, 0, 4), (2, 0), 2)


def test_crowd_regions_are_no_targets(gt: GroundTruth):
    (crowded,) = np.unique(gt.image_index[gt.crowd])
    for batch in evaluation_batches(gt, CONFIG, 4):
        for labels, index in zip(batch.labels, batch.index.tolist()):
            rows = gt.offsets[index + 1] - gt.offsets[index]
            assert (labels >= 0).sum() == rows - (index == crowded)


def test_padding_copies_read_only_pixels():
    one, two = np.full((2, 3, 3), 7, np.uint8), np.full((4, 1, 3), 9, np.uint8)
    one.flags.writeable = False  # as numpy's view of a PIL image is
    batch = padded([one, two[:, ::-1]], (32, 32))
    assert batch.shape == (2, 3, 32, 32)
    assert batch[0, :, :2, :3].unique().tolist() == [7]
    assert batch[1, :, :4, :1].unique().tolist() == [9]
    assert batch.sum() == 3 * (2 * 3 * 7 + 4 * 1 * 9)


# --- which images, in which order ----------------------------------------------------------------------------------


@pytest.mark.parametrize(("images", "size", "steps"), [(14, 4, 4), (12, 4, 3), (3, 8, 1), (1, 1, 1), (100, 16, 7)])
def test_every_image_is_in_every_epoch_and_every_batch_is_full(images: int, size: int, steps: int):
    gt = imaginary([(60, 80)] * images)
    config = CONFIG.model_copy(update={"batch_size": size})
    assert steps_per_epoch(images, size) == steps
    for epoch in range(3):
        plans = epoch_plans(gt, config, 0, epoch)
        assert [len(plan.index) for plan in plans] == [size] * steps
        counts = np.bincount([i for plan in plans for i in plan.index], minlength=images)
        assert counts.min() == steps * size // images  # what fills the last batch up is spread evenly
        assert counts.max() == -(-steps * size // images)


def test_order_and_augmentation_change_with_epoch_and_seed():
    gt = imaginary([(60, 80)] * 40)
    plans = {(seed, epoch): epoch_plans(gt, CONFIG, seed, epoch) for seed in (0, 1) for epoch in (0, 1)}
    orders = {tuple(i for plan in some for i in plan.index) for some in plans.values()}
    draws = {tuple(c for plan in some for c in plan.augmentations) for some in plans.values()}
    assert len(orders) == len(draws) == 4
    assert epoch_plans(gt, CONFIG, 0, 0) == plans[0, 0]


def test_an_image_is_augmented_alike_wherever_it_stands():
    # Batches of another size, or other neighbours, do not change what happens to an image.
    gt = imaginary([(60 + i, 80) for i in range(40)])
    by_image = []
    for size in (4, 10):
        plans = epoch_plans(gt, CONFIG.model_copy(update={"batch_size": size}), 0, 3)
        by_image.append({i: c for plan in plans for i, c in zip(plan.index, plan.augmentations)})
    assert by_image[0] == by_image[1]


def test_the_grouping_by_shape_keeps_padding_small_and_the_order_random():
    rng = np.random.default_rng(0)
    gt = imaginary([(480, 640) if wide else (640, 480) for wide in rng.random(640) < 0.6])
    config = DataConfig(short_side=600, long_side=1000, batch_size=16)
    plans = epoch_plans(gt, config, 0, 0)
    needed = sum(c.height * c.width for plan in plans for c in plan.augmentations)
    given = sum(plan.canvas[0] * plan.canvas[1] * len(plan.index) for plan in plans)
    assert given < 1.1 * needed  # random batches of mixed shapes would take 1.36
    wide = [plan.canvas[1] > plan.canvas[0] for plan in plans]
    assert sum(a != b for a, b in pairwise(wide)) > 5  # not all wide ones first


def test_batches_go_on_over_the_end_of_an_epoch(gt: GroundTruth):
    index = [batch.index.tolist() for batch in training_batches(gt, CONFIG, 5, 0, 10)]
    plans = [plan for epoch in range(3) for plan in epoch_plans(gt, CONFIG, 5, epoch)]
    assert index == [list(plan.index) for plan in plans[:10]]


@pytest.mark.parametrize("first", [1, 3, 4, 7])
def test_a_resumed_run_gets_the_batches_that_it_would_have_got(gt: GroundTruth, first: int):
    whole = list(training_batches(gt, CONFIG, 0, 0, 8))
    assert_same(whole[first:], training_batches(gt, CONFIG, 0, first, 8))


def test_a_finished_run_gets_none(gt: GroundTruth):
    assert list(training_batches(gt, CONFIG, 0, 8, 8)) == []


@pytest.mark.parametrize(("parts", "processes"), [(2, 1), (1, 2), (2, 2), (4, 1), (1, 4)])
def test_the_pieces_of_all_parts_and_processes_are_the_whole_batch(gt: GroundTruth, parts: int, processes: int):
    whole = list(training_batches(gt, CONFIG, 0, 0, 3))
    by_rank = [list(training_batches(gt, CONFIG, 0, 0, 3, parts, rank, processes)) for rank in range(processes)]
    assert {len(batches) for batches in by_rank} == {3 * parts}
    for step, batch in enumerate(whole):
        pieces = [by_rank[rank][step * parts + part] for part in range(parts) for rank in range(processes)]
        assert {piece.images.shape for piece in pieces} == {(4 // len(pieces), *batch.images.shape[1:])}
        rows = {int(index): n for n, index in enumerate(batch.index)}
        assert sorted(torch.cat([piece.index for piece in pieces]).tolist()) == sorted(rows)
        for piece in pieces:
            at = [rows[int(index)] for index in piece.index]
            boxes = piece.labels.shape[1]
            assert torch.equal(piece.images, batch.images[at])
            assert torch.equal(piece.sizes, batch.sizes[at])
            assert torch.equal(piece.boxes, batch.boxes[at][:, :boxes])
            assert torch.equal(piece.labels, batch.labels[at][:, :boxes])
            assert (batch.labels[at][:, boxes:] == -1).all()


def test_a_batch_that_does_not_divide_is_refused(gt: GroundTruth):
    with pytest.raises(ValueError, match="4 does not divide by 3 parts x 1"):
        next(training_batches(gt, CONFIG, 0, 0, 1, parts=3))


@pytest.mark.parametrize("processes", [1, 2, 3])
def test_evaluation_gives_every_image_once_as_it_is(gt: GroundTruth, processes: int):
    seen = []
    for rank in range(processes):
        for batch in evaluation_batches(gt, CONFIG, 3, rank, processes):
            seen += batch.index.tolist()
            for (h, w), index in zip(batch.sizes.tolist(), batch.index.tolist()):
                assert min(h, w) == 64
                height, width = gt.image_sizes[index]
                assert abs(h / w - height / width) < 0.02
    assert sorted(seen) == list(range(14))


def test_evaluation_puts_no_image_on_a_larger_canvas_than_it_has_alone(gt: GroundTruth):
    batches = list(evaluation_batches(gt, CONFIG, 4))
    canvases = [batch.images.shape[2:] for batch in batches]
    assert len(set(canvases)) == 3
    for batch, padded_size in zip(batches, canvases):
        for (index,) in batch.index[:, None].tolist():
            (alone,) = evaluation_batches(gt.subset([index]), CONFIG, 4)
            assert alone.images.shape[2:] == padded_size
    # As few batches as that allows: 5, 5 and 4 images.
    assert sorted(len(batch.index) for batch in batches) == [1, 1, 4, 4, 4]


def test_the_batches_of_evaluation_are_those_of_one_process(gt: GroundTruth):
    whole = list(evaluation_batches(gt, CONFIG, 3))
    for processes in (2, 3):
        parts = [list(evaluation_batches(gt, CONFIG, 3, rank, processes)) for rank in range(processes)]
        for n, batch in enumerate(whole):
            assert torch.equal(parts[n % processes][n // processes].images, batch.images)


def test_evaluation_of_no_images_gives_no_batch(gt: GroundTruth):
    assert list(evaluation_batches(gt.subset([]), CONFIG, 4)) == []


# --- workers -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.ci
def test_batches_are_the_same_whatever_the_workers(gt: GroundTruth, workers: int):
    config = CONFIG.model_copy(update={"workers": workers})
    assert_same(training_batches(gt, CONFIG, 0, 0, 7), training_batches(gt, config, 0, 0, 7))
    assert_same(evaluation_batches(gt, CONFIG, 3), evaluation_batches(gt, config, 3))


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("damage", ["removed", "cut", "replaced", "resized"])
def test_an_image_that_goes_bad_is_named_in_one_line(tiny_data: Path, workers: int, damage: str):
    gt = check_images(load_split(tiny_data, "train"))
    file = gt.path(5)
    if damage == "removed":
        file.unlink()
    elif damage == "cut":
        file.write_bytes(file.read_bytes()[:2000])
    elif damage == "replaced":
        file.write_text("no image")
    else:
        Image.new("RGB", (50, 50)).save(file)
    config = CONFIG.model_copy(update={"workers": workers})
    with pytest.raises(InputError) as caught:
        list(training_batches(gt, config, 0, 0, 2))
    assert str(caught.value).startswith(f"{file}: ")
    assert "\n" not in str(caught.value)
    assert multiprocessing.active_children() == []


@pytest.mark.parametrize("ending", ["to the end", "closed", "forgotten"])
@pytest.mark.ci
def test_workers_end_with_their_batches(gt: GroundTruth, ending: str):
    batches: Any = training_batches(gt, CONFIG.model_copy(update={"workers": 2}), 0, 0, 6)
    next(batches)
    assert len(multiprocessing.active_children()) == 2
    if ending == "to the end":
        list(batches)
    elif ending == "closed":
        batches.close()
    del batches
    gc.collect()
    assert multiprocessing.active_children() == []


def test_annotations_do_not_travel_with_the_batches(gt: GroundTruth, monkeypatch: pytest.MonkeyPatch):
    pickled = multiprocessing.get_context("fork").Value("i", 0)

    def count(self: GroundTruth, protocol: int) -> Any:
        with pickled.get_lock():
            pickled.value += 1
        return object.__reduce_ex__(self, protocol)

    monkeypatch.setattr(GroundTruth, "__reduce_ex__", count)
    pickle.dumps(gt)
    assert pickled.value == 1  # the counter counts
    list(training_batches(gt, CONFIG.model_copy(update={"workers": 2}), 0, 0, 12))
    # At most once a worker (where processes are not forked), however many batches there are.
    assert pickled.value - 1 <= 2


@pytest.mark.ci
def test_a_plan_stays_small_whatever_the_data_set():
    gt = imaginary([(480, 640)] * 20_000)
    plan = epoch_plans(gt, DataConfig(batch_size=16), 0, 0)[0]
    assert len(pickle.dumps(plan)) < 4000
    assert all(type(i) is int for i in plan.index)


def test_real_images(shared_data: Path):
    gt = check_images(load_split(shared_data / "coco-mini", "val").subset(range(24)))
    config = DataConfig(short_side=96, long_side=160, batch_size=8, workers=0)
    seen = 0
    for batch in training_batches(gt, config, 0, 0, 3):
        seen += int((batch.labels >= 0).sum())
        sides = batch.boxes[batch.labels >= 0]
        assert (sides[:, 2:] > sides[:, :2]).all()
        assert batch.labels.max() < 80
    assert seen == (~gt.crowd).sum()
