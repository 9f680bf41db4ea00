"""What the boxes of one image do to each other: NMS, Soft-NMS, score voting."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torchvision.ops import nms

from retinaconf.config import SOFT_NMS_SIGMA, VOTE_SIGMA
from retinaconf.model.boxes import iou

FAR_OUTSIDE = 1e6  # pixels; no box there reaches an image, however large decoding lets it be
MANY = 10_000  # boxes, above which it takes longer to sort all than to find the best
BLOCK = 32  # voters of one class that a box meets at once


class Boxes(NamedTuple):
    """D scored boxes of one image, best first, on the CPU."""

    boxes: Tensor  # (D, 4) xyxy in pixels of the resized image
    scores: Tensor  # (D,) joint score, after Soft-NMS if it is set
    labels: Tensor  # (D,) int64
    class_scores: Tensor  # (D,)
    quality: Tensor | None  # (D,)

    def rows(self, index: Tensor | slice) -> Boxes:
        """The boxes `index` (D',), in that order."""
        quality = None if self.quality is None else self.quality[index]
        return Boxes(self.boxes[index], self.scores[index], self.labels[index], self.class_scores[index], quality)


def suppressed(candidates: Boxes, iou_threshold: float, limit: int) -> Tensor:
    """Indices of the best `limit` survivors of per-class NMS over the boxes of an image, best first."""
    total = len(candidates.scores)
    if total > MANY:
        kept = _survivors(candidates, best_first(candidates.scores, 4 * limit), iou_threshold, limit)
        if len(kept) == limit:
            return kept
    return _survivors(candidates, best_first(candidates.scores, total), iou_threshold, limit)


def _survivors(candidates: Boxes, order: Tensor, iou_threshold: float, limit: int) -> Tensor:
    """Of `order` (D,), best first, the first `limit` that per-class NMS among these boxes leaves, in its order.

    Whether a box survives depends only on better boxes, so the best boxes are tried first. If these give too few, the
    next ones are tried against the survivors, and so on.
    """
    boxes, labels = candidates.boxes.index_select(0, order), candidates.labels.index_select(0, order)
    # In float64, so that the shift which separates classes costs the coordinates nothing; a box far outside any image
    # would make the shift too large even for that.
    boxes = boxes.double().clamp(-FAR_OUTSIDE, FAR_OUTSIDE)
    if len(boxes):
        boxes += (labels * (boxes.max() - boxes.min() + 1))[:, None]
    index, rank = torch.arange(len(order)), torch.arange(len(order), 0, -1, dtype=torch.float64)
    kept = index[:0]
    start, end = 0, 2 * limit
    while start < len(order) and len(kept) < limit:
        tried = torch.cat([kept, index[start:end]])
        kept = tried.index_select(0, nms(boxes.index_select(0, tried), rank[: len(tried)], iou_threshold))
        start, end = end, end + 8 * limit  # few large parts: each costs Python's lock a while
    return order[kept[:limit]]


def best_first(scores: Tensor, limit: int) -> Tensor:
    """Indices of the `limit` largest scores (D,), or of all if there are fewer: best first, ties in their order."""
    if limit >= len(scores):
        return scores.sort(descending=True, stable=True).indices
    (index,) = torch.nonzero(scores >= scores.topk(limit, sorted=False).values.min(), as_tuple=True)
    return index[scores[index].sort(descending=True, stable=True).indices[:limit]]


def soft_nms(boxes: Tensor, scores: Tensor, labels: Tensor) -> Tensor:
    """Soft-NMS: a score falls by exp(-IoU^2 / sigma) for each better box of its class.

    Bodla et al., "Soft-NMS: Improving Object Detection With One Line of Code", ICCV 2017, equation 3. The paper takes
    one box after the other by the scores that are left; here all lower each other at once, in the order that they have.

    Args:
        boxes: (..., D, 4) finite, best first.
        scores: (..., D).
        labels: (..., D).

    Returns:
        (..., D) the scores, in the boxes' order.
    """
    overlap = iou(boxes[..., :, None, :], boxes[..., None, :, :]) * (labels[..., :, None] == labels[..., None, :])
    return scores * torch.exp(-(overlap.triu(1) ** 2).sum(-2) / SOFT_NMS_SIGMA)


def softened(kept: Boxes, score_threshold: float) -> Boxes:
    """The boxes of one image by the scores of `soft_nms`, best first; without those not above the threshold."""
    scores = soft_nms(kept.boxes.clamp(-FAR_OUTSIDE, FAR_OUTSIDE), kept.scores, kept.labels)
    order = best_first(scores, len(scores))
    return kept._replace(scores=scores).rows(order[scores[order] > score_threshold])


def vote(boxes: Tensor, candidates: Tensor, scores: Tensor) -> Tensor:
    """Score voting: each box becomes a mean of the candidates that overlap it.

    Candidate j weighs score_j exp(-(1 - IoU_j)^2 / sigma) where IoU_j > 0 (Kim and Lee, "Probabilistic Anchor
    Assignment with IoU Prediction for Object Detection", ECCV 2020). A box that no candidate overlaps stays.

    Args:
        boxes: (..., D, 4) finite, after NMS.
        candidates: (..., S, 4) finite, before NMS, the boxes among them.
        scores: (..., D, S) or broadcast to it: at least 0, and 0 for a candidate of another class.

    Returns:
        (..., D, 4).
    """
    boxes, candidates = boxes[..., :, None, :], candidates[..., None, :, :]
    weights = _voting_weights(iou(boxes, candidates), scores)  # (..., D, S)
    # A mean of shifts, not of coordinates: it rounds less, and a box that is alone stays to the bit.
    shift = weights[..., None, :] @ (candidates - boxes) / weights.sum(-1).clamp(min=1e-30)[..., None, None]
    return (boxes + shift).squeeze(-2)


def voted(kept: Boxes, candidates: Boxes) -> Boxes:
    """The boxes `kept` of one image, after the `vote` of its candidates, each among those of its class.

    All classes at once: the candidates are laid out in blocks of one class, filled up with candidates of score 0, and
    a box meets the blocks of its class.
    """
    # What is far outside reaches no image and no other box, and would overflow.
    boxes, voters = (found.boxes.clamp(-FAR_OUTSIDE, FAR_OUTSIDE) for found in (kept, candidates))
    by_class = candidates.labels.argsort(stable=True)
    of_class = candidates.labels.bincount()  # (K,) voters
    blocks = (of_class + BLOCK - 1) // BLOCK  # (K,)
    first = blocks.cumsum(0) - blocks  # (K,) block of each class
    ahead = first * BLOCK - (of_class.cumsum(0) - of_class)  # (K,) how far the filling moves the voters
    place = torch.arange(len(voters)) + ahead.repeat_interleave(of_class)
    # Coordinates and scores lie apart: twice as fast as side by side.
    laid_out = voters.new_zeros(5, int(blocks.sum()) * BLOCK)
    laid_out[:, place] = torch.cat([voters, candidates.scores[:, None]], dim=1).index_select(0, by_class).T
    met = blocks[kept.labels]  # (D,) blocks
    row = torch.arange(len(boxes)).repeat_interleave(met)  # (Q,) which box meets
    block = torch.arange(len(row)) + (first[kept.labels] - met.cumsum(0) + met).repeat_interleave(met)  # (Q,) which
    met_blocks = laid_out.view(5, -1, BLOCK).index_select(1, block)  # (5, Q, BLOCK)
    near, scores = met_blocks[:4], met_blocks[4]
    box = boxes.T.index_select(1, row)[..., None]  # (4, Q, 1)
    weights = _voting_weights(iou(box.movedim(0, -1), near.movedim(0, -1)), scores)  # (Q, BLOCK)
    shift = torch.zeros_like(boxes).index_add_(0, row, (weights * (near - box)).sum(2).T)
    total = weights.new_zeros(len(boxes)).index_add_(0, row, weights.sum(1))
    return kept._replace(boxes=boxes + shift / total.clamp(min=1e-30)[:, None])


def _voting_weights(overlap: Tensor, scores: Tensor) -> Tensor:
    """(...) the weight of a candidate by its IoU with the box and its score."""
    return scores * torch.exp(-((1 - overlap) ** 2) / VOTE_SIGMA) * (overlap > 0)
