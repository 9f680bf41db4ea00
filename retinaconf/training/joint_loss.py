"""Losses of the score that ranks: quality^alpha * class^(1 - alpha), equation (11), trained as one.

RetinaNet-Conf trains its branch and its class score apart and multiplies them afterwards. GFLv2, TOOD and DW train the
product (`loss.joint product`). Here it has the quality focal loss or the varifocal loss (`loss.iou_score`), and a
ranking loss can be added that orders the boxes of each object (`loss.rank`).

The product has no logit. All is computed from log p = alpha logsigmoid(q) + (1 - alpha) logsigmoid(c) in float32, and
log(1 - p) from log p by `expm1`, which keep their precision where p is almost 0 or 1.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from retinaconf.model.boxes import iou
from retinaconf.model.retinanet import Outputs
from retinaconf.training.matching import NEGATIVE, Matches
from retinaconf.training.quality_loss import VARIFOCAL_ALPHA

ALMOST_ONE = -1e-30  # largest log p; p / (1 - p) is still a float32
CANDIDATE_IOU = 0.5  # a box is a candidate of an object from this IoU on, and ...
CANDIDATES = 32  # ... an object has so many, best score first
CLEAR = 0.02  # two candidates are compared if their IoU differs by more


def log_score(class_logits: Tensor, quality_logits: Tensor | None, alpha: float) -> Tensor:
    """log(quality^alpha * class^(1 - alpha)) (...) of logits that broadcast; without a quality, log(class)."""
    if quality_logits is None:
        return F.logsigmoid(class_logits.float())
    return alpha * F.logsigmoid(quality_logits.float()) + (1 - alpha) * F.logsigmoid(class_logits.float())


def class_prior(joint_prior: float, alpha: float) -> float:
    """The class score at which the product is `joint_prior`, while the quality of an untrained branch is 0.5."""
    return float((joint_prior / 0.5**alpha) ** (1 / (1 - alpha)))


def product_focal_loss(
    class_logits: Tensor, quality_logits: Tensor, matches: Matches, target: Tensor, alpha: float, beta: float
) -> Tensor:
    """Quality focal loss of the product, summed (Generalized Focal Loss, equation 4, in probabilities).

    With p the product, an entry has the loss |y - p|^beta times the cross entropy of p with y. y is `target` (P,) at
    the class of each positive (in the order of `matches.index`), elsewhere 0. Ignored anchors do not count.

    `class_logits` are (N, A, K), `quality_logits` (N, A). The gradient flows into both logits and stays finite however
    large they are.
    """
    background, p, entropy = _product_parts(class_logits, quality_logits, matches, target, alpha, beta)
    return background + ((target - p).abs() ** beta * entropy).sum()


def product_varifocal_loss(
    class_logits: Tensor, quality_logits: Tensor, matches: Matches, target: Tensor, alpha: float, gamma: float
) -> Tensor:
    """Varifocal loss of the product, summed (VarifocalNet, equation 2); the arguments are `product_focal_loss`'s.

    With p the product, a positive has the loss y times the cross entropy of p with its target y; every other entry has
    0.75 p^gamma times -log(1 - p).
    """
    background, _, entropy = _product_parts(class_logits, quality_logits, matches, target, alpha, gamma)
    return VARIFOCAL_ALPHA * background + (target * entropy).sum()


def _product_parts(
    class_logits: Tensor, quality_logits: Tensor, matches: Matches, target: Tensor, alpha: float, gamma: float
) -> tuple[Tensor, Tensor, Tensor]:
    """The sum of p^gamma (-log(1 - p)) over the entries whose target is 0; at the others (P,) p, and its cross entropy.

    As `_background_loss` in losses.py, the first sums over all classes of all anchors that count, and takes back the
    others.
    """
    index, labels = matches.index, matches.labels
    log_p = log_score(class_logits[*index, labels[index]], quality_logits[index], alpha)
    p, log_1_p = log_p.exp(), _log_of_rest(log_p)
    everywhere: Tensor = _BackgroundProduct.apply(class_logits, quality_logits, labels >= NEGATIVE, alpha, gamma)
    return everywhere + (p**gamma * log_1_p).sum(), p, -(target * log_p + (1 - target) * log_1_p)


def rank_loss(outputs: Outputs, boxes: Tensor, labels: Tensor, alpha: float) -> Tensor:
    """Pairwise ranking loss between the candidates of each object, summed over objects.

    Candidates of an object are the predicted boxes with an IoU of at least 0.5 with it, at most the 32 with the best
    score for its class: those among which NMS chooses. Of each two whose IoU differs clearly, the better one is to have
    the higher score: the loss is softplus(worse - better), of the log-odds of their scores, weighted by the difference
    of their IoU. An object's loss is the weighted mean over its pairs.

    This is what NMS does with an object's boxes, as a RankNet loss (Burges et al. 2005). No gradient flows into boxes.
    """
    # Padding is computed with the objects and has no candidates: to leave it out, the step would wait for a GPU.
    image, anchors = (torch.arange(n, device=labels.device) for n in (len(labels), len(outputs.anchors)))
    classes = labels.clamp(min=0)  # (N, G)

    def log_p(anchor: Tensor) -> Tensor:
        """(N, G, C) log of the score of each object's class at `anchor`, which broadcasts to this shape."""
        at = image[:, None, None], anchor
        quality_logits = None if outputs.quality_logits is None else outputs.quality_logits[at]
        return log_score(outputs.class_logits[*at, classes[:, :, None]], quality_logits, alpha)

    with torch.no_grad():
        predicted = outputs.boxes(image[:, None], anchors)  # (N, A, 4)
        overlaps = iou(predicted[:, None], boxes[:, :, None])  # (N, G, A)
        candidate = (overlaps >= CANDIDATE_IOU) & (labels >= 0)[:, :, None]
        ranking = torch.where(candidate, log_p(anchors), -torch.inf)
        best, anchor = ranking.topk(min(CANDIDATES, len(anchors)), dim=2)  # (N, G, C)
        overlap, exists = overlaps.gather(2, anchor), best > -torch.inf
        difference = overlap[..., :, None] - overlap[..., None, :]  # (N, G, C, C): of the row's box over the column's
        clear = (difference > CLEAR) & exists[..., :, None] & exists[..., None, :]
        weight = torch.where(clear, difference, 0)
    of_candidates = log_p(anchor)
    log_odds = of_candidates - _log_of_rest(of_candidates)
    losses = F.softplus(log_odds[..., None, :] - log_odds[..., :, None])
    pairs = weight.sum(dim=(2, 3))
    return ((weight * losses).sum(dim=(2, 3)) / pairs.clamp(min=CLEAR)).sum()


