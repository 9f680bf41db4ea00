"""Colour, blur and JPEG noise: the part of augmentation that leaves every box where it is."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from PIL import Image
from torchvision.transforms.v2 import functional as F

from retinaconf.config import Augment

BLUR_SIGMA = (0.3, 2.0)  # standard deviation in pixels of the resized image; less does nothing
JPEG_QUALITY = (30, 90)


def photometric(pixels: np.ndarray, knobs: Augment, draws: Callable[[str], np.random.Generator]) -> np.ndarray:
    """Pixels (H, W, 3) in other colours, blurred, with JPEG's noise; uint8 and float32 (0 to 255) stay that.

    Args:
        pixels: of one training image, after all that moves them. Floats become whole grey levels first.
        knobs: how much of each.
        draws: the random numbers of a transform, by its name.
    """
    if not (knobs.colour or knobs.hue or knobs.blur or knobs.jpeg):
        return pixels
    image = Image.fromarray(pixels if pixels.dtype == np.uint8 else np.rint(pixels).astype(np.uint8))
    if knobs.colour:
        brightness, contrast, saturation = draws("colour").uniform(1 - knobs.colour, 1 + knobs.colour, 3)
        image = F.adjust_brightness(image, brightness)
        image = F.adjust_contrast(image, contrast)
        image = F.adjust_saturation(image, saturation)
    if knobs.hue:
        image = F.adjust_hue(image, draws("hue").uniform(-knobs.hue, knobs.hue))
    if knobs.blur and (rng := draws("blur")).random() < knobs.blur:
        sigma = rng.uniform(*BLUR_SIGMA)
        image = F.gaussian_blur(image, [2 * round(3 * sigma) + 1] * 2, [sigma, sigma])
    if knobs.jpeg and (rng := draws("jpeg")).random() < knobs.jpeg:
        image = F.jpeg(image, int(rng.integers(JPEG_QUALITY[0], JPEG_QUALITY[1] + 1)))
    return np.asarray(image).astype(pixels.dtype, copy=False)
