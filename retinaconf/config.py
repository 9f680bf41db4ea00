"""Everything that can be set, typed and validated. A recipe (`retinaconf.recipes`) is a value of `Config`.

A field's docstring is its `--help`. On disk a configuration is flat: `{"model.backbone": "resnet50.tv_in1k", ...}`.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from retinaconf.cell_anchors import RATIOS, SCALES, STRIDES, CellAnchors
from retinaconf.errors import InputError, reason

QualityLoss = Literal[
    "l1", "smooth-l1", "l2", "gfocal", "ce", "ce-weighted", "varifocal", "gfocal-all", "ce-near", "ce-ranked"
]
Resize = Literal["antialias", "bilinear", "torchvision"]
JointMethod = Literal["product", "proportional", "cls", "cls*obj"]

LARGEST_ANCHOR = 512  # pixels on P3; then 8,192 on P7


class Section(BaseModel):
    """A group of settings: immutable, no unknown keys."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class ModelConfig(Section):
    """The network: one RetinaNet, of which the paper's four detectors (Figure 3) are settings."""

    backbone: str = "resnet50.tv_in1k"
    """A timm model with features at strides 8, 16 and 32."""
    weights: str = "imagenet"
    """Backbone weights: `imagenet` (fetched by timm, or packaged), `none`, or a .safetensors or .pth file."""
    stride_in_1x1: bool = False
    """ResNets halve the resolution in the first 1x1 convolution of a stage, as Caffe's do, not in the 3x3 one."""
    freeze_stem: bool = True
    """Keep the stem and the first stage (up to stride 4) as they are."""
    freeze_norm: bool = True
    """Keep batch-norm statistics as they are; scale and shift still learn."""
    channels: int = Field(256, ge=8)
    """Channels of the feature pyramid and of the head."""
    p6_from: Literal["c5", "p5"] = "c5"
    """What P6 is computed from; torchvision's first RetinaNet takes P5."""
    relu_before_p7: bool = False
    """ReLU between P6 and P7: the RetinaNet paper and torchvision have it, MMDetection and this paper do not."""
    head_convs: int = Field(4, ge=0)
    """3x3 convolutions in each of the two towers of the head."""
    head_norm: Literal["none", "group"] = "none"
    """Group normalisation (32 groups) behind the convolutions of the towers; torchvision's second RetinaNet has it."""
    anchors: Literal["exact", "torchvision"] = "exact"
    """`exact`, as in MMDetection and Detectron2, or `torchvision`: cut to whole pixels."""
    anchor_ratios: tuple[float, ...] = RATIOS
    """Height to width of the anchors: every cell has each ratio at each scale. `retinaconf check` proposes ratios and
    scales where the objects of a data set need others."""
    anchor_scales: tuple[float, ...] = SCALES
    """Side of a square anchor in strides of its level: 4 is 32 pixels on P3, of stride 8, and 512 on P7, of 128."""
    quality: Literal["none", "classification", "localization"] = "none"
    """Tower that carries the quality branch: `classification` is RetinaNet-Conf, `localization` IoU-aware RetinaNet."""
    class_target: Literal["label", "iou"] = "label"
    """What the class score learns at positives: 1 (focal loss), or the IoU (quality focal loss, the joint head)."""
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    """Mean of the backbone's training images, RGB, of 1."""
    std: tuple[float, float, float] = (0.229, 0.224, 0.225)
    """Standard deviation of the backbone's training images, RGB, of 1."""

    @model_validator(mode="after")
    def _fits_together(self) -> ModelConfig:
        if self.class_target == "iou" and self.quality != "none":
            raise ValueError("model.class-target iou is itself the joint score; set model.quality none with it")
        if self.head_norm == "group" and self.channels % 32:
            raise ValueError(f"model.head-norm group needs channels in multiples of 32, not {self.channels}")
        return self

    @model_validator(mode="after")
    def _anchors_are_boxes(self) -> ModelConfig:
        for name, values in (("ratios", self.anchor_ratios), ("scales", self.anchor_scales)):
            if not values or min(values) <= 0 or len(set(values)) < len(values):
                raise ValueError(f"model.anchor-{name} {values}: give one or more positive numbers, each once")
        for sides in self.cell_anchors.sides(STRIDES[0]):
            if min(sides) < 1 or max(sides) > LARGEST_ANCHOR:
                raise ValueError(
                    f"model.anchor-ratios and model.anchor-scales make an anchor of {sides[0]:.3g} x {sides[1]:.3g} "
                    f"pixels on P3; its sides must be from 1 to {LARGEST_ANCHOR}"
                )
        return self

    @property
    def cell_anchors(self) -> CellAnchors:
        """The anchors of a cell, of which the head has an output each."""
        return CellAnchors(self.anchor_ratios, self.anchor_scales, whole_pixels=self.anchors == "torchvision")


