"""The demo's data, made here in seconds: real handwritten digits, overlapping, on real photographs.

The digits are the 1,797 of scikit-learn's `load_digits` (Alpaydin and Kaynak, Optical Recognition of Handwritten
Digits, UCI 1998; 8 x 8 pixels, 16 grey levels), the photographs the two of its `load_sample_images`. Training and
validation scenes share neither a digit nor a piece of a photograph.
"""

from __future__ import annotations

import colorsys
import json
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageFilter
from sklearn.datasets import load_digits, load_sample_images

from retinaconf.errors import InputError
from retinaconf.threads import in_threads

_VERSION = 4  # of the scenes' look; a folder made by another version is made anew
_SPLITS = ("train", "val")
_HEIGHTS = (40, 120)  # of a digit before it is turned, in pixels
_LEAST_VISIBLE = 0.6  # of a digit's ink; what would hide more of another is not placed
_MOST_OVERLAP = 0.75  # IoU of two boxes
_TRAIN_SHARE = 0.6  # of the photographs' width, from the left; and 0.8 of the digits


@dataclass(frozen=True)
class _Material:
    """What the scenes of one split are made of."""

    digits: np.ndarray  # (n, 8, 8) float in [0, 1]
    labels: np.ndarray  # (n,) int
    photographs: list[Image.Image]


@dataclass(frozen=True)
class _Glyph:
    """A digit ready to be pasted; ink is the fill and its outline."""

    label: int
    color: np.ndarray  # (h, w, 3) float in [0, 255]
    ink: np.ndarray  # (h, w) float in [0, 1]
    shadow: np.ndarray  # (h, w) float in [0, 1]


def write_scenes(folder: Path, train: int, val: int, seed: int = 0, size: tuple[int, int] = (240, 320)) -> Path:
    """Write a data set of digits in the flat COCO layout, and return its folder.

    Ten classes, `0` to `9`; 3 to 7 digits an image, about 30 to 130 pixels high, many overlapping. A box is tight
    around the digit's visible ink: what other digits hide or the picture's edge cuts off does not count, as in COCO.
    At least 60 % of each digit's ink is visible.

    The same parameters give the same scenes, and scene k does not depend on how many there are. The folder appears
    whole or not at all; one that was made with the same parameters is used again.

    Args:
        folder: made, or replaced if it holds scenes made with other parameters.
        train: number of training images.
        val: number of validation images.
        seed: of everything random.
        size: height and width of the images in pixels, at least 120 each.

    Raises:
        InputError: scikit-learn is missing, a number is out of range, or the folder holds something else.
    """
    folder = Path(folder)
    if train < 1 or val < 1 or seed < 0 or min(size) < 120:
        raise InputError(
            f"scenes: cannot make {train} + {val} images of {size[1]} x {size[0]} pixels from seed {seed}; "
            "take at least 1 image each, 120 pixels a side, and a seed of at least 0"
        )
    made_with = {"train": train, "val": val, "seed": seed, "size": list(size), "version": _VERSION}
    if _holds(folder, made_with):
        return folder
    material = _material(seed)
    folder.parent.mkdir(parents=True, exist_ok=True)
    aside = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        aside.chmod(0o755)  # mkdtemp's folders are for their owner only
        (aside / "images").mkdir()
        for split, count in zip(_SPLITS, (train, val)):
            document = _write_split(aside / "images", split, count, seed, size, material[split])
            document["info"] = {"description": "retinaconf demo scenes", "made_with": made_with}
            (aside / f"{split}.json").write_text(json.dumps(document))
        if folder.exists():
            shutil.rmtree(folder)
        aside.rename(folder)
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    return folder


def _holds(folder: Path, made_with: dict[str, Any]) -> bool:
    """Whether the folder holds these very scenes; raises if it holds what must not be replaced."""
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return False
    try:
        documents = [json.loads((folder / f"{split}.json").read_bytes()) for split in _SPLITS]
        info = documents[0]["info"]
        images = {image["file_name"] for document in documents for image in document["images"]}
        ours = (
            info["description"] == "retinaconf demo scenes"
            and {path.name for path in folder.iterdir()} == {"images", *(f"{split}.json" for split in _SPLITS)}
            and {path.name for path in (folder / "images").iterdir()} <= images
        )
    except (OSError, ValueError, KeyError, TypeError):
        ours = False
    if not ours:
        raise InputError(f"{folder}: holds something else than demo scenes; give a folder that is new or empty")
    return bool(info.get("made_with") == made_with)


