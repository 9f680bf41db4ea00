import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from torchvision import tv_tensors
from torchvision.models.detection.transform import GeneralizedRCNNTransform
from torchvision.transforms import v2

from retinaconf.data.transforms import MIN_VISIBLE, PAD_TO, Augmentation, apply, are_targets, canvas, joined, resized

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


# --- turns, crops, places and mosaics ------------------------------------------------------------------------------

CHANGES = {
    "turned once": Augmentation(60, 40, turns=1),
    "turned twice": Augmentation(40, 60, turns=2),
    "turned back": Augmentation(60, 40, turns=3),
    "upside down": Augmentation(40, 60, upside_down=True),
    "cropped": Augmentation(64, 96, crop=(9, 2, 41, 30)),
    "zoomed out": Augmentation(80, 120, place=(30, 7, 90, 47)),
    "all at once": Augmentation(70, 90, True, upside_down=True, turns=1, crop=(2, 14, 28, 50), place=(10, 5, 62, 65)),
}


def by_torchvision(image: Image.Image, boxes: np.ndarray, change: Augmentation) -> tuple[np.ndarray, np.ndarray]:
    """The same by transforms of pictures and boxes together: torchvision.transforms.v2 on tv_tensors."""
    pixels = tv_tensors.Image(torch.from_numpy(np.array(image)).permute(2, 0, 1))
    frames = tv_tensors.BoundingBoxes(torch.from_numpy(boxes), format="XYXY", canvas_size=(image.height, image.width))
    left, top, right, bottom = change.place or (0, 0, change.width, change.height)
    steps = [v2.functional.clamp_bounding_boxes] if change.crop else []
    steps += [lambda x: v2.functional.rotate(x, 90 * change.turns, expand=True)] if change.turns else []
    if change.crop is not None:
        x1, y1, x2, y2 = change.crop
        steps.append(lambda x: v2.functional.crop(x, y1, x1, y2 - y1, x2 - x1))
    steps.append(lambda x: v2.functional.resize(x, [bottom - top, right - left], antialias=True))
    steps.append(lambda x: v2.functional.pad(x, [left, top, change.width - right, change.height - bottom]))
    steps += [v2.functional.horizontal_flip] if change.flip else []
    steps += [v2.functional.vertical_flip] if change.upside_down else []
    for step in steps:
        pixels = pixels if step is v2.functional.clamp_bounding_boxes else step(pixels)
        frames = step(frames)
    return pixels.permute(1, 2, 0).numpy(), frames.numpy()


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_pixels_and_boxes_move_as_by_torchvision(change: Augmentation):
    rng = np.random.default_rng(0)
    image = Image.fromarray(rng.integers(0, 256, (5, 8, 3), dtype=np.uint8)).resize((60, 40), Image.Resampling.BICUBIC)
    centre, side = rng.uniform([16, 8], [40, 30], (20, 2)), rng.uniform(2, 14, (20, 2))
    boxes = np.concatenate([centre - side / 2, centre + side / 2], axis=1)
    pixels, moved = apply(image, boxes, change)
    expected_pixels, expected = by_torchvision(image, boxes, change)
    assert pixels.shape == expected_pixels.shape == (change.height, change.width, 3)
    shown = expected_pixels.any(axis=2)  # torchvision's padding is black
    # Pillow rounds between its two passes, and torch rounds once.
    assert np.abs(pixels.astype(int) - expected_pixels)[shown].max() <= 1
    kept = are_targets(moved)
    assert kept.sum() >= 15
    np.testing.assert_allclose(moved[kept], expected[kept], rtol=0, atol=1e-5)  # its scales have 32 bits


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_boxes_stay_on_painted_pixels(change: Augmentation):
    """Painted, and found again: nothing here knows how boxes move."""
    box = [20, 10, 33, 22]
    pixels, boxes = apply(painted((40, 60), [box]), np.array([box], float), change)
    np.testing.assert_allclose(boxes[0], extent(np.where(pixels[:, :, 1:2] > 90, 0, pixels)), atol=0.6)


