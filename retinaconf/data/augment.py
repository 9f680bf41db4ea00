"""What happens to each training image: random draws that decide sizes, crops and boxes.

A draw depends on seed, epoch, image and the name of the transform, and on nothing else. So a continued run, and any
number of processes, see the same pictures; and a transform that is switched on changes no draw of the others.
"""

from __future__ import annotations

import math
import zlib

import numpy as np

from retinaconf.config import Augment, DataConfig
from retinaconf.data.ground_truth import GroundTruth
from retinaconf.data.transforms import Augmentation, Box, Mosaic, resized, turned_boxes

CROP_SIDES = (0.5, 1.0)  # of a crop, as shares of the picture's
CROP_STRETCH = 4 / 3  # a crop's sides are stretched against each other by up to this
ZOOM_OUT = 2.0  # a picture that is zoomed out has at least 1 / this of its sides
MOSAIC_CENTRE = (0.3, 0.7)  # where the four parts of a mosaic meet, as shares of its sides
MOSAIC_SCALE = (0.5, 1.0)  # size of the objects in a mosaic, of their size otherwise


def generator(seed: int, epoch: int, image: int, name: str = "") -> np.random.Generator:
    """The random numbers of a transform for the image in this row; without a name those of resizing and `flip`."""
    return np.random.default_rng([seed, epoch, 2, image, *([zlib.crc32(name.encode())] if name else [])])


def augmentation(gt: GroundTruth, image: int, config: DataConfig, seed: int, epoch: int) -> Augmentation | Mosaic:
    """A random draw for the training image in row `image`."""
    knobs = config.knobs
    rng = generator(seed, epoch, image)
    factor = math.exp(rng.uniform(math.log(config.scale[0]), math.log(config.scale[1])))
    flip = bool(rng.random() < knobs.flip)
    if knobs.mosaic and (mosaic := generator(seed, epoch, image, "mosaic")).random() < knobs.mosaic:
        size = resized(_size(gt, image), config.short_side, config.long_side, factor, config.resize)
        if min(size) > 1:
            return _mosaic(gt, image, config, size, factor, mosaic)

    turns = _turns(knobs, generator(seed, epoch, image, "turn")) if knobs.turn else 0
    upside_down = _upside_down(knobs, generator(seed, epoch, image, "vertical_flip")) if knobs.vertical_flip else False
    size = _size(gt, image, turns)
    crop = place = None
    if knobs.crop and (rng := generator(seed, epoch, image, "crop")).random() < knobs.crop:
        crop = _crop(size, _boxes(gt, image, turns), rng)
        size = crop[3] - crop[1], crop[2] - crop[0]
    height, width = resized(size, config.short_side, config.long_side, factor, config.resize)
    if knobs.zoom_out and crop is None:
        rng = generator(seed, epoch, image, "zoom_out")
        place = _place((height, width), rng) if rng.random() < knobs.zoom_out else None
    return Augmentation(height, width, flip, config.resize, upside_down, turns, crop, place)


def _turns(knobs: Augment, rng: np.random.Generator) -> int:
    return int(rng.integers(1, 4)) if rng.random() < knobs.turn else 0


def _upside_down(knobs: Augment, rng: np.random.Generator) -> bool:
    return bool(rng.random() < knobs.vertical_flip)


def _size(gt: GroundTruth, image: int, turns: int = 0) -> tuple[int, int]:
    height, width = (int(side) for side in gt.image_sizes[image])
    return (width, height) if turns % 2 else (height, width)


def _boxes(gt: GroundTruth, image: int, turns: int) -> np.ndarray:
    """(B, 4) what the turned picture shows of its objects, without crowd regions."""
    rows = slice(gt.offsets[image], gt.offsets[image + 1])
    height, width = _size(gt, image)
    boxes = gt.boxes[rows][~gt.crowd[rows]].clip(0, [width, height] * 2)
    return turned_boxes(boxes[(boxes[:, 2:] > boxes[:, :2]).all(axis=1)], (height, width), turns)


