"""A quality branch for a detector without one, learned while everything else stays as it is.

The branch is one 3x3 convolution, and its loss, equation (9), counts positive anchors only. With the rest frozen, all
that it sees there is the 3x3 patch of its tower around the anchor's cell, and what it should say, the IoU of the
predicted box, never changes. So the network runs a few times over the images to collect the patches, and the rest is
as many logistic regressions as a cell has anchors: convex, and solved without the network.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from retinaconf.config import Config
from retinaconf.data.loader import Batch
from retinaconf.model.retinanet import RetinaNet
from retinaconf.training.assigners import ASSIGNERS
from retinaconf.training.matching import positive_overlaps
from retinaconf.training.quality_loss import cross_entropy

Tower = Literal["classification", "localization"]

PATCH_BYTES = 2 << 30  # patches beyond this are not collected: 230,000 cells at 256 channels
HELD_OUT = 0.2  # share of the images that decides the weight decay
# Tried from strong to weak until the images held out get worse; for inputs of variance 1.
WEIGHT_DECAYS = (1.0, 0.1, 0.01, 0.001, 0.0001)
FAINT = 0.01  # least standard deviation that an input is credited with, as a share of the root mean square of all
ITERATIONS = 100  # of L-BFGS at each weight decay, at most; it ends where one gains less than ...
TOLERANCE = 1e-6  # ... this: weight decays differ by a hundred times as much


class Cells(NamedTuple):
    """U cells at which at least one anchor is positive."""

    patches: Tensor  # (U, 9 C) float32: what a 3x3 convolution sees there, in the order of its weights
    targets: Tensor  # (U, P) float32: IoU of each anchor's predicted box with its object; NaN where not positive
    images: Tensor  # (U,) int64 row in the ground truth

    @property
    def positives(self) -> int:
        """Positive anchors in all cells."""
        return int((~self.targets.isnan()).sum())


class Branch(NamedTuple):
    """The convolution found, and how."""

    weight: Tensor  # (P, C, 3, 3), for the P anchors of a cell
    bias: Tensor  # (P,)
    tried: list[dict[str, float]]  # by weight decay: mean loss on the images fitted and on those held out
    constant_loss: float  # on the latter, of the best constants: what there is to improve on
    weight_decay: float  # the best


@torch.no_grad()
def positive_cells(network: RetinaNet, tower: Tower, batch: Batch, config: Config) -> Cells:
    """The cells of a batch that the branch is to learn from, by the frozen `network` in evaluation mode.

    Raises:
        FloatingPointError: boxes or features are not finite.
    """
    maps: list[Tensor] = []  # of the five levels, (N, C, H_l, W_l)
    hook = getattr(network.head, f"{tower}_tower").register_forward_hook(lambda *call: maps.append(call[-1]))
    try:
        outputs = network(batch.images, batch.sizes)
    finally:
        hook.remove()
    matches = ASSIGNERS[config.matching.assigner](outputs, batch.boxes, batch.labels, config)
    overlaps = positive_overlaps(outputs, matches, batch.boxes)
    if not overlaps.isfinite().all():
        raise FloatingPointError("its boxes are not finite")
    targets = torch.full(matches.labels.shape, torch.nan, device=overlaps.device)  # (N, A)
    targets[matches.index] = overlaps

    found = []
    for level, level_targets in zip(maps, targets.split(outputs.level_sizes, dim=1)):
        by_cell = level_targets.unflatten(1, (*level.shape[2:], -1))  # (N, H, W, P)
        n, y, x = torch.nonzero(~by_cell.isnan().all(dim=3), as_tuple=True)  # (U_l,)
        around = torch.arange(3, device=n.device)
        rows, columns = (y[:, None] + around)[:, :, None], (x[:, None] + around)[:, None]  # (U_l, 3, 1), (U_l, 1, 3)
        patches = F.pad(level, (1, 1, 1, 1)).float()[n[:, None, None], :, rows, columns]  # (U_l, 3, 3, C)
        found.append(Cells(patches.movedim(3, 1).flatten(1), by_cell[n, y, x], batch.index[n]))
    cells = _joined(found)
    if not cells.patches.isfinite().all():
        raise FloatingPointError("its features are not finite")
    return cells


def collect(
    network: RetinaNet,
    tower: Tower,
    batches: Iterable[Batch],
    device: torch.device,
    config: Config,
    done: Callable[[int], None] = lambda images: None,
) -> Cells:
    """The cells of all `batches`, on the CPU; of as many as give PATCH_BYTES of patches. `done` hears of each batch.

    Raises:
        FloatingPointError: boxes or features are not finite.
    """
    network.eval()
    found: list[Cells] = []
    collected = 0
    for batch in batches:
        cells = positive_cells(network, tower, batch.to(device), config)
        found.append(Cells(*(column.cpu() for column in cells)))
        done(len(batch.index))
        collected += cells.patches.nbytes
        if collected > PATCH_BYTES:
            break
    return _joined(found)


def fit_branch(cells: Cells, seed: int = 0) -> Branch:
    """The convolution with the least mean cross entropy over positives, equation (9), and a weight decay.

    The weight decay is the one with the least loss on a share of the images (drawn by `seed`); then all are fitted.
    Weights are decayed as if all inputs had variance 1, so that it means the same for any network. Biases are not. An
    input that varies less than FAINT on these cells counts as if it varied so much: otherwise its weight would be huge,
    and it would decide the quality wherever it is active.

    Raises:
        ValueError: the cells are of fewer than two images.
    """
    images = cells.images.unique()
    if len(images) < 2:
        raise ValueError(f"cells of {len(images)} images; at least 2 are needed, one of them to hold out")
    drawn = torch.randperm(len(images), generator=torch.Generator().manual_seed(seed))
    held = images[drawn[: math.ceil(HELD_OUT * len(images))]]
    is_held = torch.isin(cells.images, held)[:, None]
    fitted, held_out = (cells.targets.masked_fill(rows, torch.nan) for rows in (is_held, ~is_held))

    std, mean = torch.std_mean(cells.patches, dim=0, correction=0)
    faint = FAINT * std.square().mean().sqrt()
    problem = _Regression(cells.patches, mean, torch.where(std > faint, std, faint if faint > 0 else 1.0))
    constants = (
        torch.zeros(cells.targets.shape[1], len(mean)),
        torch.logit(fitted.nanmean(0).nan_to_num(float(fitted.nanmean())), eps=1e-4),
    )
    tried: list[dict[str, float]] = []
    best, solution = math.inf, constants
    for decay in WEIGHT_DECAYS:
        solution = problem.minimum(fitted, decay, solution)
        losses = {"fitted": problem.loss(solution, fitted), "held_out": problem.loss(solution, held_out)}
        tried.append({"weight_decay": decay, **losses})
        if losses["held_out"] >= best:
            break
        best, chosen, at_best = losses["held_out"], decay, solution
    weight, bias = problem.convolution(problem.minimum(cells.targets, chosen, at_best))
    return Branch(weight.view(len(weight), -1, 3, 3), bias, tried, problem.loss(constants, held_out), chosen)


class _Regression:
    """P logistic regressions on standardised patches, which are never made: the weights take it in."""

    def __init__(self, patches: Tensor, mean: Tensor, std: Tensor):
        self.patches, self.mean, self.std = patches, mean, std

    def convolution(self, solution: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        """(P, 9 C) and (P,) for the patches as they are."""
        weight = solution[0] / self.std
        return weight, solution[1] - weight @ self.mean

    def mean_loss(self, solution: tuple[Tensor, Tensor], targets: Tensor) -> Tensor:
        counts = ~targets.isnan()
        return cross_entropy(F.linear(self.patches, *self.convolution(solution))[counts], targets[counts]).mean()

    def loss(self, solution: tuple[Tensor, Tensor], targets: Tensor) -> float:
        with torch.no_grad():
            return float(self.mean_loss(solution, targets))

    def minimum(self, targets: Tensor, decay: float, start: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        weight, bias = (parameter.clone().requires_grad_() for parameter in start)
        optimizer = torch.optim.LBFGS(
            [weight, bias], max_iter=ITERATIONS, tolerance_change=TOLERANCE, line_search_fn="strong_wolfe"
        )

        def closure() -> Tensor:
            optimizer.zero_grad()
            loss = self.mean_loss((weight, bias), targets) + decay / 2 * weight.square().sum()
            loss.backward()
            return loss

        optimizer.step(closure)
        return weight.detach(), bias.detach()


def _joined(parts: list[Cells]) -> Cells:
    return Cells(*(torch.cat(column) for column in zip(*parts)))
