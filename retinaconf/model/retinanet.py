"""The whole network: backbone, pyramid, head, anchors."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import init
from torch.overrides import TorchFunctionMode

from retinaconf.config import ModelConfig
from retinaconf.errors import InputError
from retinaconf.model.anchors import anchor_grid
from retinaconf.model.backbone import COUNTER, Backbone
from retinaconf.model.boxes import MAX_LOG_RATIO, decode
from retinaconf.model.fpn import FPN
from retinaconf.model.head import Head


class Outputs(NamedTuple):
    """What the network says of a batch. Levels lie one after the other along A."""

    class_logits: Tensor  # (N, A, K)
    box_deltas: Tensor  # (N, A, 4)
    quality_logits: Tensor | None  # (N, A)
    anchors: Tensor  # (A, 4) xyxy, pixels of the padded image
    level_sizes: tuple[int, ...]  # anchors of P3 ... P7; they sum to A
    box_logits: Tensor | None = None  # (N, A, 4, BINS), where boxes are distributions

    def boxes(self, image: Tensor | int, anchor: Tensor, min_log_ratio: float = -MAX_LOG_RATIO) -> Tensor:
        """Predicted boxes (..., 4) xyxy float32 at the anchors `anchor` (...) of the images `image`; as `decode`."""
        return decode(self.anchors[anchor], self.box_deltas[image, anchor].float(), min_log_ratio)


class RetinaNet(nn.Module):
    """RetinaNet and its three relatives; which one, `config.quality` says (`retinaconf.model.head`)."""

    mean: Tensor
    std: Tensor

    def __init__(self, config: ModelConfig, classes: int):
        super().__init__()
        freezes_backbone = config.freeze in ("backbone", "all but class")
        freeze_norm = config.freeze_norm or freezes_backbone  # statistics that go on would change its features
        self.backbone = Backbone(
            config.backbone, config.weights, config.freeze == "stem", freeze_norm, config.stride_in_1x1
        )
        self.fpn = FPN(self.backbone.channels, config.channels, config.p6_from, config.relu_before_p7)
        self.cell_anchors = config.cell_anchors
        self.head = Head(
            config.channels,
            classes,
            self.cell_anchors.count,
            config.head_convs,
            config.quality,
            config.head_norm,
            config.box,
            config.level_scale,
        )
        if freezes_backbone:
            (self.backbone if config.freeze == "backbone" else self).requires_grad_(False)
            self.head.class_conv.requires_grad_(True)
        self.register_buffer("mean", torch.tensor(config.mean).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(config.std).view(3, 1, 1), persistent=False)

    def forward(self, images: Tensor, sizes: Tensor) -> Outputs:
        """Images (N, 3, H, W), 0 to 255, H and W multiples of 32, image n filling the top left `sizes[n]` (h, w)."""
        (class_logits, box_deltas, quality_logits, box_logits), shapes = self.head_outputs(images, sizes)
        grid = anchor_grid(shapes, class_logits.device, self.cell_anchors)
        return Outputs(class_logits, box_deltas, quality_logits, *grid, box_logits)

    def head_outputs(
        self, images: Tensor, sizes: Tensor
    ) -> tuple[tuple[Tensor, Tensor, Tensor | None, Tensor | None], tuple[tuple[int, int], ...]]:
        """What the head says of a batch, and (H, W) of P3 ... P7; `torch.compile` translates this as one graph."""
        features = self.fpn(self.backbone(self.normalise(images, sizes)))
        return self.head(features), tuple((feature.shape[2], feature.shape[3]) for feature in features)

    def normalise(self, images: Tensor, sizes: Tensor) -> Tensor:
        """Zero mean and unit variance in the image, 0 outside it, as if padded after normalising."""
        normal = (images / 255 - self.mean) / self.std
        height, width = images.shape[2:]
        rows = torch.arange(height, device=images.device) < sizes[:, 0, None]  # (N, H)
        columns = torch.arange(width, device=images.device) < sizes[:, 1, None]  # (N, W)
        return normal * (rows[:, None, :, None] & columns[:, None, None, :])


class _NothingDrawn(TorchFunctionMode):
    """Modules that are made here keep what memory holds in the place of random weights, which are loaded over it."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        return kwargs.get("tensor", *args[:1]) if func in _DRAWING else func(*args, **kwargs)


_DRAWING = {Tensor.normal_, Tensor.uniform_, init.normal_, init.uniform_, init.kaiming_normal_, init.kaiming_uniform_}


def with_weights(config: ModelConfig, classes: int, state: Mapping[str, Tensor]) -> RetinaNet:
    """A network with these weights.

    Names and shapes are compared first, with a network that takes no memory: a stranger may have written any size into
    the settings.

    Raises:
        InputError: the weights are not those of such a network, or there is none.
    """
    config = config.model_copy(update={"weights": "none"})
    with torch.device("meta"), _NothingDrawn():
        wanted = RetinaNet(config, classes).state_dict()
    for name in sorted(state.keys() | wanted.keys()):
        if name.endswith(COUNTER):
            continue
        if name not in state or name not in wanted:
            raise InputError(f"{name!r} is {'not among them' if name in wanted else 'not in the network'}")
        if state[name].shape != wanted[name].shape:
            raise InputError(f"{name!r} is {tuple(state[name].shape)} and should be {tuple(wanted[name].shape)}")
    with _NothingDrawn():
        network = RetinaNet(config, classes)
    try:
        network.load_state_dict(state)
    except RuntimeError as error:  # a counter too many or too few, of another shape
        raise InputError(str(error).splitlines()[-1].strip()) from None
    return network
