"""`retinaconf export`: what it writes, says and refuses."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from retinaconf.interop import export
from retinaconf.interop.exportable import RawOutputs

SMALL = {"data.short_side": 128, "data.long_side": 192}


@pytest.mark.ci
def test_the_command(
    run_cli: Callable[..., Any], exported: Callable[..., Any], tmp_path: Path, monkeypatch: Any
) -> None:
    ours = exported("conf.onnx")
    monkeypatch.setattr(export, "_onnx", lambda *args: ours.out.read_bytes())  # it takes seconds
    done = run_cli("export", ours.run, "--out", tmp_path / "model.onnx")
    assert (done.code, done.err) == (0, "")
    assert "detections as in torch, largest difference" in done.out
    assert len(done.out.splitlines()) == 1
    assert (tmp_path / "model.onnx").read_bytes() == ours.out.read_bytes()


@pytest.mark.ci
def test_a_file_that_differs_is_not_written(
    run_cli: Callable[..., Any],
    write_run: Callable[..., Path],
    exported: Callable[..., Any],
    tmp_path: Path,
    monkeypatch: Any,
) -> None:
    """Of the same network with other weights."""
    run, other = write_run(tmp_path / "run", **SMALL), exported("conf.onnx")
    network = RawOutputs(other.detector.model)
    sessions = {(): export._onnx_session, ("--raw",): lambda content: lambda inputs: network(**inputs)}
    monkeypatch.setattr(export, "_onnx", lambda *args: other.out.read_bytes())
    for raw, session in sessions.items():
        monkeypatch.setattr(export, "_onnx_session", session)
        done = run_cli("export", run, "--out", tmp_path / "model.onnx", *raw)
        assert (done.code, done.out) == (1, "")
        assert "not written, the exported file differs from torch" in done.err
        assert len(done.err.splitlines()) == 1
        assert [path.name for path in tmp_path.iterdir()] == ["run"]


def test_what_the_user_can_get_wrong(
    run_cli: Callable[..., Any], write_run: Callable[..., Path], tmp_path: Path, monkeypatch: Any
) -> None:
    run = write_run(tmp_path / "run", **SMALL)

    def complaint(code: int, *words: Any) -> str:
        done = run_cli("export", *words)
        assert (done.code, done.out, len(done.err.splitlines())) == (code, "", 1)
        assert sorted(path.name for path in tmp_path.iterdir()) == ["run"]
        return str(done.err)

    wrong_suffix = complaint(2, run, "--out", tmp_path / "model.pb")
    assert ".onnx" in wrong_suffix
    assert ".pt2" in wrong_suffix
    assert "give a run folder" in complaint(1, tmp_path / "nothing", "--out", tmp_path / "model.onnx")
    assert "a folder that exists" in complaint(1, run, "--out", tmp_path / "no-folder/model.onnx")
    monkeypatch.setattr(export, "_onnx", lambda *args: torch.ones(2) @ torch.ones(3))
    assert "torch cannot export a detector on test_resnet (RuntimeError" in complaint(
        1, run, "--out", tmp_path / "model.onnx"
    )
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    assert "model.onnx: ONNX needs onnxscript; install it with: pip install 'retinaconf[onnx]'" in complaint(
        1, run, "--out", tmp_path / "model.onnx"
    )


def test_clipping_after_nms_is_refused(
    run_cli: Callable[..., Any], write_run: Callable[..., Path], tmp_path: Path
) -> None:
    run = write_run(tmp_path / "run", **{"inference.rules": "detectron2"})
    done = run_cli("export", run, "--out", tmp_path / "model.onnx")
    assert (done.code, len(done.err.splitlines())) == (1, 1)
    assert "--raw" in done.err
