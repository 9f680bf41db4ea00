"""3 x 3 convolutions with a quarter of the multiplications, for CPUs.

Winograd's minimal filtering F(4 x 4, 3 x 3): A. Lavin and S. Gray, "Fast Algorithms for Convolutional Neural Networks",
CVPR 2016, sections 4.1 to 4.3. An output tile of 4 x 4 pixels comes from 6 x 6 pixels by 36 multiplications a pair of
channels, not 144. oneDNN, which torch uses on a CPU, multiplies directly. Rounding is some 3e-5 of the values'
spread, 5 to 30 times that of the direct convolution.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

TILE = 4  # pixels of a side of an output tile
# What pays, with AVX-512 and with AVX2: below, the transforms cost more than they save.
LEAST_CHANNELS = 256
LEAST_TILES = 300
MOST_TILES = 320  # at once: of 256 channels to 720 they take 70 MB

_B = [
    [4, 0, -5, 0, 1, 0],
    [0, -4, -4, 1, 1, 0],
    [0, 4, -4, -1, 1, 0],
    [0, -2, -1, 2, 1, 0],
    [0, 2, -1, -2, 1, 0],
    [0, 4, 0, -5, 0, 1],
]
_G = [[6, 0, 0], [-4, -4, -4], [-4, 4, -4], [1, 2, 4], [1, -2, 4], [0, 0, 24]]  # times 24
_A = [[1, 1, 1, 1, 1, 0], [0, 1, -1, 2, -2, 0], [0, 1, 1, 4, 4, 0], [0, 1, -1, 8, -8, 1]]


def _two_dimensional(rows: list[list[int]], scale: float = 1) -> Tensor:
    """The transform of rows and of columns as one matrix."""
    matrix = torch.tensor(rows, dtype=torch.float64) / scale
    return torch.kron(matrix, matrix).float()


INPUT = _two_dimensional(_B)  # (36, 36)
KERNEL = _two_dimensional(_G, 24)  # (36, 9)
OUTPUT = _two_dimensional(_A)  # (16, 36)


class Winograd(TorchFunctionMode):
    """Within it, convolutions for which this is faster are computed so."""

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        if func is F.conv2d and not kwargs and pays(*args):
            return conv3x3(*args[:3])
        return func(*args, **(kwargs or {}))


def pays(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
) -> bool:
    """Whether `conv3x3` computes this convolution, and faster than `conv2d` on a CPU."""
    height, width = x.shape[-2:]
    return (
        weight.shape[2:] == (3, 3)
        and min(weight.shape[:2]) >= LEAST_CHANNELS
        and (stride, padding, dilation, groups) == ((1, 1), (1, 1), (1, 1), 1)
        and -(-height // TILE) * -(-width // TILE) >= LEAST_TILES
        and x.dtype == torch.float32
    )


def conv3x3(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """`conv2d(x, weight, bias, padding=1)` of x (N, C, H, W) and weight (D, C, 3, 3): (N, D, H, W), channels last."""
    images, channels, height, width = x.shape
    wide = weight.shape[0]
    rows, columns = -(-height // TILE), -(-width // TILE)
    kernels = (KERNEL @ weight.permute(2, 3, 1, 0).reshape(9, -1)).view(36, channels, wide)
    x = F.pad(x.permute(0, 2, 3, 1), (0, 0, 1, 1 + columns * TILE - width, 1, 1 + rows * TILE - height)).contiguous()
    tiles = x.unfold(1, 6, TILE).unfold(2, 6, TILE).permute(4, 5, 0, 1, 2, 3)  # (6, 6, N, rows, columns, C)
    result = x.new_empty(images, rows, TILE, columns, TILE, wide)
    at_once = max(1, MOST_TILES // columns)
    for image in range(images):
        for row in range(0, rows, at_once):
            part = tiles[:, :, image, row : row + at_once]
            spectrum = (INPUT @ part.reshape(36, -1)).view(36, -1, channels)
            product = OUTPUT @ torch.bmm(spectrum, kernels).view(36, -1)
            here = result[image, row : row + at_once]
            here.copy_(product.view(TILE, TILE, *part.shape[2:4], wide).permute(2, 0, 3, 1, 4))
    pixels = result.view(images, rows * TILE, columns * TILE, wide)[:, :height, :width].permute(0, 3, 1, 2)
    return pixels if bias is None else pixels.add_(bias[:, None, None])
