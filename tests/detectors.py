"""Settings of detectors that tests train beside the default one, by the names of `Config.flat`."""

from __future__ import annotations

from typing import Any

ONE_ANCHOR: dict[str, Any] = {"model.anchor_ratios": [1.0], "model.anchor_scales": [8.0]}
DISTRIBUTION: dict[str, Any] = {"model.box": "distribution", "model.quality": "distribution"}
# One anchor a cell, distributions of the box, and the losses of the score that ranks; with ATSS in each epoch.
ALIGNED: dict[str, Any] = {
    **ONE_ANCHOR,
    **DISTRIBUTION,
    "matching.assigner": "atss",
    "loss.box": "giou",
    "loss.joint": "product",
}
# The same with everything that `aligned` can learn: it matches by ATSS first, and then by the outputs.
TASK_ALIGNED: dict[str, Any] = {
    **ALIGNED,
    "model.level_scale": True,
    "matching.assigner": "task-aligned",
    "loss.rank": 0.5,
}
