"""All settings, typed and validated. A recipe (`retinaconf.recipes`) is a value of `Config`.

A field's docstring is its `--help`. On disk a configuration is flat: `{"model.backbone": "resnet50.tv_in1k", ...}`.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, ValidationError, model_validator

from retinaconf.config.data import PRESETS, Augment, DataConfig, Resize
from retinaconf.config.inference import SOFT_NMS_IOU, SOFT_NMS_SIGMA, VOTE_SIGMA, InferenceConfig, JointMethod
from retinaconf.config.model import ModelConfig
from retinaconf.config.section import Section
from retinaconf.config.training import LossConfig, MatchingConfig, OptimizerConfig, QualityLoss, ScheduleConfig
from retinaconf.errors import InputError

__all__ = [
    "PRESETS",
    "SOFT_NMS_IOU",
    "SOFT_NMS_SIGMA",
    "VOTE_SIGMA",
    "Augment",
    "Config",
    "DataConfig",
    "InferenceConfig",
    "JointMethod",
    "LossConfig",
    "MatchingConfig",
    "ModelConfig",
    "OptimizerConfig",
    "QualityLoss",
    "Resize",
    "ScheduleConfig",
    "config_from_flat",
    "validation_message",
]


class Config(Section):
    """A complete set-up."""

    # Without a description, `--help` looks for one in the source of every base class. That of pydantic's takes 60 ms.
    model: ModelConfig = Field(ModelConfig(), description=ModelConfig.__doc__)
    data: DataConfig = Field(DataConfig(), description=DataConfig.__doc__)
    matching: MatchingConfig = Field(MatchingConfig(), description=MatchingConfig.__doc__)
    loss: LossConfig = Field(LossConfig(), description=LossConfig.__doc__)
    optimizer: OptimizerConfig = Field(OptimizerConfig(), description=OptimizerConfig.__doc__)
    schedule: ScheduleConfig = Field(ScheduleConfig(), description=ScheduleConfig.__doc__)
    inference: InferenceConfig = Field(InferenceConfig(), description=InferenceConfig.__doc__)
    seed: int = Field(0, ge=0)
    """Decides the initial weights of the head, the order of the images and their augmentation."""
    precision: Literal["32", "bf16-mixed", "16-mixed"] = "32"
    """Arithmetic of the network; losses always use 32 bits. Mixed precision is faster on GPUs and on CPUs with bfloat16
    instructions (AVX512-BF16, AMX), and several times slower on other CPUs."""
    compile: bool = False
    """Compile the network with `torch.compile` for training. The first step on a size of a padded batch then takes up
    to a few minutes. After eight sizes, batches of others are not compiled. On a GPU, the later steps take less time.
    Results change by rounding only. It needs a C++ compiler."""

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

    def deciding(self) -> dict[str, Any]:
        """The fields that decide a run's result, by dotted name: without how images are loaded, and without the share
        of `val`, as a run keeps which images it holds out. Knobs of augmentation have their numbers.
        """
        flat = self.flat() | {f"data.{name}": knob for name, knob in self.data.knobs._asdict().items()}
        return {name: value for name, value in flat.items() if name not in ("data.workers", "data.val_fraction")}

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
