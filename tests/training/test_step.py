"""A step of training reads nothing from the device but the number of positives, and frees the class logits early."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any
from weakref import ref

import pytest
import torch
from detectors import ALIGNED
from torch.utils._python_dispatch import TorchDispatchMode

from retinaconf.data.loader import Batch
from retinaconf.model.retinanet import RetinaNet
from retinaconf.training.assigners import ASSIGNERS
from retinaconf.training.loop import launch
from retinaconf.training.schedule import build_optimizer
from retinaconf.training.step import take_step

DETECTORS: dict[str, dict[str, Any]] = {
    "retinanet": {"model.quality": "none", "inference.alpha": 0.0},
    "joint": {"model.quality": "none", "inference.alpha": 0.0, "model.class_target": "iou"},
    "joint, varifocal": {
        "model.quality": "none",
        "inference.alpha": 0.0,
        "model.class_target": "iou",
        "loss.iou_score": "varifocal",
    },
    "conf": {},
    "varifocal": {"loss.quality": "varifocal"},
    "aligned": ALIGNED,
    "aligned, varifocal": ALIGNED | {"loss.iou_score": "varifocal"},
    "task-aligned": ALIGNED | {"matching.assigner": "task-aligned", "loss.rank": 0.5},
}


class Waits(TorchDispatchMode):
    """Counts what makes the CPU wait for a GPU: results with sizes that depend on values, and values that are read."""

    def __init__(self) -> None:
        super().__init__()
        self.found: Counter[str] = Counter()
        self.order: list[str] = []  # of waits and convolutions

    def __torch_dispatch__(self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        masks = args[1] if name in ("index", "index_put", "index_put_", "_index_put_impl_") else ()
        if name in ("nonzero", "_local_scalar_dense", "equal", "masked_select", "unique_dim", "_unique2"):
            self.found[name] += 1
        if name in ("nonzero", "convolution"):
            self.order.append(name)
        if any(mask is not None and mask.dtype == torch.bool for mask in masks):
            self.found["mask"] += 1
        return func(*args, **(kwargs or {}))


def a_batch() -> Batch:
    """Two images of one and two objects, on a canvas larger than the second."""
    boxes = torch.tensor([[[4.0, 8, 60, 70], [0, 0, 0, 0]], [[10.0, 10, 50, 40], [30, 20, 90, 64]]])
    images = torch.randint(0, 256, (2, 3, 96, 96), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    sizes, labels = torch.tensor([[96, 96], [64, 96]]), torch.tensor([[1, -1], [0, 2]])
    return Batch(images, sizes, boxes, labels, torch.arange(2))


@pytest.mark.parametrize("name", DETECTORS)
def test_a_step_waits_for_a_gpu_once_a_pass(tiny_config: Any, name: str) -> None:
    config = tiny_config(**{"optimizer.name": "sgd", **DETECTORS[name]})
    fabric = launch(config, "cpu")
    network = RetinaNet(config.model, 3)
    model, optimizer = fabric.setup(network, build_optimizer(network, config, fused=True))
    before = [parameter.detach().clone() for parameter in network.parameters()]
    for group in optimizer.param_groups:
        group["lr"] = 0.01
    with Waits() as waits:
        taken = take_step(fabric, model, optimizer, [a_batch(), a_batch()], ASSIGNERS[config.matching.assigner], config)
    assert waits.found == {"nonzero": 2}
    # Before the network where the anchors are all that matching needs.
    assert (waits.order[0] == "nonzero") == (config.matching.assigner != "task-aligned")
    assert all(loss.isfinite() for loss in taken.losses.values())
    assert any(not torch.equal(old, new) for old, new in zip(before, network.parameters()))


@pytest.mark.parametrize("name", ["conf", "aligned, varifocal"])
def test_the_class_logits_are_gone_before_the_backward_pass(
    tiny_config: Any, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """They are the largest tensor of a step, and its peak of memory comes later."""
    config = tiny_config(**{"optimizer.name": "sgd", **DETECTORS[name]})
    fabric = launch(config, "cpu")
    network = RetinaNet(config.model, 3)
    model, optimizer = fabric.setup(network, build_optimizer(network, config, fused=True))
    logits: list[Any] = []
    network.register_forward_hook(lambda module, inputs, outputs: logits.append(ref(outputs.class_logits)))
    alive: list[bool] = []
    backward = fabric.backward

    def look_and_go_back(loss: torch.Tensor) -> None:
        alive.append(logits[-1]() is not None)
        backward(loss)

    monkeypatch.setattr(fabric, "backward", look_and_go_back)
    take_step(fabric, model, optimizer, [a_batch(), a_batch()], ASSIGNERS[config.matching.assigner], config)
    assert alive == [False, False]
