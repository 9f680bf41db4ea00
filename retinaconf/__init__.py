"""Detectors whose score can be trusted.

`retinaconf` trains, runs and diagnoses one-stage detectors whose score means two things at once: *this is a cat*
and *this box fits it*. The method is RetinaNet-Conf (arXiv 2011.10465).

Shape letters, used in every docstring:

====== ==============================================
N      images of a batch
A      anchors of an image, all levels together
K      classes
G      ground-truth boxes (of an image, or padded)
D      detections
C      channels
H x W  cells of a feature map, or pixels of an image
====== ==============================================

Boxes are float `xyxy` in pixels, x to the right and y down; on disk they are COCO's `xywh`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from retinaconf.api import compare, diagnose, train
    from retinaconf.inference.detector import Detector, load
    from retinaconf.inference.evaluate import evaluate
    from retinaconf.inference.tune import tune
    from retinaconf.interop.export import export

__all__ = ["Detector", "compare", "diagnose", "evaluate", "export", "load", "train", "tune"]
__version__ = "0.2.0"

_HOMES = {
    **dict.fromkeys(("compare", "diagnose", "train"), "api"),
    **dict.fromkeys(("Detector", "load"), "inference.detector"),
    "evaluate": "inference.evaluate",
    "tune": "inference.tune",
    "export": "interop.export",
}


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


def __getattr__(name: str) -> Any:
    """Import torch only when a detector is asked for: `retinaconf diagnose` on two JSON files does without it."""
    if name in _HOMES:
        from importlib import import_module

        from retinaconf.errors import extras_needed_by

        with extras_needed_by(f"retinaconf.{name}"):
            return getattr(import_module(f"retinaconf.{_HOMES[name]}"), name)
    raise AttributeError(f"module 'retinaconf' has no attribute {name!r}")
