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
    from retinaconf.inference.detector import Detector, load

__all__ = ["Detector", "load"]
__version__ = "0.1.0"


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


def __getattr__(name: str) -> Any:
    """Import torch only when a detector is asked for: `retinaconf diagnose` on two JSON files does without it."""
    if name in __all__:
        from retinaconf.errors import extras_needed_by

        with extras_needed_by(f"retinaconf.{name}"):
            from retinaconf.inference import detector

        return getattr(detector, name)
    raise AttributeError(f"module 'retinaconf' has no attribute {name!r}")
