"""Detections as a picture."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from retinaconf.data.images import read_image
from retinaconf.detections import Detections

Colour = tuple[int, int, int]
MARGIN = 3  # pixels of a label's plate beside its text

# Linear sRGB to cone responses, and their cube roots to Oklab (Ottosson 2020).
_TO_LMS = np.array(
    [
        [0.4122214708, 0.5363325363, 0.0514459929],
        [0.2119034982, 0.6806995451, 0.1073969566],
        [0.0883024619, 0.2817188376, 0.6299787005],
    ]
)
_TO_OKLAB = np.array(
    [
        [0.2104542553, 0.7936177850, -0.0040720468],
        [1.9779984951, -2.4285922050, 0.4505937099],
        [0.0259040371, 0.7827717662, -0.8086757660],
    ]
)


def draw_detections(image: Any, detections: Detections, bgr: bool = False) -> Image.Image:
    """A copy of `image` with boxes, class names and scores, or confidences, the best boxes on top."""
    names = [detections.classes[label] for label in detections.labels]
    shown = detections.scores if detections.confidence is None else detections.confidence
    scores = [f"{score:.2f}" for score in shown]
    # On a small picture what fits: the colour, too, says the class.
    texts = [(f"{name} {score}", name, score) for name, score in zip(names, scores)]
    return draw_boxes(read_image(image, bgr=bgr), detections.boxes, detections.labels, texts)


def draw_boxes(
    image: Image.Image, boxes: np.ndarray, labels: np.ndarray, texts: Sequence[Sequence[str]]
) -> Image.Image:
    """A copy of `image` with boxes (D, 4) xyxy, the first on top; sizes of lines and letters follow the image's.

    A box's colour is its label's. Its text is the first of several that fits in the picture's width, or the last.
    """
    picture = image.copy()
    canvas = ImageDraw.Draw(picture)
    side = max(picture.size)
    width = max(1, round(side / 400))
    font = ImageFont.load_default(size=max(10, round(side / 55)))
    for row in reversed(range(len(boxes))):
        x1, y1, x2, y2 = (float(value) for value in boxes[row])
        colour = class_colour(int(labels[row]))
        canvas.rectangle((x1, y1, max(x1, x2), max(y1, y2)), outline=colour, width=width)
        fits = (text for text in texts[row] if font.getlength(text) + 2 * MARGIN <= picture.width)
        text = next(fits, texts[row][-1])
        _label(canvas, text, x1, y1, y2, colour, font, picture.size)
    return picture


def class_colour(label: int) -> Colour:
    """A colour of its own for every class; after 256 they repeat."""
    red, green, blue = _palette()[label % 256].tolist()
    return red, green, blue


@functools.cache
def _palette() -> np.ndarray:
    """(256, 3) uint8: each colour the one that is farthest from all before it, to the eye (distance in Oklab)."""
    steps = np.linspace(0, 255, 18).round()
    rgb = np.stack(np.meshgrid(steps, steps, steps), axis=-1).reshape(-1, 3)
    oklab = np.cbrt(_linear(rgb) @ _TO_LMS.T) @ _TO_OKLAB.T
    strong = (np.hypot(oklab[:, 1], oklab[:, 2]) > 0.12) & (oklab[:, 0] > 0.5) & (oklab[:, 0] < 0.92)
    rgb, oklab = rgb[strong], oklab[strong]
    chosen = [int(np.abs(rgb - (240, 135, 45)).sum(axis=1).argmin())]  # begins with orange
    distance = np.full(len(rgb), np.inf)
    while len(chosen) < 256:
        distance = np.minimum(distance, np.linalg.norm(oklab - oklab[chosen[-1]], axis=1))
        chosen.append(int(distance.argmax()))
    return rgb[chosen].astype(np.uint8)


def _linear(rgb: np.ndarray) -> np.ndarray:
    """Values of sRGB, of 255, as shares of light."""
    share = np.asarray(rgb) / 255
    return np.where(share > 0.04045, ((share + 0.055) / 1.055) ** 2.4, share / 12.92)


def _text_colour(plate: Colour) -> Colour:
    """Black or white, whichever has the larger contrast by WCAG 2 (1.4.3): both have the same at luminance 0.179."""
    return (0, 0, 0) if _linear(np.array(plate)) @ (0.2126, 0.7152, 0.0722) > 0.179 else (255, 255, 255)


def _label(
    canvas: ImageDraw.ImageDraw,
    text: str,
    x: float,
    top: float,
    bottom: float,
    colour: Colour,
    font: Any,
    size: tuple[int, int],
) -> None:
    """Text on a plate of the box's colour, above the box if there is room, else below or inside, never cut off."""
    left, upper, right, lower = font.getbbox(text)
    plate_width, plate_height = right - left + 2 * MARGIN, lower - upper + 4
    x = min(max(x, 0), max(0, size[0] - plate_width))
    if top >= plate_height:
        y = top - plate_height
    elif bottom + plate_height <= size[1]:
        y = bottom
    else:
        y = min(max(top, 0), max(0, size[1] - plate_height))
    canvas.rectangle((x, y, x + plate_width - 1, y + plate_height - 1), fill=colour)
    canvas.text((x + MARGIN - left, y + 2 - upper), text, fill=_text_colour(colour), font=font)
