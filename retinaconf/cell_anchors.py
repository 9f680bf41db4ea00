"""The anchors of a cell, as plain arithmetic: they are a setting, and a check of a data set needs them, too."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

STRIDES = (8, 16, 32, 64, 128)  # of P3 ... P7, in pixels
RATIOS = (0.5, 1.0, 2.0)
LARGEST = 512  # pixels of an anchor's side on P3; then 8,192 on P7
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

    def fault(self) -> str | None:
        """Why a detector cannot have these anchors, for a user who sets them."""
        for name, values in (("ratios", self.ratios), ("scales", self.scales)):
            if not values or min(values) <= 0 or len(set(values)) < len(values):
                return f"model.anchor-{name} {values}: give one or more positive numbers, each once"
        for width, height in self.sides(STRIDES[0]):
            if min(width, height) < 1 or max(width, height) > LARGEST:
                return (
                    f"model.anchor-ratios and model.anchor-scales make an anchor of {width:.3g} x {height:.3g} pixels "
                    f"on P3; its sides must be from 1 to {LARGEST}"
                )
        return None

    def sides(self, stride: int) -> list[tuple[float, float]]:
        """Width and height of the P anchors in pixels, on the level of `stride`."""
        squares = [math.floor(stride * scale) if self.whole_pixels else stride * scale for scale in self.scales]
        roots = [math.sqrt(ratio) for ratio in self.ratios]
        sides = [(square / root, square * root) for root in roots for square in squares]
        if self.whole_pixels:  # of the corners, which lie half a side from the centre
            return [(2 * round(width / 2), 2 * round(height / 2)) for width, height in sides]
        return sides

    def step(self, stride: Any, side: Any, cells: Any) -> Any:
        """Distance of neighbouring cells of a level in pixels, along a padded image's `side` with so many `cells`.

        Numbers or arrays.
        """
        return side // cells if self.whole_pixels else stride
