import copy
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from retinaconf.model.fpn import P6P7
from retinaconf.model.retinanet import RetinaNet
from retinaconf.training.loop import launch
from retinaconf.training.precision import lay_out, remarks, some_convolutions_in_32_bits
from retinaconf.training.run import train_run

GPUS = "precision 16-mixed is for GPUs; on this CPU it is bf16-mixed"
SLOW = (
    "precision bf16-mixed makes training several times slower on this CPU, which has no instructions for bfloat16; "
    "--precision 32 is faster here"
)


def test_depthwise_convolutions_stay_in_32_bits_under_mixed_precision_on_a_cpu():
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(4, 8, 1), nn.Conv2d(8, 8, 3, groups=8), nn.Conv2d(8, 8, 3, groups=8))
    plain = copy.deepcopy(network)
    some_convolutions_in_32_bits(network)
    images = torch.rand(2, 4, 9, 9)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        half = plain[0](images)
        found = network(images)
    assert half.dtype == torch.bfloat16
    assert torch.equal(found, plain[2](plain[1](half.float())))
    found.sum().backward()
    assert all(parameter.grad is not None for parameter in network.parameters())
    assert network.state_dict().keys() == plain.state_dict().keys()


def test_p6_and_p7_stay_in_32_bits_under_mixed_precision_on_a_cpu():
    """Of a map that is one pixel wide, oneDNN leaves entries of a bfloat16 weight gradient as they were in memory."""
    torch.manual_seed(0)
    levels = P6P7(16, 16, "c5", relu_before_p7=True)
    plain = copy.deepcopy(levels)
    some_convolutions_in_32_bits(levels)
    c5 = torch.rand(1, 16, 2, 1)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        (_, p6, p7), _ = levels([c5], [c5], ["p5"])
    (_, expected_p6, expected_p7), _ = plain([c5], [c5], ["p5"])
    (p6.sum() + p7.sum()).backward()
    (expected_p6.sum() + expected_p7.sum()).backward()
    assert torch.equal(p6, expected_p6)
    assert torch.equal(p7, expected_p7)
    for parameter, expected in zip(levels.parameters(), plain.parameters(), strict=True):
        assert torch.equal(parameter.grad, expected.grad)


@pytest.mark.parametrize(
    ("backbone", "capability", "precision", "channels_last"),
    [
        ("test_resnet", "AVX2", "32", False),
        ("test_resnet", "AVX512", "32", True),
        ("tf_efficientnet_lite0", "AVX2", "bf16-mixed", True),  # depthwise convolutions
    ],
)
def test_a_network_is_laid_out_for_the_cpu_that_trains_it(
    tiny_config: Any,
    monkeypatch: pytest.MonkeyPatch,
    backbone: str,
    capability: str,
    precision: Any,
    channels_last: bool,
):
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    config = tiny_config(**{"model.backbone": backbone, "precision": precision})
    network = RetinaNet(config.model, 3)
    lay_out(network, config, torch.device("cpu"))
    weight = network.head.class_conv.weight
    assert weight.is_contiguous(memory_format=torch.channels_last) == channels_last
    in_32_bits = [module for module in network.modules() if "forward" in vars(module)]
    assert bool(in_32_bits) == (precision != "32")


@pytest.mark.parametrize(
    ("precision", "capabilities", "said"),
    [
        ("32", {"avx2": True}, []),
        ("bf16-mixed", {"avx2": True, "avx512_bf16": False, "amx_bf16": False}, [SLOW]),
        ("bf16-mixed", {"avx2": True, "avx512_bf16": True}, []),
        ("bf16-mixed", {"neon": True}, [SLOW]),
        ("bf16-mixed", {"neon": True, "bf16": True}, []),
        ("16-mixed", {"avx2": True}, [GPUS, SLOW]),
        ("16-mixed", {"amx_bf16": True}, [GPUS]),
    ],
)
def test_what_lower_precision_is_worth_on_this_cpu(
    monkeypatch: pytest.MonkeyPatch, precision: Any, capabilities: dict[str, bool], said: list[str]
):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities)
    assert remarks(torch.device("cpu"), precision) == said


def test_it_is_said_in_the_log(tiny_data: Path, tiny_config: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx2": True})
    train_run(tiny_config(precision="16-mixed"), tiny_data, tmp_path / "run", max_steps=1, device="cpu")
    log = (tmp_path / "run/log.txt").read_text().splitlines()
    assert [line for line in log if line.startswith("precision")] == [GPUS, SLOW]


def test_fp16_on_a_cpu_is_bfloat16_without_a_warning_of_the_library(tiny_config: Any):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fabric = launch(tiny_config(precision="16-mixed"), "cpu")
    with fabric.autocast():
        product = torch.ones(2, 2) @ torch.ones(2, 2)
    assert product.dtype == torch.bfloat16
