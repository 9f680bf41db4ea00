"""What the importers have in common."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from retinaconf.cell_anchors import CellAnchors
from retinaconf.errors import InputError
from retinaconf.interop.categories import Categories

NINE = CellAnchors().count  # a cell's anchors in the weights of torchvision and Detectron2, which do not say them

# Blocks of the four stages -> layers; those without a third convolution a block are marked.
_RESNETS: dict[tuple[tuple[int, ...], bool], int] = {
    ((2, 2, 2, 2), False): 18,
    ((3, 4, 6, 3), False): 34,
    ((3, 4, 6, 3), True): 50,
    ((3, 4, 23, 3), True): 101,
    ((3, 8, 36, 3), True): 152,
}


class Imported(NamedTuple):
    """Another library's detector as ours."""

    family: str
    state: dict[str, Tensor]  # under our names
    settings: dict[str, Any]  # in which it differs from the default configuration
    categories: Categories | None  # None if neither the file nor the user names them


def resnet_of(state: dict[str, Tensor]) -> str:
    """The timm name of the ResNet in `state`, from its number of blocks.

    Raises:
        InputError: it is no plain ResNet.
    """
    blocks = tuple(
        len({name.split(".")[3] for name in state if name.startswith(f"backbone.body.layer{stage}.")})
        for stage in range(1, 5)
    )
    layers = _RESNETS.get((blocks, "backbone.body.layer1.0.conv3.weight" in state))
    if layers is None:
        raise InputError(f"its backbone is no ResNet of 18, 34, 50, 101 or 152 layers (blocks a stage: {blocks})")
    return f"resnet{layers}"


def bgr_to_rgb(state: dict[str, Tensor], mean: tuple[float, ...], std: tuple[float, ...]) -> dict[str, Any]:
    """Let a network that was fed BGR images of 0 to 255 take RGB ones, in place; the settings of its input."""
    state["backbone.body.conv1.weight"] = state["backbone.body.conv1.weight"].flip(1)
    return input_settings(mean[::-1], std[::-1])


def input_settings(mean: tuple[float, ...], std: tuple[float, ...]) -> dict[str, Any]:
    """Settings for a mean and a standard deviation of images of 0 to 255, RGB."""
    return {
        "model.mean": tuple(value / 255 for value in mean),
        "model.std": tuple(value / 255 for value in std),
    }


def head_settings(state: dict[str, Tensor]) -> dict[str, int]:
    """Settings for the size of the head in `state`."""
    convs = [n for n, t in state.items() if n.startswith("head.classification_tower.") and t.dim() == 4]
    return {"model.channels": state["head.class_conv.weight"].shape[1], "model.head_convs": len(convs)}


def classes_of(state: dict[str, Tensor], anchors: int) -> int:
    """The number of classes of a head for so many `anchors` a cell.

    Raises:
        InputError: the head is for another number of anchors.
    """
    boxes, classes = len(state["head.box_conv.bias"]), len(state["head.class_conv.bias"])
    if boxes != anchors * 4 or classes % anchors:
        raise InputError(f"its head has {boxes / 4:g} anchors a cell, and what is known of them makes {anchors}")
    return classes // anchors


def keep_classes(state: dict[str, Tensor], rows: list[int]) -> None:
    """Leave only the outputs of some classes, in place and in this order."""
    for name in ("head.class_conv.weight", "head.class_conv.bias"):
        by_anchor = state[name].unflatten(0, (NINE, -1))
        state[name] = by_anchor[:, torch.tensor(rows)].flatten(0, 1)


def reorder_anchors(state: dict[str, Tensor], order: list[int]) -> None:
    """Let our anchor i of a cell have the outputs of the source's anchor `order[i]`, in place."""
    for name in [
        name for name in state if name.startswith(("head.class_conv.", "head.box_conv.", "head.quality_conv."))
    ]:
        state[name] = state[name].unflatten(0, (NINE, -1))[torch.tensor(order)].flatten(0, 1)


def tower_layer(conv: int, part: str, norm: bool) -> int:
    """Index in our towers of convolution number `conv`, or of the norm (`part` = "norm") behind it."""
    return conv * (3 if norm else 2) + (part == "norm")


def add_missing_biases(state: dict[str, Tensor]) -> None:
    """Zeros where the source's tower convolutions, with a norm behind them, have no bias; in place."""
    for name, tensor in list(state.items()):
        if "_tower." in name and name.endswith(".weight") and tensor.dim() == 4:
            state.setdefault(name.removesuffix("weight") + "bias", tensor.new_zeros(len(tensor)))
