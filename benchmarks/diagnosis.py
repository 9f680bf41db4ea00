"""How long a diagnosis takes, and how much memory, at the size of COCO val2017.

    python benchmarks/diagnosis.py [detections] [candidates] [candidates-json] [--images 5000] [--json]

makes a synthetic set (5,000 images, 36,000 objects of 80 classes), diagnoses it from files in a process of its own,
as a user would, and prints seconds and peak memory, for that many images against what is promised:

    detections        100 an image, COCO results JSON                    at most  20 s, 2 GB
    candidates        1,000 an image with quality, columnar file         at most  60 s, 1.4 GB
    candidates-json   the same as COCO results JSON (900 MB)             at most 120 s, 4 GB
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from large_sets import peak_resident

from retinaconf.detections import write_detections

IMAGES, OBJECTS_AN_IMAGE, CLASSES = 5000, 7.2, 80
WIDTH, HEIGHT = 640, 480
LIMITS = {"detections": (20, 2.0), "candidates": (60, 1.4), "candidates-json": (120, 4.0)}


def make_ground_truth(rng: np.random.Generator, images: int) -> tuple[dict, np.ndarray, np.ndarray, np.ndarray]:
    """A COCO dictionary, and of its objects the image rows, labels and xyxy boxes."""
    objects = round(images * OBJECTS_AN_IMAGE)
    image = np.sort(rng.integers(0, images, objects))
    label = np.minimum(rng.zipf(1.3, objects) - 1, CLASSES - 1)  # a few classes are common, as in COCO
    size = np.exp(rng.uniform(np.log(10), np.log(350), (objects, 2)))
    size[:, 1] = np.clip(size[:, 1], size[:, 0] / 3, size[:, 0] * 3)
    low = rng.uniform(0, 1, (objects, 2)) * np.maximum([WIDTH, HEIGHT] - size, 1)
    high = np.minimum(low + size, [WIDTH, HEIGHT])
    boxes = np.concatenate([low, high], axis=1)
    document = {
        "images": [
            {"id": i + 1, "file_name": f"{i + 1:012d}.jpg", "width": WIDTH, "height": HEIGHT} for i in range(images)
        ],
        "categories": [{"id": k + 1, "name": f"class {k + 1}"} for k in range(CLASSES)],
        "annotations": [
            {
                "id": row + 1,
                "image_id": int(image[row]) + 1,
                "category_id": int(label[row]) + 1,
                "bbox": [float(x), float(y), float(x2 - x), float(y2 - y)],
                "area": float((x2 - x) * (y2 - y)),
                "iscrowd": int(rng.random() < 0.01),
            }
            for row, (x, y, x2, y2) in enumerate(boxes)
        ],
    }
    return document, image, label, boxes


def make_image(rng: np.random.Generator, number: int, labels: np.ndarray, boxes: np.ndarray, count: int) -> dict:
    """One image's boxes: six in ten around its objects, well and badly placed, the others anywhere."""
    low = rng.uniform(0, 1, (count, 2)) * [WIDTH * 0.8, HEIGHT * 0.8]
    found = np.concatenate([low, low + np.exp(rng.uniform(np.log(10), np.log(200), (count, 2)))], axis=1)
    label = rng.integers(0, CLASSES, count)
    fit = rng.uniform(0, 0.2, count)
    if len(boxes):
        on = np.flatnonzero(rng.random(count) < 0.6)
        target = rng.integers(0, len(boxes), len(on))
        side = np.tile(boxes[target, 2:] - boxes[target, :2], 2)
        noise = rng.uniform(0.01, 0.25, (len(on), 1))
        found[on] = boxes[target] + rng.normal(0, 1, (len(on), 4)) * noise * side
        label[on] = np.where(rng.random(len(on)) < 0.85, labels[target], label[on])
        fit[on] = 1 - 2.5 * noise[:, 0]
    found = np.concatenate([np.minimum(found[:, :2], found[:, 2:]), np.maximum(found[:, :2], found[:, 2:])], axis=1)
    class_scores = np.clip(0.5 * fit + rng.normal(0, 0.15, count), 0.05, 1)
    quality = np.clip(fit + rng.normal(0, 0.2, count), 0.01, 1)
    return {
        "image_id": number,
        "category_ids": label + 1,
        "boxes": found.astype(np.float32),
        "scores": class_scores.astype(np.float32),
        "class_scores": class_scores.astype(np.float32),
        "quality": quality.astype(np.float32),
    }


