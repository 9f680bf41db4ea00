"""MMDetection 2 and 3: `RetinaHead`, and its relatives with a quality branch called `retina_iou`.

MMDetection saves its configuration, a text of Python, beside the weights. What the tensors do not show is read from
there: the style of the ResNet, the anchors, the input's normalisation and size, the limits of the post-processing.
"""

from __future__ import annotations

import ast
import re
from typing import Any

from torch import Tensor

from retinaconf.cell_anchors import RATIOS, SCALES, STRIDES, CellAnchors
from retinaconf.errors import InputError
from retinaconf.interop.categories import Categories, named
from retinaconf.interop.imported import (
    Imported,
    add_missing_biases,
    bgr_to_rgb,
    input_settings,
    resnet_of,
    tower_layer,
)
from retinaconf.model.weights_file import WeightsFile

_TOWERS = {"cls": "classification_tower", "reg": "localization_tower"}
_CONVS = {"retina_cls": "class_conv", "retina_reg": "box_conv", "retina_iou": "quality_conv"}
# Heads with other outputs, by tensors that only they have.
_OTHER_HEADS = {
    "gfl_cls": "a GFL head, whose boxes are distributions",
    "atss_cls": "an ATSS head",
    "conv_centerness": "an FCOS head",
    "vfnet_cls": "a VarifocalNet head",
    "iou_convs": "an IoU-aware head with convolutions of its own",
    "conv_cls": "a head without towers",
}
# The paper's best exponents, section 4, Table 5.
_ALPHA = {"classification": 0.4, "localization": 0.5}


def recognises(file: WeightsFile) -> bool:
    """Whether these are weights of an MMDetection detector."""
    return any(name.startswith(("bbox_head.", "rpn_head.", "roi_head.")) for name in file.tensors)


def convert(file: WeightsFile, categories: Categories | None, quality: str | None) -> Imported:
    """The weights under our names, with the settings that make detections equal MMDetection's.

    `quality` is the tower that carries `retina_iou`, where the saved configuration does not say it.

    Raises:
        InputError: a head of another kind, anchors that cannot be set here, or a quality branch of which nobody says
            which tower carries it.
    """
    _refuse_other_heads(file)
    norm = any(re.match(r"bbox_head\.cls_convs\.\d+\.gn\.", name) for name in file.tensors)
    state = _renamed(file.tensors, norm)
    add_missing_biases(state)
    config = _configuration(str(file.meta.get("config") or file.meta.get("cfg") or ""))
    anchors = _anchors(file, config)
    caffe = _find(config.get("model"), "style") == "caffe"
    p6 = state["fpn.extra_blocks.p6.weight"]
    settings: dict[str, Any] = {
        "model.backbone": resnet_of(state),
        "model.stride_in_1x1": caffe,
        "model.p6_from": "p5" if p6.shape[0] == p6.shape[1] else "c5",
        "model.relu_before_p7": bool(_find(config.get("model"), "relu_before_extra_convs")),
        "model.head_norm": "group" if norm else "none",
        "model.anchor_ratios": anchors.ratios,
        "model.anchor_scales": anchors.scales,
        "data.resize": "bilinear",
        "inference.rules": "mmdetection",
        **_input_size(config),
        **_limits(config),
    }
    mean, std = (_numbers(_find(config, key)) for key in ("mean", "std"))
    swaps = _find(config, "to_rgb"), _find(config, "bgr_to_rgb")
    if mean and std:
        rgb = True in swaps or swaps == (None, None)
        settings |= input_settings(mean, std) if rgb else bgr_to_rgb(state, mean, std)
    if "head.quality_conv.weight" in state:
        tower = quality or _quality_tower(file, config)
        settings |= {"model.quality": tower, "inference.alpha": _ALPHA[tower]}
    names = file.meta.get("CLASSES") or (file.meta.get("dataset_meta") or {}).get("classes")
    if categories is None and isinstance(names, list | tuple):
        categories = named(tuple(str(name) for name in names))
    return Imported("MMDetection", state, settings, categories)


def _refuse_other_heads(file: WeightsFile) -> None:
    for part, kind in _OTHER_HEADS.items():
        if any(name.startswith(f"bbox_head.{part}.") for name in file.tensors):
            raise InputError(f"{file.path}: has {kind}; only RetinaNets are read")
    if "bbox_head.retina_cls.weight" not in file.tensors:
        raise InputError(
            f"{file.path}: an MMDetection detector without `bbox_head.retina_cls`; only RetinaNets are read"
        )
    if any(re.match(r"bbox_head\.\w+_convs\.\d+\.bn\.", name) for name in file.tensors):
        raise InputError(
            f"{file.path}: has batch norms in its head; only heads without norms or with group norms are read"
        )


