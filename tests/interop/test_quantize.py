"""`retinaconf export --int8`: which convolutions are integers, and that the file still finds what it found."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from retinaconf.data.layouts import load_split
from retinaconf.interop import export
from retinaconf.model.boxes import iou

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")
pytestmark = pytest.mark.ci  # torch takes long to export


@pytest.fixture(scope="module")
def int8(
    tmp_path_factory: pytest.TempPathFactory,
    make_data: Callable[..., Path],
    exported: Callable[..., Any],
) -> Any:
    """A file with floats and the same file with integers: `before` and `after`, and the `line` that says so."""
    folder = tmp_path_factory.mktemp("int8")
    data = make_data(folder / "data", train=6, val=3)
    ours = exported("conf.onnx")
    before = ours.out.read_bytes()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(export, "_onnx", lambda *args: before)  # it takes seconds
        line = export.export(ours.run, folder / "model.onnx", int8=data)
    return SimpleNamespace(
        before=before,
        after=(folder / "model.onnx").read_bytes(),
        line=line,
        val=load_split(data, "val"),
        run=ours.run,
        detector=ours.detector,
    )


def test_the_line_says_what_it_costs(int8: Any) -> None:
    assert "int8: AP on val 0.0" in int8.line
    assert "3 images), calibrated on 6 images of train" in int8.line
    assert len(int8.line.splitlines()) == 1


def test_all_convolutions_but_the_last_are_integers(int8: Any) -> None:
    graph = onnx.load_from_string(int8.after).graph
    made_by = {output: node.op_type for node in graph.node for output in node.output}
    convs = [node for node in graph.node if node.op_type == "Conv"]
    assert len(convs) == sum(node.op_type == "Conv" for node in onnx.load_from_string(int8.before).graph.node)
    kept = {node.input[1] for node in convs if node.input[1] not in made_by}
    assert {weight.split(".")[-2] for weight in kept} == {"class_conv", "box_conv", "quality_conv"}
    for node in convs:
        if node.input[1] not in kept:
            assert [made_by[tensor] for tensor in node.input[:2]] == ["DequantizeLinear"] * 2
    for node in graph.node:  # what decides the detections is computed in floating point
        if node.op_type in ("NonMaxSuppression", "Sigmoid", "TopK", "Exp"):
            assert "DequantizeLinear" not in [made_by.get(tensor) for tensor in node.input]
    weights = [onnx.numpy_helper.to_array(one) for one in graph.initializer if one.name.endswith("weight_quantized")]
    assert weights
    assert all(values.dtype == np.int8 and abs(values.astype(int)).max() <= 64 for values in weights)  # seven bits


def test_a_file_detects_what_its_detector_detects(int8: Any) -> None:
    from retinaconf.interop.quantize import detect

    found = detect(export._onnx_session(int8.before), int8.detector, int8.val)
    (wanted,) = int8.detector.detect(int8.val, int8.detector.config.inference)
    assert len(found) == len(wanted) > 20
    assert found.image_index.tolist() == wanted.image_index.tolist()
    np.testing.assert_allclose(found.scores, wanted.scores, rtol=1e-3)
    np.testing.assert_allclose(found.boxes, wanted.boxes, atol=0.1)


def test_integers_find_nearly_the_same(int8: Any) -> None:
    """Most boxes have a partner with IoU > 0.7, although the scores of a random network lie close together."""
    from retinaconf.interop.quantize import detect

    before, after = (detect(export._onnx_session(file), int8.detector, int8.val) for file in (int8.before, int8.after))
    overlap = iou(torch.from_numpy(before.boxes)[:, None], torch.from_numpy(after.boxes)).numpy()
    same = (before.image_index[:, None] == after.image_index) & (before.labels[:, None] == after.labels)
    assert (np.where(same, overlap, 0).max(axis=1) > 0.7).mean() > 0.6


# In a process of its own: after OpenVINO has run, a training in 64 bits ends torch 2.15 with SIGSEGV.
OPENVINO = """
import sys, numpy, openvino
model, images, found = sys.argv[1:]
# By itself it computes in bfloat16 where the CPU can.
compiled = openvino.Core().compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
numpy.savez(found, **{one.any_name: values for one, values in compiled(dict(numpy.load(images))).items()})
"""


@pytest.mark.slow
def test_openvino_runs_both_files(int8: Any, tmp_path: Path) -> None:
    pytest.importorskip("openvino")
    images = np.random.default_rng(0).uniform(0, 255, (1, 3, 128, 160)).astype(np.float32)
    inputs = {"images": images, "sizes": np.array([[128, 150]])}
    np.savez(tmp_path / "images.npz", **inputs)
    for file, tolerance in ((int8.before, 1e-3), (int8.after, 0.1)):
        (tmp_path / "model.onnx").write_bytes(file)
        known = export._onnx_session(file)({name: torch.from_numpy(value) for name, value in inputs.items()})
        words = [tmp_path / name for name in ("model.onnx", "images.npz", "found.npz")]
        subprocess.run([sys.executable, "-c", OPENVINO, *words], check=True)
        found = np.load(tmp_path / "found.npz")
        count = int(known["counts"][0])
        assert count > 10
        assert abs(int(found["counts"][0]) - count) <= tolerance * count
        np.testing.assert_allclose(found["scores"][0, : count // 2], known["scores"][0, : count // 2], atol=tolerance)


def test_what_the_user_can_get_wrong(run_cli: Callable[..., Any], int8: Any, tmp_path: Path) -> None:
    for words in (("model.pt2",), ("raw.onnx", "--raw")):
        refused = run_cli("export", int8.run, "--out", tmp_path / words[0], *words[1:], "--int8", tmp_path)
        assert (refused.code, len(refused.err.splitlines())) == (2, 1)
        assert "--int8" in refused.err
    assert not list(tmp_path.iterdir())
