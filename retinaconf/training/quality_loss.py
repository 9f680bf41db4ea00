"""What the quality branch learns, and where: equation (9), Table 2 of the paper, and losses that know background.

Equation (9) counts positive anchors only, so that the branch is never told what it is to say elsewhere, where inference
asks it as well. The paper's conclusion of section 4 leaves open which loss would count negatives, too. Four that do:

=============== ============================================ ==========================================================
`loss.quality`  at positives, with the IoU y of the box      beyond them
=============== ============================================ ==========================================================
`ce-weighted`   cross entropy, equation (9)                  cross entropy with 0 at all negatives, times a small weight
`varifocal`     y times cross entropy (VarifocalNet, eq. 2)  0.75 p^gamma times cross entropy with 0 at all negatives
`gfocal-all`    GFocal, equation (13)                        p^gamma times cross entropy with 0 at all negatives
`ce-near`       cross entropy, equation (9)                  cross entropy with y where the box covers an object by half
`ce-ranked`     cross entropy, equation (9)                  cross entropy with y at as many anchors of an image as it
                                                             has positives: the others with the best class scores
=============== ============================================ ==========================================================

Each is a sum over images, so that processes and accumulated passes may split a batch in any way.

`smooth-l1` has beta 1, the default of MMDetection and torch. |y - p| is never above 1, so that this is half of `l2`:
the same loss at half the weight. Table 2 names no beta; docs/paper.md has what is known of it.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from retinaconf.config import LossConfig
from retinaconf.model.boxes import iou
from retinaconf.model.retinanet import Outputs
from retinaconf.training.matching import NEGATIVE, Matches

VARIFOCAL_ALPHA = 0.75  # weight of its negatives, as published
NEAR_IOU = 0.5  # of a predicted box with some object


def quality_loss(logits: Tensor, target: Tensor, config: LossConfig) -> Tensor:
    """Loss of the quality branch over P positives, summed: equation (9), or another of `config.quality`.

    `logits` (P,), `target` (P,) in [0, 1]; the gradient flows into both.
    """
    return AT_POSITIVES[config.quality](logits, target, config).sum()


def beyond_positives(outputs: Outputs, matches: Matches, boxes: Tensor, config: LossConfig) -> Tensor:
    """Loss of the quality branch over anchors that are not positive, summed; 0 where `config.quality` has none.

    `boxes` (N, G, 4) is the ground truth. Targets are constants: no gradient flows into the boxes.
    """
    if config.quality in BEYOND_POSITIVES:
        return BEYOND_POSITIVES[config.quality](outputs, matches, boxes, config)
    return outputs.class_logits.new_zeros((), dtype=torch.float32)


def _weighted_negatives(outputs: Outputs, matches: Matches, boxes: Tensor, config: LossConfig) -> Tensor:
    return config.quality_negative_weight * _over_negatives(F.softplus, outputs, matches)


def _focal_negatives(outputs: Outputs, matches: Matches, boxes: Tensor, config: LossConfig) -> Tensor:
    return _over_negatives(lambda x: gfocal(x, torch.zeros_like(x), config.focal_gamma), outputs, matches)


def _varifocal_negatives(outputs: Outputs, matches: Matches, boxes: Tensor, config: LossConfig) -> Tensor:
    return VARIFOCAL_ALPHA * _focal_negatives(outputs, matches, boxes, config)


def _over_negatives(loss: Callable[[Tensor], Tensor], outputs: Outputs, matches: Matches) -> Tensor:
    """Sum of `loss`, of float32 quality logits, over all negatives of the batch."""
    assert outputs.quality_logits is not None
    return torch.where(matches.labels == NEGATIVE, loss(outputs.quality_logits.float()), 0).sum()


def _chosen_others(
    choose: Callable[[Outputs, int, Tensor, Tensor], tuple[Tensor, Tensor]],
    outputs: Outputs,
    matches: Matches,
    boxes: Tensor,
    config: LossConfig,
) -> Tensor:
    """Cross entropy at the anchors that `choose` takes out of those of an image that are not positive."""
    assert outputs.quality_logits is not None
    total = outputs.quality_logits.new_zeros((), dtype=torch.float32)
    for image, labels in enumerate(matches.labels):
        anchor, target = choose(outputs, image, torch.nonzero(labels < 0).flatten(), boxes[image])
        total = total + cross_entropy(outputs.quality_logits[image, anchor].float(), target).sum()
    return total


@torch.no_grad()
def _near(outputs: Outputs, image: int, others: Tensor, boxes: Tensor) -> tuple[Tensor, Tensor]:
    """Those of an image's anchors `others`, none of them positive, whose boxes cover an object by half; their IoU."""
    best = _best_iou(outputs, image, others, boxes)
    near = best >= NEAR_IOU
    return others[near], best[near]


