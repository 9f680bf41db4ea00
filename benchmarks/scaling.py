"""How the time of each part grows: curves with a fitted exponent, as JSON and as a figure.

    python benchmarks/scaling.py [--quick] [--json FILE] [--figure docs/images/scaling.png]

Seconds are of the processor, the least of five runs. torch has one thread; hotcoco and `diagnose` use all cores. The
exponent is the slope of a line through the logarithms of the points that take at least three times as long as the
first: below, fixed costs dominate. `--quick` takes small sizes, to see that all runs. The aim is an exponent of at most
1.1.
"""

from __future__ import annotations

import argparse
import json
import math
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from large_sets import found, truth, write_coco

from retinaconf.data.ground_truth import read_coco
from retinaconf.diagnosis.measures.diagnose import diagnose
from retinaconf.evaluation.coco import CocoEvaluator
from retinaconf.inference.joint_score import joint_score
from retinaconf.inference.postprocess import postprocess
from retinaconf.model.anchors import anchor_boxes, level_shapes
from retinaconf.model.retinanet import Outputs
from retinaconf.recipes import recipe
from retinaconf.training.assigners import ASSIGNERS
from retinaconf.training.losses import detection_losses

AIM = 1.1
LONG = 20  # seconds
CONFIG = recipe("conf-r50-1x")
Work = Callable[[], Any]


def outputs(pixels: int, classes: int) -> Outputs:
    """Random outputs for two square images of about so many pixels."""
    generator, side = torch.Generator().manual_seed(0), max(32, round(pixels**0.5 / 32) * 32)
    shapes = level_shapes(side, side)
    anchors = anchor_boxes(shapes, torch.device("cpu"), CONFIG.model.cell_anchors)
    shape = (2, len(anchors))
    return Outputs(
        (torch.randn(*shape, classes, generator=generator) * 1.5 - 7).requires_grad_(),
        (torch.randn(*shape, 4, generator=generator) * 0.2).requires_grad_(),
        torch.randn(shape, generator=generator).requires_grad_(),
        anchors,
        tuple(h * w * CONFIG.model.cell_anchors.count for h, w in shapes),
    )


def losses(pixels: int = 256**2, objects: int = 8, classes: int = 20) -> Work:
    said, made = outputs(pixels, classes), truth(2, objects, classes)
    boxes = torch.tensor(made.boxes * pixels**0.5 / 640, dtype=torch.float32).view(2, objects, 4)
    labels = torch.tensor(made.labels).view(2, objects)

    def run() -> None:
        matches = ASSIGNERS["max-iou"](said, boxes, labels, CONFIG)
        terms = detection_losses(said, matches, boxes, labels, CONFIG, matches.normaliser.clamp(min=1))
        torch.stack(list(terms.values())).sum().backward()

    return run


def post_processing(pixels: int = 256**2, classes: int = 20) -> Work:
    said, side = outputs(pixels, classes), round(pixels**0.5 / 32) * 32
    inference = CONFIG.inference
    sizes = torch.tensor([[side, side]] * 2)

    def run() -> None:
        with torch.inference_mode():
            postprocess(said, sizes, inference, [joint_score(inference)])

    return run


def evaluation(images: int = 500, objects: int = 7, classes: int = 80, detections: int = 20) -> Work:
    made = truth(images, objects, classes)
    boxes = found(made, detections)
    return lambda: CocoEvaluator(made)(boxes)


def diagnosis(images: int = 50, objects: int = 7, classes: int = 20, candidates: int = 200) -> Work:
    made = truth(images, objects, classes)
    boxes = found(made, candidates)
    return lambda: diagnose(made, candidates=boxes, replicates=50)  # more would hide how the rest grows


def opening(images: int) -> Work:
    file = Path(FOLDER.name) / f"{images}.json"
    write_coco(file, truth(images, 7, 80))
    return lambda: read_coco(file)


FOLDER = tempfile.TemporaryDirectory()
PIXELS = [s * s for s in (128, 256, 384, 512, 768, 1024)]
OBJECTS, CLASSES = [1, 10, 30, 100, 300, 1000], [1, 10, 40, 150, 400, 1200]
IMAGES = [1000, 3000, 10_000, 30_000, 120_000]
CURVES: dict[str, tuple[Callable[[int], Work], list[int]]] = {
    "assignment and losses: pixels": (lambda n: losses(pixels=n), PIXELS),
    "assignment and losses: objects an image": (lambda n: losses(objects=n), OBJECTS),
    "assignment and losses: classes": (lambda n: losses(classes=n), CLASSES),
    "post-processing: pixels": (lambda n: post_processing(pixels=n), PIXELS),
    "post-processing: classes": (lambda n: post_processing(classes=n), CLASSES),
    "evaluation: images": (lambda n: evaluation(images=n), IMAGES),
    "evaluation: objects an image": (lambda n: evaluation(images=50, objects=n, detections=100), OBJECTS),
    "evaluation: classes": (lambda n: evaluation(classes=n), CLASSES),
    "diagnose: images": (lambda n: diagnosis(images=n), [20, 60, 200, 600]),
    "diagnose: candidates an image": (lambda n: diagnosis(images=200, candidates=n), [50, 200, 1000, 3000]),
    "diagnose: objects an image": (lambda n: diagnosis(images=100, objects=n), [1, 30, 300, 1000]),
    "opening annotations: images": (opening, IMAGES),
}


def seconds(works: list[Work], rounds: int) -> list[float]:
    """Of the processor, the least of some rounds through all works: a machine's speed changes within a minute.

    What takes long runs once.
    """
    best = [math.inf] * len(works)
    for _ in range(rounds):
        for place, work in enumerate(works):
            if not LONG < best[place] < math.inf:
                started = time.process_time()
                work()
                best[place] = min(best[place], time.process_time() - started)
    return best


def exponent(sizes: list[int], times: list[float]) -> float:
    """The slope of log time over log size, where fixed costs no longer dominate; over two points at least."""
    upper = [i for i, taken in enumerate(times) if taken >= 3 * times[0]]
    first = min([*upper, len(times) - 2])
    return float(np.polyfit(np.log(sizes[first:]), np.log(times[first:]), 1)[0])


def draw(report: dict[str, Any], file: Path) -> None:
    import matplotlib

    matplotlib.use("agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(3, 4, figsize=(16, 10), layout="constrained")
    for axis, (name, curve) in zip(axes.flat, report.items()):
        axis.loglog(curve["sizes"], curve["seconds"], "o-")
        axis.set_title(f"{name}\nexponent {curve['exponent']:.2f}", fontsize=10)
        axis.set_ylabel("CPU seconds")
        axis.xaxis.set_minor_formatter("")
        axis.grid(alpha=0.3)
    figure.savefig(file, dpi=80)


def measure(quick: bool) -> dict[str, Any]:
    report: dict[str, Any] = {}
    for name, (make, sizes) in CURVES.items():
        small = [size if size < 1000 or "pixels" in name else size // 40 for size in sizes[:2]]
        chosen = small if quick else sizes
        times = seconds([make(size) for size in chosen], 1 if quick else 5)
        report[name] = {"sizes": chosen, "seconds": times, "exponent": exponent(chosen, times)}
        over = "  above the aim" if report[name]["exponent"] > AIM else ""
        print(f"{name:42}{report[name]['exponent']:6.2f}{over}", flush=True)
    return report


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--figure", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    report = measure(options.quick)
    if options.json:
        options.json.write_text(json.dumps(report, indent=1) + "\n")
    if options.figure:
        draw(report, options.figure)


if __name__ == "__main__":
    main()
