"""torchvision's `retinanet_resnet50_fpn` (v1) and `retinanet_resnet50_fpn_v2`.

They differ in P6 (v1 takes P5, v2 C5) and in the towers' norms (v2 has groups), which the tensors show.
"""

from __future__ import annotations

import re
from typing import Any

from torch import Tensor

from retinaconf.interop.categories import Categories, coco_categories
from retinaconf.interop.imported import (
    NINE,
    Imported,
    add_missing_biases,
    classes_of,
    keep_classes,
    resnet_of,
    tower_layer,
)
from retinaconf.model.weights_file import WeightsFile

_COCO_OUTPUTS = 91  # COCO's category ids are the labels; eleven of them name nothing
_TOWERS = {"classification_head": "classification_tower", "regression_head": "localization_tower"}
_NAMES = {
    r"backbone\.fpn\.(inner|layer)_blocks\.(\d)\.(weight|bias)": r"fpn.\1_blocks.\2.0.\3",  # written before 0.14
    r"backbone\.fpn\.(.*)": r"fpn.\1",
    r"backbone\.body\.(.*)": r"backbone.body.\1",
    r"head\.classification_head\.cls_logits\.(.*)": r"head.class_conv.\1",
    r"head\.regression_head\.bbox_reg\.(.*)": r"head.box_conv.\1",
}


def recognises(file: WeightsFile) -> bool:
    """Whether these are such weights."""
    return "head.classification_head.cls_logits.weight" in file.tensors


def convert(file: WeightsFile, categories: Categories | None) -> Imported:
    """The weights under our names, with the settings that make detections equal torchvision's.

    Raises:
        InputError: not a ResNet, or not nine anchors a cell.
    """
    norm = "head.classification_head.conv.0.1.weight" in file.tensors
    state = _renamed(file.tensors, norm)
    add_missing_biases(state)
    outputs = classes_of(state, NINE)
    p6 = state["fpn.extra_blocks.p6.weight"]
    settings: dict[str, Any] = {
        "model.backbone": resnet_of(state),
        "model.p6_from": "p5" if p6.shape[0] == p6.shape[1] else "c5",
        "model.relu_before_p7": True,
        "model.head_norm": "group" if norm else "none",
        "model.anchors": "torchvision",
        "data.short_side": 800,
        "data.long_side": 1333,
        "data.resize": "torchvision",
        "inference.rules": "torchvision",
        "inference.detections": 300,
    }
    if outputs == _COCO_OUTPUTS and (categories is None or categories == coco_categories()):
        categories = coco_categories()
        keep_classes(state, list(categories.ids))
        # The released v1 has frozen norms, whose epsilon torchvision sets to 0 after loading it; ours is 1e-5.
        if not any(name.endswith("num_batches_tracked") for name in state):
            for name in [name for name in state if name.endswith("running_var")]:
                state[name] = state[name] - 1e-5
    elif categories is not None and outputs == len(categories.ids) + 1:
        keep_classes(state, list(range(1, outputs)))  # label 0 is the background, which is never predicted
    return Imported(f"torchvision {'v2' if norm else 'v1'}", state, settings, categories)


def _renamed(given: dict[str, Tensor], norm: bool) -> dict[str, Tensor]:
    state: dict[str, Tensor] = {}
    # Since 0.14 a tower is a list of (convolution, norm, ReLU); before, convolutions and ReLUs took turns in it.
    nested = "head.classification_head.conv.0.0.weight" in given
    for name, tensor in given.items():
        if layer := re.fullmatch(r"head\.(\w+)\.conv\.(\d+)\.(?:(\d)\.)?(weight|bias)", name):
            tower, number, inner, kind = layer.groups()
            index = tower_layer(int(number), "norm" if inner == "1" else "conv", norm) if nested else int(number)
            state[f"head.{_TOWERS[tower]}.{index}.{kind}"] = tensor
            continue
        pattern = next((pattern for pattern in _NAMES if re.fullmatch(pattern, name)), None)
        state[re.sub(pattern, _NAMES[pattern], name) if pattern else name] = tensor
    return state
