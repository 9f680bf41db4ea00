"""Resizing, and the random part of training, as arithmetic on sizes and boxes first and on pixels last."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from PIL import Image

from retinaconf.config import DataConfig, Resize

PAD_TO = 32  # multiple of which the padded image's sides are: P5's stride
# A box with a side of fewer pixels of the resized image is no target. Less than a pixel shows it, and `decode` cannot
# make it of its anchor if the side is less than 1/62.5 of the anchor's: 0.36 pixels for the narrowest by default.
MIN_SIDE = 1.0


@dataclass(frozen=True)
class Augmentation:
    """What happens to one image: its size after resizing, and whether it is mirrored."""

    height: int
    width: int
    flip: bool = False
    resize: Resize = "antialias"


def resized(
    size: tuple[int, int], short_side: int, long_side: int, factor: float = 1.0, resize: Resize = "antialias"
) -> tuple[int, int]:
    """(height, width) after resizing `size` to the short side, or less where the long side would be exceeded."""
    height, width = size
    scale = min(short_side / min(size), long_side / max(size)) * factor
    whole = math.floor if resize == "torchvision" else round
    return max(1, whole(height * scale)), max(1, whole(width * scale))


def augmentation(size: tuple[int, int], config: DataConfig, rng: np.random.Generator) -> Augmentation:
    """A random draw for a training image of `size` (height, width)."""
    factor = math.exp(rng.uniform(math.log(config.scale[0]), math.log(config.scale[1])))
    target = resized(size, config.short_side, config.long_side, factor, config.resize)
    return Augmentation(*target, rng.random() < config.flip, config.resize)


def are_targets(boxes: np.ndarray) -> np.ndarray:
    """(B,) whether boxes (B, 4) xyxy in pixels of the resized image, cut at its edges, are large enough."""
    return (boxes[:, 2:] - boxes[:, :2] >= MIN_SIDE).all(axis=1)


def apply(image: Image.Image, boxes: np.ndarray, augmentation: Augmentation) -> tuple[np.ndarray, np.ndarray]:
    """Pixels (H, W, 3) and boxes (B, 4) xyxy after `augmentation`; boxes are clipped to the image.

    Pixels are uint8, or float32 (0 to 255) if resized as by torchvision.
    """
    height, width = augmentation.height, augmentation.width
    scale = np.array([width / image.width, height / image.height] * 2)
    boxes = (boxes * scale).clip(0, [width, height, width, height])
    pixels = _resize(image, (height, width), augmentation.resize)
    if augmentation.flip:
        pixels = pixels[:, ::-1]
        boxes = np.stack([width - boxes[:, 2], boxes[:, 1], width - boxes[:, 0], boxes[:, 3]], axis=1)
    return pixels, boxes


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
