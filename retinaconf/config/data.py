"""Settings of images and batches."""

from __future__ import annotations

from typing import Literal, NamedTuple

from pydantic import Field, model_validator

from retinaconf.config.section import Section

Resize = Literal["antialias", "bilinear", "torchvision"]
Preset = Literal["none", "flip", "light", "strong"]


class Augment(NamedTuple):
    """How training images are varied: a number for each knob of `DataConfig`."""

    flip: float = 0.0
    vertical_flip: float = 0.0
    turn: float = 0.0
    crop: float = 0.0
    zoom_out: float = 0.0
    mosaic: float = 0.0
    colour: float = 0.0
    hue: float = 0.0
    blur: float = 0.0
    jpeg: float = 0.0


# A run's config.json names its preset: a change here would change what old runs mean.
PRESETS: dict[Preset, Augment] = {
    "none": Augment(),
    "flip": Augment(flip=0.5),
    "light": Augment(flip=0.5, crop=0.3, zoom_out=0.2, colour=0.2),
    "strong": Augment(flip=0.5, crop=0.4, zoom_out=0.3, mosaic=0.5, colour=0.4, hue=0.03, blur=0.1, jpeg=0.2),
}


LARGEST_SIDE = 8192  # pixels: settings may be a stranger's, and memory grows with the square
LARGEST_SCALE = 10


class DataConfig(Section):
    """How images become batches."""

    layout: Literal["coco", "flat", "roboflow", "voc", "yolo"] | None = None
    """Layout of the data set's folder. If it is not given, the folder's content decides."""
    short_side: int = Field(600, ge=32, le=LARGEST_SIDE)
    """Pixels of an image's short side after resizing, unless `long_side` limits it. A higher value shows small objects
    larger and costs time and memory."""
    long_side: int = Field(1000, ge=32, le=LARGEST_SIDE)
    """Largest number of pixels of an image's long side after resizing. A higher value lets elongated images reach
    `short_side`."""
    resize: Resize = "antialias"
    """How images are resized: `antialias` like Pillow and Detectron2; plain `bilinear` like OpenCV and MMDetection; or
    in floating point with sides cut to whole pixels, like `torchvision`'s detectors."""
    augment: Preset = "flip"
    """How training images are varied, apart from `scale`: `none`; `flip`, a horizontal flip; `light`, also crops,
    zooming out and colour; `strong`, also mosaics, hue, blur and JPEG, and more of the others. The ten settings from
    `flip` to `jpeg` are its parts: a number replaces the preset's, null (`None` as an option) keeps it."""
    flip: float | None = Field(None, ge=0, le=1)
    """Probability of a horizontal flip in training. 0 never flips, 1 always does. 0.5 in all presets but `none`."""
    vertical_flip: float | None = Field(None, ge=0, le=1)
    """Probability of a flip upside down, for pictures that have no up, such as cells or aerial views. 0 in all
    presets."""
    turn: float | None = Field(None, ge=0, le=1)
    """Probability of a turn by 90, 180 or 270 degrees, for pictures that have no up. At 0.75 all four directions are
    equally likely. 0 in all presets."""
    crop: float | None = Field(None, ge=0, le=1)
    """Probability that a training image is cut to a part around one of its objects and enlarged, up to twice. 0.3 in
    `light`, 0.4 in `strong`."""
    zoom_out: float | None = Field(None, ge=0, le=1)
    """Probability that a training image which is not cropped is shown smaller, down to half, on grey. 0.2 in `light`,
    0.3 in `strong`."""
    mosaic: float | None = Field(None, ge=0, le=1)
    """Probability that a training image becomes one of four in a mosaic, which costs the reading of four. 0.5 in
    `strong`."""
    colour: float | None = Field(None, ge=0, le=1)
    """Largest change of brightness, of contrast and of saturation, each as a share: 0.2 draws factors from 0.8 to 1.2.
    0.2 in `light`, 0.4 in `strong`."""
    hue: float | None = Field(None, ge=0, le=0.5)
    """Largest change of hue, as a share of the colour circle. A higher value makes colours useless to tell classes
    apart. 0.03 in `strong`."""
    blur: float | None = Field(None, ge=0, le=1)
    """Probability of a Gaussian blur, of up to 2 pixels' standard deviation. 0.1 in `strong`."""
    jpeg: float | None = Field(None, ge=0, le=1)
    """Probability of JPEG's noise, at a quality of 30 to 90. 0.2 in `strong`."""
    scale: tuple[float, float] = (1.0, 1.0)
    """Range of a further resize factor, drawn for each training image (log-uniform), whatever `augment` is; up to
    10. A wider range varies object sizes more."""
    batch_size: int = Field(16, ge=1, le=65_536)
    """Images in a training step, over all processes and accumulated passes together; up to 65,536. A higher value also
    raises the learning rate in proportion."""
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
        if not 0 < self.scale[0] <= self.scale[1] <= LARGEST_SCALE:
            raise ValueError(f"data.scale {self.scale} is not a range of factors above 0, up to {LARGEST_SCALE}")
        return self

    @property
    def knobs(self) -> Augment:
        """The number of each knob: its own, or the preset's."""
        preset = PRESETS[self.augment]._asdict()
        own = {name: value for name in preset if (value := getattr(self, name)) is not None}
        return Augment(**(preset | own))
