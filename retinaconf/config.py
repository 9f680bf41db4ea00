"""All settings, typed and validated. A recipe (`retinaconf.recipes`) is a value of `Config`.

A field's docstring is its `--help`. On disk a configuration is flat: `{"model.backbone": "resnet50.tv_in1k", ...}`.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from retinaconf.cell_anchors import RATIOS, SCALES, CellAnchors
from retinaconf.errors import InputError

QualityLoss = Literal[
    "l1", "smooth-l1", "l2", "gfocal", "ce", "ce-weighted", "varifocal", "gfocal-all", "ce-near", "ce-ranked"
]
Resize = Literal["antialias", "bilinear", "torchvision"]
JointMethod = Literal["product", "proportional", "cls", "cls*obj"]

VOTE_SIGMA = 0.025  # of score voting, as its paper has it


class Section(BaseModel):
    """A group of settings: immutable, no unknown keys."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


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
    head_convs: int = Field(4, ge=0)
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


class DataConfig(Section):
    """How images become batches."""

    layout: Literal["coco", "flat", "roboflow", "voc", "yolo"] | None = None
    """Layout of the data set's folder. If it is not given, the folder's content decides."""
    short_side: int = Field(600, ge=32)
    """Pixels of an image's short side after resizing, unless `long_side` limits it. A higher value shows small objects
    larger and costs time and memory."""
    long_side: int = Field(1000, ge=32)
    """Largest number of pixels of an image's long side after resizing. A higher value lets elongated images reach
    `short_side`."""
    resize: Resize = "antialias"
    """How images are resized: `antialias` like Pillow and Detectron2; plain `bilinear` like OpenCV and MMDetection; or
    in floating point with sides cut to whole pixels, like `torchvision`'s detectors."""
    flip: float = Field(0.5, ge=0, le=1)
    """Probability of a horizontal flip in training. 0 never flips, 1 always does."""
    scale: tuple[float, float] = (1.0, 1.0)
    """Range of a further resize factor, drawn for each training image (log-uniform). A wider range varies object sizes
    more."""
    batch_size: int = Field(16, ge=1)
    """Images in a training step, over all processes and accumulated passes together. A higher value also raises the
    learning rate in proportion."""
    workers: int = Field(2, ge=0)
    """Processes that load images, for each training process. More load faster and need more memory; 0 loads in the
    training process."""
    val_fraction: float = Field(0.2, gt=0, lt=1)
    """Share of the images that becomes `val`, balanced by class, where the data set names no splits. A higher value
    leaves fewer images for training."""
    skip_bad: bool = False
    """Leave out and list unreadable images and unusable annotations instead of stopping."""
    max_skipped: float = Field(0.01, ge=0, le=1)
    """Largest share of a split's images, and of its annotations, that `skip_bad` may leave out, rounded up to whole
    ones. If more are bad, the command stops."""

    @model_validator(mode="after")
    def _ranges(self) -> DataConfig:
        if self.long_side < self.short_side:
            raise ValueError(f"data.long-side {self.long_side} is less than data.short-side {self.short_side}")
        if not 0 < self.scale[0] <= self.scale[1]:
            raise ValueError(f"data.scale {self.scale} is not a range of positive factors")
        return self


class MatchingConfig(Section):
    """Which anchors learn which object."""

    assigner: Literal["max-iou", "atss", "task-aligned"] = "max-iou"
    """`max-iou`: an anchor whose IoU with an object is at least 0.5 (RetinaNet). `atss`: of the anchors nearest to an
    object's centre, those whose IoU with it is exceptional. `task-aligned`: the anchors that already score and fit an
    object best (TOOD), after a first third of the epochs with `atss`."""


class LossConfig(Section):
    """Equations (4), (5), (9) and (13) of the paper, its Table 2, and what others have found since."""

    focal_alpha: float = Field(0.25, ge=0, le=1)
    """Weight of positives in the focal loss; negatives weigh 1 - alpha. A higher value makes positives count more."""
    focal_gamma: float = Field(2.0, ge=0)
    """Focusing exponent of the focal, quality focal and GFocal losses. A higher value makes easy examples count
    less."""
    quality: QualityLoss = "ce"
    """Loss of the quality branch. The first five learn from positives only, the others also from other anchors
    (`quality_loss.py`)."""
    quality_negative_weight: float = Field(1e-4, ge=0)
    """Weight of each negative in `ce-weighted`. A higher value pushes the quality of background down more strongly."""
    quality_weight: float = Field(1.0, ge=0)
    """Weight of the quality loss in the total, equation (10). A higher value favours the quality branch over the other
    tasks."""
    detach_quality_target: bool = False
    """Stop the gradient of the quality loss at its target, the IoU. The released code lets it flow into the box
    branch."""
    joint: Literal["separate", "product"] = "separate"
    """How class score and quality are trained. `separate`: each by its own loss, equation (10). `product`: together,
    by the quality focal loss of the score that ranks, equation (11) at an `inference.alpha` above 0 and up to 0.9."""
    rank: float = Field(0.0, ge=0)
    """Weight of the ranking loss: of two boxes of one object, the one that fits better is to have the higher score.
    A higher value favours the order of an object's boxes over the other tasks; 0 leaves it out."""
    box: Literal["l1", "giou"] = "l1"
    """Localization loss: `l1` of the deltas, equation (5), or `giou`, the generalized IoU loss of the boxes."""
    distribution_weight: float = Field(0.25, ge=0)
    """Weight of the distribution focal loss, with `model.box distribution`. A higher value sharpens the
    distributions."""
    box_weight: float = Field(1.0, ge=0)
    """Weight of the localization loss in the total, equation (10). A higher value favours box accuracy over the other
    tasks."""


