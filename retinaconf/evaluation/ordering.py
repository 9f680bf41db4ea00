"""The order in which detectors and COCO's evaluation look at boxes."""

from __future__ import annotations

import numpy as np


def descending(scores: np.ndarray) -> np.ndarray:
    """(D,) int64: rows by descending score, equal scores in their order.

    The stable sort of floats is several times slower than NumPy's vectorised unstable one; so that one ranks the
    scores, and the vectorised sort of whole numbers then breaks the ties by row.
    """
    count = len(scores)
    order = np.argsort(-scores)
    ranked = scores[order]
    rank = np.empty(count, dtype=np.int64)
    rank[order] = np.cumsum(np.concatenate([[0], ranked[1:] != ranked[:-1]])[:count])
    return np.sort(rank * count + np.arange(count)) % max(count, 1)
