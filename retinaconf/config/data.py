"""Settings of images and batches."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from retinaconf.config.section import Section

Resize = Literal["antialias", "bilinear", "torchvision"]


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
    val_fraction: float = Field(0.1, ge=0, lt=1)
    """Share of the images of `train` that is held out as `val`, balanced by class, where the data set has no `val`. A
    higher value leaves fewer images for training; 0 trains on all of them, without validation."""
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
