"""The branch alone: what it is given, what it minimises, and that the minimum is found."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from detectors import ONE_ANCHOR
from torch import Tensor

from retinaconf.config import Config
from retinaconf.data.loader import Batch
from retinaconf.model.head import Head
from retinaconf.model.retinanet import RetinaNet
from retinaconf.training import branch_fit
from retinaconf.training.assigners import ASSIGNERS
from retinaconf.training.branch_fit import Cells, collect, fit_branch, positive_cells
from retinaconf.training.losses import detection_losses
from retinaconf.training.matching import match

TOWERS = ["classification", "localization"]


def a_batch(seed: int = 0) -> Batch:
    """Two images; objects in corners, at edges and inside, large and small."""
    generator = torch.Generator().manual_seed(seed)
    boxes = torch.tensor(
        [
            [[0, 0, 30, 34], [60, 1, 95, 40], [20, 30, 50, 62], [0, 0, 96, 64]],
            [[70, 40, 96, 64], [40, 10, 62, 30], [0, 0, 0, 0], [0, 0, 0, 0]],
        ]
    ).float()
    labels = torch.tensor([[0, 1, 2, 0], [2, 1, -1, -1]])
    images = torch.randint(0, 256, (2, 3, 64, 96), generator=generator, dtype=torch.uint8)
    return Batch(images, torch.tensor([[64, 96], [64, 96]]), boxes, labels, torch.tensor([7, 4]))


def a_network(config: Config, quality: str, seed: int = 0) -> RetinaNet:
    """Random weights, large enough that outputs differ from place to place."""
    torch.manual_seed(seed)
    model = config.model.model_copy(update={"quality": quality})
    network = RetinaNet(model, 3).eval()
    with torch.no_grad():
        for name, parameter in network.head.named_parameters():
            if parameter.ndim > 1:
                parameter.normal_(std=0.15 if "tower" in name else 0.05)
    return network


@pytest.fixture(scope="module")
def config(tiny_config: Any) -> Config:
    config: Config = tiny_config(**{"model.head_convs": 2})
    return config


def without_branch(network: RetinaNet, config: Config) -> RetinaNet:
    plain = a_network(config, "none")
    plain.load_state_dict({k: v for k, v in network.state_dict().items() if "quality" not in k})
    return plain


def answers(cells: Cells, weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
    """Logits and targets of the positives, as the branch gives them from the patches."""
    counts = ~cells.targets.isnan()
    return F.linear(cells.patches, weight.flatten(1), bias)[counts], cells.targets[counts]


ONE = ONE_ANCHOR | {"model.level_scale": True}


@pytest.mark.parametrize(
    "changes",
    [
        {},
        ONE | {"matching.assigner": "atss", "model.box": "distances"},
        ONE | {"matching.assigner": "task-aligned", "model.box": "distribution", "inference.alpha": 0.0},
    ],
    ids=["max-iou", "atss", "task-aligned"],
)
@pytest.mark.parametrize("tower", TOWERS)
def test_patches_give_the_logits_and_the_loss_of_the_whole_network(config: Config, tower: str, changes: dict[str, Any]):
    """At the anchors that the run's own assigner matches."""
    config = config.changed(**changes)
    whole = a_network(config, tower)
    assert whole.head.quality_conv is not None
    torch.nn.init.normal_(whole.head.quality_conv.bias)
    batch = a_batch()
    with torch.no_grad():
        outputs = whole(batch.images, batch.sizes)
    assert outputs.quality_logits is not None
    matches = ASSIGNERS[config.matching.assigner](outputs, batch.boxes, batch.labels, config)
    by_iou = match(outputs.anchors, batch.boxes, batch.labels)
    assert torch.equal(matches.labels, by_iou.labels) == (changes == {})
    cells = positive_cells(without_branch(whole, config), tower, batch, config)
    logits, targets = answers(cells, whole.head.quality_conv.weight, whole.head.quality_conv.bias)

    assert cells.positives == matches.positives == len(targets) > (10 if changes else 40)
    assert cells.patches.shape == (len(cells.images), 9 * 16)
    # Cells come level by level, anchors in their order within a cell: sorted, both lists are one.
    expected = outputs.quality_logits[matches.labels >= 0]
    torch.testing.assert_close(logits.sort().values, expected.sort().values, rtol=1e-5, atol=1e-5)
    losses = detection_losses(outputs, matches, batch.boxes, batch.labels, whole_config(config, tower), len(targets))
    ours = F.binary_cross_entropy_with_logits(logits, targets)
    torch.testing.assert_close(ours, losses["quality"], rtol=1e-5, atol=1e-6)


