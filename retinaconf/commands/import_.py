"""`retinaconf import`: a RetinaNet of another library as a run folder."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from tyro.conf import Positional


def import_(
    weights: Positional[Path],
    /,
    out: Path,
    classes: Path | None = None,
    quality: Literal["classification", "localization"] | None = None,
) -> None:
    """A RetinaNet of torchvision, MMDetection or Detectron2 as a run folder.

    Args:
        weights: its checkpoint; code in it is not run.
        out: the run folder.
        classes: names of its classes, where it does not say them: a COCO JSON, or a text file with a name a line.
        quality: tower that carries its quality branch, where it has one and does not say it.
    """
    from retinaconf.interop.import_weights import import_weights

    run = import_weights(weights, out, classes, quality)
    names = ", ".join(run.classes[:3]) + (", ..." if len(run.classes) > 3 else "")
    print(f"{run.family}, {run.config.model.backbone}, {len(run.classes)} classes ({names}): {run.run}")
