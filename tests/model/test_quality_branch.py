"""The quality that is read off a box's own distribution."""

from __future__ import annotations

import torch

from retinaconf.model.distances import BINS
from retinaconf.model.quality_branch import DistributionQuality


def a_branch() -> DistributionQuality:
    torch.manual_seed(0)
    branch = DistributionQuality()
    for layer in (branch.hidden, branch.out):
        torch.nn.init.normal_(layer.weight, std=0.5)
    return branch


def test_the_order_of_a_sides_bins_does_not_matter_and_that_of_the_sides_does() -> None:
    branch, logits = a_branch(), torch.randn(2, 5, 4, BINS)
    quality = branch(logits.softmax(-1))
    assert quality.shape == (2, 5)
    order = torch.randperm(BINS)
    torch.testing.assert_close(branch(logits[..., order].softmax(-1)), quality)
    assert not torch.allclose(branch(logits[:, :, [1, 0, 2, 3]].softmax(-1)), quality)


def test_it_sees_the_four_largest_probabilities_and_their_mean() -> None:
    """GFLv2, section 3.2, a side at a time."""
    branch, logits = a_branch(), torch.randn(1, 1, 4, BINS)
    seen = []
    for side in logits[0, 0]:
        largest = sorted(side.softmax(0).tolist(), reverse=True)[:4]
        seen += [*largest, sum(largest) / 4]
    expected = branch.out(torch.relu(branch.hidden(torch.tensor(seen))))
    torch.testing.assert_close(branch(logits.softmax(-1))[0], expected)


def test_a_sharper_distribution_has_another_quality() -> None:
    branch, logits = a_branch(), torch.randn(1, 1, 4, BINS)
    qualities = [branch((sharpness * logits).softmax(-1)).item() for sharpness in (0.0, 0.5, 1.0, 2.0, 8.0)]
    assert len({round(quality, 4) for quality in qualities}) == 5


def test_it_can_learn_that_sharp_boxes_fit() -> None:
    torch.manual_seed(0)
    branch = DistributionQuality()
    assert abs(branch(torch.randn(1, 9, 4, BINS).softmax(-1)).sigmoid() - 0.5).max() < 0.01  # as an untrained branch
    sharpness = torch.linspace(0.1, 6, 60)
    logits = torch.randn(1, 60, 4, BINS) * sharpness[:, None, None]
    target = (sharpness / 6)[None]
    optimizer = torch.optim.Adam(branch.parameters(), lr=0.02)
    for _ in range(150):
        optimizer.zero_grad()
        torch.nn.functional.binary_cross_entropy_with_logits(branch(logits.softmax(-1)), target).backward()
        optimizer.step()
    assert torch.corrcoef(torch.stack([branch(logits.softmax(-1)).sigmoid()[0], target[0]]))[0, 1] > 0.9


def test_the_gradient_reaches_the_boxes_and_stays_finite() -> None:
    branch = a_branch()
    logits = torch.randn(1, 3, 4, BINS)
    logits[0, 1] *= 1e4
    logits[0, 2] = 0  # all bins tie
    logits.requires_grad_()
    branch(logits.softmax(-1)).sum().backward()
    assert logits.grad is not None
    assert torch.isfinite(logits.grad).all()
    assert logits.grad[0, 0].abs().min() > 0