def _renamed(given: dict[str, Tensor], norm: bool) -> dict[str, Tensor]:
    state: dict[str, Tensor] = {}
    for name, tensor in given.items():
        part, kind = name.rpartition(".")[::2]
        if name.startswith("backbone."):
            new = f"backbone.body.{name.removeprefix('backbone.')}"
        elif lateral := re.fullmatch(r"neck\.lateral_convs\.(\d)\.conv", part):
            new = f"fpn.inner_blocks.{lateral[1]}.0.{kind}"
        elif output := re.fullmatch(r"neck\.fpn_convs\.(\d)\.conv", part):
            level = int(output[1])
            new = f"fpn.layer_blocks.{level}.0.{kind}" if level < 3 else f"fpn.extra_blocks.p{level + 3}.{kind}"
        elif layer := re.fullmatch(r"bbox_head\.(cls|reg)_convs\.(\d+)\.(conv|gn)", part):
            index = tower_layer(int(layer[2]), "norm" if layer[3] == "gn" else "conv", norm)
            new = f"head.{_TOWERS[layer[1]]}.{index}.{kind}"
        else:
            conv = part.removeprefix("bbox_head.")
            new = f"head.{_CONVS[conv]}.{kind}" if conv in _CONVS else name
        state[new] = tensor
    return state


def _quality_tower(file: WeightsFile, config: dict[str, Any]) -> str:
    head = str(_find((config.get("model") or {}).get("bbox_head"), "type") or "").lower()
    if "conf" in head:
        return "classification"
    if "iou" in head:
        return "localization"
    raise InputError(
        f"{file.path}: has a quality branch, and its tensors do not tell which tower carries it; say --quality "
        "localization (IoU-aware RetinaNet) or --quality classification (RetinaNet-Conf)"
    )


def _anchors(file: WeightsFile, config: dict[str, Any]) -> CellAnchors:
    """Of a cell, as `AnchorGenerator` makes them; RetinaNet's where the saved configuration does not say."""
    said = _find(config.get("model"), "anchor_generator") or {}
    strides = said.get("strides", STRIDES)
    if tuple(strides) != STRIDES or said.get("center_offset") or said.get("base_sizes"):
        raise InputError(f"{file.path}: its anchors lie otherwise than RetinaNet's, on strides 8 to 128")
    base, octave = said.get("octave_base_scale"), said.get("scales_per_octave")
    scales = [base * 2 ** (part / octave) for part in range(octave)] if base and octave else said.get("scales")
    return CellAnchors(tuple(said.get("ratios") or RATIOS), tuple(scales or SCALES))


def _input_size(config: dict[str, Any]) -> dict[str, int]:
    pipeline = config.get("test_pipeline")
    scale = _find(pipeline, "img_scale") or _find(pipeline, "scale")
    sides = _numbers(scale) if isinstance(scale, list | tuple) else None
    if sides is None or len(sides) != 2:
        sides = (1333, 800)
    return {"data.short_side": int(min(sides)), "data.long_side": int(max(sides))}


def _limits(config: dict[str, Any]) -> dict[str, Any]:
    test = _find(config.get("model"), "test_cfg") or config.get("test_cfg") or {}
    nms = test.get("nms") or {}
    found = {
        "inference.score_threshold": test.get("score_thr"),
        "inference.candidates": test.get("nms_pre"),
        "inference.nms_iou": nms.get("iou_threshold", nms.get("iou_thr")),
        "inference.detections": test.get("max_per_img"),
    }
    return {name: value for name, value in found.items() if value is not None}


def _configuration(text: str) -> dict[str, Any]:
    """The assignments of a configuration, as far as they are constants; nothing is executed."""
    try:
        statements = ast.parse(text).body
    except SyntaxError:
        return {}
    values: dict[str, Any] = {}
    for statement in statements:
        if isinstance(statement, ast.Assign) and isinstance(statement.targets[0], ast.Name):
            values[statement.targets[0].id] = _constant(statement.value, values)
    return values


def _constant(node: ast.expr, known: dict[str, Any]) -> Any:
    if isinstance(node, ast.Call):  # dict(type='RetinaNet', ...)
        return {k.arg: _constant(k.value, known) for k in node.keywords if k.arg is not None}
    if isinstance(node, ast.Dict):
        return {
            _constant(key, known): _constant(value, known)
            for key, value in zip(node.keys, node.values)
            if isinstance(key, ast.Constant)
        }
    if isinstance(node, ast.List | ast.Tuple):
        return [_constant(item, known) for item in node.elts]
    if isinstance(node, ast.Name):
        return known.get(node.id)
    try:
        return ast.literal_eval(node)
    except ValueError:
        return None


def _find(values: Any, key: str) -> Any:
    """The first value of `key`, however deep; None where there is none."""
    if isinstance(values, dict):
        if values.get(key) is not None:
            return values[key]
        values = values.values()
    elif not isinstance(values, list):
        return None
    return next((found for value in values if (found := _find(value, key)) is not None), None)


def _numbers(value: Any) -> tuple[float, ...] | None:
    good = isinstance(value, list) and value and all(isinstance(item, int | float) for item in value)
    return tuple(value) if good else None
