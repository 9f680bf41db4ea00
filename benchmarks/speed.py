"""Time and memory against torchvision's RetinaNet-R50 and FCOS-R50, on random images of 608 x 1024, in one run.

    python benchmarks/speed.py [--rounds 5] [--threads 2] [--ours conf aligned] [--parts ...] [--no-fcos] [--json FILE]

All sides: ResNet-50 with random weights, stem and first stage frozen, batch-norm statistics frozen, 80 classes, SGD,
each with its own transforms. They take turns, so that what else the machine does meets all; `ratio` is the median of
a round's ratio to RetinaNet. Peak memory is that of a process, which varies by a tenth: three for each side, in turns.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torchvision
from large_sets import peak_resident
from torch import nn
from torchvision.models import resnet50
from torchvision.models.detection.backbone_utils import _resnet_fpn_extractor
from torchvision.ops.feature_pyramid_network import LastLevelP6P7
from torchvision.ops.misc import FrozenBatchNorm2d

from retinaconf.config import Config
from retinaconf.inference.detector import Detector
from retinaconf.inference.joint_score import joint_score
from retinaconf.inference.postprocess import postprocess
from retinaconf.model.anchors import anchor_boxes, level_shapes
from retinaconf.model.distances import BINS
from retinaconf.model.retinanet import Outputs, RetinaNet
from retinaconf.recipes import recipe
from retinaconf.run_folder import Weights
from retinaconf.training.assigners import ASSIGNERS
from retinaconf.training.losses import detection_losses
from retinaconf.training.precision import lay_out

HEIGHT, WIDTH, CLASSES = 608, 1024, 80
CPU = torch.device("cpu")
PROCESSES = 3  # of each side, for its memory
# What the project holds itself to: ours / torchvision's RetinaNet.
TARGETS = {
    ("conf", "training step"): 0.88,
    ("conf", "inference"): 0.78,
    ("conf", "post-processing"): 0.2,
    ("conf", "assignment and losses"): 0.3,
    ("conf", "memory"): 0.62,
    ("aligned", "training step"): 0.8,
    ("aligned", "inference"): 0.7,
}


def settings(name: str) -> Config:
    """A recipe of the paper's with random weights, at the benchmark's size."""
    return recipe(f"{name}-r50-1x").changed(
        **{"model.weights": "none", "data.short_side": HEIGHT, "data.long_side": WIDTH}
    )


def their_network(kind: Callable[..., nn.Module]) -> nn.Module:
    """A network as torchvision's function builds it for trained weights, with random ones."""
    body = _resnet_fpn_extractor(
        resnet50(weights=None, norm_layer=FrozenBatchNorm2d),
        trainable_layers=3,
        returned_layers=[2, 3, 4],
        extra_blocks=LastLevelP6P7(256, 256),
    )
    network = kind(body, CLASSES, min_size=HEIGHT, max_size=WIDTH, detections_per_img=100)
    _tame(network)
    return network


THEIRS = {
    "RetinaNet": lambda: their_network(torchvision.models.detection.RetinaNet),
    "FCOS": lambda: their_network(torchvision.models.detection.FCOS),
}


def our_network(name: str) -> RetinaNet:
    network = RetinaNet(settings(name).model, CLASSES)
    _tame(network)
    return network


def _tame(network: nn.Module) -> None:
    """Smaller convolutions in the residual branches: with frozen statistics random weights would overflow."""
    for name, parameter in network.named_parameters():
        if name.endswith("conv3.weight"):
            parameter.data *= 0.1


