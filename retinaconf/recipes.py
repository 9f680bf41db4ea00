"""The named set-ups. `retinaconf train RECIPE --data ROOT --out RUN`, and any field on the command line.

A name is DETECTOR-BACKBONE-SCHEDULE. Four detectors are those of the paper's Figure 3: `retinanet` (a), `iou-aware`
(b), `joint` (c), `conf` (d). The fifth, `aligned`, has what the field has found since (docs/aligned.md).

====================== ============================================================================================
`*-r50-1x`, `*-r101-1x` the paper's set-up (section 4): short side 600, long side 1000, SGD, batch 16, 12 epochs
`*-r50-2x`, `*-r101-2x` the same for 24 epochs
`*-lite0`              EfficientNet-Lite0, short side 320, a small head, AdamW: for CPUs and some hundred images
====================== ============================================================================================
"""

from __future__ import annotations

from typing import Any

from retinaconf.config import SOFT_NMS_IOU, Config
from retinaconf.errors import InputError

# Section 4. The published AP on COCO val2017 (of 1): R50 1x: retinanet 0.353, iou-aware 0.361, conf 0.360;
# R101 1x: 0.370, 0.379, 0.380; R101 2x: conf 0.384. About 15 hours on 8 GPUs of 2020 for R50 1x.
PAPER = Config().changed(
    **{
        "model.backbone": "resnet50.tv_in1k",  # torchvision's weights
        "data.short_side": 600,
        "data.long_side": 1000,
        "data.batch_size": 16,
        "optimizer.name": "sgd",
        "optimizer.lr": 0.01,
        "schedule.epochs": 12,
        "schedule.milestones": (8, 11),
        "schedule.warmup_steps": 500,
        "schedule.warmup_start": 0.001,
    }
)

# For CPUs and small data sets. bccd, conf-lite0: see docs/results.md.
LITE0 = Config().changed(
    **{
        "model.backbone": "tf_efficientnet_lite0",
        "model.mean": (0.498, 0.498, 0.498),
        "model.std": (0.502, 0.502, 0.502),
        "model.channels": 96,
        "model.head_convs": 3,
        "data.short_side": 320,
        "data.long_side": 544,
        "data.batch_size": 8,
        "data.scale": (0.8, 1.25),
        "optimizer.name": "adamw",
        "optimizer.lr": 1e-3,
        "optimizer.reference_batch": 8,
        "optimizer.weight_decay": 0.05,
        "optimizer.clip_norm": 10.0,
        "optimizer.ema": 0.998,
        "schedule.epochs": 24,
        "schedule.decay": "cosine",
        "schedule.warmup_steps": 100,
    }
)

DETECTORS: dict[str, dict[str, Any]] = {
    "retinanet": {},
    "iou-aware": {"model.quality": "localization", "inference.alpha": 0.5},  # the paper's best alpha: 0.4 to 0.5
    "joint": {"model.class_target": "iou"},
    "conf": {"model.quality": "classification", "inference.alpha": 0.4},  # the paper's best alpha: 0.2 to 0.4
    "aligned": {  # the last step of `paper ladder`
        "model.anchor_ratios": (1.0,),
        "model.anchor_scales": (8.0,),
        "model.box": "distribution",
        "model.quality": "distribution",
        "matching.assigner": "atss",
        "loss.joint": "product",
        "loss.box": "giou",
        "loss.box_weight": 2.0,
        "inference.alpha": 0.4,
    },
}
BACKBONES: dict[str, dict[str, Any]] = {
    "r50": {"model.backbone": "resnet50.tv_in1k"},
    "r101": {"model.backbone": "resnet101.tv_in1k"},
}
SCHEDULES: dict[str, dict[str, Any]] = {
    "1x": {},
    "2x": {"schedule.epochs": 24, "schedule.milestones": (16, 22)},
}

RECIPES: dict[str, Config] = {
    f"{detector}-{backbone}-{schedule}": PAPER.changed(**is_detector, **has_backbone, **has_schedule)
    for detector, is_detector in DETECTORS.items()
    for backbone, has_backbone in BACKBONES.items()
    for schedule, has_schedule in SCHEDULES.items()
} | {f"{detector}-lite0": LITE0.changed(**is_detector) for detector, is_detector in DETECTORS.items()}
# Steps of their own in `paper ladder`, so not in DETECTORS. Score voting adds AP in each of three runs on voc-animals
# val (+0.1), and to YOLOX-nano's candidates +0.5, 95 % interval +0.1 to +0.8. Soft-NMS adds AP in each of twelve runs
# on blood cells and photographs (+0.2 to +1.1). With the varifocal loss no seed on photographs learns the classes late,
# and five seeds on blood cells show no loss: docs/results.md.
FINISH = {"vote": True, "soft_nms": True, "nms_iou": SOFT_NMS_IOU}  # of `inference`
RECIPES |= {
    name: config.changed(
        **{f"inference.{key}": value for key, value in FINISH.items()}, **{"loss.iou_score": "varifocal"}
    )
    for name, config in RECIPES.items()
    if name.startswith("aligned-")
}
# A backbone that learns at the full rate of lite0 forgets what it knows of photographs: docs/results.md. The others
# learn as the paper's networks do, all layers at one rate.
RECIPES["aligned-lite0"] = RECIPES["aligned-lite0"].changed(**{"optimizer.kept_lr": 0.1})


def recipe(name: str) -> Config:
    """The configuration of a recipe.

    Raises:
        InputError: there is none of that name.
    """
    if name not in RECIPES:
        raise InputError(f"no recipe {name!r}; there are {', '.join(RECIPES)}")
    return RECIPES[name]


def paper_recipe(base: str, schedule: str) -> Config:
    """Plain RetinaNet for the paper's items, `base` `r50` or `lite0`, `schedule` `1x` or, twice the epochs, `2x`."""
    if base == "r50":
        return RECIPES[f"retinanet-r50-{schedule}"]
    lite = RECIPES[f"retinanet-{base}"]
    return lite.changed(**{"schedule.epochs": 2 * lite.schedule.epochs}) if schedule == "2x" else lite
