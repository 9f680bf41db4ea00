"""The quality of a box from the shape of its own distribution (GFLv2, "Distribution-Guided Quality Predictor")."""

from __future__ import annotations

import torch
from torch import Tensor, nn

TOP = 4  # largest probabilities of each side that are seen, with their mean
HIDDEN = 64


class DistributionQuality(nn.Module):
    """Two small layers: a sharp distribution of each of the four sides says that the box fits (GFLv2, section 3.2)."""

    def __init__(self) -> None:
        super().__init__()
        self.hidden = nn.Linear(4 * (TOP + 1), HIDDEN)
        self.out = nn.Linear(HIDDEN, 1)
        for layer in (self.hidden, self.out):
            nn.init.normal_(layer.weight, std=0.01)
            nn.init.zeros_(layer.bias)

    def forward(self, distributions: Tensor) -> Tensor:
        """Quality logits (N, A) of box distributions (N, A, 4, BINS)."""
        top = distributions.topk(TOP, dim=-1).values
        seen = torch.cat([top, top.mean(dim=-1, keepdim=True)], dim=-1).flatten(2)
        logits: Tensor = self.out(torch.relu(self.hidden(seen))).squeeze(-1)
        return logits