def random_targets(images: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Boxes (N, 8, 4) and labels (N, 8)."""
    generator = torch.Generator().manual_seed(0)
    corner = torch.rand(images, 8, 2, generator=generator) * torch.tensor([WIDTH * 0.7, HEIGHT * 0.7])
    side = 20 + torch.rand(images, 8, 2, generator=generator) * 150
    return torch.cat([corner, corner + side], -1), torch.randint(0, CLASSES, (images, 8), generator=generator)


def our_step(name: str) -> Callable[[], None]:
    config, network = settings(name), our_network(name).train()
    lay_out(network, config, CPU)
    optimizer = torch.optim.SGD([p for p in network.parameters() if p.requires_grad], lr=1e-6, momentum=0.9)
    images = torch.randint(0, 256, (2, 3, HEIGHT, WIDTH), dtype=torch.uint8)
    sizes = torch.tensor([[HEIGHT, WIDTH]] * 2)
    boxes, labels = random_targets(2)

    def step() -> None:
        our_losses(network(images, sizes), boxes, labels, config).backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def our_losses(outputs: Outputs, boxes: torch.Tensor, labels: torch.Tensor, config: Config) -> torch.Tensor:
    matches = ASSIGNERS[config.matching.assigner](outputs, boxes, labels, config)
    losses = detection_losses(outputs, matches, boxes, labels, config, matches.normaliser.clamp(min=1))
    return torch.stack(list(losses.values())).sum()


def their_step(name: str) -> Callable[[], None]:
    network = THEIRS[name]().train()
    optimizer = torch.optim.SGD([p for p in network.parameters() if p.requires_grad], lr=1e-6, momentum=0.9)
    images = [torch.rand(3, HEIGHT, WIDTH) for _ in range(2)]
    targets = their_targets(2)

    def step() -> None:
        sum(network(images, targets).values()).backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def their_targets(images: int) -> list[dict[str, torch.Tensor]]:
    return [{"boxes": boxes, "labels": labels} for boxes, labels in zip(*random_targets(images))]


def our_inference(name: str) -> Callable[[], None]:
    state = our_network(name).state_dict()
    # An untrained quality lets too many boxes pass. So the class score ranks, as after a branch that is trained apart.
    config = settings(name).changed(**{"inference.joint": "cls", "loss.joint": "separate"})
    detector = Detector(Weights(config, tuple(map(str, range(CLASSES))), tuple(range(CLASSES)), state), "cpu")
    image = np.random.default_rng(0).integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8)
    return lambda: detector.predict(image) and None


def their_inference(name: str) -> Callable[[], None]:
    network = THEIRS[name]().eval()
    image = torch.rand(3, HEIGHT, WIDTH)

    def infer() -> None:
        with torch.inference_mode():
            network([image])

    return infer


def random_outputs(name: str, images: int) -> Outputs:
    """Logits of which about 0.3 % pass the threshold of 0.05, as after some training; leaves of a graph."""
    generator = torch.Generator().manual_seed(0)
    model, shapes = settings(name).model, level_shapes(HEIGHT, WIDTH)
    anchors = anchor_boxes(shapes, CPU, model.cell_anchors)

    def random(*shape: int) -> torch.Tensor:
        return torch.randn(images, len(anchors), *shape, generator=generator)

    return Outputs(
        (random(CLASSES) * 1.5 - 7).requires_grad_(),
        (random(4) * 0.2).requires_grad_(),
        random().requires_grad_() if model.quality != "none" else None,
        anchors,
        tuple(h * w * model.cell_anchors.count for h, w in shapes),
        random(4, BINS).requires_grad_() if model.box == "distribution" else None,
    )


def our_assignment(name: str) -> Callable[[], None]:
    outputs, targets, config = random_outputs(name, 2), random_targets(2), settings(name)
    return lambda: our_losses(outputs, *targets, config).backward()


def their_head_outputs(name: str, images: int) -> tuple[dict[str, torch.Tensor], torch.Tensor, list[int]]:
    """What a head of torchvision's says of a batch, with anchors and their number by level."""
    fcos = name == "FCOS"
    ours = random_outputs("aligned" if fcos else "retinanet", images)
    heads = {"cls_logits": ours.class_logits, "bbox_regression": ours.box_deltas}
    if fcos:
        heads["bbox_regression"] = ours.box_deltas.detach().exp().requires_grad_()
        heads["bbox_ctrness"] = torch.randn(images, len(ours.anchors), 1, requires_grad=True)
    return heads, ours.anchors, list(ours.level_sizes)


def their_assignment(name: str) -> Callable[[], None]:
    network, targets = THEIRS[name]().train(), their_targets(2)
    heads, anchors, levels = their_head_outputs(name, 2)
    arguments = (targets, heads, [anchors] * 2, *([levels] if name == "FCOS" else []))
    return lambda: sum(network.compute_loss(*arguments).values()).backward()


def our_postprocessing(name: str) -> Callable[[], None]:
    outputs, sizes = random_outputs(name, 1), torch.tensor([[HEIGHT, WIDTH]])
    config = recipe(f"{name}-r50-1x").inference

    def run() -> None:
        with torch.inference_mode():
            postprocess(outputs, sizes, config, [joint_score(config)])

    return run


def their_postprocessing(name: str) -> Callable[[], None]:
    network = THEIRS[name]()
    heads, anchors, levels = their_head_outputs(name, 1)
    parts = {key: list(tensor.split(levels, 1)) for key, tensor in heads.items()}

    def run() -> None:
        with torch.inference_mode():
            network.postprocess_detections(parts, [list(anchors.split(levels))], [(HEIGHT, WIDTH)])

    return run


def seconds(work: Callable[[], None], repeats: int) -> float:
    start = time.perf_counter()
    for _ in range(repeats):
        work()
    return (time.perf_counter() - start) / repeats


def compare(works: dict[str, Callable[[], None]], rounds: int, repeats: int) -> dict[str, Any]:
    """`medians` of the seconds of each side, which take turns."""
    for work in works.values():
        work()  # warms up
    return medians([{side: seconds(work, repeats) for side, work in works.items()} for _ in range(rounds)])


def medians(rounds: list[dict[str, float]]) -> dict[str, Any]:
    """Of each side the median, the least and the most; of each peer the median ratio of ours to it in a round."""
    columns = {side: [row[side] for row in rounds] for side in rounds[0]}
    return {
        **{side: statistics.median(column) for side, column in columns.items()},
        "spread": {side: [min(column), max(column)] for side, column in columns.items()},
        "ratio": {
            side: statistics.median(row["ours"] / row[side] for row in rounds) for side in columns if side != "ours"
        },
    }


def peak_memory(side: str) -> float:
    """GiB that two training steps add to the peak of a process that has only imported and built."""
    code = f"import speed; print(speed.steps_peak({side!r}))"
    here = Path(__file__).parent
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=here)
    return float(result.stdout.split()[-1])


