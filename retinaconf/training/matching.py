"""Which anchor is to find which object (RetinaNet, section 4; the rules of MMDetection's `MaxIoUAssigner`).

Other ways to decide it: `retinaconf.training.assigners`.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from retinaconf.model.boxes import iou
from retinaconf.model.retinanet import Outputs

POSITIVE_IOU = 0.5  # at least this with some object: positive
NEGATIVE_IOU = 0.4  # less than this with every object: negative; between the two: ignored

NEGATIVE, IGNORED = -1, -2
OBJECTS_AT_ONCE = 100  # the memory is in proportion to them; few images have more


@dataclass(frozen=True)
class Matches:
    """The target of every anchor of a batch."""

    labels: Tensor  # (N, A) int64: a class at positives, else NEGATIVE or IGNORED
    boxes: Tensor  # (N, A) int64: at positives the ground-truth row in 0 ... G - 1, else 0
    alignments: Tensor | None = None  # (N, A) of task-aligned assignment, in [0, 1]: 0 at anchors that aren't positive

    @property
    def positives(self) -> int:
        """Positive anchors in the whole batch."""
        return int((self.labels >= 0).sum())

    @property
    def normaliser(self) -> Tensor:
        """() float32 by which the losses are divided: the number of positives, or the sum of their alignments."""
        return (self.labels >= 0).sum().float() if self.alignments is None else self.alignments.sum()

    @cached_property
    def index(self) -> tuple[Tensor, Tensor]:
        """Image and anchor, (P,) each, of the positives of the batch: image by image, anchors in their order.

        Found once and kept: their number is the one thing for which a training step waits for a GPU.
        """
        image, anchor = torch.nonzero(self.labels >= 0, as_tuple=True)
        return image, anchor

    def objects(self, boxes: Tensor) -> Tensor:
        """(P, 4) the object of each positive, out of the ground truth `boxes` (N, G, 4)."""
        image, anchor = self.index
        return boxes[image, self.boxes[image, anchor]]


def positive_overlaps(outputs: Outputs, matches: Matches, boxes: Tensor) -> Tensor:
    """(P,) IoU of the box predicted at each positive with its object; the gradient flows into the box outputs.

    `boxes` (N, G, 4) is the ground truth that `matches` refers to.
    """
    return iou(outputs.boxes(*matches.index), matches.objects(boxes))


@torch.no_grad()
def match(anchors: Tensor, boxes: Tensor, labels: Tensor) -> Matches:
    """Match anchors (A, 4) to ground truth boxes (N, G, 4) with labels (N, G), -1 where there is no box.

    An anchor is positive for the object that it overlaps most, from IoU 0.5 on. Besides, every object has all anchors
    that tie for its best IoU, if that is above 0, whatever else these overlap; where two objects claim one so, the
    later has it. (torchvision's low-quality matches keep the anchor's own best object instead.)

    Crowd regions are no targets and are not given here: as in MMDetection with `ignore_iof_thr=-1`, anchors on them
    are negatives like any others.
    """
    n, g = labels.shape
    if g == 0:
        return Matches(labels.new_full((n, len(anchors)), NEGATIVE), labels.new_zeros(n, len(anchors)))
    best = boxes.new_full((n, len(anchors)), -1)
    box = labels.new_zeros(best.shape)
    claimed_by = labels.new_full(best.shape, -1)  # -1 where no object claims the anchor
    for first in range(0, g, OBJECTS_AT_ONCE):
        objects = slice(first, first + OBJECTS_AT_ONCE)
        overlaps = iou(anchors[:, None], boxes[:, None, objects])  # (N, A, objects)
        overlaps.masked_fill_(labels[:, None, objects] < 0, -1)
        overlap, index = overlaps.max(dim=2)
        box = torch.where(overlap > best, first + index, box)  # of equals the first
        best = torch.maximum(best, overlap)
        best_of_object = overlaps.amax(dim=1, keepdim=True)  # (N, 1, objects)
        claims = (overlaps == best_of_object) & (best_of_object > 0)
        later = claims * torch.arange(1, claims.shape[2] + 1, dtype=torch.int32, device=claims.device)
        later = later.amax(dim=2)
        claimed_by = torch.where(later > 0, first + later - 1, claimed_by)

    target = torch.where(best < NEGATIVE_IOU, NEGATIVE, IGNORED)
    box = torch.where(claimed_by >= 0, claimed_by, box)
    positive = (best >= POSITIVE_IOU) | (claimed_by >= 0)
    return Matches(torch.where(positive, labels.gather(1, box), target), box * positive)