def make_files(case: str, folder: Path, number: int) -> tuple[Path, Path]:
    """The case's ground truth and its boxes, of so many images."""
    rng = np.random.default_rng(0)
    document, image, label, boxes = make_ground_truth(rng, number)
    truth = folder / "ground_truth.json"
    truth.write_text(json.dumps(document))
    offsets = np.searchsorted(image, np.arange(number + 1))
    count = 100 if case == "detections" else 1000

    def images():
        for row in range(number):
            objects = slice(*offsets[row : row + 2])
            yield make_image(rng, row + 1, label[objects], boxes[objects], count)

    if case == "candidates":
        path = folder / "candidates.npz"
        write_detections(path, images())
        return truth, path
    path = folder / "boxes.json"
    optional = {} if case == "detections" else {"class_score": "class_scores", "quality": "quality"}
    with path.open("w") as file:
        for row, columns in enumerate(images()):
            xywh = columns["boxes"].copy()
            xywh[:, 2:] -= xywh[:, :2]
            records = [
                {
                    "image_id": columns["image_id"],
                    "category_id": int(columns["category_ids"][i]),
                    "bbox": [round(float(value), 2) for value in xywh[i]],
                    "score": round(float(columns["scores"][i]), 5),
                    **{key: round(float(columns[name][i]), 5) for key, name in optional.items()},
                }
                for i in range(count)
            ]
            file.write(("[" if row == 0 else ", ") + json.dumps(records)[1:-1])
        file.write("]")
    return truth, path


def measure(case: str, truth: Path, boxes: Path) -> None:
    """What is timed; prints seconds and peak memory as JSON."""
    from retinaconf.api import diagnose
    from retinaconf.diagnosis.report.document import to_json

    start = time.perf_counter()
    (diagnosis,) = diagnose(ground_truth=truth, **{"detections" if case == "detections" else "candidates": [boxes]})
    boxes.with_suffix(".out").write_text(json.dumps(to_json(diagnosis)))
    seconds = time.perf_counter() - start
    peak = peak_resident() * 2**30 / 1e9
    print(json.dumps({"seconds": seconds, "cpu_seconds": time.process_time(), "gigabytes": peak}))


def main() -> None:
    if sys.argv[1:2] == ["--files"]:
        return measure(sys.argv[2], Path(sys.argv[3]), Path(sys.argv[4]))
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cases", nargs="*", default=list(LIMITS), help=", ".join(LIMITS))
    parser.add_argument("--images", type=int, default=IMAGES)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    if options.images < 1:
        parser.error("--images: give at least 1")
    if unknown := [case for case in options.cases if case not in LIMITS]:
        parser.error(f"no case {unknown[0]!r}; there are {', '.join(LIMITS)}")
    within = True
    for case in options.cases:
        with tempfile.TemporaryDirectory() as folder:
            truth, boxes = make_files(case, Path(folder), options.images)
            command = [sys.executable, __file__, "--files", case, str(truth), str(boxes)]
            measured = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
            if options.json:
                print(json.dumps(measured))
                continue
            size = f"{boxes.stat().st_size / 1e6:.0f} MB file"
            took = (
                f"{measured['seconds']:.1f} s, {measured['cpu_seconds']:.1f} s of CPU, {measured['gigabytes']:.2f} GB"
            )
            print(f"{case:16} {size}, {took}", end="")
            if options.images == IMAGES:
                seconds, gigabytes = LIMITS[case]
                print(f" (at most {seconds} s, {gigabytes:g} GB)", end="")
                within &= measured["seconds"] <= seconds and measured["gigabytes"] <= gigabytes
            print(flush=True)
    sys.exit(0 if within else 1)


if __name__ == "__main__":
    main()
