import pickle
import tracemalloc
from zipfile import ZIP_DEFLATED, ZipFile

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from retinaconf.errors import InputError
from retinaconf.model.weights_file import read_weights_file


class Payload:
    """Runs code when unpickled, as a malicious file would."""

    def __reduce__(self):
        return (print, ("code ran",))


class Log:
    """Something that a library puts beside its weights."""

    def __init__(self):
        self.history = [1, 2]
        self.inner = {"own": Payload()}


STATE = {"a.weight": torch.arange(6.0).view(2, 3), "a.bias": torch.ones(2, dtype=torch.float16)}


def assert_state(file):
    assert set(file.tensors) == set(STATE)
    assert all(torch.equal(file.tensors[name], tensor) for name, tensor in STATE.items())


@pytest.mark.parametrize(
    "content",
    [STATE, {"state_dict": STATE}, {"model": STATE, "iteration": 3}, {f"module.{n}": t for n, t in STATE.items()}],
    ids=["bare", "state_dict", "model", "DataParallel"],
)
@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "before torch 1.6"])
def test_tensors_are_found_wherever_files_keep_them(tmp_path, content, zipped):
    torch.save(content, tmp_path / "weights.pth", _use_new_zipfile_serialization=zipped)
    assert_state(read_weights_file(tmp_path / "weights.pth"))


def test_safetensors_and_pickled_arrays(tmp_path):
    save_file(STATE, tmp_path / "weights.safetensors")
    assert_state(read_weights_file(tmp_path / "weights.safetensors"))
    arrays = {name: tensor.numpy() for name, tensor in STATE.items()}
    for protocol in (2, 5):
        (tmp_path / "weights.pkl").write_bytes(pickle.dumps({"model": arrays, "who": "zoo"}, protocol))
        assert_state(read_weights_file(tmp_path / "weights.pkl"))


@pytest.mark.parametrize("suffix", [".pth", ".pkl"])
def test_no_code_is_run_and_the_tensors_come_all_the_same(tmp_path, capsys, suffix):
    arrays = STATE if suffix == ".pth" else {name: tensor.numpy() for name, tensor in STATE.items()}
    content = {"state_dict": arrays, "meta": {"epoch": 12, "bad": Payload()}, "log": Log(), "set": {1, Payload()}}
    path = tmp_path / f"weights{suffix}"
    if suffix == ".pth":
        torch.save(content, path)
    else:
        path.write_bytes(pickle.dumps(content))
    file = read_weights_file(path)
    assert_state(file)
    assert file.meta["epoch"] == 12
    assert "code ran" not in capsys.readouterr().out


def test_values_that_are_no_tensors_are_left_out(tmp_path):
    torch.save({**STATE, "step": 3, "payload": Payload(), "names": np.array(["x"])}, tmp_path / "weights.pth")
    assert_state(read_weights_file(tmp_path / "weights.pth"))


@pytest.mark.parametrize("name", ["bad.pth", "bad.safetensors", "bad.pkl"])
def test_damaged_files_are_named(tmp_path, name):
    (tmp_path / name).write_bytes(b"not weights")
    with pytest.raises(InputError, match=name):
        read_weights_file(tmp_path / name)
    with pytest.raises(InputError, match="no such file"):
        read_weights_file(tmp_path / f"missing-{name}")


@pytest.mark.parametrize("content", [[1, 2], {"lr": 0.1}, Payload()], ids=["list", "no tensors", "payload"])
def test_files_without_tensors_are_named(tmp_path, content):
    torch.save(content, tmp_path / "other.pth")
    with pytest.raises(InputError, match=r"other.pth: does not hold tensors by name"):
        read_weights_file(tmp_path / "other.pth")


def test_tensors_that_unfold_to_more_than_their_file_are_refused(tmp_path):
    torch.save({"a.weight": torch.ones(1).expand(25_000, 25_000)}, tmp_path / "weights.pth")
    with pytest.raises(InputError, match=r"weights\.pth: has [\d,]+ bytes, and its tensors 2,500,000,000; give a file"):
        read_weights_file(tmp_path / "weights.pth")


def test_an_archive_that_unfolds_is_refused(tmp_path):
    torch.save({"a.weight": torch.zeros(1_000_000)}, tmp_path / "whole.pth")
    with ZipFile(tmp_path / "whole.pth") as whole, ZipFile(tmp_path / "weights.pth", "w", ZIP_DEFLATED) as folded:
        for name in whole.namelist():
            folded.writestr(name, whole.read(name))
    with pytest.raises(InputError, match=r"weights\.pth: .*it would unfold from"):
        read_weights_file(tmp_path / "weights.pth")


def test_a_program_is_not_loaded(tmp_path, recwarn):
    torch.jit.save(torch.jit.script(torch.nn.Linear(2, 2)), tmp_path / "weights.pth")
    with pytest.raises(InputError, match=r"weights\.pth: .*a TorchScript program, which is code; save its state_dict"):
        read_weights_file(tmp_path / "weights.pth")


def test_memory_does_not_follow_what_a_pickle_says(tmp_path):
    """Behind a value, the index under which it would be found again: 2^24."""
    (tmp_path / "weights.pkl").write_bytes(b"\x80\x04N" + b"r" + (1 << 24).to_bytes(4, "little") + b".")
    tracemalloc.start()
    with pytest.raises(InputError, match="does not hold tensors by name but a NoneType"):
        read_weights_file(tmp_path / "weights.pkl")
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 1 << 24
