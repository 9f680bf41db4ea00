"""Time and memory against torchvision's RetinaNet-R50, on random images of 608 x 1024, in one run.

    python benchmarks/speed.py [--rounds 3] [--threads 2] [--json FILE]

Both sides: ResNet-50 with random weights, stem and first stage frozen, batch-norm statistics frozen, 80 classes, SGD,
each with its own transforms. The two take turns, so that what else the machine does meets both; a line gives the
median of the ratios of a round. Peak memory is measured in a process of its own for each side.
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

import numpy as np
import torch
from torch import nn
from torchvision.models import resnet50
from torchvision.models.detection import RetinaNet as TorchvisionRetinaNet
from torchvision.models.detection.backbone_utils import _resnet_fpn_extractor
from torchvision.ops.feature_pyramid_network import LastLevelP6P7
from torchvision.ops.misc import FrozenBatchNorm2d

from retinaconf.cell_anchors import CellAnchors
from retinaconf.config import Config
from retinaconf.inference.detector import Detector
from retinaconf.inference.joint_score import joint_score
from retinaconf.inference.postprocess import postprocess
from retinaconf.model.anchors import anchor_boxes, level_shapes
from retinaconf.model.retinanet import Outputs, RetinaNet
from retinaconf.recipes import recipe
from retinaconf.run_folder import Weights
from retinaconf.training.losses import detection_losses
from retinaconf.training.matching import match

HEIGHT, WIDTH, CLASSES = 608, 1024, 80
CPU = torch.device("cpu")
# What the project holds itself to: ours / torchvision's.
TARGETS = {"training step": 0.95, "inference": 0.85, "post-processing": 0.5, "training memory": 0.9}


def settings(name: str) -> Config:
    """A recipe of the paper's with random weights, at the benchmark's size."""
    return recipe(f"{name}-r50-1x").changed(
        **{"model.weights": "none", "data.short_side": HEIGHT, "data.long_side": WIDTH, "inference.alpha": 0.0}
    )


def torchvision_retinanet() -> TorchvisionRetinaNet:
    """`retinanet_resnet50_fpn` as that function builds it for trained weights, with random ones."""
    body = _resnet_fpn_extractor(
        resnet50(weights=None, norm_layer=FrozenBatchNorm2d),
        trainable_layers=3,
        returned_layers=[2, 3, 4],
        extra_blocks=LastLevelP6P7(256, 256),
    )
    network = TorchvisionRetinaNet(body, CLASSES, min_size=HEIGHT, max_size=WIDTH, detections_per_img=100)
    _tame(network)
    return network


def our_retinanet(name: str) -> RetinaNet:
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
    config, network = settings(name), our_retinanet(name).train()
    optimizer = torch.optim.SGD([p for p in network.parameters() if p.requires_grad], lr=1e-6, momentum=0.9)
    images = torch.randint(0, 256, (2, 3, HEIGHT, WIDTH), dtype=torch.uint8)
    sizes = torch.tensor([[HEIGHT, WIDTH]] * 2)
    boxes, labels = random_targets(2)

    def step() -> None:
        matches = match(anchor_boxes(level_shapes(HEIGHT, WIDTH), CPU, CellAnchors()), boxes, labels)
        outputs = network(images, sizes)
        losses = detection_losses(outputs, matches, boxes, labels, config, max(1, matches.positives))
        sum(losses.values()).backward()  # type: ignore[union-attr]
        optimizer.step()
        optimizer.zero_grad()

    return step


def torchvision_step() -> Callable[[], None]:
    network = torchvision_retinanet().train()
    optimizer = torch.optim.SGD([p for p in network.parameters() if p.requires_grad], lr=1e-6, momentum=0.9)
    images = [torch.rand(3, HEIGHT, WIDTH) for _ in range(2)]
    boxes, labels = random_targets(2)
    targets = [{"boxes": b, "labels": label} for b, label in zip(boxes, labels)]

    def step() -> None:
        sum(network(images, targets).values()).backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def our_inference(name: str) -> Callable[[], None]:
    weights = Weights(settings(name), tuple(map(str, range(CLASSES))), tuple(range(CLASSES)), {})
    detector = Detector(weights._replace(state=our_retinanet(name).state_dict()), "cpu")
    image = np.random.default_rng(0).integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8)
    return lambda: detector.predict(image) and None


def torchvision_inference() -> Callable[[], None]:
    network = torchvision_retinanet().eval()
    image = torch.rand(3, HEIGHT, WIDTH)

    def infer() -> None:
        with torch.inference_mode():
            network([image])

    return infer


def random_outputs() -> Outputs:
    """Logits of which about 0.3 % pass the threshold of 0.05, as after some training."""
    generator = torch.Generator().manual_seed(0)
    shapes = level_shapes(HEIGHT, WIDTH)
    anchors = anchor_boxes(shapes, CPU, CellAnchors())
    return Outputs(
        torch.randn(1, len(anchors), CLASSES, generator=generator) * 1.5 - 7,
        torch.randn(1, len(anchors), 4, generator=generator) * 0.2,
        torch.randn(1, len(anchors), generator=generator),
        anchors,
        tuple(h * w * CellAnchors().count for h, w in shapes),
    )


def our_postprocessing(name: str) -> Callable[[], None]:
    outputs, sizes = random_outputs(), torch.tensor([[HEIGHT, WIDTH]])
    config = recipe(f"{name}-r50-1x").inference
    if name == "retinanet":
        outputs = outputs._replace(quality_logits=None)
    return lambda: postprocess(outputs, sizes, config, [joint_score(config)]) and None


def torchvision_postprocessing() -> Callable[[], None]:
    outputs = random_outputs()
    network = torchvision_retinanet()
    sizes = list(outputs.level_sizes)
    heads = {
        "cls_logits": list(outputs.class_logits.split(sizes, 1)),
        "bbox_regression": list(outputs.box_deltas.split(sizes, 1)),
    }
    anchors = [list(outputs.anchors.split(sizes))]
    return lambda: network.postprocess_detections(heads, anchors, [(HEIGHT, WIDTH)]) and None


def seconds(work: Callable[[], None], repeats: int) -> float:
    start = time.perf_counter()
    for _ in range(repeats):
        work()
    return (time.perf_counter() - start) / repeats


def compare(ours: Callable[[], None], theirs: Callable[[], None], rounds: int, repeats: int) -> dict[str, float]:
    """Median seconds of both, and the median ratio of a round."""
    ours(), theirs()  # warm up
    times = [(seconds(ours, repeats), seconds(theirs, repeats)) for _ in range(rounds)]
    return {
        "ours": statistics.median(a for a, _ in times),
        "torchvision": statistics.median(b for _, b in times),
        "ratio": statistics.median(a / b for a, b in times),
    }


def peak_memory(side: str) -> float:
    """GiB that two training steps add to the peak of a process that has only imported and built."""
    code = f"import speed; print(speed.steps_peak({side!r}))"
    here = Path(__file__).parent
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=here)
    return float(result.stdout.split()[-1])


def steps_peak(side: str) -> float:
    step = torchvision_step() if side == "torchvision" else our_step(side)
    before = peak_resident()
    step()
    step()
    return peak_resident() - before


def peak_resident() -> float:
    """GiB; Linux's VmHWM, since ru_maxrss counts the parent's memory before exec, too."""
    status = Path("/proc/self/status").read_text()
    return int(next(line.split()[1] for line in status.splitlines() if line.startswith("VmHWM"))) / 2**20


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    print(f"torch {torch.__version__}, {options.threads} threads, {platform.processor() or platform.machine()}")
    print(f"{'':28}{'ours':>9}{'torchvision':>15}{'ratio':>9}{'at most':>9}")
    report: dict[str, dict[str, float]] = {}

    def add(line: str, row: dict[str, float]) -> None:
        report[line] = row
        unit, target = "GiB" if line.endswith("memory") else "s", TARGETS[line.split(": ")[1]]
        times = f"{row['ours']:7.3f} {unit:3}{row['torchvision']:9.3f} {unit:3}"
        print(f"{line:28}{times}{row['ratio']:9.2f}{target:9.2f}{'  missed' * (row['ratio'] > target)}", flush=True)

    rounds = options.rounds
    for name in ("retinanet", "conf"):
        memory = {"ours": peak_memory(name), "torchvision": peak_memory("torchvision")}
        add(f"{name}: training memory", memory | {"ratio": memory["ours"] / memory["torchvision"]})
        add(f"{name}: post-processing", compare(our_postprocessing(name), torchvision_postprocessing(), rounds, 10))
        add(f"{name}: inference", compare(our_inference(name), torchvision_inference(), rounds, 3))
    # Last: what a training step leaves in the allocator makes torchvision's next inference a fifth faster.
    for name in ("retinanet", "conf"):
        add(f"{name}: training step", compare(our_step(name), torchvision_step(), rounds, 1))
    if options.json:
        options.json.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
