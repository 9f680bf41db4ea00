import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

from retinaconf.config import Config, read_config
from retinaconf.errors import InputError
from retinaconf.training import checkpoint
from retinaconf.training.checkpoint import read_state, read_weights, write_config, write_state, write_weights

STATE = {"step": 7, "best": 0.25, "categories": ((3, 90), ("a", "b")), "model": {"w": torch.ones(2)}, "optimizer": {}}


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize(
    ("write", "part"),
    [
        (lambda file: write_state(file, STATE), "torch.save"),
        (lambda file: write_weights(file, {"w": torch.ones(2)}, Config(), ("a",), (1,)), "save_file"),
    ],
    ids=["last.ckpt", "model.safetensors"],
)
def test_every_file_of_a_run_is_written_aside(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, write: Callable[[Path], None], part: str
):
    file = tmp_path / "file"
    write(file)
    before = file.read_bytes()

    def fail(thing: Any, aside: Path, *args: Any) -> None:
        aside.write_text("half")
        raise OSError(28, "No space left on device")

    owner, _, name = part.rpartition(".")
    monkeypatch.setattr(getattr(checkpoint, owner) if owner else checkpoint, name, fail)
    with pytest.raises(InputError, match="No space left"):
        write(file)
    assert file.read_bytes() == before
    assert names(tmp_path) == ["file"]


# --- what comes back -----------------------------------------------------------------------------------------------


def test_a_configuration_comes_back(tmp_path: Path):
    config = Config().changed(**{"optimizer.lr": 0.1 + 0.2, "schedule.milestones": (1, 2)})
    write_config(tmp_path / "config.json", config)
    assert read_config(tmp_path / "config.json") == config
    assert json.loads((tmp_path / "config.json").read_text()) == json.loads(json.dumps(config.flat()))


def test_weights_come_back_bit_by_bit_with_their_meaning(tmp_path: Path):
    config = Config().changed(**{"model.quality": "classification", "inference.alpha": 0.3})
    state = {
        "conv.weight": torch.randn(4, 3, 3, 3).to(memory_format=torch.channels_last),
        "norm.running_var": torch.tensor([1e-30, 3.4e38]),
        "norm.num_batches_tracked": torch.tensor(5),
        "half": torch.randn(3).bfloat16(),
        "learnt": torch.nn.Parameter(torch.randn(2)),
    }
    classes, ids = ("red", "grün", 'a "b"'), (3, 8, 2**40)
    write_weights(tmp_path / "model.safetensors", state, config, classes, ids)
    for path in (tmp_path, tmp_path / "model.safetensors"):
        weights = read_weights(path)
        assert (weights.config, weights.classes, weights.category_ids) == (config, classes, ids)
        assert weights.state.keys() == state.keys()
        for name, tensor in state.items():
            assert weights.state[name].dtype == tensor.dtype
            assert torch.equal(weights.state[name], tensor)


def test_anyone_can_read_the_metadata(tmp_path: Path):
    write_weights(tmp_path / "model.safetensors", {"w": torch.ones(1)}, Config(), ("a", "b"), (1, 7))
    with safetensors.safe_open(tmp_path / "model.safetensors", framework="np") as tensors:
        metadata = tensors.metadata()
    assert json.loads(metadata["classes"]) == ["a", "b"]
    assert json.loads(metadata["category_ids"]) == [1, 7]
    assert json.loads(metadata["config"])["model.backbone"] == "resnet50.tv_in1k"


def test_the_same_weights_are_the_same_bytes(tmp_path: Path):
    """By itself the library orders the metadata at random."""
    files = [tmp_path / str(n) for n in range(8)]
    for file in files:
        write_weights(file, {"w": torch.arange(3.0), "grün": torch.ones(2)}, Config(), ("a", "ü"), (1, 7))
    assert len({file.read_bytes() for file in files}) == 1
    with safetensors.safe_open(files[0], framework="pt") as tensors:
        assert torch.equal(tensors.get_tensor("w"), torch.arange(3.0))
        assert torch.equal(tensors.get_tensor("grün"), torch.ones(2))


def test_the_state_of_a_run_comes_back(tmp_path: Path):
    write_state(tmp_path / "last.ckpt", STATE)
    state = read_state(tmp_path / "last.ckpt")
    assert {name: value for name, value in state.items() if name != "model"} == {
        name: value for name, value in STATE.items() if name != "model"
    }
    assert torch.equal(state["model"]["w"], torch.ones(2))


class Payload:
    """What an attacker's file would run when it is unpickled."""

    ran: list[int]

    def __init__(self, file: Path):
        self.file = file

    def __reduce__(self) -> Any:
        return Path.touch, (self.file,)


def test_no_code_of_a_checkpoint_is_run(tmp_path: Path):
    torch.save(STATE | {"model": Payload(tmp_path / "owned")}, tmp_path / "last.ckpt")
    with pytest.raises(InputError, match=r"last\.ckpt: not a readable checkpoint \(UnpicklingError\); train anew"):
        read_state(tmp_path / "last.ckpt")
    assert not (tmp_path / "owned").exists()
    torch.load(tmp_path / "last.ckpt", weights_only=False)
    assert (tmp_path / "owned").exists()  # the payload was live


@pytest.mark.parametrize("share", [0.0, 0.01, 0.5, 0.99])
def test_cut_files_are_refused(tmp_path: Path, share: float):
    write_state(tmp_path / "last.ckpt", STATE)
    write_weights(tmp_path / "model.safetensors", {"w": torch.ones(100)}, Config(), ("a",), (1,))
    for name, read in (("last.ckpt", read_state), ("model.safetensors", read_weights)):
        file = tmp_path / name
        file.write_bytes(file.read_bytes()[: int(file.stat().st_size * share)])
        with pytest.raises(InputError, match=rf"{name}: not a readable"):
            read(file)


def test_no_flipped_bit_of_a_checkpoint_is_trained_on(tmp_path: Path):
    file = tmp_path / "last.ckpt"
    write_state(file, STATE | {"model": {"w": torch.arange(500.0)}})
    whole = file.read_bytes()
    named = 0
    for bit in range(3, 8 * len(whole), 101):
        flipped = bytearray(whole)
        flipped[bit // 8] ^= 1 << bit % 8
        file.write_bytes(flipped)
        try:
            state = read_state(file)
        except InputError as fault:
            named += "last.ckpt: damaged (its part data/0 does not have its checksum); train anew" in str(fault)
            continue
        assert torch.equal(state.pop("model")["w"], torch.arange(500.0))  # the bit is in padding
        assert state == {name: value for name, value in STATE.items() if name != "model"}
    assert named > 100