class DataConfig(Section):
    """Images to batches."""

    layout: Literal["coco", "flat", "roboflow", "voc", "yolo"] | None = None
    """Layout of the data set's folder; without it, found by looking."""
    short_side: int = Field(600, ge=32)
    """Images are resized until their short side has this many pixels ..."""
    long_side: int = Field(1000, ge=32)
    """... unless the long side would then be longer than this."""
    resize: Resize = "antialias"
    """`antialias` as Pillow and Detectron2 do; plain `bilinear` as OpenCV and MMDetection; or in floating point, with
    sides cut to whole pixels, as `torchvision`'s detectors."""
    flip: float = Field(0.5, ge=0, le=1)
    """Probability of a horizontal flip in training."""
    scale: tuple[float, float] = (1.0, 1.0)
    """Training images are resized by a further factor drawn from this range (log-uniform)."""
    batch_size: int = Field(16, ge=1)
    """Images a training step, over all processes and accumulated passes together."""
    workers: int = Field(2, ge=0)
    """Processes that load images, for each training process."""
    val_fraction: float = Field(0.2, gt=0, lt=1)
    """Share of the images that becomes `val`, balanced by class, where the data set names no splits."""
    skip_bad: bool = False
    """Leave out, and list, unreadable images and unusable annotations instead of stopping."""
    max_skipped: float = Field(0.01, ge=0, le=1)
    """Largest share of a split's images, and of its annotations, that `skip_bad` leaves out, rounded up to whole ones;
    with more the command stops."""

    @model_validator(mode="after")
    def _ranges(self) -> DataConfig:
        if self.long_side < self.short_side:
            raise ValueError(f"data.long-side {self.long_side} is less than data.short-side {self.short_side}")
        if not 0 < self.scale[0] <= self.scale[1]:
            raise ValueError(f"data.scale {self.scale} is not a range of positive factors")
        return self


class LossConfig(Section):
    """Equations (4), (5), (9) and (13) of the paper, and its Table 2."""

    focal_alpha: float = Field(0.25, ge=0, le=1)
    """Weight of positives in the focal loss; negatives weigh 1 - alpha."""
    focal_gamma: float = Field(2.0, ge=0)
    """Focusing exponent of the focal, quality focal and GFocal losses."""
    quality: QualityLoss = "ce"
    """Loss of the quality branch: the first five over positives, the others beyond them, too (`quality_loss.py`)."""
    quality_negative_weight: float = Field(1e-4, ge=0)
    """Weight of a negative in `ce-weighted`."""
    quality_weight: float = Field(1.0, ge=0)
    """Weight of the quality loss in the total, equation (10)."""
    detach_quality_target: bool = False
    """Stop the gradient of the quality loss at its target, the IoU; the released code lets it into the box branch."""
    box_weight: float = Field(1.0, ge=0)
    """Weight of the localization loss in the total, equation (10)."""


class OptimizerConfig(Section):
    """The optimizer, and what happens to gradients before it."""

    name: Literal["sgd", "adamw"] = "sgd"
    """SGD with momentum, or AdamW."""
    lr: float = Field(0.01, gt=0)
    """Learning rate for `reference_batch` images a step; scaled in proportion to data.batch-size."""
    reference_batch: int = Field(16, ge=1)
    """The batch size that `lr` is meant for."""
    momentum: float = Field(0.9, ge=0, lt=1)
    """Momentum of SGD."""
    weight_decay: float = Field(1e-4, ge=0)
    """Weight decay; with AdamW not on norms and biases."""
    clip_norm: float = Field(0.0, ge=0)
    """Largest norm of the gradient; 0 does not clip."""
    accumulate: int = Field(1, ge=1)
    """Passes a step: the batch is split into so many parts, which saves memory and changes nothing else."""
    ema: float = Field(0.0, ge=0, lt=1)
    """Decay a step of the averaged weights that are evaluated and kept; 0 keeps the weights themselves."""


class ScheduleConfig(Section):
    """The learning rate over time."""

    epochs: int = Field(12, ge=1)
    """Passes over the training images: 12 is the paper's 1x, 24 its 2x."""
    decay: Literal["step", "cosine"] = "step"
    """`step`: x0.1 at the milestones; `cosine`: down to 1 % at the end."""
    milestones: tuple[int, ...] = (8, 11)
    """Epochs at whose end `step` multiplies the learning rate by 0.1."""
    warmup_steps: int = Field(500, ge=0)
    """Steps in which the learning rate rises linearly ..."""
    warmup_start: float = Field(0.001, ge=0, le=1)
    """... from this share of itself."""


