"""What the device, the precision and `compile` ask of a network and its optimizer."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable

import torch
from torch import Tensor, nn

from retinaconf.config import Config
from retinaconf.errors import InputError
from retinaconf.model.fpn import P6P7
from retinaconf.model.retinanet import RetinaNet

# Of x86 and of ARM; the names are those of `torch.cpu.get_capabilities`.
BF16_INSTRUCTIONS = ("avx512_bf16", "amx_bf16", "bf16", "sve_bf16")


def precision_on(device: torch.device, precision: str) -> str:
    """The precision that a setting comes to: CPUs have no fp16 worth the name, and take bfloat16 in its place."""
    return "bf16-mixed" if device.type == "cpu" and precision == "16-mixed" else precision


def remarks(device: torch.device, precision: str) -> list[str]:
    """What a user should know about a precision on a device, in lines."""
    lines = []
    if (used := precision_on(device, precision)) != precision:
        lines.append(f"precision {precision} is for GPUs; on this CPU it is {used}")
    if device.type == "cpu" and used != "32":
        capabilities = torch.cpu.get_capabilities()
        if not any(capabilities.get(name) for name in BF16_INSTRUCTIONS):
            lines.append(
                f"precision {used} makes training several times slower on this CPU, which has no instructions for "
                "bfloat16; --precision 32 is faster here"
            )
    return lines


def lay_out(network: RetinaNet, config: Config, device: torch.device) -> None:
    """Prepare a network for training on a device, in place: its memory format, and which convolutions stay in 32 bits.

    Of a copy that is made afterwards, use only the weights: its layers may call those of `network`.
    """
    network.to(memory_format=_memory_format(network, config, device))
    if device.type == "cpu" and config.precision != "32":
        some_convolutions_in_32_bits(network)


def _memory_format(network: RetinaNet, config: Config, device: torch.device) -> torch.memory_format:
    """Channels last where it makes a training step faster: depthwise convolutions, tensor cores, AVX-512.

    Measured by `benchmarks/speed.py`: a step of ResNet-50 on a CPU takes 0.94 of the time with AVX-512, and 1.2 times
    as long without.
    """
    depthwise = any(isinstance(module, nn.Conv2d) and module.groups > 1 for module in network.modules())
    tensor_cores = device.type == "cuda" and config.precision != "32"
    wide = device.type == "cpu" and torch.backends.cpu.get_cpu_capability() == "AVX512"
    return torch.channels_last if depthwise or tensor_cores or wide else torch.contiguous_format


def fused_on(device: torch.device, precision: str) -> bool | None:
    """Whether the optimizer takes its step in one kernel: on CUDA GPUs. None leaves it to torch.

    Not in fp16: there a fused step undoes the scaling of the gradients by itself, too late to clip them.
    """
    return True if device.type == "cuda" and precision != "16-mixed" else None


def compile_network(network: RetinaNet) -> None:
    """Let `torch.compile` translate the network, in place; the names of its weights stay.

    One graph goes from the images to what the head says. Each size of canvas has its own, up to torch's limit of eight:
    batches of further sizes go through the network as it is. With graphs for any size, a tiny network on three
    sizes was not translated after 400 seconds on an H100 (docs/performance.md).

    Raises:
        InputError: there is no C++ compiler, which torch needs for it.
    """
    if not any(map(shutil.which, (os.environ.get("CXX", "c++"), "g++", "clang++", "cl"))):
        raise InputError("--compile needs a C++ compiler, such as g++, and finds none; install one, or leave it out")
    network.head_outputs = torch.compile(network.head_outputs, dynamic=False)  # type: ignore[method-assign]


def some_convolutions_in_32_bits(network: nn.Module) -> None:
    """Leave the convolutions that a CPU does badly in bfloat16 out of mixed precision, in place.

    - The backward pass of depthwise convolutions takes several times as long as in 32 bits, more than the rest of the
      step gains (`benchmarks/precision.py`).
    - The weight gradient of a 3 x 3 convolution of stride 2 on a map that is one pixel wide has entries that are never
      written (oneDNN of torch 2.15, AVX512-BF16). Only P6 and P7 have such maps, on images of up to 64 pixels.
    """

    def in_32_bits(forward: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
        def call(x: Tensor) -> Tensor:
            with torch.autocast("cpu", enabled=False):
                return forward(x.float())

        return call

    for module in network.modules():
        extra = [module.p6, module.p7] if isinstance(module, P6P7) else []
        for conv in [module] if isinstance(module, nn.Conv2d) and module.groups > 1 else extra:
            conv.forward = in_32_bits(conv.forward)  # type: ignore[method-assign, assignment]
