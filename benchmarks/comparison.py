"""How long `retinaconf compare` takes on two files of 5,000 images and 500,000 detections each, and how much memory.

    python benchmarks/comparison.py [--images 5000] [--detections 100] [--classes 80]

Writes the files into a temporary folder: 7 objects an image, and detections that are shifted copies of them, of every
quality, or boxes on nothing. The command runs as a process of its own.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import subprocess
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

PER_IMAGE = 7  # objects; val2017 has 7.3


def write_files(folder: Path, images: int, detections: int, classes: int) -> None:
    """`gt.json`, and the results `a.json` and `b.json` of two detectors, the second of which places boxes better."""
    random = np.random.default_rng(0)
    count = images * PER_IMAGE
    side = np.exp(random.uniform(np.log(12), np.log(300), (count, 2)))
    boxes = np.concatenate([random.uniform(0, 1, (count, 2)) * (640 - side), side], axis=1)
    label = random.integers(0, classes, count)
    truth = {
        "images": [{"id": i + 1, "file_name": f"{i}.jpg", "width": 640, "height": 640} for i in range(images)],
        "categories": [{"id": k + 1, "name": f"class {k}"} for k in range(classes)],
        "annotations": [
            {"id": i + 1, "image_id": i // PER_IMAGE + 1, "category_id": int(label[i]) + 1, "bbox": box, "iscrowd": 0}
            for i, box in enumerate(boxes.round(2).tolist())
        ],
    }
    (folder / "gt.json").write_text(json.dumps(truth))
    for name, spread in (("a", 0.12), ("b", 0.1)):
        image = np.repeat(np.arange(images), detections)
        near = image * PER_IMAGE + random.integers(0, PER_IMAGE, len(image))
        error = spread * random.standard_normal((len(image), 4)) * np.tile(boxes[near, 2:], 2)
        found = boxes[near] + error
        found[:, 2:] = np.maximum(found[:, 2:], 2)
        right = random.random(len(image)) < 0.3
        kind = np.where(right, label[near], random.integers(0, classes, len(image)))
        score = np.clip(random.beta(1, 6, len(image)) + 0.4 * right * random.random(len(image)), 0, 1)
        columns: list[list[Any]] = [(image + 1).tolist(), (kind + 1).tolist(), found.round(2).tolist(), score.tolist()]
        keys = ("image_id", "category_id", "bbox", "score")
        (folder / f"{name}.json").write_text(json.dumps([dict(zip(keys, row)) for row in zip(*columns)]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=5000)
    parser.add_argument("--detections", type=int, default=100, help="of an image")
    parser.add_argument("--classes", type=int, default=80)
    options = parser.parse_args()
    with TemporaryDirectory() as folder:
        write_files(Path(folder), options.images, options.detections, options.classes)
        words = ["compare", "--detections", "a.json", "b.json", "--ground-truth", "gt.json", "--json", "found.json"]
        started = time.perf_counter()
        subprocess.run([sys.executable, "-m", "retinaconf", *words], cwd=folder, check=True)
        seconds = time.perf_counter() - started
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 2**20
    print(f"{seconds:.0f} s, {peak:.2f} GiB at most; {platform.machine()}, {os.cpu_count()} CPUs")


if __name__ == "__main__":
    main()
