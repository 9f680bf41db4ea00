"""Pictures in a page: small JPEGs, and boxes drawn over them as SVG."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from retinaconf.data.ground_truth import GroundTruth


def load_picture(ground_truth: GroundTruth, index: int) -> Image.Image | None:
    """The image in RGB, turned as its annotations see it; None where there is no readable file."""
    if ground_truth.image_folder is None:
        return None
    path: Path = ground_truth.path(index)
    height, width = (int(side) for side in ground_truth.image_sizes[index])
    try:
        picture: Image.Image = Image.open(path)
        if (width, height) not in ((0, 0), picture.size):
            picture = ImageOps.exif_transpose(picture)
        return picture.convert("RGB")
    except OSError:
        return None


def encode_jpeg(picture: Image.Image, max_side: int, max_bytes: int) -> bytes:
    """JPEG of at most `max_side` pixels a side and `max_bytes`, as good as fits (shrunk where quality 40 does not)."""
    small = picture.copy()
    small.thumbnail((max_side, max_side), Image.Resampling.LANCZOS)
    for quality in (85, 70, 55, 40):
        stream = io.BytesIO()
        small.save(stream, "JPEG", quality=quality)
        if stream.tell() <= max_bytes or max_side < 32:
            return stream.getvalue()
    return encode_jpeg(small, max_side * 3 // 4, max_bytes)


def rectangle(box: np.ndarray) -> str:
    """The path of a box, xyxy."""
    x1, y1, x2, y2 = box
    return f"M{x1:.1f} {y1:.1f}H{x2:.1f}V{y2:.1f}H{x1:.1f}z"


def corners(box: np.ndarray) -> str:
    """The path of a box's corners alone, xyxy."""
    x1, y1, x2, y2 = box
    arm = min(x2 - x1, y2 - y1) / 4
    return "".join(
        f"M{x + dx:.1f} {y:.1f}H{x:.1f}V{y + dy:.1f}"
        for x, dx in ((x1, arm), (x2, -arm))
        for y, dy in ((y1, arm), (y2, -arm))
    )


def stroke(path: str, css: str, width: float, dash: tuple[float, float] | None = None) -> list[str]:
    """The path twice: an edge that sets it off from any picture, and itself."""
    dashes = "" if dash is None else f";stroke-dasharray:{dash[0]:.2f} {dash[1]:.2f}"
    return [
        f'<path class="halo-line" style="stroke-width:{1.9 * width:.2f}" d="{path}"/>',
        f'<path class="{css}" style="stroke-width:{width:.2f}{dashes}" d="{path}"/>',
    ]
