"""`retinaconf export`: a run as an ONNX file or a torch.export program, compared with torch before it is written."""

from __future__ import annotations

import io
import json
import warnings
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import Dim

from retinaconf.config import InferenceConfig
from retinaconf.errors import EXTRAS, InputError, UsageError, extras_needed_by
from retinaconf.files import write_aside
from retinaconf.inference.detector import load
from retinaconf.inference.joint_score import WITH_ALPHA
from retinaconf.inference.postprocess import RULES
from retinaconf.interop.agreement import check_detections, check_raw
from retinaconf.interop.exportable import Confidence, FinishedDetections, RawOutputs, suppress, suppress_node
from retinaconf.outputs import check_outputs

SUFFIXES = (".onnx", ".pt2")
METADATA = "retinaconf.json"  # in a .pt2, which has files in it where ONNX has properties

Tensors = dict[str, Tensor]


def export(run: str | Path, out: str | Path, raw: bool = False, int8: str | Path | None = None) -> str:
    """Write the detector of `run` to `out`, an ONNX file or a torch.export program by its suffix.

    Returns a line that says how far the file differs from torch on random images, and of an `int8` file also what it
    loses on real ones.

    Args:
        run: the run folder.
        out: the file.
        raw: the network's outputs as they are, without post-processing.
        int8: a data set's folder. The convolutions of an ONNX file are then in 8-bit integers, but for the last ones of
            the head. The ranges of their values are those on 100 images of `train`; AP before and after is of `val`.

    Raises:
        InputError: no such run, another suffix, `out` cannot be written or is a file of the run, a package is missing,
            the network cannot be exported, or the result does not give what torch gives. `int8` with another suffix or
            with `raw`, or bad data.
    """
    run, out = Path(run), Path(out)
    if out.suffix not in SUFFIXES:
        raise InputError(f"{out}: end it in {' or '.join(SUFFIXES)}")
    is_onnx = out.suffix == ".onnx"
    if is_onnx:
        with extras_needed_by(f"{out}: ONNX"):
            for package in EXTRAS["onnx"]:
                import_module(package)
    if int8 is not None and (raw or not is_onnx):
        raise UsageError("export --int8: it is for .onnx files with post-processing, whose AP it measures")
    if out.is_dir() or not out.parent.is_dir():
        raise InputError(f"{out}: cannot be written; give a file in a folder that exists")
    check_outputs([out], [run, *([] if int8 is None else [Path(int8)])])
    detector = load(run, "cpu")
    model, config = detector.model, detector.config
    if not raw and not RULES[config.inference.rules].clip_first:
        raise InputError(
            f"{run}: boxes clipped after NMS (inference.rules {config.inference.rules}) are not in an "
            "exported file; give --raw, and do the post-processing outside"
        )
    inference, tuning = detector.inference_config(), detector.tuning
    settings = {} if raw else _settings(config.model.quality, inference)
    confidence = None if tuning is None else Confidence(tuning.score_map, detector.category_ids)
    module = (
        RawOutputs(model)
        if raw
        else FinishedDetections(model, inference, suppress_node if is_onnx else suppress, confidence)
    )
    metadata = {
        "classes": json.dumps(detector.classes),
        "category_ids": json.dumps(detector.category_ids),
        "short_side": str(config.data.short_side),
        "long_side": str(config.data.long_side),
        "config": json.dumps(config.flat()),
    }
    if tuning is not None:  # of each class, in their order
        metadata["thresholds"] = json.dumps(tuning.thresholds.of(detector.category_ids).tolist())
    try:
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")  # the exporter's, of its own deprecations and of names for dimensions
            content = (_onnx if is_onnx else _program)(module.eval(), settings, metadata)
    except Exception as error:  # of as many kinds as the exporter has parts
        reason = next(iter(str(error).splitlines()), "")
        raise InputError(
            f"{run}: torch cannot export a detector on {config.model.backbone} ({type(error).__name__}: {reason})"
        ) from None
    call = _onnx_session(content) if is_onnx else _loaded_program(content)
    with torch.inference_mode():
        agreement = (
            check_raw(call, detector, out) if raw else check_detections(call, detector, out, "alpha" in settings)
        )
    if int8 is not None:
        from retinaconf.interop.quantize import quantize_and_measure

        content, loss = quantize_and_measure(content, _onnx_session, detector, run, Path(int8))
        agreement += f"; {loss}"
    write_aside(out, lambda aside: aside.write_bytes(content))
    return f"{out}: {agreement}"


