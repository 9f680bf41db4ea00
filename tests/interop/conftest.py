import io
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from detectors import DISTRIBUTION, ONE_ANCHOR
from filelock import FileLock
from PIL import Image

import retinaconf
from retinaconf.run_folder import MODEL, read_weights, write_weights


@pytest.fixture(scope="module")
def images(shared_data):
    """Two photographs at the size at which they enter the network, small: it computes in 64 bits."""
    paths = sorted((shared_data / "coco-mini" / "val2017").iterdir())[:2]
    return [Image.open(path).convert("RGB").resize((150, 100)) for path in paths]


SCALED = DISTRIBUTION | {"model.level_scale": True}
# Small pictures, and few enough candidates that every level but the last two has more anchors.
SMALL = {"data.short_side": 128, "data.long_side": 192, "inference.candidates": 200, "inference.detections": 50}


def write_lively_run(write_run: Callable[..., Path], folder: Path, **changes: Any) -> Path:
    """A run with random weights whose scores spread over (0, 1) and whose boxes move, so that much is found."""
    write_run(folder, **(SMALL | changes))
    weights = read_weights(folder)
    state = dict(weights.state)
    factors = {"class_conv": 100.0, "quality_conv": 100.0, "box_conv": 20.0}
    if changes.get("model.box") == "distribution":
        factors["box_conv"] = 300.0  # so that some are sharp
    factors |= {"distribution_quality.hidden": 100.0, "distribution_quality.out": 100.0}
    for name, factor in factors.items():
        if f"head.{name}.weight" in state:
            state[f"head.{name}.weight"] = state[f"head.{name}.weight"] * factor
    if "head.level_scales" in state:
        state["head.level_scales"] = torch.tensor([0.8, 1.2, 0.9, 1.5, 1.1])
    state["head.class_conv.bias"] = torch.full_like(state["head.class_conv.bias"], -1.0)
    write_weights(folder / MODEL, state, weights.config, weights.classes, weights.category_ids)
    return folder


@pytest.fixture(scope="session")
def exported(shared_folder: Path, write_run: Callable[..., Path]) -> Callable[..., Any]:
    """`exported(key)`: a run, its file, and `call(**arrays)`, the file as a function to arrays by name."""
    pytest.importorskip("onnx")
    pytest.importorskip("onnxscript")
    pytest.importorskip("onnxruntime")
    from retinaconf.interop import export

    made: dict[str, Any] = {}
    changes: dict[str, dict[str, Any]] = {
        "conf.onnx": {},
        "vote.onnx": {"inference.vote": True, "inference.soft_nms": True, "inference.nms_iou": 0.75},
        "raw.onnx": {"model.anchors": "torchvision"} | SCALED,
        "aligned.onnx": ONE_ANCHOR | SCALED,
        "torchvision.onnx": {
            "model.quality": "none",
            "inference.alpha": 0.0,
            "inference.rules": "torchvision",
            "inference.score_threshold": 0.3,
        },
        "conf.pt2": {},
        "proportional.onnx": {"inference.joint": "proportional"},
        "one-class.onnx": {  # and one anchor a cell, with distributions of the box
            **ONE_ANCHOR,
            **SCALED,
            "model.quality": "none",
            "inference.alpha": 0.0,
            "classes": {7: "thing"},
        },
    }

    def get(key: str) -> Any:
        if key not in made:
            run, out = shared_folder / key.replace(".", "-"), shared_folder / key
            with FileLock(shared_folder / f"{key}.lock"):
                if not out.exists():
                    export.export(write_lively_run(write_run, run, **changes[key]), out, raw="raw" in key)
            call, session = program(out) if out.suffix == ".pt2" else onnx_file(out)
            made[key] = SimpleNamespace(
                run=run, out=out, call=call, session=session, detector=retinaconf.load(run, "cpu")
            )
        return made[key]

    return get


def onnx_file(path: Path) -> tuple[Callable[..., Any], Any]:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    return lambda **inputs: dict(zip(names, session.run(None, inputs))), session


def program(path: Path) -> tuple[Callable[..., Any], Any]:
    module = torch.export.load(io.BytesIO(path.read_bytes())).module()

    def call(**inputs: np.ndarray) -> dict[str, np.ndarray]:
        run_settings = {"score_threshold": np.float32(0.05), "alpha": np.float32(0.4)}  # a program has no defaults
        outputs = module(**{name: torch.as_tensor(value) for name, value in (run_settings | inputs).items()})
        return {name: value.numpy() for name, value in outputs.items()}

    return call, None
