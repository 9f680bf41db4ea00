"""Detections as a picture."""

from __future__ import annotations

import colorsys
import functools
from typing import Any

from PIL import Image, ImageDraw, ImageFont

from retinaconf.data.images import read_image
from retinaconf.inference.detections import Detections

Colour = tuple[int, int, int]


def draw_detections(image: Any, detections: Detections) -> Image.Image:
    """A copy of `image` with boxes and labels, worst first so that the best lie on top; sizes follow the image's."""
    picture = read_image(image).copy()
    canvas = ImageDraw.Draw(picture)
    side = max(picture.size)
    width = max(1, round(side / 400))
    font = ImageFont.load_default(size=max(10, round(side / 55)))
    for row in reversed(range(len(detections))):
        x1, y1, x2, y2 = (float(value) for value in detections.boxes[row])
        label = int(detections.labels[row])
        colour = class_colour(label)
        canvas.rectangle((x1, y1, max(x1, x2), max(y1, y2)), outline=colour, width=width)
        text = f"{detections.classes[label]} {detections.scores[row]:.2f}"
        _label(canvas, text, x1, y1, y2, colour, font, picture.size)
    return picture


@functools.cache
def class_colour(label: int) -> Colour:
    """A colour of its own for every class: hues a golden ratio apart, lightness and strength in turns."""
    hue = (0.07 + label * 0.618033988749895) % 1
    lightness = (0.58, 0.45, 0.70)[label // 12 % 3]
    red, green, blue = colorsys.hls_to_rgb(hue, lightness, (0.90, 0.65)[label // 6 % 2])
    return round(red * 255), round(green * 255), round(blue * 255)


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
    plate_width, plate_height = right - left + 6, lower - upper + 4
    x = min(max(x, 0), max(0, size[0] - plate_width))
    if top >= plate_height:
        y = top - plate_height
    elif bottom + plate_height <= size[1]:
        y = bottom
    else:
        y = min(max(top, 0), max(0, size[1] - plate_height))
    canvas.rectangle((x, y, x + plate_width - 1, y + plate_height - 1), fill=colour)
    bright = 0.299 * colour[0] + 0.587 * colour[1] + 0.114 * colour[2] > 140
    canvas.text((x + 3 - left, y + 2 - upper), text, fill=(0, 0, 0) if bright else (255, 255, 255), font=font)