def _settings(quality: str, inference: InferenceConfig) -> Tensors:
    """The inputs that a user may tune, with the run's values."""
    settings = {"score_threshold": torch.tensor(inference.score_threshold)}
    # A joint score without alpha stays as it is configured.
    if quality != "none" and inference.joint in WITH_ALPHA:
        settings["alpha"] = torch.tensor(inference.alpha)
    return settings


def _traced(settings: Tensors) -> dict[str, Any]:
    """Inputs to trace with. Free are the number of images, and their height and width in steps of 32."""
    inputs = {"images": torch.zeros(2, 3, 160, 224), "sizes": torch.tensor([[160, 224], [150, 200]])}
    images = Dim("N")
    free: dict[str, Any] = {"images": {0: images, 2: 32 * Dim("H32"), 3: 32 * Dim("W32")}, "sizes": {0: images}}
    # Both in one order: the ONNX exporter goes by it.
    return {"kwargs": inputs | settings, "dynamic_shapes": free | dict.fromkeys(settings)}


def _onnx(module: nn.Module, settings: Tensors, metadata: dict[str, str]) -> bytes:
    import onnx

    traced = _traced(settings)
    program = torch.onnx.export(
        module,
        **traced,
        dynamo=True,
        verbose=False,
        input_names=list(traced["kwargs"]),
        output_names=list(module(**traced["kwargs"])),
        custom_translation_table={torch.ops.retinaconf.suppress.default: _non_max_suppression()},
    )
    assert program is not None
    for node in program.model.graph.all_nodes():
        node.metadata_props.clear()  # where in the source it comes from, with the paths of this machine
    model = program.model_proto
    # An input with an initializer may be left out.
    for name, value in settings.items():
        model.graph.initializer.append(onnx.numpy_helper.from_array(value.numpy(), name))
    onnx.helper.set_model_props(model, metadata)
    onnx.checker.check_model(model)
    content: bytes = model.SerializeToString()
    return content


def _non_max_suppression() -> Callable[..., Any]:
    """What `suppress` is in ONNX."""
    from onnxscript import opset18

    op: Any = opset18

    def translated(boxes: Any, scores: Any, iou_threshold: float, limit: int) -> Any:
        by_class = op.Transpose(scores, perm=[0, 2, 1])  # (N, K, S)
        settings = (op.Constant(value_ints=[limit]), op.Constant(value_floats=[iou_threshold]))
        kept = op.NonMaxSuppression(boxes, by_class, *settings, op.Constant(value_floats=[0.0]))  # (P, 3): n, k, s
        nothing = op.Expand(op.Constant(value_float=-1.0), op.Shape(by_class))
        return op.Transpose(op.ScatterND(nothing, kept, op.GatherND(by_class, kept)), perm=[0, 2, 1])

    return translated


def _onnx_session(content: bytes) -> Callable[[Tensors], Tensors]:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # it warns of inputs that may be left out
    session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]

    def call(inputs: Tensors) -> Tensors:
        arrays = session.run(names, {name: tensor.numpy() for name, tensor in inputs.items()})
        return {name: torch.from_numpy(array) for name, array in zip(names, arrays)}

    return call


def _program(module: nn.Module, settings: Tensors, metadata: dict[str, str]) -> bytes:
    # As torch.onnx.export has it; else images would need 160 pixels a side, below which a level has a single cell.
    with torch.fx.experimental._config.patch(backed_size_oblivious=True):  # type: ignore[attr-defined]
        program = torch.export.export(module, (), **_traced(settings), strict=False)
    content = io.BytesIO()
    torch.export.save(program, content, extra_files={METADATA: json.dumps(metadata)})
    return content.getvalue()


def _loaded_program(content: bytes) -> Callable[[Tensors], Tensors]:
    program: Any = torch.export.load(io.BytesIO(content)).module()
    return lambda inputs: program(**inputs)
