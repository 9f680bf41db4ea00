"""The losses of section 3.2, over a whole batch at once and always in float32; the quality branch's: `quality_loss.py`.

Each is a sum divided by a normaliser, `Matches.normaliser` of the whole batch (at least 1): with several processes or
accumulated passes the caller sums it over all of them.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from retinaconf.config import Config
from retinaconf.model.retinanet import Outputs
from retinaconf.training.box_loss import BOX_LOSSES, distribution_focal_loss
from retinaconf.training.joint_loss import product_focal_loss, product_varifocal_loss, rank_loss
from retinaconf.training.matching import NEGATIVE, Matches, positive_overlaps
from retinaconf.training.quality_loss import VARIFOCAL_ALPHA, beyond_positives, cross_entropy, gfocal, quality_loss

ENTRIES_AT_ONCE = 1 << 18  # what fits a CPU's cache


def detection_losses(
    outputs: Outputs, matches: Matches, boxes: Tensor, labels: Tensor, config: Config, normaliser: Tensor | float
) -> dict[str, Tensor]:
    """The terms of equation (10), weighted, by name; their sum is what is minimised.

    `class` and `box` always, `quality` where a branch is trained apart, `distribution` and `rank` where the
    configuration has them. `boxes` (N, G, 4) and `labels` (N, G) are the ground truth that `matches` refers to.
    """
    loss, alpha = config.loss, config.inference.alpha
    outputs = outputs._replace(box_deltas=outputs.box_deltas.float())  # two gradients meet there: not in 16 bits
    image, anchor = matches.index
    objects = matches.objects(boxes)
    overlap = positive_overlaps(outputs, matches, boxes)
    aligned = None if matches.alignments is None else matches.alignments[image, anchor]
    joint_target = overlap.detach() if aligned is None else aligned

    terms = {}
    if loss.joint == "product":
        assert outputs.quality_logits is not None
        of_product = product_varifocal_loss if loss.iou_score == "varifocal" else product_focal_loss
        terms["class"] = of_product(
            outputs.class_logits, outputs.quality_logits, matches, joint_target, alpha, loss.focal_gamma
        )
    elif config.model.class_target == "iou":
        of_class = varifocal_loss if loss.iou_score == "varifocal" else quality_focal_loss
        terms["class"] = of_class(outputs.class_logits, matches, joint_target, loss.focal_gamma)
    else:
        terms["class"] = focal_loss(outputs.class_logits, matches, loss.focal_alpha, loss.focal_gamma)
    box = BOX_LOSSES[loss.box](outputs, image, anchor, objects)
    terms["box"] = loss.box_weight * _weighted_sum(box, aligned)
    if outputs.box_logits is not None:
        distribution = distribution_focal_loss(outputs.box_logits[image, anchor], outputs.anchors[anchor], objects)
        terms["distribution"] = loss.distribution_weight * _weighted_sum(distribution, aligned)
    if outputs.quality_logits is not None and loss.joint == "separate":
        target = overlap.detach() if loss.detach_quality_target else overlap
        quality = quality_loss(outputs.quality_logits[image, anchor].float(), target, loss)
        terms["quality"] = loss.quality_weight * (quality + beyond_positives(outputs, matches, boxes, loss))
    if loss.rank:
        terms["rank"] = loss.rank * rank_loss(outputs, boxes, labels, alpha)
    return {name: term / normaliser for name, term in terms.items()}


def _weighted_sum(losses: Tensor, weight: Tensor | None) -> Tensor:
    return losses.sum() if weight is None else (losses * weight[:, None]).sum()


def focal_loss(logits: Tensor, matches: Matches, alpha: float, gamma: float) -> Tensor:
    """Sigmoid focal loss (RetinaNet, equation 5), equation (4) of the paper, summed.

    `logits` are (N, A, K). Ignored anchors do not count. With p = sigmoid(x) the loss of an entry is
    alpha (1 - p)^gamma (-log p) at the class of a positive, (1 - alpha) p^gamma (-log(1 - p)) elsewhere.
    """
    background, positive = _background_loss(logits, matches, gamma)
    return (1 - alpha) * background + alpha * (torch.sigmoid(-positive) ** gamma * F.softplus(-positive)).sum()


def quality_focal_loss(logits: Tensor, matches: Matches, quality: Tensor, beta: float) -> Tensor:
    """Quality focal loss (Generalized Focal Loss, equation 4), summed: the joint head's classification loss.

    At the class of the i-th positive (in the order of `matches.index`) the target is `quality[i]` (P,), elsewhere 0:
    |y - p|^beta times the cross entropy of p = sigmoid(x) with y. Ignored anchors do not count.
    """
    background, positive = _background_loss(logits, matches, beta)
    return background + gfocal(positive, quality, beta).sum()


def varifocal_loss(logits: Tensor, matches: Matches, quality: Tensor, gamma: float) -> Tensor:
    """Varifocal loss (VarifocalNet, equation 2), summed: another classification loss of the joint head.

    At the class of the i-th positive it is `quality[i]` (P,) times the cross entropy of p = sigmoid(x) with it;
    elsewhere 0.75 p^gamma (-log(1 - p)). Ignored anchors do not count.
    """
    background, positive = _background_loss(logits, matches, gamma)
    return VARIFOCAL_ALPHA * background + (quality * cross_entropy(positive, quality)).sum()


def _background_loss(logits: Tensor, matches: Matches, gamma: float) -> tuple[Tensor, Tensor]:
    """Sum of p^gamma (-log(1 - p)) over the entries whose target is 0; and the logits of the others, (P,) float32.

    The first are all but a few: it sums over all classes of all anchors that count, and takes back the few. So nothing
    of size N x A x K but the logits takes part, no one-hot target among them.
    """
    places = (*matches.index, matches.labels[matches.index])  # the class of each positive
    everywhere, positive, at_positives = _FocalOfBackground.apply(logits, matches.labels >= NEGATIVE, *places, gamma)
    return everywhere - (torch.sigmoid(positive) ** gamma * F.softplus(positive)).sum(), at_positives


class _FocalOfBackground(torch.autograd.Function):
    """Sum of p^gamma softplus(x) over the anchors that count, p = sigmoid(x); and twice, in float32, x at `places`.

    The gradient, p^gamma (gamma (1 - p) softplus(x) + p), is made on the way forward: one tensor is kept for the
    backward pass where autograd would keep four. Gradients that come back to x at `places` are added to that tensor:
    autograd would make one of size N x A x K for each of the two.
    """

    @staticmethod
    def forward(
        ctx: Any, logits: Tensor, counts: Tensor, image: Tensor, anchor: Tensor, label: Tensor, gamma: float
    ) -> tuple[Tensor, Tensor, Tensor]:
        logits = logits.detach()
        slope = torch.empty_like(logits)  # the gradient
        loss = torch.zeros((), device=logits.device)
        rows = math.prod(counts.shape)
        if logits.device.type == "cpu":  # whole multiples of a vector: parts give the same bits
            rows = min(rows, max(1, ENTRIES_AT_ONCE // (64 * logits.shape[2])) * 64)
        columns = (logits.flatten(0, 1), slope.flatten(0, 1), counts.flatten())
        for entries, slopes, counted in zip(*(column.split(max(1, rows)) for column in columns)):
            x = entries.float()
            p = torch.sigmoid(x)
            softplus = F.softplus(x)
            weight = p**gamma
            weight *= counted[:, None]
            loss += torch.dot(weight.flatten(), softplus.flatten())
            if ctx.needs_input_grad[0]:
                # softplus becomes the gradient in place: gamma (1 - p) softplus + p, times the weight
                slopes.copy_(softplus.mul_(gamma).addcmul_(softplus, p, value=-1).add_(p).mul_(weight))
        ctx.save_for_backward(slope, image, anchor, label)
        at_places = logits[image, anchor, label].float()
        return loss, at_places, at_places.clone()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor, first: Tensor, second: Tensor) -> tuple[Tensor | None, ...]:
        slope, *places = ctx.saved_tensors
        slope.mul_(gradient.to(slope.dtype))  # a second backward pass over the same graph is an error of autograd's
        slope[*places] = slope[*places] + first.to(slope.dtype) + second.to(slope.dtype)
        return slope, *[None] * 5
