"""The README.md beside a saved model: what it detects, how it was trained, how well it did."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path

from retinaconf.config import Config
from retinaconf.evaluation.coco import METRICS
from retinaconf.recipes import RECIPES
from retinaconf.run_folder import METRICS_LOG, read_metrics

_SHOWN_CLASSES = 100
_CARD = """\
---
library_name: retinaconf
pipeline_tag: object-detection
tags:
- retinanet
- object-detection
---

# Object detector, {count} classes

{detector} with the backbone `{backbone}`, trained with [retinaconf](https://arxiv.org/abs/2011.10465):

```bash
{command}
```

```python
import retinaconf

detector = retinaconf.load("OWNER/NAME")  # this model's name, or its folder
(found,) = detector.predict("photo.jpg")
```

**Classes:** {classes}

**Validation:** {metrics}
"""
_DETECTORS = {
    "none": "RetinaNet",
    "classification": "RetinaNet-Conf",
    "localization": "IoU-aware RetinaNet",
    "distribution": "RetinaNet with a quality from the distributions of its boxes (GFLv2)",
}


def model_card(config: Config, classes: Sequence[str], metrics: Mapping[str, float] | None) -> str:
    """Markdown with the metadata that the Hugging Face Hub reads; `metrics` are fractions, None where not known."""
    shown = ", ".join(classes[:_SHOWN_CLASSES])
    if len(classes) > _SHOWN_CLASSES:
        shown += f" and {len(classes) - _SHOWN_CLASSES} more"
    return _CARD.format(
        count=len(classes),
        detector=_detector(config),
        backbone=config.model.backbone,
        command=_command(config),
        classes=shown,
        metrics=", ".join(f"{name} {value:.3f}" for name, value in metrics.items()) if metrics else "not recorded",
    )


def _detector(config: Config) -> str:
    name = "Joint head" if config.model.class_target == "iou" else _DETECTORS[config.model.quality]
    product = ", class score and quality trained as one product," if config.loss.joint == "product" else ""
    return name + product


def best_metrics(run: Path) -> dict[str, float] | None:
    """The best validation in a run's `metrics.jsonl`: the one that chose its weights. None where none is recorded."""
    best: dict[str, float] | None = None
    for record in read_metrics(run / METRICS_LOG):
        try:
            judged = {name: float(record[name]) for name in METRICS if record[name] is not None}
        except (ValueError, TypeError, KeyError):  # a line of training
            continue
        if "AP" in judged and (best is None or judged["AP"] >= best["AP"]):
            best = judged
    return best


def _command(config: Config) -> str:
    """The training command: the recipe that is nearest, and the options by which this configuration differs."""
    flat = config.flat()
    changes = {
        name: {field: value for field, value in flat.items() if value != known.flat()[field]}
        for name, known in RECIPES.items()
    }
    name = min(changes, key=lambda one: len(changes[one]))
    words = ["retinaconf train", name, "--data ROOT --out RUN", *(_option(*item) for item in changes[name].items())]
    return " ".join(words)


def _option(field: str, value: object) -> str:
    section, dot, name = field.replace("_", "-").rpartition(".")
    if isinstance(value, bool):
        return f"--{section}{dot}{'' if value else 'no-'}{name}"
    if isinstance(value, list):
        return f"--{section}{dot}{name} " + shlex.join(str(one) for one in value)
    return f"--{section}{dot}{name} {shlex.quote(str(value))}"
