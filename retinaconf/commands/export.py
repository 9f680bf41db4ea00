"""`retinaconf export`: a run for programs without this package."""

from __future__ import annotations

from pathlib import Path

from tyro.conf import Positional

from retinaconf.errors import UsageError


def export(run: Positional[Path], /, out: Path, raw: bool = False) -> None:
    """Write a run as an ONNX file or a torch.export program, for programs without this package.

    Args:
        run: the run folder.
        out: the file; its suffix, .onnx or .pt2, decides the format.
        raw: export the network's outputs without post-processing, instead of detections.
    """
    if out.suffix not in (".onnx", ".pt2"):
        raise UsageError(f"--out {out}: end it in .onnx (ONNX) or .pt2 (torch.export)")
    from retinaconf.interop.export import export as write

    print(write(run, out, raw))