def _log_of_rest(log_p: Tensor) -> Tensor:
    """log(1 - p) of log p <= 0."""
    return torch.log(-torch.expm1(log_p.clamp(max=ALMOST_ONE)))


class _BackgroundProduct(torch.autograd.Function):
    """Sum of p^beta (-log(1 - p)) over all classes of the anchors that count, p the product.

    Gradients are made on the way forward, so that two tensors are kept for the backward pass where autograd would keep
    ten of size N x A x K.
    """

    @staticmethod
    def forward(
        ctx: Any, class_logits: Tensor, quality_logits: Tensor, counts: Tensor, alpha: float, beta: float
    ) -> Tensor:
        x, q = class_logits.detach(), quality_logits.detach()[..., None]
        log_p = log_score(x, q, alpha).clamp(max=ALMOST_ONE)
        p = log_p.exp()
        rest = -torch.expm1(log_p)  # 1 - p
        cost = -torch.log(rest)
        weight = p**beta * counts[..., None]
        loss = torch.dot(weight.flatten(), cost.flatten())
        slope = weight * (beta * cost + p / rest)  # in log p
        ctx.save_for_backward(
            (slope * torch.sigmoid(-x.float()) * (1 - alpha)).to(class_logits.dtype),
            (slope.sum(dim=2) * torch.sigmoid(-q.squeeze(2).float()) * alpha).to(quality_logits.dtype),
        )
        return loss

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, None, None, None]:
        class_slope, quality_slope = ctx.saved_tensors
        return (
            class_slope * gradient.to(class_slope.dtype),
            quality_slope * gradient.to(quality_slope.dtype),
            *[None] * 3,
        )
