"""`retinaconf export`: a run for programs without this package."""

from __future__ import annotations

from pathlib import Path

from tyro.conf import Positional

from retinaconf.errors import UsageError


def export(run: Positional[Path], /, out: Path, raw: bool = False, int8: Path | None = None) -> None:
    """Write a run as an ONNX file or a torch.export program, for programs without this package.

    Args:
        run: the run folder.
        out: the file; its suffix, .onnx or .pt2, decides the format.
        raw: export the network's outputs without post-processing, instead of detections.
        int8: compute the convolutions of an ONNX file in 8-bit integers, which is less exact. Give a data set's folder:
            `train` sets the ranges of the integers, and AP on `val` is printed before and after.
    """
    if out.suffix not in (".onnx", ".pt2"):
        raise UsageError(f"--out {out}: end it in .onnx (ONNX) or .pt2 (torch.export)")
    from retinaconf.interop.export import export as write

    print(write(run, out, raw, int8))
