"""The exponential moving average of a network's weights."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn


class MovingAverage(nn.Module):
    """`module` is a copy of a network, its parameters the moving average; buffers are those of the last update.

    At first the decay is less than `decay`, so that the first weights are forgotten. torch's `AveragedModel` has the
    same state, but it reads its count from the device, and so each update would wait for a GPU. Here the count stays on
    the CPU: move `module` alone.
    """

    n_averaged: Tensor  # () int64, updates so far

    def __init__(self, network: nn.Module, decay: float):
        super().__init__()
        self.module = copy.deepcopy(network)
        self.decay = decay
        self.register_buffer("n_averaged", torch.tensor(0))

    @torch.no_grad()
    def update(self, network: nn.Module) -> None:
        """Take in the weights of `network` after a step. The first update copies them."""
        n = int(self.n_averaged)
        decay = min(self.decay, (1 + n) / (10 + n)) if n else 0.0
        torch._foreach_lerp_(list(self.module.parameters()), list(network.parameters()), 1 - decay)
        for kept, current in zip(self.module.buffers(), network.buffers(), strict=True):
            kept.copy_(current)
        self.n_averaged += 1
