"""Settings of post-processing, and what ranks the boxes."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from retinaconf.config.section import Section

JointMethod = Literal["product", "proportional", "cls", "cls*obj"]

VOTE_SIGMA = 0.025  # of score voting, as its paper has it
SOFT_NMS_SIGMA = 0.7  # of Soft-NMS; its paper has 0.5: docs/results.md
SOFT_NMS_IOU = 0.75  # the `nms_iou` that goes with it


class InferenceConfig(Section):
    """From the network's outputs to detections."""

    alpha: float = Field(0.0, ge=0, le=1)
    """Exponent of the quality in the joint score quality^alpha * class^(1 - alpha), equation (11). A higher value makes
    the quality count more; 0 is the class score alone."""
    joint: JointMethod = "product"
    """Joint score: `product` is equation (11); `proportional` applies it to an anchor's best class and keeps the others
    in proportion. `cls` (class score alone) and `cls*obj` (class score times quality) are from Table 4."""
    min_quality: float = Field(0.0, ge=0, lt=1)
    """Drop boxes with a quality at or below this (Table 4's `obj > 0.5`). A higher value drops more boxes."""
    score_threshold: float = Field(0.05, ge=0, lt=1)
    """Drop boxes with a joint score at or below this. A higher value drops more boxes."""
    rules: Literal["paper", "mmdetection", "torchvision", "detectron2"] = "paper"
    """Whose post-processing to follow: the paper's takes the best anchors of a level, the others the best (anchor,
    class) pairs. They also differ in boxes at the image's border."""
    candidates: int = Field(1000, ge=1)
    """Number of anchors (or pairs) of each level that are decoded, best joint score first. A higher value keeps more
    boxes before NMS and takes longer."""
    nms_iou: float = Field(0.5, ge=0, le=1)
    """Non-maximum suppression removes a box whose IoU with a better box of its class exceeds this. A higher value keeps
    more overlapping boxes."""
    soft_nms: bool = False
    """Soft-NMS (Gaussian) after NMS: a box loses score for each better box of its class that it overlaps, and is
    dropped if its score falls to the threshold. Set `nms_iou` to 0.75 with it, so that NMS removes fewer boxes."""
    detections: int = Field(100, ge=1)
    """Largest number of detections kept per image, best joint score first. A higher value adds boxes with lower
    scores."""
    vote: bool = False
    """Score voting (PAA): each box that NMS keeps becomes the mean of the candidates of its class that overlap it,
    weighted by score and IoU. Scores stay as they are."""
