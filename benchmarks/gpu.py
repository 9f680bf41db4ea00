"""Training and inference on a GPU against torchvision's RetinaNet-R50, on random images of 608 x 1024, in one call.

    python benchmarks/gpu.py --out FOLDER [--seconds 100] [--device cuda] [--only compiled] [--quick]

Both sides: ResNet-50 with random weights, stem and first stage frozen, batch-norm statistics frozen, 80 classes, bf16
autocast, channels last, SGD with one kernel a step; seven objects an image; a batch that lies on the device. A training
step is the package's own, `training/step.py`. Inference goes from the image on the device to detections, of classes
whose scores are spread so that about 0.3 % of all (anchor, class) pairs pass the threshold.

Rows called `network` leave out post-processing. Rows called `recorded` replay the network as a CUDA graph, as a
detector does. Sections run one after the other until the seconds are used up; `--only` runs those whose names contain a
text. A section that fails leaves its error in FOLDER/gpu.json and the others go on. FOLDER/profile.txt and
FOLDER/profile-compiled.txt have the profiles of a training step of `aligned-r50`.

A network takes a minute to translate for a `compiled` row. Runs side by side, such as `--only "conf-r50: batch 32,
compiled"`, do that for later ones, where all have the same TORCHINDUCTOR_CACHE_DIR; their times do not count.

`--quick` takes tiny images on any device, without bf16 on a CPU: it shows that the script works, and measures nothing.
"""

from __future__ import annotations

import argparse
import gc
import math
import signal
import statistics
import time
import traceback
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode
from torchvision.models import resnet50
from torchvision.models.detection import RetinaNet as TorchvisionRetinaNet
from torchvision.models.detection.backbone_utils import _resnet_fpn_extractor
from torchvision.ops.feature_pyramid_network import LastLevelP6P7
from torchvision.ops.misc import FrozenBatchNorm2d

from retinaconf.config import Config
from retinaconf.data.loader import Batch
from retinaconf.files import write_json
from retinaconf.inference.cuda_graphs import RECORDED_AT, CudaGraphs
from retinaconf.inference.joint_score import joint_score
from retinaconf.inference.postprocess import postprocess
from retinaconf.model.backbone import make_plain
from retinaconf.model.retinanet import Outputs, RetinaNet
from retinaconf.recipes import recipe
from retinaconf.training.assigners import ASSIGNERS
from retinaconf.training.loop import launch
from retinaconf.training.precision import compile_network, fused_on
from retinaconf.training.schedule import build_optimizer
from retinaconf.training.step import take_step

CLASSES, OBJECTS = 80, 7
THEIRS, OURS = "torchvision", ("conf-r50", "aligned-r50")
RATE = 1e-6  # learning rate: the weights stay about as they are
THRESHOLD = 0.05  # of the score, on both sides
Row = dict[str, Any]


class Size(NamedTuple):
    """What is measured, and how often."""

    height: int
    width: int
    batches: tuple[int, ...]
    warm_up: int  # steps
    blocks: int  # whose median is taken
    steps: int  # of a block
    matrix: int  # side


FULL = Size(608, 1024, (16, 32), warm_up=3, blocks=5, steps=3, matrix=8192)
QUICK = Size(64, 96, (2,), warm_up=1, blocks=1, steps=1, matrix=64)


