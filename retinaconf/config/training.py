"""Settings of the training: matching, losses, optimizer and schedule."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from retinaconf.config.section import Section

QualityLoss = Literal[
    "l1", "smooth-l1", "l2", "gfocal", "ce", "ce-weighted", "varifocal", "gfocal-all", "ce-near", "ce-ranked"
]


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
    """Focusing exponent of the focal, quality focal, varifocal and GFocal losses. A higher value makes easy examples
    count less."""
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
    by a loss of the score that ranks (`iou_score`), equation (11) at an `inference.alpha` above 0 and up to 0.9."""
    iou_score: Literal["quality-focal", "varifocal"] = "quality-focal"
    """Loss of a score that learns the IoU: of the product (`joint product`), or of the class score with
    `model.class-target iou`. `quality-focal` weighs a positive by how far its score is from its IoU (Generalized Focal
    Loss), `varifocal` by its IoU itself (VarifocalNet)."""
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
    kept_lr: float = Field(1.0, gt=0, le=1)
    """Share of the learning rate for layers that have learned before: the backbone, if it has weights, or all layers
    kept from the run that the training starts from. The class score and layers started afresh learn at the full rate.
    A lower value keeps more of what was learned; 1 treats all alike."""
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
    patience: int = Field(0, ge=0)
    """Stop when AP on `val` has not been better for this number of epochs. A higher value waits longer; 0 never stops.
    The last line of a run says what it would have saved."""
    warmup_steps: int = Field(500, ge=0)
    """Number of steps in which the learning rate rises linearly from `warmup_start` times its value; at most a tenth of
    the run. More make the start gentler; 0 starts at the full rate."""
    warmup_start: float = Field(0.001, ge=0, le=1)
    """Share of the learning rate at which warm-up begins. 1 means no warm-up."""
