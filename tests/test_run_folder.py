import json
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

from retinaconf.config import Config
from retinaconf.errors import InputError
from retinaconf.run_folder import read_config, read_metrics, read_weights, write_config, write_weights


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


def test_a_full_disk_leaves_the_old_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    file = tmp_path / "model.safetensors"
    write_weights(file, {"w": torch.ones(1)}, Config(), ("a",), (1,))
    old = file.read_bytes()

    def fail(*_: object) -> None:
        raise safetensors.SafetensorError("I/O error: No space left on device")

    monkeypatch.setattr(safetensors.torch, "save_file", fail)
    with pytest.raises(InputError, match=r"model\.safetensors: cannot be written \(I/O error: No space.*\); free"):
        write_weights(file, {"w": torch.zeros(1)}, Config(), ("a",), (1,))
    assert file.read_bytes() == old


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"optimizer.rate": 1}', "unknown setting 'optimizer.rate'"),
        ('{"colour.sky": 1}', "unknown setting 'colour.sky'"),
        ('{"optimizer.lr": "fast"}', "optimizer.lr: .*not 'fast'"),
        ('{"optimizer.lr": NaN}', "optimizer.lr: "),
        ('{"seed": 1, "seed.x": 2}', "unknown setting 'seed.x'"),
        ('{"optimizer": 1, "optimizer.lr": 2}', "unknown setting 'optimizer'"),
        ("[]", "not a readable configuration"),
        ("3", "not a readable configuration"),
        ('{"seed": ', "not a readable configuration"),
        ("\xff\xfe", "not a readable configuration"),
        ("", "not a readable configuration"),
    ],
    ids=lambda value: value if value.isprintable() and value else "not text",
)
def test_a_damaged_config_file_is_named(tmp_path: Path, text: str, message: str):
    file = tmp_path / "config.json"
    file.write_bytes(text.encode("latin-1"))
    with pytest.raises(InputError, match=message) as caught:
        read_config(file)
    assert str(caught.value).startswith(f"{file}: ")
    assert "\n" not in str(caught.value)


def test_a_missing_config_file_asks_for_a_run_folder(tmp_path: Path):
    with pytest.raises(InputError, match=rf"config\.json: no such file; is {tmp_path} a run folder\?"):
        read_config(tmp_path / "config.json")


def test_fields_that_an_older_run_lacks_have_their_defaults(tmp_path: Path):
    (tmp_path / "config.json").write_text('{"optimizer.lr": 0.5}')
    assert read_config(tmp_path / "config.json") == Config().changed(**{"optimizer.lr": 0.5})


def test_only_lines_that_a_training_writes_are_read(tmp_path: Path):
    good = [
        {"kind": "train", "step": 1, "epoch": 0.5, "lr": 0.1, "loss": None},
        {"kind": "val", "step": 2, "epoch": 1.0, "AP": None, "per_class": {"a": 0.5, "b": None}},
    ]
    bad: list[Any] = [
        3,
        [],
        {"step": 1},
        {"kind": ["val"], "step": 1, "epoch": 1},
        {"kind": "val", "step": 1, "epoch": 1},
    ]
    for changes in (
        {"step": 1.5},
        {"epoch": None},
        {"step": 10**400},
        {"epoch": "x"},
        {"AP": {}},
        {"per_class": 3},
        {"more": [1]},
    ):
        bad.append(good[1] | changes)
    lines = [*map(json.dumps, [*bad[:3], good[0], *bad[3:], good[1]]), "[" * 50_000, '{"kind": "val", "st']
    (tmp_path / "metrics.jsonl").write_bytes(b"\xff\n" + "\n".join(lines).encode())
    assert read_metrics(tmp_path / "metrics.jsonl") == good
