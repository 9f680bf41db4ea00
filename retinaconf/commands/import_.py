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
    """Turn a RetinaNet from torchvision, MMDetection or Detectron2 into a run folder.

    Args:
        weights: the checkpoint; code in it is not run.
        out: the run folder.
        classes: the class names, if the checkpoint has none: a COCO JSON, or a text file with one name per line.
        quality: tower that carries the quality branch, if there is one and the checkpoint does not say where.
    """
    from retinaconf.interop.import_weights import import_weights

    run = import_weights(weights, out, classes, quality)
    names = ", ".join(run.classes[:3]) + (", ..." if len(run.classes) > 3 else "")
    print(f"{run.family}, {run.config.model.backbone}, {len(run.classes)} classes ({names}): {run.run}")