@torch.no_grad()
def _ranked(outputs: Outputs, image: int, others: Tensor, boxes: Tensor) -> tuple[Tensor, Tensor]:
    """Those of an image's anchors `others`, none of them positive, with the best class scores; their boxes' IoU.

    As many as the image has positives: a number of the whole batch would depend on how the batch is split.
    """
    positives = len(outputs.anchors) - len(others)
    scores = outputs.class_logits[image].amax(dim=1)[others]
    best = others[scores.topk(min(positives, len(others)), sorted=False).indices]
    return best, _best_iou(outputs, image, best, boxes)


def _best_iou(outputs: Outputs, image: int, anchor: Tensor, boxes: Tensor) -> Tensor:
    """(P,) IoU of the boxes predicted at anchors (P,) with the object of (G, 4) that each fits best."""
    predicted = outputs.boxes(image, anchor)
    if not len(boxes):
        return predicted.new_zeros(len(predicted))
    return iou(predicted[:, None], boxes).amax(dim=1)


def cross_entropy(logits: Tensor, target: Tensor) -> Tensor:
    """Binary cross entropy with a soft target, equation (9): -y log p - (1 - y) log(1 - p).

    In the logit its gradient is p - y, equation (8); in the target -x, which is what reaches the box branch.
    """
    return F.softplus(logits) - target * logits


def gfocal(logits: Tensor, target: Tensor, gamma: float) -> Tensor:
    """GFocal loss, equation (13): |y - p|^gamma times the cross entropy."""
    return (target - torch.sigmoid(logits)).abs() ** gamma * cross_entropy(logits, target)


def _cross_entropy(logits: Tensor, target: Tensor, config: LossConfig) -> Tensor:
    return cross_entropy(logits, target)


def _gfocal(logits: Tensor, target: Tensor, config: LossConfig) -> Tensor:
    return gfocal(logits, target, config.focal_gamma)


# By `loss.quality`: the loss (P,) of each positive, from logits (P,) and targets (P,).
AT_POSITIVES: dict[str, Callable[[Tensor, Tensor, LossConfig], Tensor]] = {
    "l1": lambda logits, target, config: (torch.sigmoid(logits) - target).abs(),
    "smooth-l1": lambda logits, target, config: F.smooth_l1_loss(torch.sigmoid(logits), target, reduction="none"),
    "l2": lambda logits, target, config: (torch.sigmoid(logits) - target) ** 2,
    "gfocal": _gfocal,
    "ce": _cross_entropy,
    "ce-weighted": _cross_entropy,
    "varifocal": lambda logits, target, config: target.detach() * cross_entropy(logits, target),
    "gfocal-all": _gfocal,
    "ce-near": _cross_entropy,
    "ce-ranked": _cross_entropy,
}
# The sum over other anchors, of those losses that have one.
BEYOND_POSITIVES: dict[str, Callable[[Outputs, Matches, Tensor, LossConfig], Tensor]] = {
    "ce-weighted": _weighted_negatives,
    "varifocal": _varifocal_negatives,
    "gfocal-all": _focal_negatives,
    "ce-near": partial(_chosen_others, _near),
    "ce-ranked": partial(_chosen_others, _ranked),
}
