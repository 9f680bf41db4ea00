import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from torchvision.models.detection.transform import GeneralizedRCNNTransform

from retinaconf.config import DataConfig
from retinaconf.data.transforms import PAD_TO, Augmentation, apply, augmentation, canvas, resized

RED = np.array([255, 0, 0])


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        ((300, 400), (600, 800)),
        ((400, 300), (800, 600)),
        ((1200, 1500), (600, 750)),
        ((300, 900), (333, 1000)),  # the long side would be 1800
        ((900, 300), (1000, 333)),
        ((600, 1000), (600, 1000)),
        ((500, 500), (600, 600)),
        ((1, 10_000), (1, 1000)),  # never without pixels
    ],
    ids=str,
)
def test_resizing_by_short_and_long_side(size: tuple[int, int], expected: tuple[int, int]):
    assert resized(size, 600, 1000) == expected


@given(st.tuples(st.integers(1, 5000), st.integers(1, 5000)), st.floats(0.5, 2))
def test_resizing_keeps_limits_and_proportions(size: tuple[int, int], factor: float):
    height, width = resized(size, 320, 544)
    assert min(height, width) <= 320
    assert max(height, width) <= 544
    assert min(height, width) == 320 or max(height, width) == 544
    # Both sides are one scale of the original, up to rounding.
    scale = max(height, width) / max(size)
    assert abs(min(height, width) - max(1, min(size) * scale)) <= 0.5 + 0.5 * min(size) / max(size)
    taller = resized(size, 320, 544, factor)
    assert abs(max(taller) - max(height, width) * factor) <= 0.5 + 0.5 * factor


@given(st.lists(st.tuples(st.integers(1, 500), st.integers(1, 500)), min_size=1, max_size=5))
def test_the_canvas_is_the_smallest_multiple_of_the_stride_that_holds_all(sizes: list[tuple[int, int]]):
    for side, needed in zip(canvas(sizes), np.max(sizes, axis=0)):
        assert side % PAD_TO == 0
        assert side - PAD_TO < needed <= side


def test_random_draws_stay_in_range_and_cover_it():
    config = DataConfig(short_side=200, long_side=400, scale=(0.5, 2), flip=0.25)
    draws = [augmentation((100, 150), config, np.random.default_rng(seed)) for seed in range(400)]
    heights = np.array([draw.height for draw in draws])
    assert heights.min() >= 100
    assert heights.max() <= 400
    # Log-uniform: as many shrink as grow.
    assert 0.4 < np.mean(heights < 200) < 0.6
    assert heights.min() < 110
    assert heights.max() > 360
    assert 0.15 < np.mean([draw.flip for draw in draws]) < 0.35
    for draw in draws:
        assert abs(draw.width - draw.height * 1.5) <= 1.25


@pytest.mark.parametrize(("flip", "expected"), [(0.0, {False}), (1.0, {True})])
def test_flip_probabilities_0_and_1_are_certain(flip: float, expected: set[bool]):
    config = DataConfig(flip=flip)
    assert {augmentation((9, 9), config, np.random.default_rng(seed)).flip for seed in range(50)} == expected


def test_a_draw_depends_on_its_generator_only():
    config = DataConfig(scale=(0.5, 2))
    one, two = (augmentation((100, 150), config, np.random.default_rng([1, 2])) for _ in range(2))
    assert one == two


def painted(size: tuple[int, int], boxes: list[list[int]]) -> Image.Image:
    """Red boxes on black."""
    pixels = np.zeros((*size, 3), np.uint8)
    for x0, y0, x1, y1 in boxes:
        pixels[y0:y1, x0:x1] = RED
    return Image.fromarray(pixels)


def extent(pixels: np.ndarray) -> list[int]:
    """The box of what is red."""
    y, x = np.nonzero(pixels[:, :, 0] > 127)
    return [x.min(), y.min(), x.max() + 1, y.max() + 1]