def test_a_pixel_is_turned_onto_a_pixel():
    image = painted((3, 5), [[4, 1, 5, 2]])
    for turns, height, width, expected in ((1, 5, 3, [1, 0, 2, 1]), (2, 3, 5, [0, 1, 1, 2]), (3, 5, 3, [1, 4, 2, 5])):
        pixels, boxes = apply(image, np.array([[4, 1, 5, 2]], float), Augmentation(height, width, turns=turns))
        assert boxes.tolist() == [expected]
        assert extent(pixels) == expected
        assert are_targets(boxes).all()


def test_a_crop_keeps_boxes_of_which_it_shows_centre_and_enough():
    """By hand: the crop is the middle 20 x 20 of 40 x 40."""
    boxes = {
        "whole": [12, 12, 18, 18],
        "cut, with its centre": [4, 15, 18, 25],
        "centre on the edge": [5, 15, 15, 25],
        "cut, without its centre": [4, 15, 15, 25],
        "around": [5, 5, 35, 35],  # 400 of 900
        "around the picture": [-5, -5, 45, 45],  # which shows 40 x 40 of it, and the crop a quarter of that
        "wide": [-1, -1, 41, 21],  # 40 x 21, of which 20 x 11 are shown: 220 of 840
        "outside": [0, 0, 8, 8],
        "outside the picture": [-20, 10, -5, 20],
        "a pixel": [29, 29, 30, 30],
    }
    _, cut = apply(
        painted((40, 40), []), np.array([*boxes.values()], float), Augmentation(20, 20, crop=(10, 10, 30, 30))
    )
    assert MIN_VISIBLE == 0.25
    kept = {name: box for name, box, shown in zip(boxes, cut.tolist(), are_targets(cut)) if shown}
    assert kept == {
        "whole": [2, 2, 8, 8],
        "cut, with its centre": [0, 5, 8, 15],
        "centre on the edge": [0, 5, 5, 15],
        "around": [0, 0, 20, 20],
        "around the picture": [0, 0, 20, 20],
        "wide": [0, 0, 20, 11],
        "a pixel": [19, 19, 20, 20],
    }
    wide = np.array([[0, 0, 40, 21]], float)  # its centre is shown, and 9 x 9 of 840
    assert not are_targets(apply(painted((40, 40), []), wide, Augmentation(9, 9, crop=(12, 10, 21, 19)))[1]).any()


def test_a_picture_that_is_zoomed_out_lies_on_grey():
    pixels, boxes = apply(
        painted((40, 60), [[0, 0, 60, 40]]), np.zeros((0, 4)), Augmentation(40, 60, place=(9, 5, 39, 25))
    )
    assert boxes.shape == (0, 4)
    assert extent(np.where(pixels == 124, 0, pixels)) == [9, 5, 39, 25]
    assert np.unique(pixels[:, :9].reshape(-1, 3), axis=0).tolist() == [[124, 116, 104]]


def test_a_mosaic_is_its_four_parts():
    rng = np.random.default_rng(0)
    sizes = [(3, 5), (3, 2), (4, 5), (4, 2)]
    parts = [(rng.integers(0, 256, (*size, 3), dtype=np.uint8), np.array([[0, 1, 2, 3]], float)) for size in sizes]
    parts[2] = (parts[2][0], np.zeros((0, 4)))
    pixels, boxes = joined(parts)
    for (part, _), (y, x) in zip(parts, [(0, 0), (0, 5), (3, 0), (3, 5)]):
        np.testing.assert_array_equal(pixels[y : y + part.shape[0], x : x + part.shape[1]], part)
    assert pixels.shape == (7, 7, 3)
    assert boxes.tolist() == [[0, 1, 2, 3], [5, 1, 7, 3], [5, 4, 7, 6]]
