"""Settings of the network."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from retinaconf.cell_anchors import RATIOS, SCALES, CellAnchors
from retinaconf.config.section import Section


class ModelConfig(Section):
    """The network. It is one RetinaNet; the paper's four detectors (Figure 3) are settings of it."""

    backbone: str = "resnet50.tv_in1k"
    """Name of a timm model that has features at strides 8, 16 and 32."""
    weights: str = "imagenet"
    """Weights to start from: for the backbone `imagenet` (fetched by timm, or packaged), `none`, or a .safetensors or
    .pth file; for the whole detector a run, of which all that fits is taken (`train RUN`)."""
    stride_in_1x1: bool = False
    """ResNets halve the resolution in the first 1x1 convolution of a stage, like Caffe's, not in the 3x3
    convolution."""
    freeze: Literal["none", "stem", "backbone", "all but class"] = "stem"
    """What does not learn: nothing, the `stem` with the first stage of the backbone (up to stride 4), the whole
    `backbone` with its norms' statistics, or `all but class`, the last layer of the class score. What the last two
    freeze must have learned before: they need weights to start from."""
    freeze_norm: bool = True
    """Keep the backbone's batch-norm statistics fixed. Scale and shift still learn."""
    channels: int = Field(256, ge=8)
    """Channels of the feature pyramid and of the head. More make the network larger and slower."""
    p6_from: Literal["c5", "p5"] = "c5"
    """The feature map from which P6 is computed. torchvision's first RetinaNet uses P5."""
    relu_before_p7: bool = False
    """Apply a ReLU between P6 and P7. The RetinaNet paper and torchvision have it; MMDetection and this paper do
    not."""
    head_convs: int = Field(4, ge=0, le=100)
    """Number of 3x3 convolutions in each of the head's two towers. More make the head larger and slower."""
    head_norm: Literal["none", "group"] = "none"
    """Group normalisation (32 groups) after each convolution of the towers. torchvision's second RetinaNet has it."""
    anchors: Literal["exact", "torchvision"] = "exact"
    """`exact` keeps fractional anchor sides, like MMDetection and Detectron2. `torchvision` makes them whole pixels."""
    anchor_ratios: tuple[float, ...] = RATIOS
    """Ratios of height to width of the anchors: higher values give taller anchors. Every cell has each ratio at each
    scale, and `retinaconf check` proposes values that fit a data set."""
    anchor_scales: tuple[float, ...] = SCALES
    """Side of a square anchor in strides of its level: 4 is 32 pixels on P3 (stride 8) and 512 pixels on P7 (stride
    128). Higher values give larger anchors."""
    box: Literal["deltas", "distances", "distribution"] = "deltas"
    """What the head says of a box. `deltas`: how to shift and stretch the anchor. `distances`: how far the box's sides
    are from the anchor's centre. `distribution`: a distribution over these distances (Generalized Focal Loss)."""
    level_scale: bool = False
    """Multiply the box outputs of each pyramid level by a learned number, like FCOS and ATSS."""
    quality: Literal["none", "classification", "localization", "distribution"] = "none"
    """The quality branch, by what it sees. `classification`: that tower (RetinaNet-Conf). `localization`: that tower
    (IoU-aware RetinaNet). `distribution`: the sharpness of the box's own distribution (GFLv2)."""
    class_target: Literal["label", "iou"] = "label"
    """What the class score learns at positives: `label` is 1 (focal loss), `iou` is the box's IoU (quality focal loss,
    the joint head)."""
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    """Mean of the images that the backbone was trained on: red, green and blue, from 0 to 1."""
    std: tuple[float, float, float] = (0.229, 0.224, 0.225)
    """Standard deviation of the images that the backbone was trained on: red, green and blue, from 0 to 1."""

    @model_validator(mode="after")
    def _fits_together(self) -> ModelConfig:
        if self.class_target == "iou" and self.quality != "none":
            raise ValueError("model.class-target iou is itself the joint score; set model.quality none with it")
        if self.quality == "distribution" and self.box != "distribution":
            raise ValueError("model.quality distribution reads the box's distribution; set model.box distribution")
        if min(self.std) <= 0:
            raise ValueError(f"model.std {self.std} divides the colours; give numbers above 0")
        if self.head_norm == "group" and self.channels % 32:
            raise ValueError(f"model.head-norm group needs channels in multiples of 32, not {self.channels}")
        return self

    @model_validator(mode="after")
    def _anchors_are_boxes(self) -> ModelConfig:
        if fault := self.cell_anchors.fault():
            raise ValueError(fault)
        return self

    @property
    def cell_anchors(self) -> CellAnchors:
        """The anchors of a cell, of which the head has an output each."""
        return CellAnchors(self.anchor_ratios, self.anchor_scales, whole_pixels=self.anchors == "torchvision")
