import inspect
from collections.abc import Callable
from typing import Any

import pytest
import torch

import retinaconf
from retinaconf.cli import COMMANDS, load_command
from retinaconf.commands.paper import PaperOptions
from retinaconf.commands.train import TrainOptions
from retinaconf.device import find_device
from retinaconf.diagnosis.inputs import diagnose_run
from retinaconf.errors import InputError
from retinaconf.inference.evaluate import evaluate
from retinaconf.inference.predict import predict_files
from retinaconf.paper.engine import run_paper
from retinaconf.training import loop
from retinaconf.training.run import train_run


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Callable[[int, bool], None]:
    """`machine(gpus, is_mac)`: a machine with so many CUDA GPUs, or with an Apple GPU."""

    def make(gpus: int, is_mac: bool) -> None:
        monkeypatch.setattr(torch.cuda, "is_available", lambda: gpus > 0)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
        monkeypatch.setattr(torch.backends.mps, "is_available", lambda: is_mac)

    return make


@pytest.mark.parametrize(
    ("gpus", "is_mac", "expected"), [(2, True, "cuda"), (1, False, "cuda"), (0, True, "mps"), (0, False, "cpu")]
)
def test_auto_is_cuda_then_mps_then_cpu(machine: Any, gpus: int, is_mac: bool, expected: str):
    machine(gpus, is_mac)
    assert find_device("auto") == find_device() == torch.device(expected)


@pytest.mark.parametrize("name", ["cpu", "cuda", "cuda:0", "cuda:1", "mps"])
def test_a_device_by_name(machine: Any, name: str):
    machine(2, True)
    assert find_device(name) == find_device(torch.device(name)) == torch.device(name)


@pytest.mark.parametrize(
    ("gpus", "name", "line"),
    [
        (0, "cuda", "--device cuda: torch finds no GPU here; use --device cpu"),
        (0, "mps", "--device mps: torch finds no Apple GPU here; use --device cpu"),
        (2, "cuda:2", "--device cuda:2: torch finds no such GPU here; use --device cpu"),
        (0, "tpu", "--device tpu: no device is called so; give auto, cpu, cuda or mps"),
        (0, "meta", "--device meta: no device is called so; give auto, cpu, cuda or mps"),
        (0, None, "--device None: no device is called so; give auto, cpu, cuda or mps"),
    ],
)
def test_a_device_that_is_not_there(machine: Any, trained: Any, gpus: int, name: Any, line: str):
    machine(gpus, False)
    for use in (find_device, lambda device: retinaconf.load(trained.run, device)):
        with pytest.raises(InputError) as caught:
            use(name)
        assert str(caught.value).removeprefix(f"{trained.run}: ") == line


@pytest.mark.parametrize(("gpus", "is_mac"), [(1, False), (0, True)], ids=["CUDA", "Mac"])
def test_training_and_loading_take_the_same_device(
    machine: Any, trained: Any, tiny_config: Any, monkeypatch: pytest.MonkeyPatch, gpus: int, is_mac: bool
):
    """With nothing to compute on it: what training asks of Fabric, and where loading moves the network."""
    machine(gpus, is_mac)
    asked: dict[str, Any] = {}
    moved: list[torch.device] = []

    class NoFabric:
        def __init__(self, **options: Any):
            asked.update(options)

        def launch(self) -> None:
            pass

    monkeypatch.setattr(loop, "Fabric", NoFabric)
    monkeypatch.setattr(torch.nn.Module, "to", lambda self, device, **options: moved.append(device))
    loop.launch(tiny_config())
    detector = retinaconf.load(trained.run)
    assert [detector.device] == moved == [torch.device(asked["accelerator"])] == [find_device()]
    assert detector.device.type != "cpu"


def test_the_default_is_auto_everywhere():
    commands = [command for command in map(load_command, COMMANDS) if "device" in inspect.signature(command).parameters]
    assert len(commands) == 7
    for function in (
        *(*commands, TrainOptions, PaperOptions),
        *(retinaconf.load, retinaconf.Detector, loop.launch, train_run, evaluate, diagnose_run, predict_files),
        run_paper,
    ):
        assert inspect.signature(function).parameters["device"].default == "auto", function
