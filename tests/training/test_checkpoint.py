import os
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import safetensors.torch
import torch

from retinaconf.config import Config
from retinaconf.errors import InputError
from retinaconf.run_folder import read_weights, write_weights
from retinaconf.training import checkpoint
from retinaconf.training.checkpoint import read_state, restoring, write_state

STATE = {"step": 7, "best": 0.25, "categories": ((3, 90), ("a", "b")), "model": {"w": torch.ones(2)}, "optimizer": {}}


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize(
    ("write", "library"),
    [
        (lambda file: write_state(file, STATE), torch),
        (lambda file: write_weights(file, {"w": torch.ones(2)}, Config(), ("a",), (1,)), safetensors.torch),
    ],
    ids=["last.ckpt", "model.safetensors"],
)
def test_every_file_of_a_run_is_written_aside(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, write: Callable[[Path], None], library: ModuleType
):
    file = tmp_path / "file"
    write(file)
    before = file.read_bytes()

    def fail(thing: Any, aside: Path, *args: Any) -> None:
        aside.write_text("half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(library, "save" if library is torch else "save_file", fail)
    with pytest.raises(InputError, match="No space left"):
        write(file)
    assert file.read_bytes() == before
    assert names(tmp_path) == ["file"]


def test_a_checkpoint_that_was_read_back_is_not_read_again_unless_it_has_changed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    read: list[str] = []

    def damage_of(path: Path) -> str:
        read.append(path.name)
        return ""

    monkeypatch.setattr(checkpoint, "damage_of", damage_of)
    file = tmp_path / "last.ckpt"
    write_state(file, STATE)
    write_state(file, STATE)
    assert [name.startswith(".last.ckpt") for name in read] == [True, True]
    file.write_bytes(file.read_bytes())
    write_state(file, STATE)
    assert [name.startswith(".last.ckpt") for name in read[2:]] == [False, True]


# --- what comes back -----------------------------------------------------------------------------------------------


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


@pytest.mark.parametrize("changes", [{"step": "3"}, {"best": None}, {"model": [1]}, {"optimizer": "x"}])
def test_a_checkpoint_with_values_of_other_types_is_refused(tmp_path: Path, changes: dict[str, Any]):
    state = {"step": 3, "best": 0.5, "categories": ((1,), ("a",)), "model": {}, "optimizer": {}}
    write_state(tmp_path / "last.ckpt", state)
    assert read_state(tmp_path / "last.ckpt") == state
    write_state(tmp_path / "last.ckpt", state | changes)
    with pytest.raises(InputError, match="not a checkpoint of this version's training; train anew"):
        read_state(tmp_path / "last.ckpt")


@pytest.mark.parametrize(
    "error", [KeyError("param_groups"), TypeError("x"), RuntimeError("two\nlines"), AttributeError()]
)
def test_a_state_that_does_not_fit_ends_in_a_line(tmp_path: Path, error: Exception):
    fault = r"last\.ckpt: does not fit this run \(.*\); train anew"
    with pytest.raises(InputError, match=fault) as caught, restoring(tmp_path / "last.ckpt"):
        raise error
    assert "\n" not in str(caught.value)


def test_a_pipe_is_no_checkpoint(tmp_path: Path):
    os.mkfifo(tmp_path / "last.ckpt")
    with pytest.raises(InputError, match="not a readable checkpoint"):
        read_state(tmp_path / "last.ckpt")