class InferenceConfig(Section):
    """From the network's outputs to detections."""

    alpha: float = Field(0.0, ge=0, le=1)
    """Exponent of the quality in the joint score quality^alpha * class^(1 - alpha), equation (11)."""
    joint: JointMethod = "product"
    """Joint score: equation (11); the same for an anchor's best class, with the others in proportion; of Table 4 the
    class score alone, or the plain product of both."""
    min_quality: float = Field(0.0, ge=0, lt=1)
    """Drop boxes with a quality at or below this: Table 4's `obj > 0.5`."""
    score_threshold: float = Field(0.05, ge=0, lt=1)
    """Drop joint scores at or below this."""
    rules: Literal["paper", "mmdetection", "torchvision", "detectron2"] = "paper"
    """Whose post-processing. The paper's takes the best anchors of a level, the others the best (anchor, class) pairs;
    they differ in boxes at the image's border."""
    candidates: int = Field(1000, ge=1)
    """Anchors (or pairs) of each level that are decoded, the best by joint score."""
    nms_iou: float = Field(0.5, ge=0, le=1)
    """Non-maximum suppression removes boxes of the same class that overlap a better one by more than this."""
    detections: int = Field(100, ge=1)
    """Detections kept an image."""


class Config(Section):
    """A complete set-up."""

    model: ModelConfig = ModelConfig()
    data: DataConfig = DataConfig()
    loss: LossConfig = LossConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    schedule: ScheduleConfig = ScheduleConfig()
    inference: InferenceConfig = InferenceConfig()
    seed: int = Field(0, ge=0)
    """Decides the initial weights of the head, the order of the images and their augmentation."""
    precision: Literal["32", "bf16-mixed", "16-mixed"] = "32"
    """Arithmetic of the network; losses are always in 32 bits."""

    @model_validator(mode="after")
    def _alpha_needs_a_branch(self) -> Config:
        inference = self.inference
        uses_quality = inference.alpha > 0 or inference.joint == "cls*obj" or inference.min_quality > 0
        if self.model.quality == "none" and uses_quality:
            raise ValueError(
                "inference.alpha, joint and min-quality need a quality branch, and model.quality is none; leave them "
                "out, or take a detector with a branch (iou-aware, conf)"
            )
        return self

    def flat(self) -> dict[str, Any]:
        """The fields by dotted name, in order."""
        return dict(_flatten(self.model_dump(mode="json"), ""))

    def changed(self, **changes: Any) -> Config:
        """A validated copy with dotted fields changed: `config.changed(**{"optimizer.lr": 0.005})`.

        Raises:
            InputError: a name or a value does not fit.
        """
        return config_from_flat(self.flat() | changes)


def config_from_flat(flat: dict[str, Any], source: str = "") -> Config:
    """The configuration of a flat dictionary; messages name its `source`, if it has one.

    Raises:
        InputError: an unknown field, or a value that does not fit.
    """
    prefix = f"{source}: " if source else ""
    known = Config().flat()
    if unknown := [name for name in flat if name not in known]:
        raise InputError(f"{prefix}unknown setting {unknown[0]!r}; `retinaconf train RECIPE --help` lists them")
    nested: dict[str, Any] = {}
    for name, value in flat.items():
        section, _, field = name.rpartition(".")
        (nested.setdefault(section, {}) if section else nested)[field] = value
    try:
        return Config.model_validate(nested)
    except ValidationError as error:
        raise InputError(prefix + validation_message(error)) from None


def read_config(path: Path) -> Config:
    """The configuration in a run's `config.json`.

    Raises:
        InputError: the file is missing, is not JSON, or does not fit.
    """
    try:
        flat = json.loads(path.read_text())
    except FileNotFoundError:
        raise InputError(f"{path}: no such file; is {path.parent} a run folder?") from None
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: not a readable configuration ({reason(error)})") from None
    if not isinstance(flat, dict):
        raise InputError(f"{path}: not a readable configuration (it is not an object of settings)")
    return config_from_flat(flat, str(path))


def validation_message(error: ValidationError) -> str:
    """Pydantic's first complaint as one line that names the field."""
    first = error.errors()[0]
    # A section that is validated by itself does not know its name.
    sections = {info.annotation.__name__: name for name, info in Config.model_fields.items() if info.annotation}
    field = ".".join(str(part) for part in [sections.get(error.title), *first["loc"]] if part is not None)
    message = first["msg"].removeprefix("Value error, ")
    return f"{field}: {message}, not {first['input']!r}" if field and first["type"] != "value_error" else message


def _flatten(nested: dict[str, Any], prefix: str) -> Iterator[tuple[str, Any]]:
    for name, value in nested.items():
        if isinstance(value, dict):
            yield from _flatten(value, f"{prefix}{name}.")
        else:
            yield prefix + name, value
