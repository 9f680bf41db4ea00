"""Inference by onnxruntime and OpenVINO against torch, float file and int8 file: one image of 320 x 416, in one run.

    python benchmarks/export.py [--recipe conf-lite0] [--rounds 15] [--threads 2]

The weights are random. All sides begin with the padded pixels and end with finished detections; without training no
score is above the threshold. They take turns; each line gives the median, and the median of the ratios to torch.
"""

from __future__ import annotations

import argparse
import platform
import statistics
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import onnxruntime
import openvino
import torch

from retinaconf.data.loader import Batch
from retinaconf.inference.detector import Detector, load
from retinaconf.inference.joint_score import joint_score
from retinaconf.inference.postprocess import postprocess
from retinaconf.interop.export import export
from retinaconf.interop.quantize import quantized
from retinaconf.model.retinanet import RetinaNet
from retinaconf.recipes import recipe
from retinaconf.run_folder import MODEL, write_weights

CLASSES, HEIGHT, WIDTH = 80, 320, 416


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipe", default="conf-lite0")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    config = recipe(options.recipe).changed(**{"model.weights": "none"})
    torch.manual_seed(0)
    state = RetinaNet(config.model, CLASSES).state_dict()
    images = np.random.default_rng(0).uniform(0, 255, (1, 3, HEIGHT, WIDTH)).astype(np.float32)
    sizes = np.array([[HEIGHT, WIDTH]])
    inputs = {"images": images, "sizes": sizes}
    pixels, on_torch = torch.from_numpy(images), torch.from_numpy(sizes)
    with tempfile.TemporaryDirectory() as name:
        run, files = Path(name), {"float": Path(name) / "float.onnx", "int8": Path(name) / "int8.onnx"}
        write_weights(run / MODEL, state, config, tuple(map(str, range(CLASSES))), tuple(range(CLASSES)))
        print(export(run, files["float"]))
        batch = Batch(pixels, on_torch, torch.zeros(1, 0, 4), torch.zeros(1, 0, dtype=torch.int64), torch.zeros(1))
        files["int8"].write_bytes(quantized(files["float"].read_bytes(), [batch]))
        detector = load(run, "cpu")
        settings = onnxruntime.SessionOptions()
        settings.intra_op_num_threads, settings.log_severity_level = options.threads, 3
        sides: dict[str, Callable[[], object]] = {"torch": lambda: by_torch(detector, pixels, on_torch)}
        for kind, file in files.items():
            session = onnxruntime.InferenceSession(file, settings, providers=["CPUExecutionProvider"])
            sides[f"onnxruntime, {kind}"] = partial(session.run, None, inputs)
            for hint in ("f32", "bf16"):  # by itself OpenVINO takes bf16 where the processor has it
                properties = {"INFERENCE_NUM_THREADS": options.threads, "INFERENCE_PRECISION_HINT": hint}
                compiled = openvino.Core().compile_model(file, "CPU", properties)
                sides[f"OpenVINO, {kind}, {hint}"] = partial(compiled, inputs)
        rounds = [[seconds(side) for side in sides.values()] for _ in range(options.rounds + 2)][2:]  # 2 to warm up
    print(
        f"torch {torch.__version__}, onnxruntime {onnxruntime.__version__}, OpenVINO {openvino.__version__}, "
        f"{options.threads} threads, {platform.processor() or platform.machine()}; {options.recipe}, {HEIGHT} x {WIDTH}"
    )
    for side, times in zip(sides, zip(*rounds)):
        ratio = statistics.median(time / row[0] for time, row in zip(times, rounds))
        print(f"{side}: {statistics.median(times) * 1e3:.0f} ms, {ratio:.2f} of torch")


def by_torch(detector: Detector, pixels: torch.Tensor, sizes: torch.Tensor) -> None:
    with torch.inference_mode():
        inference = detector.config.inference
        postprocess(detector.model(pixels, sizes), sizes, inference, [joint_score(inference)])


def seconds(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


if __name__ == "__main__":
    main()