def whole_config(config: Config, tower: str) -> Config:
    return config.changed(**{"model.quality": tower})


@pytest.mark.parametrize("tower", TOWERS)
def test_the_gradient_is_that_of_training_with_all_else_frozen(config: Config, tower: str):
    whole = a_network(config, tower).requires_grad_(False)
    assert whole.head.quality_conv is not None
    branch = whole.head.quality_conv.requires_grad_(True)
    batch = a_batch()
    outputs = whole(batch.images, batch.sizes)
    matches = match(outputs.anchors, batch.boxes, batch.labels)
    losses = detection_losses(outputs, matches, batch.boxes, batch.labels, whole_config(config, tower), 1)
    losses["quality"].backward()

    cells = positive_cells(without_branch(whole, config), tower, batch, config)
    weight, bias = (p.detach().clone().requires_grad_() for p in (branch.weight, branch.bias))
    F.binary_cross_entropy_with_logits(*answers(cells, weight, bias), reduction="sum").backward()
    assert branch.weight.grad is not None
    assert branch.weight.grad.abs().max() > 0.1
    torch.testing.assert_close(weight.grad, branch.weight.grad, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(bias.grad, branch.bias.grad, rtol=1e-4, atol=1e-4)


def test_cells_without_a_positive_are_left_out_and_images_named(config: Config):
    batch = a_batch()
    cells = positive_cells(a_network(config, "none"), "classification", batch, config)
    assert cells.images.unique().tolist() == [4, 7]
    assert (~cells.targets.isnan()).any(1).all()
    assert cells.targets.isnan().any()
    empty = Batch(batch.images, batch.sizes, batch.boxes, torch.full((2, 4), -1), batch.index)
    assert len(positive_cells(a_network(config, "none"), "localization", empty, config).patches) == 0


def test_paper_branch_has_20745_parameters():
    conv = Head(256, 80, 9, quality="classification").quality_conv
    assert conv is not None
    rows = torch.rand(20, 9 * 256)
    found = fit_branch(Cells(rows, torch.rand(20, 9), torch.arange(20) // 4))
    assert (found.weight.shape, found.bias.shape) == (conv.weight.shape, conv.bias.shape)
    assert found.weight.numel() + found.bias.numel() == 20_745


# --- the minimum ---------------------------------------------------------------------------------------------------


def planted(seed: int = 0, count: int = 3000, width: int = 18, noise: float = 0.0) -> tuple[Cells, Tensor, Tensor]:
    """Cells whose targets a known convolution of few channels gives, a third of the anchors being positive."""
    generator = torch.Generator().manual_seed(seed)
    scale = torch.logspace(-1, 1, width)  # inputs of very different size
    patches = (torch.randn(count, width, generator=generator) + 1).relu() * scale
    weight = torch.randn(9, width, generator=generator) / scale / 4
    bias = torch.randn(9, generator=generator) / 2
    logits = F.linear(patches, weight, bias) + noise * torch.randn(count, 9, generator=generator)
    targets = logits.sigmoid().masked_fill(torch.rand(count, 9, generator=generator) > 1 / 3, torch.nan)
    return Cells(patches, targets, torch.arange(count) // 10), weight, bias


def test_a_planted_convolution_is_found():
    cells, weight, bias = planted()
    found = fit_branch(cells)
    assert found.weight_decay == branch_fit.WEIGHT_DECAYS[-1]  # nothing to smooth: the weakest is best
    logits, _ = answers(cells, found.weight, found.bias)
    expected, _ = answers(cells, weight, bias)
    assert (logits.sigmoid() - expected.sigmoid()).abs().max() < 0.02
    held_out = [tried["held_out"] for tried in found.tried]
    assert held_out == sorted(held_out, reverse=True)
    assert held_out[-1] < found.constant_loss - 0.02


def test_the_minimum_is_scipys():
    """One anchor of the nine, against L-BFGS-B on the same penalised cross entropy, in float64."""
    optimize = pytest.importorskip("scipy.optimize")
    cells, _, _ = planted(count=400, width=9, noise=2.0)
    found = fit_branch(cells)
    counts = ~cells.targets.isnan()
    x = cells.patches.double()
    inputs = ((x - x.mean(0)) / x.std(0, correction=0)).numpy()
    share = counts[:, 2].sum().item() / counts.sum().item()  # the mean is over the positives of all anchors
    rows = counts[:, 2].numpy()
    y = cells.targets[:, 2].double().numpy()[rows]

    def objective(p: Any) -> float:
        logits = torch.from_numpy(inputs[rows] @ p[:-1] + p[-1])
        loss = F.binary_cross_entropy_with_logits(logits, torch.from_numpy(y)).item()
        return share * loss + found.weight_decay / 2 * float((p[:-1] ** 2).sum())

    best = optimize.minimize(objective, [0.0] * (inputs.shape[1] + 1), method="BFGS").x
    expected = inputs @ best[:-1] + best[-1]
    ours = F.linear(cells.patches, found.weight.flatten(1), found.bias)[:, 2]
    torch.testing.assert_close(ours, torch.from_numpy(expected).float(), atol=0.01, rtol=0)


def test_noise_is_not_learned():
    cells, _, _ = planted(count=300, width=90)
    generator = torch.Generator().manual_seed(1)
    noise = torch.rand(cells.targets.shape, generator=generator).masked_fill(cells.targets.isnan(), torch.nan)
    found = fit_branch(Cells(cells.patches, noise, cells.images))
    assert found.weight_decay >= 0.1
    assert found.tried[-1]["held_out"] >= found.tried[-2]["held_out"]  # stopped where it got worse
    assert found.tried[-1]["fitted"] < found.tried[-2]["fitted"]


def test_the_seed_decides():
    cells, _, _ = planted(count=300, noise=2.0)
    first, again, other = (fit_branch(cells, seed) for seed in (3, 3, 4))
    assert torch.equal(first.weight, again.weight)
    assert torch.equal(first.bias, again.bias)
    assert first.tried == again.tried
    assert first.tried != other.tried


def test_an_anchor_that_is_never_positive_and_a_channel_that_is_never_active():
    cells, _, _ = planted(count=200)
    cells.targets[:, 4] = torch.nan
    cells.patches[:, 7] = 0
    found = fit_branch(cells)
    assert found.weight.isfinite().all()
    assert found.bias[4].sigmoid() == pytest.approx(float(cells.targets.nanmean()), abs=0.05)
    assert not found.weight[4].any()
    assert not found.weight.flatten(1)[:, 7].any()


def test_an_input_that_hardly_varies_gets_no_huge_weight():
    """It is 0 on all cells but one, and would decide everything where it is as large as the others."""
    cells, _, _ = planted(count=200)
    cells.patches[:, 7] = 0
    cells.patches[3, 7] = 1e-4
    found = fit_branch(cells)
    assert found.weight.flatten(1)[:, 7].abs().max() < 0.1 * found.weight.abs().max()
    assert len(found.tried) > 1


# --- collecting ----------------------------------------------------------------------------------------------------


def test_collecting_stops_at_the_memory_it_may_use(config: Config, monkeypatch: pytest.MonkeyPatch):
    network, cpu = a_network(config, "none"), torch.device("cpu")
    one = positive_cells(network, "classification", a_batch(), config)
    monkeypatch.setattr(branch_fit, "PATCH_BYTES", int(1.5 * one.patches.nbytes))
    seen: list[int] = []
    cells = collect(network, "classification", (a_batch() for _ in range(9)), cpu, config, seen.append)
    assert seen == [2, 2]
    assert len(cells.patches) == 2 * len(one.patches)


def test_a_failed_network_and_too_few_images_are_refused(config: Config):
    cpu, batch = torch.device("cpu"), a_batch()
    single = Batch(batch.images[:1], batch.sizes[:1], batch.boxes[:1], batch.labels[:1], batch.index[:1])
    with pytest.raises(ValueError, match="cells of 1 images; at least 2 are needed"):
        fit_branch(collect(a_network(config, "none"), "classification", [single], cpu, config))
    broken = a_network(config, "none")
    torch.nn.init.constant_(broken.head.box_conv.bias, float("nan"))
    with pytest.raises(FloatingPointError, match="boxes are not finite"):
        collect(broken, "classification", [batch], cpu, config)
    broken = a_network(config, "none")
    torch.nn.init.constant_(broken.head.classification_tower[0].bias, float("inf"))
    with pytest.raises(FloatingPointError, match="features are not finite"):
        collect(broken, "classification", [batch], cpu, config)
