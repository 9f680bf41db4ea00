"""COCO's object sizes, by area in square pixels."""

from __future__ import annotations

import numpy as np

SIZES = ("small", "medium", "large")


def object_size(areas: np.ndarray) -> np.ndarray:
    """(B,) index into SIZES for (B,) areas: small below 32^2, large from 96^2.

    The official evaluation counts an area of exactly 32^2 or 96^2 on both sides; here an object has one size.
    """
    return np.digitize(areas, [32.0**2, 96.0**2])