class Bench:
    """A device and the sizes of what is measured on it."""

    def __init__(self, device: torch.device, size: Size):
        self.device, self.size = device, size
        self.bf16 = device.type == "cuda"  # a CPU without instructions for it would take minutes

    # --- the two sides ---------------------------------------------------------------------------------------------

    def batch(self, images: int) -> Batch:
        """Random images with seven objects each, on the device."""
        height, width = self.size.height, self.size.width
        generator = torch.Generator().manual_seed(0)
        sides = torch.tensor([width, height])
        corner = torch.rand(images, OBJECTS, 2, generator=generator) * sides * 0.7
        extent = sides * (0.03 + 0.2 * torch.rand(images, OBJECTS, 2, generator=generator))
        pixels = torch.randint(0, 256, (images, height, width, 3), dtype=torch.uint8, generator=generator)
        return Batch(
            pixels.permute(0, 3, 1, 2),  # as the loader gives them
            torch.tensor([[height, width]] * images),
            torch.cat([corner, corner + extent], dim=2),
            torch.randint(0, CLASSES, (images, OBJECTS), generator=generator),
            torch.arange(images),
        ).to(self.device)

    def settings(self, name: str) -> Config:
        return recipe(f"{name}-1x").changed(
            **{
                "model.weights": "none",
                "precision": "bf16-mixed" if self.bf16 else "32",
                "inference.score_threshold": THRESHOLD,
            }
        )

    def our_network(self, name: str) -> RetinaNet:
        torch.manual_seed(0)
        return self._placed(RetinaNet(self.settings(name).model, CLASSES))

    def their_network(self) -> TorchvisionRetinaNet:
        """`retinanet_resnet50_fpn` as that function builds it for trained weights, with random ones."""
        torch.manual_seed(0)
        body = _resnet_fpn_extractor(
            resnet50(weights=None, norm_layer=FrozenBatchNorm2d),
            trainable_layers=3,
            returned_layers=[2, 3, 4],
            extra_blocks=LastLevelP6P7(256, 256),
        )
        height, width = self.size.height, self.size.width
        # The images have the right size already.
        return self._placed(
            TorchvisionRetinaNet(
                body, CLASSES, min_size=height, max_size=width, detections_per_img=100, _skip_resize=True
            )
        )

    def _placed(self, network: Any) -> Any:
        """On the device, with smaller residuals: with frozen statistics random weights would overflow."""
        for name, parameter in network.named_parameters():
            if name.endswith("conv3.weight"):
                parameter.data *= 0.1
        return network.to(self.device, memory_format=torch.channels_last)

    def our_step(self, name: str, images: int, compiled: bool = False) -> Callable[[], Any]:
        config, network = self.settings(name), self.our_network(name).train()
        fabric, fused = launch(config, str(self.device)), fused_on(self.device, config.precision)
        model, optimizer = fabric.setup(network, build_optimizer(network, config, fused=fused))
        if compiled:
            torch._dynamo.reset()  # else the next batch size is translated for any size
            compile_network(network)
        for group in optimizer.param_groups:
            group["lr"] = RATE
        assign = ASSIGNERS[config.matching.assigner]
        return partial(take_step, fabric, model, optimizer, [self.batch(images)], assign, config)

    def their_step(self, images: int) -> Callable[[], Any]:
        network, batch = self.their_network().train(), self.batch(images)
        pictures = list(batch.images / 255)
        targets = [{"boxes": boxes, "labels": labels} for boxes, labels in zip(batch.boxes, batch.labels)]
        learning = [parameter for parameter in network.parameters() if parameter.requires_grad]
        fused = fused_on(self.device, "bf16-mixed")
        optimizer = torch.optim.SGD(learning, lr=RATE, momentum=0.9, weight_decay=1e-4, fused=fused)

        def step() -> None:
            with torch.autocast(self.device.type, torch.bfloat16, enabled=self.bf16):
                losses = network(pictures, targets)
            sum(losses.values()).backward()
            optimizer.step()
            optimizer.zero_grad()

        return step

    def our_pass(self, name: str, images: int, bf16: bool, recorded: bool) -> Callable[[], Outputs]:
        """A pass of the network over the images, without what comes after it."""
        config, network, batch = self.settings(name).inference, self.our_network(name).eval(), self.batch(images)
        half = 0.5**config.alpha  # of a quality that has learned nothing
        self._spread(
            network.head.class_conv,
            (THRESHOLD / half) ** (1 / (1 - config.alpha)),
            lambda: network(batch.images, batch.sizes),
        )
        make_plain(network)  # as a detector does
        run = CudaGraphs(network) if recorded else network

        def network_pass() -> Outputs:
            with torch.inference_mode(), torch.autocast(self.device.type, torch.bfloat16, enabled=bf16):
                outputs: Outputs = run(batch.images, batch.sizes)
            return outputs

        return network_pass

    def our_inference(self, name: str, images: int, bf16: bool, recorded: bool) -> Callable[[], int]:
        config, sizes = self.settings(name).inference, self.batch(images).sizes
        network_pass = self.our_pass(name, images, bf16, recorded)

        def infer() -> int:
            (found,) = postprocess(network_pass(), sizes, config, [joint_score(config)])
            return sum(len(boxes.scores) for boxes in found)

        return infer

    def their_inference(self, images: int, bf16: bool) -> Callable[[], int]:
        network, pictures = self.their_network().eval(), list(self.batch(images).images / 255)
        self._spread(network.head.classification_head.cls_logits, THRESHOLD, lambda: network(pictures))

        def infer() -> int:
            with torch.inference_mode(), torch.autocast(self.device.type, torch.bfloat16, enabled=bf16):
                found = network(pictures)
            return sum(len(boxes["scores"].cpu()) for boxes in found)

        return infer

    def _spread(self, conv: nn.Conv2d, score: float, run: Callable[[], Any]) -> None:
        """Let about 0.3 % of the class scores exceed `score`: 2.75 standard deviations of a normal distribution."""
        seen: list[Tensor] = []
        hook = conv.register_forward_hook(lambda module, inputs, output: seen.append(output.float().flatten()))
        with torch.no_grad():
            run()
            hook.remove()
            conv.weight /= torch.cat(seen).std()
            nn.init.constant_(conv.bias, math.log(score / (1 - score)) - 2.75)  # type: ignore[arg-type]

    # --- measurements ----------------------------------------------------------------------------------------------

    def wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize()

    def seconds(self, work: Callable[[], Any], steps: int) -> float:
        """Of one call, over `steps` of them."""
        self.wait()
        start = time.perf_counter()
        for _ in range(steps):
            work()
        self.wait()
        return (time.perf_counter() - start) / steps

    def timed(self, work: Callable[[], Any], steps: int, warm_up: int = 0) -> Row:
        """Seconds of the first call, then of the others: median of the blocks, least and most; peak memory in GiB."""
        first = self.seconds(work, 1)
        self.seconds(work, self.size.warm_up + warm_up)
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()
        times = [self.seconds(work, steps) for _ in range(self.size.blocks)]
        peak = torch.cuda.max_memory_allocated() / 2**30 if self.device.type == "cuda" else None
        spread = {"least": min(times), "most": max(times)}
        return {"seconds": statistics.median(times), **spread, "first": first, "peak_gib": peak}

    def matrix_rate(self) -> Row:
        """TFLOP/s of a product of two square bf16 matrices of random numbers."""
        side = self.size.matrix
        a, b = (torch.randn(side, side, device=self.device, dtype=torch.bfloat16) for _ in range(2))
        row = self.timed(lambda: a @ b, steps=10)
        return row | {"tflops": 2 * side**3 / row["seconds"] / 1e12}

    def flops(self, side: str) -> Row:
        """Floating-point operations of a training step, forward and backward, for one image."""
        step = self.their_step(1) if side == THEIRS else self.our_step(side, 1)
        with FlopCounterMode(display=False) as counter:
            step()
        return {"tflop_an_image": counter.get_total_flops() / 1e12}

    def training(self, side: str, images: int, compiled: bool = False) -> Row:
        step = self.their_step(images) if side == THEIRS else self.our_step(side, images, compiled)
        row = self.timed(step, self.size.steps)
        return row | {"images_a_second": images / row["seconds"]}

    def inference(self, side: str, images: int, bf16: bool, recorded: bool = False) -> Row:
        theirs = side == THEIRS
        work = self.their_inference(images, bf16) if theirs else self.our_inference(side, images, bf16, recorded)
        row = self.timed(work, self.size.steps * (4 if images == 1 else 1), RECORDED_AT if recorded else 0)
        return row | {"images_a_second": images / row["seconds"], "detections": work()}

    def network(self, name: str, images: int, bf16: bool, recorded: bool = False) -> Row:
        work = self.our_pass(name, images, bf16, recorded)
        return self.timed(work, self.size.steps * (4 if images == 1 else 1), RECORDED_AT if recorded else 0)

    def profile(self, file: Path, images: int, compiled: bool = False) -> Row:
        """The table of a step into `file`; how often a step waits and copies, and how long its kernels run."""
        step, steps = self.our_step("aligned-r50", images, compiled), 3
        self.seconds(step, 1 + self.size.warm_up)
        with torch.profiler.profile() as profile:
            seconds = self.seconds(step, steps)
        table, on_gpu = profile.key_averages(), self.device.type == "cuda"
        order = "self_cuda_time_total" if on_gpu else "self_cpu_time_total"
        calls = {
            event.key: event.count / steps
            for event in table
            if "Synchronize" in event.key or "emcpy" in event.key or event.key in ("cudaLaunchKernel", "aten::nonzero")
        }
        lines = [f"{count:8.1f} a step  {name}" for name, count in sorted(calls.items())]
        file.write_text(table.table(sort_by=order, row_limit=25, max_name_column_width=80) + "\n".join(lines) + "\n")
        kernels = sum(
            event.self_device_time_total
            for event in table
            if event.device_type == torch.autograd.DeviceType.CUDA and not event.is_user_annotation
        )
        return {
            "calls_a_step": calls,
            "kernel_seconds_a_step": kernels / steps / 1e6,
            "seconds_while_profiled": seconds,
        }


