"""Pictures of what a run learns from."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from itertools import islice
from pathlib import Path

from PIL import Image

from retinaconf.config import Config
from retinaconf.data.ground_truth import GroundTruth
from retinaconf.data.loader import training_batches
from retinaconf.errors import InputError, reason
from retinaconf.files import asides, write_aside
from retinaconf.inference.draw import draw_boxes

SAMPLES = 12  # pictures


def write_samples(folder: Path, train_set: GroundTruth, config: Config) -> str:
    """Draw the first training images of the run, augmented, with boxes and class names, a JPEG file each.

    Returns a line that says where they are and how they were augmented.

    Raises:
        InputError: an image cannot be loaded, or the folder cannot be written.
    """
    try:
        folder.mkdir(exist_ok=True)
        for number, (name, picture) in enumerate(islice(_samples(train_set, config), SAMPLES), 1):
            file = folder / f"{number:02} {name[:50]}.jpg"
            for left in asides(file):  # by a process that was killed
                left.unlink()
            write_aside(file, partial(picture.save, format="JPEG", quality=95, subsampling=0))
    except OSError as error:
        raise InputError(f"{folder}: cannot be written ({reason(error)}); choose another --out") from None
    knobs = [f"{name} {value:g}" for name, value in config.data.knobs._asdict().items() if value]
    how = f"augment {config.data.augment}: {', '.join(knobs) or 'nothing'}"
    return f"{folder}: {number} training images as the network sees them; {how}"


def _samples(train_set: GroundTruth, config: Config) -> Iterator[tuple[str, Image.Image]]:
    """The images of the first steps, by the names of their files."""
    data = config.data.model_copy(update={"workers": 0})
    for batch in training_batches(train_set, data, config.seed, 0, -(-SAMPLES // data.batch_size)):
        for n, (height, width) in enumerate(batch.sizes.tolist()):
            pixels = batch.images[n, :, :height, :width].round().byte().permute(1, 2, 0).numpy()
            labels = batch.labels[n][batch.labels[n] >= 0].numpy()
            names = [(train_set.classes[label],) for label in labels]
            picture = draw_boxes(Image.fromarray(pixels), batch.boxes[n, : len(labels)].numpy(), labels, names)
            yield train_set.path(int(batch.index[n])).stem, picture
