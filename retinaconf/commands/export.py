"""`retinaconf export`: a run for programs without this package."""

from __future__ import annotations

from pathlib import Path

from tyro.conf import Positional

from retinaconf.errors import UsageError


def export(run: Positional[Path], /, out: Path, raw: bool = False) -> None:
    """An ONNX file or a torch.export program of a run, for programs without this package.

    Args:
        run: the run folder.
        out: the file; its suffix decides, .onnx or .pt2.
        raw: the network's outputs as they are, instead of finished detections.
    """
    if out.suffix not in (".onnx", ".pt2"):
        raise UsageError(f"--out {out}: end it in .onnx (ONNX) or .pt2 (torch.export)")
    from retinaconf.interop.export import export as write

    print(write(run, out, raw))
