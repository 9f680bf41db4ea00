"""Images that occur twice: byte by byte, or to the eye."""

from __future__ import annotations

import hashlib
import os
from collections import defaultdict
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from PIL import Image

from retinaconf.data.images import read_image
from retinaconf.errors import InputError, reason

_SIDE = 32  # of a thumbnail
# Correlation of two thumbnails from which they show the same scene. Copies that were compressed again, halved, or made
# 15 % brighter reach 0.96; of the 3.4 million pairs of different photographs in voc-animals, coco-mini and bccd none
# exceeds 0.87, and the demo scenes, which share two backgrounds, reach 0.91.
_SAME_SCENE = 0.95
_FLAT = 2.0  # grey levels of contrast below which a thumbnail shows too little to be compared


def same_content(paths: Sequence[Path]) -> list[tuple[int, int]]:
    """Pairs (copy, first) of indices of files with the same bytes. Only files of equal size are read."""
    by_size: dict[int, list[int]] = defaultdict(list)
    for index, path in enumerate(paths):
        by_size[path.stat().st_size].append(index)
    pairs = []
    for group in by_size.values():
        first_of: dict[bytes, int] = {}
        for index in group if len(group) > 1 else ():
            digest = hashlib.blake2b(paths[index].read_bytes()).digest()
            if digest in first_of:
                pairs.append((index, first_of[digest]))
            else:
                first_of[digest] = index
    return sorted(pairs)


def thumbnails(paths: Sequence[Path]) -> tuple[np.ndarray, dict[int, InputError]]:
    """(n, 1024) float32 descriptors of what the pictures show, and the faults of those that cannot be decoded.

    A descriptor is a grey 32 x 32 thumbnail less its best-fitting plane, of length 1: brightness, contrast and a sky's
    gradient do not count. It is 0 where nothing is left, or the picture cannot be decoded.
    """

    def thumbnail(path: Path) -> np.ndarray | InputError:
        try:
            return _thumbnail(path)
        except InputError as fault:
            return fault

    with ThreadPoolExecutor(max_workers=os.cpu_count()) as pool:
        results = list(pool.map(thumbnail, paths))
    faults = {index: result for index, result in enumerate(results) if isinstance(result, InputError)}
    grey = np.zeros((len(paths), _SIDE * _SIDE), dtype=np.float32)
    for index, result in enumerate(results):
        if not isinstance(result, InputError):
            grey[index] = result.ravel()
    y, x = np.mgrid[:_SIDE, :_SIDE].reshape(2, -1)
    plane = np.linalg.qr(np.stack([np.ones(_SIDE * _SIDE), x, y], axis=1))[0].astype(np.float32)
    grey -= (grey @ plane) @ plane.T
    length = np.linalg.norm(grey, axis=1, keepdims=True)
    return np.where(length < _FLAT * _SIDE, 0, grey / np.maximum(length, 1)), faults


def same_scene(queries: np.ndarray, others: np.ndarray) -> list[tuple[int, int]]:
    """Pairs (query, other) of indices of descriptors that show the same scene: for each query the likest other."""
    pairs = []
    for start in range(0, len(queries) if len(others) else 0, 256):  # a block of the matrix of all correlations
        correlation = queries[start : start + 256] @ others.T
        likest = correlation.argmax(axis=1)
        alike = np.flatnonzero(correlation[np.arange(len(likest)), likest] >= _SAME_SCENE)
        pairs += [(start + int(row), int(likest[row])) for row in alike]
    return pairs


def _thumbnail(path: Path) -> np.ndarray:
    """(32, 32) grey levels."""
    try:
        with Image.open(path) as image:
            if image.format == "JPEG":
                image.draft("L", (8 * _SIDE, 8 * _SIDE))  # decoded at an eighth of the size, where that is enough
                return np.asarray(image.convert("L").resize((_SIDE, _SIDE), Image.Resampling.BOX, reducing_gap=2))
    except Exception as error:  # as many kinds as there are decoders
        what = f"truncated or damaged image ({reason(error)})"
        raise InputError(f"{path}: {what}; restore or remove the file", "truncated-image") from None
    return np.asarray(read_image(path).convert("L").resize((_SIDE, _SIDE), Image.Resampling.BOX, reducing_gap=2))
