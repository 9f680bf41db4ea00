"""The mean of what is defined."""

from __future__ import annotations

import numpy as np


def finite_mean(values: np.ndarray) -> float:
    """The mean of the finite values; NaN, without a warning, where there is none."""
    finite = values[np.isfinite(values)]
    return float(finite.mean()) if len(finite) else float("nan")
