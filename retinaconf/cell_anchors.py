"""The anchors of a cell, as arithmetic without torch: what a configuration says, a check of a data set needs, too."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

STRIDES = (8, 16, 32, 64, 128)  # of P3 ... P7, in pixels
RATIOS = (0.5, 1.0, 2.0)
SCALES = (4.0, 4 * 2 ** (1 / 3), 4 * 2 ** (2 / 3))  # three to an octave, as the levels' strides are an octave apart


@dataclass(frozen=True)
class CellAnchors:
    """The P anchors that each cell of each level has: every ratio at every scale, ratio by ratio.

    By default those of MMDetection and Detectron2 (which numbers them otherwise). torchvision's have whole pixels: a
    square's side, the corners, and the distance of the cells, which it takes as the padded image's side divided by
    their number: 60 and not 64 pixels on P6 where the image is 608 high.
    """

    ratios: tuple[float, ...] = RATIOS  # height to width
    scales: tuple[float, ...] = SCALES  # side of the square of the same area, in strides of the level
    whole_pixels: bool = False  # as torchvision

    @property
    def count(self) -> int:
        """P, the anchors of a cell."""
        return len(self.ratios) * len(self.scales)

    def sides(self, stride: int) -> np.ndarray:
        """(P, 2) float64 width and height in pixels, on the level of `stride`."""
        side, ratio_root = stride * np.array(self.scales), np.sqrt(self.ratios)[:, None]
        if self.whole_pixels:
            side = np.floor(side)
        sides = np.stack([(side / ratio_root).ravel(), (side * ratio_root).ravel()], axis=1)
        # torchvision rounds corners, which lie half a side from the centre, in single precision.
        return 2 * np.round((sides / 2).astype(np.float32)).astype(np.float64) if self.whole_pixels else sides

    def step(self, stride: Any, side: Any, cells: Any) -> Any:
        """Distance of neighbouring cells of a level in pixels, along a padded image's `side` with so many `cells`.

        Numbers or arrays.
        """
        return side // cells if self.whole_pixels else stride