class Report:
    """Sections with their results, written after each."""

    def __init__(self, folder: Path, seconds: float, machine: Row, only: str = ""):
        self.file, self.ends, self.only = folder / "gpu.json", time.monotonic() + seconds, only
        self.rows: dict[str, Row] = {"machine": machine}

    def add(self, name: str, work: Callable[[], Row]) -> None:
        """Run a section within the time that is left, if it is asked for."""
        if self.only not in name:
            return
        left = int(self.ends - time.monotonic())
        start = time.monotonic()
        try:
            if left < 1:
                raise TimeoutError("no time left")
            signal.alarm(left)
            row = work()
        except Exception as error:
            row = {"error": f"{type(error).__name__}: {error}", "traceback": traceback.format_exc()}
            print(f"{name}: {row['error'][:300]}", flush=True)
        finally:
            signal.alarm(0)
        self.rows[name] = row | {"section_seconds": time.monotonic() - start}
        write_json(self.file, self.rows)
        gc.collect()  # networks hold one another in cycles, and their memory with them
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

    def table(self) -> str:
        """One line a section, with the ratio to torchvision's and the share of the matrix rate."""
        lines = [
            f"{'':44}{'ms':>9}{'least':>9}{'most':>9}{'images/s':>10}{'ratio':>7}{'TFLOP/s':>9}{'share':>7}{'GiB':>7}"
        ]
        rate = self.rows.get("matrix product", {}).get("tflops", math.nan)
        for name, row in self.rows.items():
            if "seconds" not in row:
                continue
            kind, side, rest = (*name.split(": "), "", "")[:3]
            theirs = self.rows.get(
                f"{kind}: {THEIRS}: {rest.partition(', compiled')[0].partition(', recorded')[0]}", {}
            )
            ratio = row.get("images_a_second", math.nan) / theirs.get("images_a_second", math.nan)
            work = self.rows.get(f"operations: {side}", {}).get("tflop_an_image", math.nan)
            tflops = work * row["images_a_second"] if kind == "training" else row.get("tflops", math.nan)
            row |= {"ratio": ratio, "tflops": tflops, "share": tflops / rate}
            times = "".join(f"{1000 * row[key]:9.2f}" for key in ("seconds", "least", "most"))
            lines.append(
                f"{name:44}{times}{row.get('images_a_second', math.nan):10.1f}{ratio:7.2f}{tflops:9.1f}"
                f"{tflops / rate:7.2f}{row['peak_gib'] or math.nan:7.1f}"
            )
        return "\n".join(lines).replace("nan", "  -")


