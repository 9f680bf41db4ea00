"""Localization losses of positives: by `loss.box`, and the distribution focal loss with `model.box distribution`."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from retinaconf.model.boxes import area, encode
from retinaconf.model.distances import BINS, distances_to
from retinaconf.model.retinanet import Outputs

EPSILON = 1e-7  # square pixels, so that a box without area divides nothing by 0; as torchvision


def l1(outputs: Outputs, image: Tensor, anchor: Tensor, objects: Tensor) -> Tensor:
    """(P, 4) equation (5): absolute differences of the deltas."""
    return F.l1_loss(outputs.box_deltas[image, anchor], encode(outputs.anchors[anchor], objects), reduction="none")


def giou(outputs: Outputs, image: Tensor, anchor: Tensor, objects: Tensor) -> Tensor:
    """(P, 1) 1 - generalized IoU of the decoded boxes (Rezatofighi et al. 2019)."""
    boxes = outputs.boxes(image, anchor)
    # torchvision's `generalized_box_iou_loss` picks the boxes that overlap by a mask, and so waits for a GPU twice.
    width, height = (torch.min(boxes[:, 2:], objects[:, 2:]) - torch.max(boxes[:, :2], objects[:, :2])).unbind(1)
    shared = torch.where((width > 0) & (height > 0), width * height, 0)
    union = area(boxes) + area(objects) - shared
    around = torch.cat([torch.min(boxes[:, :2], objects[:, :2]), torch.max(boxes[:, 2:], objects[:, 2:])], dim=1)
    hull = area(around)
    losses = 1 - (shared / (union + EPSILON) - (hull - union) / (hull + EPSILON))
    return losses[:, None]


# By `loss.box`: the losses (P, 4 or 1) of the boxes at the anchors (P,) of images (P,), whose objects are (P, 4).
BOX_LOSSES: dict[str, Callable[[Outputs, Tensor, Tensor, Tensor], Tensor]] = {"l1": l1, "giou": giou}


def distribution_focal_loss(box_logits: Tensor, anchors: Tensor, objects: Tensor) -> Tensor:
    """(P, 1) Distribution Focal Loss (Generalized Focal Loss, equation 6), mean over the four sides.

    `box_logits` (P, 4, BINS). The cross entropy with the two bins on either side of the true distance, each weighted by
    its nearness. A side beyond the last bin has the last bin as its target, one behind the centre the first.
    """
    distances = distances_to(anchors, objects).clamp(0, BINS - 1)
    left = distances.floor().clamp(max=BINS - 2).long()
    right_weight = distances - left
    log_p = F.log_softmax(box_logits.float(), dim=-1)
    at_left, at_right = (log_p.gather(-1, bin[..., None]).squeeze(-1) for bin in (left, left + 1))
    return -torch.lerp(at_left, at_right, right_weight).mean(dim=1, keepdim=True)
