"""What decoding large JPEG files at a reduced size (Pillow's `Image.draft`) would save, and how pixels would change.

    python benchmarks/draft.py --data coco-mini [--images 8]

Pictures of the split `val` are enlarged 2, 4 and 8 times, saved as JPEG of quality 90, and read and resized as for
training, whole and with a draft that is at least as large as the result. Times are of the processor: the least of three
for each picture, and the median over the pictures. The package itself always decodes whole.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image

from retinaconf.data.images import read_image
from retinaconf.data.layouts import load_split
from retinaconf.data.transforms import Augmentation, apply, resized

NO_BOXES = np.zeros((0, 4))


def whole(file: Path, change: Augmentation) -> np.ndarray:
    """The resized picture, as the package reads it."""
    return apply(read_image(file), NO_BOXES, change)[0]


def drafted(file: Path, change: Augmentation) -> np.ndarray:
    """The resized picture, from a decoding at an eighth, a quarter or a half of its size where that is enough."""
    with Image.open(file) as image:
        image.draft("RGB", (change.width, change.height))
        return apply(image.convert("RGB"), NO_BOXES, change)[0]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--images", type=int, default=8)
    options = parser.parse_args()
    split = load_split(options.data, "val")
    print(
        f"{'picture':>12}{'short side':>12}{'whole':>10}{'draft':>10}{'ratio':>8}{'mean change':>14}{'more than 2':>13}"
    )
    with tempfile.TemporaryDirectory() as folder:
        for factor in (2, 4, 8):
            files = []
            for index in range(options.images):
                picture = read_image(split.path(index))
                files.append(Path(folder) / f"{index}-{factor}.jpg")
                size = (picture.width * factor, picture.height * factor)
                picture.resize(size, Image.Resampling.LANCZOS).save(files[-1], quality=90)
            for short, long in ((608, 1024), (320, 560)):
                times: list[list[float]] = [[], []]
                changes = []
                for file in files:
                    with Image.open(file) as image:
                        height, width = image.height, image.width
                    change = Augmentation(
                        *resized((height, width), short, long, resize="antialias"), resize="antialias"
                    )
                    pixels = []
                    for way, seconds in zip((whole, drafted), times):
                        tries = []
                        for _ in range(3):
                            started = time.process_time()
                            result = way(file, change)
                            tries.append(time.process_time() - started)
                        pixels.append(result.astype(int))
                        seconds.append(min(tries))
                    changes.append(np.abs(pixels[0] - pixels[1]))
                of_whole, of_draft = (1e3 * statistics.median(seconds) for seconds in times)
                mean, seen = (np.mean([part.mean() for part in each]) for each in (changes, [c > 2 for c in changes]))
                print(
                    f"{width:>7}x{height}{short:>12}{of_whole:>7.1f} ms{of_draft:>7.1f} ms{of_draft / of_whole:>8.2f}"
                    f"{mean:>14.2f}{seen:>13.1%}",
                    flush=True,
                )


if __name__ == "__main__":
    main()