def _material(seed: int) -> dict[str, _Material]:
    digits = load_digits()
    order = np.random.default_rng(seed).permutation(len(digits.target))
    parts = np.split(order, [int(0.8 * len(order))])
    photographs = [Image.fromarray(array) for array in load_sample_images().images]
    material = {}
    for split, part in zip(_SPLITS, parts):
        pieces = []
        for photograph in photographs:
            cut = int(_TRAIN_SHARE * photograph.width)
            x = (0, cut) if split == "train" else (cut, photograph.width)
            pieces.append(photograph.crop((x[0], 0, x[1], photograph.height)))
        material[split] = _Material(digits.images[part] / 16, digits.target[part], pieces)
    return material


def _write_split(
    images: Path, split: str, count: int, seed: int, size: tuple[int, int], material: _Material
) -> dict[str, Any]:
    """Render and save the images; returns their COCO dictionary."""
    records: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []

    def rendered(index: int) -> tuple[str, list[int], list[tuple[int, int, int, int]]]:
        image, labels, boxes = _scene(np.random.default_rng([seed, _SPLITS.index(split), index]), size, material)
        name = f"{split}-{index:04d}.jpg"
        image.save(images / name, quality=92)
        return name, labels, boxes

    for index, (name, labels, boxes) in enumerate(in_threads(rendered, range(count))):
        image_id = index + 1 + (_SPLITS.index(split) * 1_000_000)
        records.append({"id": image_id, "file_name": name, "height": size[0], "width": size[1]})
        for label, (x0, y0, x1, y1) in zip(labels, boxes):
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": image_id,
                    "category_id": label,
                    "bbox": [x0, y0, x1 - x0, y1 - y0],
                    "area": (x1 - x0) * (y1 - y0),
                    "iscrowd": 0,
                }
            )
    categories = [{"id": digit, "name": str(digit)} for digit in range(10)]
    return {"images": records, "annotations": annotations, "categories": categories}


def _scene(
    random: np.random.Generator, size: tuple[int, int], material: _Material
) -> tuple[Image.Image, list[int], list[tuple[int, int, int, int]]]:
    """A picture, its digits' labels and their boxes (x0, y0, x1, y1), from back to front."""
    canvas = _background(random, size, material)
    visible: list[np.ndarray] = []  # (H, W) bool, a digit's ink that nothing hides
    whole: list[int] = []  # pixels of all its ink
    labels: list[int] = []
    boxes: list[tuple[int, int, int, int]] = []
    wanted = random.integers(3, 8)
    for _ in range(wanted * 5):
        if len(labels) == wanted:
            break
        # Many digits are put over an earlier one's edge, alike in size and often in class: real conflicts for NMS.
        near = int(random.integers(len(boxes))) if boxes and random.random() < 0.45 else None
        if near is None:
            height = float(np.exp(random.uniform(np.log(_HEIGHTS[0]), np.log(_HEIGHTS[1]))))
        else:
            height = (boxes[near][3] - boxes[near][1]) * random.uniform(0.7, 1.4)
        height = float(np.clip(height, _HEIGHTS[0], min(_HEIGHTS[1], size[0] / 2)))
        same = near is not None and random.random() < 0.4
        glyph = _glyph(random, material, height, labels[near] if near is not None and same else None)
        y, x = _place(random, glyph, size, boxes[near] if near is not None else None)
        # The part of the picture that the glyph covers, and the part of the glyph that is in the picture.
        window = np.s_[max(y, 0) : y + glyph.ink.shape[0], max(x, 0) : x + glyph.ink.shape[1]]
        inside = np.s_[max(-y, 0) : size[0] - y, max(-x, 0) : size[1] - x]
        ink = np.zeros(size, dtype=bool)
        ink[window] = glyph.ink[inside] > 0.5
        pixels = int((glyph.ink > 0.5).sum())
        remaining = [mask & ~ink for mask in visible]
        shares = [mask.sum() / n for mask, n in zip([*remaining, ink], [*whole, pixels])]
        if min(shares) < _LEAST_VISIBLE:
            continue
        new_boxes = [_extent(mask) for mask in [*remaining, ink]]
        if any(_iou(box, new_boxes[-1]) > _MOST_OVERLAP for box in new_boxes[:-1]):
            continue
        shadow, alpha = glyph.shadow[inside][:, :, None], glyph.ink[inside][:, :, None]
        canvas[window] = canvas[window] * (1 - 0.45 * shadow) * (1 - alpha) + glyph.color[inside] * alpha
        visible, boxes = [*remaining, ink], new_boxes
        whole.append(pixels)
        labels.append(glyph.label)
    return Image.fromarray(np.rint(canvas.clip(0, 255)).astype(np.uint8)), labels, boxes