@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize("size", [(40, 60), (20, 30), (80, 120), (80, 60)], ids=str)
def test_boxes_stay_on_what_they_frame(size: tuple[int, int], flip: bool):
    box = [12, 4, 24, 20]
    pixels, boxes = apply(painted((40, 60), [box]), np.array([box], float), Augmentation(*size, flip=flip))
    assert pixels.shape == (*size, 3)
    scale = np.array([size[1] / 60, size[0] / 40] * 2)
    expected = np.array(box) * scale
    if flip:
        expected[[0, 2]] = size[1] - expected[[2, 0]]
    np.testing.assert_allclose(boxes, [expected], atol=1e-9)
    np.testing.assert_allclose(extent(pixels), expected, atol=0.5)


def test_without_change_pixels_and_boxes_are_the_originals():
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (30, 50, 3), dtype=np.uint8))
    box = np.array([[1.25, 2.5, 30.75, 29]])
    pixels, boxes = apply(image, box, Augmentation(30, 50))
    np.testing.assert_array_equal(pixels, np.asarray(image))
    np.testing.assert_array_equal(boxes, box)
    mirrored, boxes = apply(image, box, Augmentation(30, 50, flip=True))
    np.testing.assert_array_equal(mirrored, np.asarray(image)[:, ::-1])
    np.testing.assert_array_equal(boxes, [[50 - 30.75, 2.5, 50 - 1.25, 29]])


@pytest.mark.parametrize("flip", [False, True])
def test_boxes_are_clipped_to_the_image(flip: bool):
    boxes = np.array([[-10, -10, 5, 5], [40, 20, 90, 90], [-1, -1, 61, 41], [70, 0, 80, 10]], float)
    _, clipped = apply(painted((40, 60), []), boxes, Augmentation(80, 120, flip=flip))
    expected = np.array([[0, 0, 10, 10], [80, 40, 120, 80], [0, 0, 120, 80], [120, 0, 120, 20]], float)
    if flip:
        expected[:, [0, 2]] = 120 - expected[:, [2, 0]]
    np.testing.assert_array_equal(clipped, expected)


def test_no_boxes_are_four_columns_still():
    for flip in (False, True):
        assert apply(painted((40, 60), []), np.zeros((0, 4)), Augmentation(20, 30, flip))[1].shape == (0, 4)


def test_thin_lines_do_not_vanish_in_shrinking():
    pixels, _ = apply(painted((400, 400), [[200, 0, 202, 400]]), np.zeros((0, 4)), Augmentation(40, 40))
    # Two columns of 400 are two tenths of a column of 40, wherever they lie.
    np.testing.assert_allclose(pixels[20, :, 0].sum(), 255 * 0.2, atol=3)


@given(st.tuples(st.integers(20, 200), st.integers(20, 200)))
def test_resizing_as_torchvision(size: tuple[int, int]):
    pixels = np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8)
    target = resized(size, 64, 100, resize="torchvision")
    ours, _ = apply(Image.fromarray(pixels), np.zeros((0, 4)), Augmentation(*target, resize="torchvision"))
    rule = GeneralizedRCNNTransform(64, 100, image_mean=[0, 0, 0], image_std=[1, 1, 1])
    theirs, _ = rule([torch.from_numpy(pixels).permute(2, 0, 1).float()])
    assert theirs.image_sizes == [target]
    expected = theirs.tensors[0, :, : target[0], : target[1]].permute(1, 2, 0)
    np.testing.assert_allclose(ours, expected.numpy(), rtol=0, atol=1e-4)


def test_bilinear_resizing_does_not_smooth():
    """By hand, with the centres of pixels at halves, as OpenCV has them: no antialiasing, rounded to whole levels."""
    row = np.repeat(np.array([[[0], [100], [40], [200]]], np.uint8), 3, axis=2)
    wider, _ = apply(Image.fromarray(row), np.zeros((0, 4)), Augmentation(1, 8, resize="bilinear"))
    assert wider.dtype == np.uint8
    assert wider[0, :, 0].tolist() == [0, 25, 75, 85, 55, 80, 160, 200]
    narrower, _ = apply(Image.fromarray(row), np.zeros((0, 4)), Augmentation(1, 2, resize="bilinear"))
    assert narrower[0, :, 0].tolist() == [50, 120]