def out_of_time(number: int, frame: Any) -> None:
    raise TimeoutError("the seconds are used up")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("gpu-benchmark"))
    parser.add_argument("--seconds", type=float, default=100)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--only", default="", help="sections whose names contain this; default: all")
    parser.add_argument("--quick", action="store_true")
    options = parser.parse_args()
    device = torch.device(options.device)
    if device.type != "cuda" and not options.quick:
        parser.error("there is no GPU here; --quick shows that the script works")
    signal.signal(signal.SIGALRM, out_of_time)
    options.out.mkdir(parents=True, exist_ok=True)
    bench = Bench(device, QUICK if options.quick else FULL)
    name = torch.cuda.get_device_name() if device.type == "cuda" else "cpu"
    report = Report(options.out, options.seconds, {"device": name, "torch": torch.__version__}, options.only)
    smallest = bench.size.batches[0]

    report.add("matrix product", bench.matrix_rate)
    for side in (THEIRS, *OURS):
        report.add(f"operations: {side}", partial(bench.flops, side))
        report.add(f"training: {side}: batch {smallest}", partial(bench.training, side, smallest))
    report.add("profile", partial(bench.profile, options.out / "profile.txt", smallest))

    def inference(bf16: bool) -> None:
        for images in (1, smallest):
            for side in (THEIRS, *OURS):
                what = f"inference: {side}: batch {images}, {'bf16' if bf16 else 'float32'}"
                report.add(what, partial(bench.inference, side, images, bf16))
                if side == THEIRS:
                    continue
                alone = what.replace("inference", "network")
                report.add(alone, partial(bench.network, side, images, bf16))
                if device.type == "cuda" and images == 1:
                    report.add(f"{what}, recorded", partial(bench.inference, side, images, bf16, recorded=True))
                    report.add(f"{alone}, recorded", partial(bench.network, side, images, bf16, recorded=True))

    inference(bench.bf16)
    for images in bench.size.batches[1:]:
        for side in (THEIRS, *OURS):
            report.add(f"training: {side}: batch {images}", partial(bench.training, side, images))
    if not options.quick:  # what takes longest comes last: a network is translated
        for images in reversed(bench.size.batches):
            for side in OURS:
                what = f"training: {side}: batch {images}, compiled"
                report.add(what, partial(bench.training, side, images, compiled=True))
        file, most = options.out / "profile-compiled.txt", bench.size.batches[-1]
        report.add("profile, compiled", partial(bench.profile, file, most, compiled=True))
        inference(bf16=False)
    print(f"{name}, torch {torch.__version__}\n{report.table()}")
    write_json(report.file, report.rows)


if __name__ == "__main__":
    main()
