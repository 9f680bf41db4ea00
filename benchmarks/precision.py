"""A training step of `conf-lite0` on a CPU, by precision, on random images; the three take turns.

    python benchmarks/precision.py [--rounds 5] [--threads 2]

bfloat16 is faster only on processors with instructions for it (AVX512-BF16, AMX). On an AMD EPYC with AVX2 alone, one
thread, a step took 8.0 s in 32 bits, 63.9 s in bf16-mixed and 96.1 s with bfloat16 everywhere. "everywhere": depthwise
convolutions, too, which `training/precision.py` leaves in 32 bits.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import torch

from retinaconf.cell_anchors import CellAnchors
from retinaconf.model.anchors import anchor_boxes, level_shapes
from retinaconf.model.retinanet import RetinaNet
from retinaconf.recipes import recipe
from retinaconf.training.losses import detection_losses
from retinaconf.training.matching import match
from retinaconf.training.precision import some_convolutions_in_32_bits

IMAGES, HEIGHT, WIDTH = 8, 256, 352
CPU = torch.device("cpu")


def step(bf16: bool, depthwise: bool) -> Callable[[], None]:
    config = recipe("conf-lite0").changed(**{"model.weights": "none"})
    network = RetinaNet(config.model, classes=3).to(memory_format=torch.channels_last).train()
    if bf16 and not depthwise:
        some_convolutions_in_32_bits(network)
    images = torch.randint(0, 256, (IMAGES, 3, HEIGHT, WIDTH), dtype=torch.uint8)
    sizes = torch.tensor([[HEIGHT, WIDTH]] * IMAGES)
    corner = torch.rand(IMAGES, 13, 2) * 200
    boxes, labels = (
        torch.cat([corner, corner + 20 + 50 * torch.rand(IMAGES, 13, 2)], -1),
        torch.zeros(IMAGES, 13).long(),
    )
    matches = match(anchor_boxes(level_shapes(HEIGHT, WIDTH), CPU, CellAnchors()), boxes, labels)

    def run() -> None:
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=bf16):
            outputs = network(images, sizes)
        losses = detection_losses(outputs, matches, boxes, labels, config, max(1, matches.positives))
        sum(losses.values()).backward()  # type: ignore[union-attr]
        network.zero_grad()

    return run


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    steps = {
        "32": step(bf16=False, depthwise=True),
        "bf16-mixed": step(bf16=True, depthwise=False),
        "bf16 everywhere": step(bf16=True, depthwise=True),
    }
    times: dict[str, list[float]] = {name: [] for name in steps}
    for round_ in range(-1, options.rounds):  # the first warms up
        for name, run in steps.items():
            started = time.perf_counter()
            run()
            if round_ >= 0:
                times[name].append(time.perf_counter() - started)
    plain = statistics.median(times["32"])
    for name, seconds in times.items():
        median = statistics.median(seconds)
        print(f"{name:16} {median:.3f} s  {median / plain:.2f}")


if __name__ == "__main__":
    main()
