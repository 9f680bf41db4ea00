"""Made-up annotations and boxes of any size, for what is timed; and the memory of a process.

    python benchmarks/large_sets.py ANNOTATIONS.json

reads a file in this process, which imports no torch, and prints the CPU seconds and the memory as JSON.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import numpy as np

from retinaconf.data.ground_truth import GroundTruth, read_coco
from retinaconf.detections import Detections

SIDE = 640  # pixels of an image


def truth(images: int, objects: int, classes: int) -> GroundTruth:
    """So many images with so many objects each."""
    random = np.random.default_rng(0)
    count = images * objects
    side = np.exp(random.uniform(np.log(12), np.log(300), (count, 2)))
    low = random.uniform(0, 1, (count, 2)) * (SIDE - side)
    return GroundTruth(
        image_ids=np.arange(1, images + 1),
        file_names=np.array([f"{image + 1:012d}.jpg" for image in range(images)]),
        image_sizes=np.full((images, 2), SIDE),
        boxes=np.concatenate([low, low + side], axis=1),
        labels=random.integers(0, classes, count),
        crowd=np.zeros(count, dtype=bool),
        areas=side.prod(axis=1),
        offsets=np.arange(images + 1) * objects,
        classes=tuple(f"class {label}" for label in range(classes)),
        category_ids=tuple(range(1, classes + 1)),
        image_folder=None,
        source="synthetic",
    )


def found(truth: GroundTruth, per_image: int) -> Detections:
    """Boxes around the objects, well and badly placed, six in ten of the object's class; with a quality."""
    random = np.random.default_rng(1)
    image = np.repeat(np.arange(len(truth)), per_image)
    counts = np.diff(truth.offsets)[image]
    target = truth.offsets[image] + (random.random(len(image)) * counts).astype(np.int64)
    noise = random.uniform(0.01, 0.25, (len(image), 1))
    size = np.tile(truth.boxes[target, 2:] - truth.boxes[target, :2], 2)
    corners = truth.boxes[target] + noise * size * random.standard_normal((len(image), 4))
    boxes = np.concatenate([np.minimum(corners[:, :2], corners[:, 2:]), np.maximum(corners[:, :2], corners[:, 2:])], 1)
    wrong = random.integers(0, len(truth.classes), len(image))
    labels = np.where(random.random(len(image)) < 0.6, truth.labels[target], wrong)
    scores, quality = (np.clip(1 - 3 * noise[:, 0] + random.normal(0, 0.2, len(image)), 0.01, 1) for _ in range(2))
    ids = {"classes": truth.classes, "category_ids": truth.category_ids}
    return Detections(image, labels, boxes, scores, class_scores=scores, quality=quality, **ids)


def write_coco(path: Path, truth: GroundTruth) -> None:
    """The annotation file, with a polygon of 22 points for each object, as long as COCO's are on average."""
    random = np.random.default_rng(2)
    image = truth.image_index
    with path.open("w") as file:
        images = [
            {
                "file_name": str(name),
                "height": SIDE,
                "width": SIDE,
                "id": int(id_),
                "date_captured": "2013-11-14 11:18:45",
            }
            for name, id_ in zip(truth.file_names, truth.image_ids)
        ]
        file.write(json.dumps({"images": images})[:-1] + ', "annotations": [')
        for row, (x0, y0, x1, y1) in enumerate(truth.boxes.round(2).tolist()):
            points = (random.random((22, 2)) * [x1 - x0, y1 - y0] + [x0, y0]).round(2).ravel().tolist()
            record = {"segmentation": [points], "area": float(truth.areas[row]), "iscrowd": 0, "id": row + 1}
            record |= {"image_id": int(image[row]) + 1, "category_id": int(truth.labels[row]) + 1}
            record["bbox"] = [x0, y0, round(x1 - x0, 2), round(y1 - y0, 2)]
            file.write((", " if row else "") + json.dumps(record))
        categories = [{"id": id_, "name": name} for id_, name in zip(truth.category_ids, truth.classes)]
        file.write('], "categories": ' + json.dumps(categories) + "}")


def peak_resident() -> float:
    """GiB; Linux's VmHWM, since ru_maxrss counts the parent's memory before exec, too."""
    status = Path("/proc/self/status").read_text()
    return int(next(line.split()[1] for line in status.splitlines() if line.startswith("VmHWM"))) / 2**20


if __name__ == "__main__":
    started = time.process_time()
    read_coco(Path(sys.argv[1]))
    print(json.dumps({"ours": time.process_time() - started, "peak GiB": peak_resident()}))
