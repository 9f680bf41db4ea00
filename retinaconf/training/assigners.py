"""The choice of `matching.assigner`: ATSS, task-aligned assignment, and RetinaNet's own, which is in `matching.py`.

An assigner is a function of the network's outputs for a batch, the ground-truth boxes (N, G, 4), their labels (N, G),
-1 where there is no box, and the configuration. It matches each image by itself, so that a batch may be split in any
way. Those in `BY_ANCHORS` only need the anchors, so that they can match before the network has run.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor

from retinaconf.config import Config
from retinaconf.model.anchors import Grid
from retinaconf.model.boxes import iou
from retinaconf.model.retinanet import Outputs
from retinaconf.training.joint_loss import log_score
from retinaconf.training.matching import NEGATIVE, Matches, match

NEAREST = 9  # k of ATSS: cells of a level that are candidates of an object
TOP_ALIGNED = 13  # m of TOOD: positives of an object
FIT_EXPONENT = 6  # beta of TOOD's alignment, score * IoU^beta
ATSS_EPOCHS = 1 / 3  # share of the epochs that task-aligned training starts with (TOOD: 4 of 12)

Assigner = Callable[[Any, Tensor, Tensor, Config], Matches]  # the first: Outputs, or a Grid for those in BY_ANCHORS


def assigner_at(config: Config, epoch: int) -> Assigner:
    """The assigner of a run in its epoch `epoch`, counted from 0."""
    name = config.matching.assigner
    if name == "task-aligned" and epoch < ATSS_EPOCHS * config.schedule.epochs:
        name = "atss"
    return ASSIGNERS[name]


def max_iou(grid: Grid | Outputs, boxes: Tensor, labels: Tensor, config: Config) -> Matches:
    """RetinaNet's assignment, see `match`."""
    return match(grid.anchors, boxes, labels)


@torch.no_grad()
def atss(grid: Grid | Outputs, boxes: Tensor, labels: Tensor, config: Config) -> Matches:
    """Adaptive Training Sample Selection (ATSS, algorithm 1).

    Of each level the anchors at the 9 cells nearest to an object's centre are its candidates. Positive are those whose
    IoU with the object is at least the mean plus the standard deviation over its candidates, and whose centre lies
    inside it; all other anchors are negative. An anchor that several objects claim goes to the one that it overlaps
    most.
    """
    anchors, per_cell = grid.anchors, config.model.cell_anchors.count
    if labels.shape[1] == 0:
        return match(anchors, boxes, labels)
    centres = _centres(anchors)
    candidates = []
    for level, last in zip(centres.split(grid.level_sizes), accumulate(grid.level_sizes)):
        cells = level[::per_cell]  # the anchors of a cell have one centre
        # The cells of an object lie side by side in memory, as topk reads them.
        distances = (cells - _centres(boxes)[:, :, None]).square().sum(dim=3)  # (N, G, cells)
        nearest = distances.topk(min(NEAREST, len(cells)), largest=False, sorted=False).indices
        first = last - len(level)
        candidates += [first + nearest * per_cell + number for number in range(per_cell)]
    candidate = torch.cat(candidates, dim=2).transpose(1, 2)  # (N, C, G)
    overlaps = iou(anchors[candidate], boxes[:, None])
    std, mean = torch.std_mean(overlaps, dim=1, keepdim=True)
    chosen = (overlaps >= mean + std) & _inside(centres[candidate], boxes) & (labels >= 0)[:, None]
    nothing = overlaps.new_full((len(boxes), len(anchors), boxes.shape[1]), -1)
    return _matches_of(nothing.scatter_(1, candidate, torch.where(chosen, overlaps, -1)), labels)


@torch.no_grad()
def task_aligned(outputs: Outputs, boxes: Tensor, labels: Tensor, config: Config) -> Matches:
    """Task-aligned assignment (TOOD, section 3.2): positive are the 13 anchors of an object that are aligned best.

    The alignment of an anchor with an object is score * IoU^6, of the score that ranks for the object's class and the
    predicted box; the anchor's centre lies inside the object. An anchor that several objects claim goes to the one that
    its predicted box overlaps most. The alignments are scaled so that each object's largest is its largest IoU; they
    are what the joint score is to learn, and their sum divides the losses.
    """
    anchors = outputs.anchors
    n, g = labels.shape
    if g == 0:
        nothing = match(anchors, boxes, labels)
        return Matches(nothing.labels, nothing.boxes, torch.zeros(nothing.labels.shape, device=anchors.device))
    image, everywhere = (torch.arange(count, device=anchors.device) for count in (n, len(anchors)))
    predicted = outputs.boxes(image[:, None], everywhere)  # (N, A, 4)
    overlaps = iou(predicted[:, :, None], boxes[:, None])  # (N, A, G)
    classes = labels.clamp(min=0)[:, None].expand(-1, len(anchors), -1)  # (N, A, G)
    class_logits = outputs.class_logits.gather(2, classes)
    quality_logits = None if outputs.quality_logits is None else outputs.quality_logits[..., None]
    scores = log_score(class_logits, quality_logits, config.inference.alpha).exp()
    eligible = _inside(_centres(anchors)[:, None], boxes) & (labels >= 0)[:, None]
    alignments = torch.where(eligible, scores * overlaps**FIT_EXPONENT, 0)
    # NaN counts as largest: where boxes are not finite, their anchors are positive, and the loss is not finite either.
    top = alignments.topk(min(TOP_ALIGNED, len(anchors)), dim=1).indices
    claims = torch.zeros_like(eligible).scatter_(1, top, True) & (alignments != 0)
    matches = _matches_of(torch.where(claims, overlaps, -1), labels)

    own = torch.zeros_like(claims).scatter_(2, matches.boxes[..., None], (matches.labels >= 0)[..., None])
    alignments = torch.where(own, alignments, 0)
    best_overlap = torch.where(own, overlaps, 0).amax(dim=1, keepdim=True)
    scaled = alignments / alignments.amax(dim=1, keepdim=True).clamp(min=torch.finfo(alignments.dtype).tiny)
    return Matches(matches.labels, matches.boxes, (scaled * best_overlap).amax(dim=2))


ASSIGNERS: dict[str, Assigner] = {"max-iou": max_iou, "atss": atss, "task-aligned": task_aligned}
BY_ANCHORS: tuple[Assigner, ...] = (max_iou, atss)


def _matches_of(claims: Tensor, labels: Tensor) -> Matches:
    """Each anchor to the object with the largest of `claims` (N, A, G), IoUs, or -1 where the anchor isn't claimed."""
    best, box = claims.max(dim=2)
    positive = best != -1
    return Matches(torch.where(positive, labels.gather(1, box), NEGATIVE), box * positive)


def _centres(boxes: Tensor) -> Tensor:
    """Centres (..., 2) of boxes (..., 4)."""
    return (boxes[..., :2] + boxes[..., 2:]) / 2


def _inside(points: Tensor, boxes: Tensor) -> Tensor:
    """(N, M, G) whether points, (N, M, G, 2) or a shape that becomes it, lie inside `boxes` (N, G, 4)."""
    after = points > boxes[:, None, :, :2]
    before = points < boxes[:, None, :, 2:]
    return (after & before).all(dim=3)
