"""What the boxes of an image do to each other: NMS, Soft-NMS, score voting."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from torchvision.ops import nms

from retinaconf.config import SOFT_NMS_SIGMA, VOTE_SIGMA
from retinaconf.model.boxes import iou

FAR_OUTSIDE = 1e6  # pixels; no box there reaches an image, however large decoding lets it be
MANY = 10_000  # boxes, above which it takes longer to sort all than to find the best
BLOCK = 32  # voters of one class that a box meets at once
BLOCKS_AT_ONCE = 2048  # that boxes meet in one step; what a step computes fits the cache


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


def softened(images: list[Boxes], score_threshold: float) -> list[Boxes]:
    """The boxes of each image by the scores of `soft_nms`, best first; without those not above the threshold."""
    # All images at once; what fills them up overlaps nothing.
    boxes = pad_sequence([kept.boxes for kept in images], batch_first=True).clamp(-FAR_OUTSIDE, FAR_OUTSIDE)
    scores, labels = (pad_sequence(column, batch_first=True) for column in zip(*(kept[1:3] for kept in images)))
    softer = []
    for kept, lowered in zip(images, soft_nms(boxes, scores, labels)):
        found = kept._replace(scores=lowered[: len(kept.scores)])
        order = best_first(found.scores, len(found.scores))
        softer.append(found.rows(order[found.scores[order] > score_threshold]))
    return softer


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


def voted(images: list[Boxes], candidates: list[Boxes]) -> list[Boxes]:
    """The boxes of each image after the `vote` of its candidates, each among those of its class.

    All images and classes at once: a group of candidates shares both. The groups are laid out in blocks, filled up with
    candidates of score 0, and a box meets the blocks of its group.
    """
    boxes, groups = _together(images)
    voters, groups_of_voters = _together(candidates)
    scores = torch.cat([found.scores for found in candidates])
    by_group = groups_of_voters.argsort(stable=True)
    in_group = groups_of_voters.bincount()  # (G,) voters
    blocks = (in_group + BLOCK - 1) // BLOCK  # (G,)
    first = blocks.cumsum(0) - blocks  # (G,) block of each group
    ahead = first * BLOCK - (in_group.cumsum(0) - in_group)  # (G,) how far the filling moves the voters
    place = torch.arange(len(voters)) + ahead.repeat_interleave(in_group)
    # Coordinates and scores lie apart: twice as fast as side by side.
    laid_out = voters.new_zeros(5, int(blocks.sum()) * BLOCK)
    laid_out[:, place] = torch.cat([voters, scores[:, None]], dim=1).index_select(0, by_group).T
    laid_out = laid_out.view(5, -1, BLOCK)
    met = blocks[groups]  # (D,) blocks
    rows = torch.arange(len(boxes)).repeat_interleave(met)  # (Q,) which box meets
    which = torch.arange(len(rows)) + (first[groups] - met.cumsum(0) + met).repeat_interleave(met)  # (Q,) which block
    shift, total = torch.zeros_like(boxes), boxes.new_zeros(len(boxes))
    for row, block in zip(rows.split(BLOCKS_AT_ONCE), which.split(BLOCKS_AT_ONCE)):
        near = laid_out.index_select(1, block)  # (5, Q, BLOCK)
        box = boxes.T.index_select(1, row)[..., None]  # (4, Q, 1)
        weights = _voting_weights(iou(box.movedim(0, -1), near[:4].movedim(0, -1)), near[4])  # (Q, BLOCK)
        shift.index_add_(0, row, (weights * (near[:4] - box)).sum(2).T)
        total.index_add_(0, row, weights.sum(1))
    moved = boxes + shift / total.clamp(min=1e-30)[:, None]
    return [kept._replace(boxes=part) for kept, part in zip(images, moved.split([len(kept.boxes) for kept in images]))]


def _voting_weights(overlap: Tensor, scores: Tensor) -> Tensor:
    """(...) the weight of a candidate by its IoU with the box and its score."""
    return scores * torch.exp(-((1 - overlap) ** 2) / VOTE_SIGMA) * (overlap > 0)


def _together(images: list[Boxes]) -> tuple[Tensor, Tensor]:
    """The boxes of all images (D, 4), and the group of each (D,), of its image and class."""
    # What is far outside reaches no image and no other box, and would overflow.
    boxes = torch.cat([found.boxes for found in images]).clamp(-FAR_OUTSIDE, FAR_OUTSIDE)
    return boxes, torch.cat([found.labels * len(images) + image for image, found in enumerate(images)])