def steps_peak(side: str) -> float:
    step = their_step(side) if side in THEIRS else our_step(side)
    before = peak_resident()
    step()
    step()
    return peak_resident() - before


PARTS = {  # ours, theirs, and how often a round repeats it
    "post-processing": (our_postprocessing, their_postprocessing, 10),
    "assignment and losses": (our_assignment, their_assignment, 2),
    "inference": (our_inference, their_inference, 3),
    # Last: what a training step leaves in the allocator makes torchvision's next inference a fifth faster.
    "training step": (our_step, their_step, 1),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--ours", nargs="+", default=["conf", "aligned"], help="retinanet, conf, aligned")
    parser.add_argument("--parts", nargs="+", default=["memory", *PARTS], choices=["memory", *PARTS])
    parser.add_argument("--no-fcos", action="store_true", help="leave out FCOS, a third of the time")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    peers = [side for side in THEIRS if side != "FCOS" or not options.no_fcos]
    torch.set_num_threads(options.threads)
    print(f"torch {torch.__version__}, {options.threads} threads, {platform.processor() or platform.machine()}")
    print(f"{'':32}{'ours':>9}{''.join(f'{side:>11}' for side in peers)}{'ratio':>9}{'at most':>9}")
    report: dict[str, dict[str, Any]] = {}

    def add(name: str, part: str, row: dict[str, Any]) -> None:
        report[f"{name}: {part}"] = row
        target, ratio = TARGETS.get((name, part)), row["ratio"]["RetinaNet"]
        last = f"{target:9.2f}{'  missed' * (ratio > target)}" if target else ""
        sides = "".join(f"{row[side]:11.3f}" for side in peers)
        print(f"{name + ': ' + part:32}{row['ours']:9.3f}{sides}{ratio:9.2f}{last}", flush=True)

    if "memory" in options.parts:
        sides = [*peers, *options.ours]
        peaks = [{side: peak_memory(side) for side in sides} for _ in range(PROCESSES)]
        for name in options.ours:
            rounds = [{"ours": row[name], **{side: row[side] for side in peers}} for row in peaks]
            add(name, "memory", {**medians(rounds), "unit": "GiB"})
    for part, (our, their, repeats) in PARTS.items():
        for name in options.ours if part in options.parts else ():
            works = {"ours": our(name), **{side: their(side) for side in peers}}
            add(name, part, compare(works, options.rounds, repeats))
    if options.json:
        options.json.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