def _crop(size: tuple[int, int], boxes: np.ndarray, rng: np.random.Generator) -> Box:
    """A part of a picture of `size` (height, width) that holds one of its objects, drawn at random, in full."""
    share, stretch = rng.uniform(*CROP_SIDES), rng.uniform(-0.5, 0.5) * math.log(CROP_STRETCH)
    sides = np.array(size) * share * np.exp([stretch, -stretch])
    kept = boxes[rng.integers(len(boxes))] if len(boxes) else None
    if kept is not None:
        sides = np.maximum(sides, [np.ceil(kept[3]) - np.floor(kept[1]), np.ceil(kept[2]) - np.floor(kept[0])])
    return _around(size, sides, kept, rng)


def _around(size: tuple[int, int], sides: np.ndarray, kept: np.ndarray | None, rng: np.random.Generator) -> Box:
    """A crop of `sides` (2,), height and width, at random.

    It holds the box `kept`, if there is one. From a box that is larger, it takes a part around its centre.
    """
    height, width = (int(min(whole, max(1, round(side)))) for whole, side in zip(size, sides))
    corner = []
    for axis, (whole, side) in enumerate(((size[1], width), (size[0], height))):
        first, last = 0, whole - side
        if kept is not None:
            start, end = math.floor(kept[axis]), math.ceil(kept[axis + 2])
            first, last = sorted((start, end - side))  # where the crop begins, or ends, with the box
            if side < end - start:
                centre = (kept[axis] + kept[axis + 2]) / 2
                first, last = max(first, math.ceil(centre - side)), min(last, math.floor(centre))
            first, last = max(first, 0), min(last, whole - side)
        corner.append(int(rng.integers(first, last + 1)))
    left, top = corner
    return left, top, left + width, top + height


def _place(size: tuple[int, int], rng: np.random.Generator) -> Box:
    """Where in a picture of `size` (height, width) one that is zoomed out lies."""
    share = 1 / rng.uniform(1, ZOOM_OUT)
    height, width = (max(1, round(side * share)) for side in size)
    top, left = (int(rng.integers(whole - side + 1)) for whole, side in zip(size, (height, width)))
    return left, top, left + width, top + height


def _mosaic(
    gt: GroundTruth, image: int, config: DataConfig, size: tuple[int, int], factor: float, rng: np.random.Generator
) -> Mosaic:
    """A mosaic of `size` (height, width): the image in row `image` and three others, each a crop without a border."""
    knobs = config.knobs
    images = rng.permutation([image, *rng.integers(len(gt), size=3)])
    y, x = (min(max(1, round(side * rng.uniform(*MOSAIC_CENTRE))), side - 1) for side in size)
    parts = []
    for row, height, width in zip(images, (y, y, size[0] - y, size[0] - y), (x, size[1] - x, x, size[1] - x)):
        flip, upside_down, turns = bool(rng.random() < knobs.flip), _upside_down(knobs, rng), _turns(knobs, rng)
        whole, boxes = _size(gt, row, turns), _boxes(gt, row, turns)
        # Pixels of the picture for one of the mosaic, so that objects have the size wanted.
        usual = min(config.short_side / min(whole), config.long_side / max(whole)) * factor
        shrink = 1 / (usual * math.exp(rng.uniform(*np.log(MOSAIC_SCALE))))
        kept = boxes[rng.integers(len(boxes))] if len(boxes) else None
        if kept is not None:
            shrink = max(shrink, (kept[3] - kept[1]) / height, (kept[2] - kept[0]) / width)
        shrink = min(shrink, whole[0] / height, whole[1] / width)  # no more than there is
        crop = _around(whole, np.array([height, width]) * shrink, kept, rng)
        parts.append((int(row), Augmentation(height, width, flip, config.resize, upside_down, turns, crop)))
    return Mosaic(tuple(parts))