class OptimizerConfig(Section):
    """The optimizer, and what happens to gradients before each step."""

    name: Literal["sgd", "adamw"] = "sgd"
    """The optimizer: SGD with momentum, or AdamW."""
    lr: float = Field(0.01, gt=0)
    """Learning rate at `reference_batch` images per step; it is scaled in proportion to `data.batch_size`. A higher
    value takes larger steps and may diverge."""
    reference_batch: int = Field(16, ge=1)
    """The batch size that `lr` is meant for. A higher value lowers the learning rate actually used."""
    momentum: float = Field(0.9, ge=0, lt=1)
    """Momentum of SGD. A higher value averages the gradient over more steps."""
    weight_decay: float = Field(1e-4, ge=0)
    """Weight decay; AdamW does not apply it to norms and biases. A higher value keeps weights smaller."""
    clip_norm: float = Field(0.0, ge=0)
    """Largest norm of the gradient: a longer gradient is scaled down to it. 0 does not clip; a higher value clips
    less."""
    accumulate: int = Field(1, ge=1)
    """Number of forward and backward passes into which each step's batch is split. More passes need less memory and
    change nothing else."""
    ema: float = Field(0.0, ge=0, lt=1)
    """Decay per step of the moving average of the weights, which is evaluated and kept. A higher value averages over
    more steps; 0 uses the weights themselves."""


class ScheduleConfig(Section):
    """The learning rate over time."""

    epochs: int = Field(12, ge=1)
    """Number of passes over the training images: 12 is the paper's 1x, 24 its 2x. More take proportionally longer."""
    decay: Literal["step", "cosine"] = "step"
    """`step` multiplies the learning rate by 0.1 at each milestone. `cosine` lowers it smoothly to 1 % at the end."""
    milestones: tuple[int, ...] = (8, 11)
    """Epochs at whose end `step` multiplies the learning rate by 0.1. Later milestones keep the rate high for
    longer."""
    warmup_steps: int = Field(500, ge=0)
    """Number of steps in which the learning rate rises linearly from `warmup_start` times its value; at most a tenth of
    the run. More make the start gentler; 0 starts at the full rate."""
    warmup_start: float = Field(0.001, ge=0, le=1)
    """Share of the learning rate at which warm-up begins. 1 means no warm-up."""


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
    detections: int = Field(100, ge=1)
    """Largest number of detections kept per image, best joint score first. A higher value adds boxes with lower
    scores."""
    vote: bool = False
    """Score voting (PAA): each box that NMS keeps becomes the mean of the candidates of its class that overlap it,
    weighted by score and IoU. Scores stay as they are."""


class Config(Section):
    """A complete set-up."""

    model: ModelConfig = ModelConfig()
    data: DataConfig = DataConfig()
    matching: MatchingConfig = MatchingConfig()
    loss: LossConfig = LossConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    schedule: ScheduleConfig = ScheduleConfig()
    inference: InferenceConfig = InferenceConfig()
    seed: int = Field(0, ge=0)
    """Decides the initial weights of the head, the order of the images and their augmentation."""
    precision: Literal["32", "bf16-mixed", "16-mixed"] = "32"
    """Arithmetic of the network; losses always use 32 bits. Mixed precision is faster on GPUs and on CPUs with bfloat16
    instructions (AVX512-BF16, AMX), and several times slower on other CPUs."""

    @model_validator(mode="after")
    def _alpha_needs_a_branch(self) -> Config:
        asked = self.inference
        if self.model.quality == "none" and (asked.alpha > 0 or asked.joint == "cls*obj" or asked.min_quality > 0):
            raise ValueError(
                "inference.alpha, joint and min-quality need a quality branch, and model.quality is none; leave them "
                "out, or take a detector with a branch (iou-aware, conf)"
            )
        return self

    @model_validator(mode="after")
    def _what_ranks_is_trained(self) -> Config:
        if self.loss.joint == "product":
            if self.model.quality == "none":
                raise ValueError("loss.joint product needs a quality branch, and model.quality is none")
            if self.model.class_target == "iou":
                raise ValueError("loss.joint product learns the IoU by itself; leave model.class-target at label")
        trained = "loss.joint product" if self.loss.joint == "product" else "loss.rank" if self.loss.rank else None
        if trained and self.model.quality != "none" and self.inference.joint not in ("product", "proportional"):
            raise ValueError(
                f"{trained} trains quality^alpha * class^(1 - alpha), and inference.joint {self.inference.joint} "
                "ranks by another score; set inference.joint product"
            )
        return self

    def flat(self) -> dict[str, Any]:
        """The fields by dotted name, in order."""
        flat: dict[str, Any] = {}
        for name, value in self.model_dump(mode="json").items():
            flat |= {f"{name}.{field}": v for field, v in value.items()} if isinstance(value, dict) else {name: value}
        return flat

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
    if isinstance(stem := flat.get("model.freeze_stem"), bool):  # of version 0.1
        flat = {name: value for name, value in flat.items() if name != "model.freeze_stem"}
        flat["model.freeze"] = "stem" if stem else "none"
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


def validation_message(error: ValidationError) -> str:
    """Pydantic's first complaint as one line that names the field."""
    first = error.errors()[0]
    # A section that is validated by itself does not know its name.
    sections = {info.annotation.__name__: name for name, info in Config.model_fields.items() if info.annotation}
    field = ".".join(str(part) for part in [sections.get(error.title), *first["loc"]] if part is not None)
    message = first["msg"].removeprefix("Value error, ")
    return f"{field}: {message}, not {first['input']!r}" if field and first["type"] != "value_error" else message
