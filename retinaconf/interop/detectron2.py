"""Detectron2's RetinaNet: the model zoo's `.pkl`, or a `.pth` of one's own.

The networks take BGR images, those of the zoo from 0 to 255 less the mean, and their ResNets stride in the 1x1
convolution, as Caffe's do. The nine anchors of a cell are ordered by size, then ratio; ours by ratio, then size.
"""

from __future__ import annotations

import re
from typing import Any

from torch import Tensor

from retinaconf.errors import InputError
from retinaconf.interop.categories import Categories
from retinaconf.interop.imported import NINE, Imported, bgr_to_rgb, classes_of, reorder_anchors, resnet_of
from retinaconf.model.weights_file import WeightsFile

_MEAN, _STD = (103.530, 116.280, 123.675), (1.0, 1.0, 1.0)  # BGR; of the zoo's networks
_ORDER = [3 * scale + ratio for ratio in range(3) for scale in range(3)]
_TOWERS = {"cls": "classification_tower", "bbox": "localization_tower"}
_NAMES = {
    r"backbone\.bottom_up\.stem\.conv1\.norm\.(\w+)": r"backbone.body.bn1.\1",
    r"backbone\.bottom_up\.stem\.conv1\.weight": r"backbone.body.conv1.weight",
    r"backbone\.bottom_up\.res(\d)\.(\d+)\.shortcut\.norm\.(\w+)": r"backbone.body.layer\1.\2.downsample.1.\3",
    r"backbone\.bottom_up\.res(\d)\.(\d+)\.shortcut\.weight": r"backbone.body.layer\1.\2.downsample.0.weight",
    r"backbone\.bottom_up\.res(\d)\.(\d+)\.conv(\d)\.norm\.(\w+)": r"backbone.body.layer\1.\2.bn\3.\4",
    r"backbone\.bottom_up\.res(\d)\.(\d+)\.conv(\d)\.weight": r"backbone.body.layer\1.\2.conv\3.weight",
    r"backbone\.fpn_lateral(\d)\.(weight|bias)": r"fpn.inner_blocks.\1.0.\2",
    r"backbone\.fpn_output(\d)\.(weight|bias)": r"fpn.layer_blocks.\1.0.\2",
    r"backbone\.top_block\.(p[67])\.(weight|bias)": r"fpn.extra_blocks.\1.\2",
    r"head\.cls_score\.(weight|bias)": r"head.class_conv.\1",
    r"head\.bbox_pred\.(weight|bias)": r"head.box_conv.\1",
}
# Ours count from another beginning: res2 is layer1, fpn_lateral3 the first of the pyramid.
_SHIFTED = {r"(backbone\.body\.layer)(\d)": -1, r"(fpn\.(?:inner|layer)_blocks\.)(\d)": -3}
_NOT_WEIGHTS = re.compile(r"anchor_generator\.|pixel_(mean|std)$")


def recognises(file: WeightsFile) -> bool:
    """Whether these are such weights."""
    return "head.cls_score.weight" in file.tensors and "head.bbox_pred.weight" in file.tensors


def convert(file: WeightsFile, categories: Categories | None) -> Imported:
    """The weights under our names, with the settings that make detections equal Detectron2's.

    Raises:
        InputError: not a ResNet with a pyramid, or not nine anchors a cell.
    """
    # Convolutions lie at 0, 2, 4, ... of a tower, with norms at 0, 3, 6, ... and these behind them.
    norm = "head.cls_subnet.1.weight" in file.tensors
    state = _renamed(file.tensors, norm)
    if "fpn.extra_blocks.p6.weight" not in state:
        raise InputError(f"{file.path}: has no pyramid with P6 and P7; only RetinaNets on an FPN are read")
    classes_of(state, NINE)
    reorder_anchors(state, _ORDER)
    mean, std = (
        tuple(file.tensors[name].flatten().tolist()) if name in file.tensors else default
        for name, default in (("pixel_mean", _MEAN), ("pixel_std", _STD))
    )
    p6 = state["fpn.extra_blocks.p6.weight"]
    settings: dict[str, Any] = {
        "model.backbone": resnet_of(state),
        # Networks whose input has unit variance come from torchvision's ImageNet weights, the others from Caffe's.
        "model.stride_in_1x1": max(std) <= 1,
        "model.p6_from": "p5" if p6.shape[0] == p6.shape[1] else "c5",
        "model.relu_before_p7": True,
        "model.head_norm": "group" if norm else "none",
        "data.short_side": 800,
        "data.long_side": 1333,
        "inference.rules": "detectron2",
        **bgr_to_rgb(state, mean, std),
    }
    return Imported("Detectron2", state, settings, categories)


def _renamed(given: dict[str, Tensor], norm: bool) -> dict[str, Tensor]:
    state: dict[str, Tensor] = {}
    for name, tensor in given.items():
        if _NOT_WEIGHTS.match(name):
            continue
        if layer := re.fullmatch(r"head\.(cls|bbox)_subnet\.(\d+)\.(weight|bias)", name):
            state[f"head.{_TOWERS[layer[1]]}.{layer[2]}.{layer[3]}"] = tensor
            continue
        pattern = next((pattern for pattern in _NAMES if re.fullmatch(pattern, name)), None)
        new = re.sub(pattern, _NAMES[pattern], name) if pattern else name
        for prefix, shift in _SHIFTED.items():
            new = re.sub(f"^{prefix}", lambda found, shift=shift: f"{found[1]}{int(found[2]) + shift}", new)  # type: ignore[misc]
        state[new] = tensor
    return state
