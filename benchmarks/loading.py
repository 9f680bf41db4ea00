"""What a training image costs by preset of `data.augment`: reading, augmenting and batching, against a training step.

    python benchmarks/loading.py [--data ROOT] [--short-side 256] [--images 200] [--rounds 3] [--json FILE]

Without a data set, on the scenes of `retinaconf demo`, and against torchvision's dataset with `transforms.v2`. Times
are of the processor, so that what else the machine does counts little. The presets take turns; a line gives the median
over the rounds. `train` is how much more processor time a training of `conf-lite0` on the CPU takes than with `flip`,
where workers and network share the cores. Last comes the check of all images at the start of a run: of new images, and
of images that the run has checked before, without decoding them (`checked-images.json`, its reading included).
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import platform
import statistics
import tempfile
import time
from pathlib import Path

import torch
from torchvision.datasets import CocoDetection, wrap_dataset_for_transforms_v2
from torchvision.transforms import v2

from retinaconf.config import PRESETS, Config
from retinaconf.data.checked import CheckedImages
from retinaconf.data.ground_truth import GroundTruth
from retinaconf.data.images import check_images
from retinaconf.data.layouts import load_split
from retinaconf.data.loader import Batch, training_batches
from retinaconf.data.scenes import write_scenes
from retinaconf.model.retinanet import RetinaNet
from retinaconf.recipes import recipe
from retinaconf.training.assigners import assigner_at
from retinaconf.training.losses import detection_losses

# Each preset, and two that add what no preset has or leave out what costs most.
WAYS = {name: {"data.augment": name} for name in PRESETS} | {
    "strong, turns": {"data.augment": "strong", "data.turn": 0.75, "data.vertical_flip": 0.5},
    "strong, no mosaic": {"data.augment": "strong", "data.mosaic": 0.0},
    "strong, no hue": {"data.augment": "strong", "data.hue": 0.0},
}


def loading(ground_truth: GroundTruth, config: Config, images: int) -> float:
    """Seconds of the processor an image."""
    steps = images // config.data.batch_size
    started = time.process_time()
    for _ in training_batches(ground_truth, config.data, 0, 0, steps):
        pass
    return (time.process_time() - started) / (steps * config.data.batch_size)


def their_loading(root: Path, config: Config, images: int) -> float:
    """The same of torchvision's dataset with `transforms.v2`: flipped, resized, as uint8."""
    with contextlib.redirect_stdout(io.StringIO()):
        change = v2.Compose(
            [v2.ToImage(), v2.RandomHorizontalFlip(), v2.Resize(config.data.short_side, max_size=config.data.long_side)]
        )
        dataset = wrap_dataset_for_transforms_v2(CocoDetection(root / "images", root / "train.json", transforms=change))
    started = time.process_time()
    for number in range(images):
        dataset[number % len(dataset)]
    return (time.process_time() - started) / images


def checking(ground_truth: GroundTruth, run: Path) -> float:
    """Seconds of the processor an image, for the check at the start of a run; `run` then knows the images."""
    started = time.process_time()
    checked = CheckedImages(run)
    check_images(ground_truth, check=checked.check)
    checked.write(run)
    return (time.process_time() - started) / len(ground_truth)


def training(batch: Batch, config: Config, classes: int) -> float:
    """Seconds of the processor an image of a training step, optimizer aside."""
    network = RetinaNet(config.model, classes).train()
    assign = assigner_at(config, 0)
    for _ in range(2):  # the first warms up
        started = time.process_time()
        outputs = network(batch.images, batch.sizes)
        matches = assign(outputs, batch.boxes, batch.labels, config)
        normaliser = matches.normaliser.clamp(min=1)
        losses = detection_losses(outputs, matches, batch.boxes, batch.labels, config, normaliser)
        torch.stack(list(losses.values())).sum().backward()
        seconds = time.process_time() - started
        network.zero_grad()
    return seconds / len(batch.images)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--short-side", type=int, default=256)
    parser.add_argument("--images", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=[*WAYS], help="flip must be one of them")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    changes = {"data.short_side": options.short_side, "data.long_side": options.short_side * 7 // 4}
    base = recipe("conf-lite0").changed(**changes, **{"data.workers": 0, "model.weights": "none"})
    with tempfile.TemporaryDirectory() as folder:
        if options.data is None:
            write_scenes(Path(folder), train=32, val=1)
        split = load_split(options.data or Path(folder), "train")
        ground_truth = check_images(split)
        times: dict[str, list[float]] = {way: [] for way in options.ways}
        for round_ in range(-1, options.rounds):  # the first reads the files into the memory
            for way in options.ways:
                seconds = loading(ground_truth, base.changed(**WAYS[way]), options.images)
                times[way] += [seconds] if round_ >= 0 else []
            if options.data is None:
                seconds = their_loading(Path(folder), base, options.images)
                times.setdefault("torchvision v2", []).extend([seconds] if round_ >= 0 else [])
        (batch,) = training_batches(ground_truth, base.data, 0, 0, 1)
        checks = {state: checking(split, Path(folder)) for state in ("new", "checked before")}
        step = statistics.median(training(batch, base, len(ground_truth.classes)) for _ in range(options.rounds))
    print(f"torch {torch.__version__}, {platform.processor() or platform.machine()}, short side {options.short_side},")
    print(f"{options.data or 'scenes'}; a training step takes {step * 1e3:.0f} ms of a core an image")
    print(f"{'':20}{'ms an image':>12}{'images/s a core':>18}{'train':>9}")
    medians = {way: statistics.median(seconds) for way, seconds in times.items()}
    for way, seconds in medians.items():
        longer = (seconds + step) / (medians["flip"] + step) - 1
        print(f"{way:20}{seconds * 1e3:12.1f}{1 / seconds:18.0f}{longer:+9.1%}")
    for state, seconds in checks.items():
        print(f"{f'check, {state}':20}{seconds * 1e3:12.3f}{1 / seconds:18.0f}")
    if options.json:
        report = {"training": step, "loading": medians, "checking": checks}
        options.json.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
