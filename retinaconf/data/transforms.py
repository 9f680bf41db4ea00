"""Resizing, and the geometry of augmentation, as arithmetic on sizes and boxes first and on pixels last."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image

from retinaconf.config import Resize

PAD_TO = 32  # multiple of which the padded image's sides are: P5's stride
# A box with a side of fewer pixels of the resized image is no target. Less than a pixel shows it, and `decode` cannot
# make it of its anchor if the side is less than 1/62.5 of the anchor's: 0.36 pixels for the narrowest by default.
MIN_SIDE = 1.0


# A box that a crop cuts is kept if its centre and at least this share of its area are in the crop.
MIN_VISIBLE = 0.25
FILL = (124, 116, 104)  # around a picture that is zoomed out: the mean of ImageNet

_TURNS = {1: Image.Transpose.ROTATE_90, 2: Image.Transpose.ROTATE_180, 3: Image.Transpose.ROTATE_270}

Box = tuple[int, int, int, int]  # x1, y1, x2, y2, in whole pixels


@dataclass(frozen=True)
class Augmentation:
    """What happens to one image, in this order. Its size is that of the result."""

    height: int
    width: int
    flip: bool = False  # mirrored, as the last but one
    resize: Resize = "antialias"
    upside_down: bool = False  # mirrored top to bottom, as the last
    turns: int = 0  # quarter turns counter-clockwise, first of all
    crop: Box | None = None  # the part of the turned picture that is shown; None: all of it
    place: Box | None = None  # where in the result it is shown, before it is mirrored; None: everywhere


@dataclass(frozen=True)
class Mosaic:
    """Four images as one: upper left, upper right, lower left, lower right, each by its row and what happens to it."""

    parts: tuple[tuple[int, Augmentation], ...]

    @property
    def height(self) -> int:
        """Of the whole."""
        return self.parts[0][1].height + self.parts[2][1].height

    @property
    def width(self) -> int:
        """Of the whole."""
        return self.parts[0][1].width + self.parts[1][1].width


def resized(
    size: tuple[int, int], short_side: int, long_side: int, factor: float = 1.0, resize: Resize = "antialias"
) -> tuple[int, int]:
    """(height, width) after resizing `size` to the short side, or less where the long side would be exceeded."""
    height, width = size
    scale = min(short_side / min(size), long_side / max(size)) * factor
    whole = math.floor if resize == "torchvision" else round
    return max(1, whole(height * scale)), max(1, whole(width * scale))


def are_targets(boxes: np.ndarray) -> np.ndarray:
    """(B,) whether boxes (B, 4) xyxy in pixels of the resized image, cut at its edges, are large enough."""
    return (boxes[:, 2:] - boxes[:, :2] >= MIN_SIDE).all(axis=1)


def apply(image: Image.Image, boxes: np.ndarray, augmentation: Augmentation) -> tuple[np.ndarray, np.ndarray]:
    """Pixels (H, W, 3) and boxes (B, 4) xyxy after `augmentation`; boxes are clipped to what is shown.

    Pixels are uint8, or float32 (0 to 255) if resized as by torchvision. Boxes of which a crop leaves too little (see
    `MIN_VISIBLE`) have no extent then, and are no targets.
    """
    height, width = augmentation.height, augmentation.width
    boxes = turned_boxes(boxes, (image.height, image.width), augmentation.turns)
    if augmentation.turns % 4:
        image = image.transpose(_TURNS[augmentation.turns % 4])
    if augmentation.crop is not None:
        boxes = _cropped_boxes(boxes, (image.height, image.width), augmentation.crop)
        image = image.crop(augmentation.crop)
    left, top, right, bottom = augmentation.place or (0, 0, width, height)
    scale = np.array([(right - left) / image.width, (bottom - top) / image.height] * 2)
    boxes = (boxes * scale + [left, top, left, top]).clip([left, top, left, top], [right, bottom, right, bottom])
    pixels = _resize(image, (bottom - top, right - left), augmentation.resize)
    if augmentation.place is not None:
        shown, pixels = pixels, np.full((height, width, 3), FILL, pixels.dtype)
        pixels[top:bottom, left:right] = shown
    if augmentation.flip:
        pixels = pixels[:, ::-1]
        boxes = np.stack([width - boxes[:, 2], boxes[:, 1], width - boxes[:, 0], boxes[:, 3]], axis=1)
    if augmentation.upside_down:
        pixels = pixels[::-1]
        boxes = np.stack([boxes[:, 0], height - boxes[:, 3], boxes[:, 2], height - boxes[:, 1]], axis=1)
    return pixels, boxes


def turned_boxes(boxes: np.ndarray, size: tuple[int, int], turns: int) -> np.ndarray:
    """Boxes (B, 4) xyxy of an image of `size` (height, width) after quarter turns counter-clockwise."""
    for turn in range(turns % 4):
        side = size[1 - turn % 2]  # the width, as it is by now
        boxes = np.stack([boxes[:, 1], side - boxes[:, 2], boxes[:, 3], side - boxes[:, 0]], axis=1)
    return boxes


def _cropped_boxes(boxes: np.ndarray, size: tuple[int, int], crop: Box) -> np.ndarray:
    """Boxes (B, 4) in pixels of a crop of an image of `size`; zeros where it leaves too little of them."""
    boxes = boxes.clip(0, [size[1], size[0]] * 2)
    cut = boxes.clip([*crop[:2], *crop[:2]], [*crop[2:], *crop[2:]])
    centre = (boxes[:, :2] + boxes[:, 2:]) / 2
    centred = ((centre >= crop[:2]) & (centre <= crop[2:])).all(axis=1)
    shown = (cut[:, 2:] - cut[:, :2]).prod(axis=1) >= MIN_VISIBLE * (boxes[:, 2:] - boxes[:, :2]).prod(axis=1)
    return np.where((centred & shown)[:, None], cut - [*crop[:2], *crop[:2]], 0.0)


def joined(parts: Sequence[tuple[np.ndarray, np.ndarray]]) -> tuple[np.ndarray, np.ndarray]:
    """Pixels (H, W, 3) and boxes (B, 4) of a mosaic from those of its four parts, in their order."""
    (a, _), (b, _), (c, _), (d, _) = parts
    pixels = np.vstack([np.hstack([a, b]), np.hstack([c, d])])
    corners = ((0, 0), (a.shape[1], 0), (0, a.shape[0]), (a.shape[1], a.shape[0]))
    return pixels, np.concatenate([boxes + np.tile(corner, 2) for corner, (_, boxes) in zip(corners, parts)])


def _resize(image: Image.Image, size: tuple[int, int], resize: Resize) -> np.ndarray:
    if resize == "antialias":
        # As Pillow always does: shrunk images otherwise lose thin things.
        same = (image.height, image.width) == size
        return np.asarray(image if same else image.resize(size[::-1], Image.Resampling.BILINEAR))
    import torch  # here, so that `retinaconf check` starts at once
    import torch.nn.functional as F

    pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1)[None].float()
    pixels = F.interpolate(pixels, size=size, mode="bilinear", align_corners=False)[0].permute(1, 2, 0)
    return (pixels if resize == "torchvision" else pixels.round().byte()).numpy()


def canvas(sizes: list[tuple[int, int]]) -> tuple[int, int]:
    """(height, width) of the smallest padded image that holds images of all `sizes`."""
    height, width = (max(sides) for sides in zip(*sizes))
    return math.ceil(height / PAD_TO) * PAD_TO, math.ceil(width / PAD_TO) * PAD_TO


def by_canvas(sizes: list[tuple[int, int]]) -> dict[tuple[int, int], list[int]]:
    """The images of `sizes`, by number, on the canvas that each has alone.

    A larger canvas changes what a network sees at the image's border and, with it, the detections. So detection batches
    only images of one canvas: what it finds in an image does not depend on the others.
    """
    images: dict[tuple[int, int], list[int]] = {}
    for number, size in enumerate(sizes):
        images.setdefault(canvas([size]), []).append(number)
    return images
