"""Inference by onnxruntime against torch: conf-lite0 with random weights, one image of 320 x 416, in one run.

    python benchmarks/export.py [--rounds 15] [--threads 2]

Both sides begin with the padded pixels and end with finished detections; without training no score is above the
threshold. They take turns; the line gives medians, and the median of the ratios.
"""

from __future__ import annotations

import argparse
import platform
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnxruntime
import torch

from retinaconf.inference.detector import load
from retinaconf.inference.joint_score import joint_score
from retinaconf.inference.postprocess import postprocess
from retinaconf.interop.export import export
from retinaconf.model.retinanet import RetinaNet
from retinaconf.recipes import recipe
from retinaconf.run_folder import MODEL, write_weights

CLASSES, HEIGHT, WIDTH = 80, 320, 416


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    config = recipe("conf-lite0").changed(**{"model.weights": "none"})
    torch.manual_seed(0)
    state = RetinaNet(config.model, CLASSES).state_dict()
    with tempfile.TemporaryDirectory() as name:
        run, out = Path(name), Path(name) / "model.onnx"
        write_weights(run / MODEL, state, config, tuple(map(str, range(CLASSES))), tuple(range(CLASSES)))
        print(export(run, out))
        detector = load(run, "cpu")
        settings = onnxruntime.SessionOptions()
        settings.intra_op_num_threads, settings.log_severity_level = options.threads, 3
        session = onnxruntime.InferenceSession(out, settings, providers=["CPUExecutionProvider"])
    images = np.random.default_rng(0).uniform(0, 255, (1, 3, HEIGHT, WIDTH)).astype(np.float32)
    sizes = np.array([[HEIGHT, WIDTH]])
    pixels, on_torch = torch.from_numpy(images), torch.from_numpy(sizes)

    def by_torch() -> None:
        with torch.inference_mode():
            inference = detector.config.inference
            postprocess(detector.model(pixels, on_torch), on_torch, inference, [joint_score(inference)])

    def by_onnx() -> None:
        session.run(None, {"images": images, "sizes": sizes})

    rounds = [(seconds(by_onnx), seconds(by_torch)) for _ in range(options.rounds + 2)][2:]  # the first ones warm up
    onnx, ours = (statistics.median(side) for side in zip(*rounds))
    ratio = statistics.median(one / other for one, other in rounds)
    print(
        f"torch {torch.__version__}, onnxruntime {onnxruntime.__version__}, {options.threads} threads, "
        f"{platform.processor() or platform.machine()}"
    )
    print(
        f"conf-lite0, {HEIGHT} x {WIDTH}: onnxruntime {onnx * 1e3:.0f} ms, torch {ours * 1e3:.0f} ms, ratio {ratio:.2f}"
    )


def seconds(work: Callable[[], None]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


if __name__ == "__main__":
    main()