def _background(random: np.random.Generator, size: tuple[int, int], material: _Material) -> np.ndarray:
    """(H, W, 3) float: a piece of a photograph, mirrored or not, brighter or darker."""
    photograph = material.photographs[random.integers(len(material.photographs))]
    most = min(photograph.height / size[0], photograph.width / size[1])
    scale = most * random.uniform(0.6, 1)
    height, width = size[0] * scale, size[1] * scale
    top, left = random.uniform(0, photograph.height - height), random.uniform(0, photograph.width - width)
    piece = photograph.resize(size[::-1], Image.Resampling.BICUBIC, box=(left, top, left + width, top + height))
    pixels = np.asarray(piece, dtype=np.float64)
    if random.random() < 0.5:
        pixels = pixels[:, ::-1]
    return pixels * random.uniform(0.75, 1.05)


def _glyph(random: np.random.Generator, material: _Material, height: float, label: int | None) -> _Glyph:
    """A digit, of class `label` if given, slightly turned and stretched, in a colour with a contrasting outline."""
    candidates = np.arange(len(material.labels)) if label is None else np.flatnonzero(material.labels == label)
    sample = int(random.choice(candidates))
    cell = height / 8  # pixels of a picture for one of the digit
    stretch = random.uniform(0.8, 1.15)
    # Two empty cells around, for strokes that end at the edge; drawn at twice the size, for smooth contours.
    grey = Image.fromarray((np.pad(material.digits[sample], 2) * 255).astype(np.uint8))
    shape = (round(24 * cell * stretch), round(24 * cell))
    large = grey.resize(shape, Image.Resampling.BICUBIC)
    large = large.rotate(random.uniform(-14, 14), Image.Resampling.BICUBIC, expand=True)

    def contour(level: float) -> np.ndarray:
        inside = np.clip((np.arange(256) / 255 - level) * 8 + 0.5, 0, 1)  # of each grey level
        smaller = large.point((inside * 255).astype(np.uint8).tolist()).reduce(2)
        return np.pad(np.asarray(smaller, dtype=np.float64) / 255, round(cell) + 1)

    fill, ink = contour(0.5), contour(0.25)
    hue, saturation = random.random(), random.uniform(0.45, 1)
    bright = random.random() < 0.7
    value = random.uniform(0.85, 1) if bright else random.uniform(0.25, 0.5)
    paint = 255 * np.array(colorsys.hsv_to_rgb(hue, saturation, value))
    line = np.full(3, 25.0 if bright else 245.0)
    light = np.linspace(1.1, 0.85, len(ink))[:, None, None]  # from above
    color = paint * light * fill[:, :, None] + line * (1 - fill[:, :, None])
    blurred = Image.fromarray((ink * 255).astype(np.uint8)).filter(ImageFilter.GaussianBlur(0.35 * cell))
    offset = round(0.35 * cell)
    shadow = np.roll(np.asarray(blurred, dtype=np.float64) / 255, (offset, offset), axis=(0, 1))
    return _Glyph(int(material.labels[sample]), color.clip(0, 255), ink, shadow)


def _place(
    random: np.random.Generator, glyph: _Glyph, size: tuple[int, int], near: tuple[int, int, int, int] | None
) -> tuple[int, int]:
    """Where the glyph's top left corner goes: over the edge of the box `near`, or anywhere; most of it is inside."""
    height, width = glyph.ink.shape
    if near is None:
        center_y, center_x = random.uniform(0, size[0]), random.uniform(0, size[1])
    else:
        x0, y0, x1, y1 = near
        angle, reach = random.uniform(0, 2 * np.pi), random.uniform(0.2, 0.5)
        center_y = (y0 + y1) / 2 + reach * np.sin(angle) * (y1 - y0)
        center_x = (x0 + x1) / 2 + reach * np.cos(angle) * (x1 - x0)
    y = np.clip(center_y - height / 2, -0.25 * height, size[0] - 0.75 * height)
    x = np.clip(center_x - width / 2, -0.25 * width, size[1] - 0.75 * width)
    return round(y), round(x)


def _extent(mask: np.ndarray) -> tuple[int, int, int, int]:
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1


def _iou(a: tuple[int, int, int, int], b: tuple[int, int, int, int]) -> float:
    width, height = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    inter = max(width, 0) * max(height, 0)
    return inter / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - inter)
