"""`compile`: the same training up to rounding, in few graphs, and files that do not tell."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open

from retinaconf.errors import InputError
from retinaconf.model.retinanet import RetinaNet
from retinaconf.training.precision import compile_network
from retinaconf.training.run import train_run


def losses(run: Path) -> list[dict[str, float]]:
    return [line for line in map(json.loads, (run / "metrics.jsonl").open()) if line.pop("kind") == "train"]


def names(run: Path) -> set[str]:
    with safe_open(run / "model.safetensors", framework="pt") as weights:
        return set(weights.keys())


@pytest.mark.slow
def test_a_compiled_training_follows_a_plain_one_and_goes_on(
    make_data: Callable[..., Path], tiny_config: Any, tmp_path: Path
) -> None:
    data = make_data(tmp_path / "data", train=20, val=4)
    plain = tiny_config(**{"schedule.epochs": 2, "optimizer.name": "sgd", "optimizer.lr": 0.01, "optimizer.ema": 0.9})
    for name, config in (("plain", plain), ("compiled", plain.changed(compile=True))):
        train_run(config, data, tmp_path / name, max_steps=7, device="cpu")
        train_run(config, data, tmp_path / name, resume=True, device="cpu")
    assert names(tmp_path / "compiled") == names(tmp_path / "plain")
    for ours, theirs in zip(losses(tmp_path / "compiled"), losses(tmp_path / "plain"), strict=True):
        assert ours == pytest.approx(theirs, rel=1e-3)  # of float32, after up to ten steps
    states = [torch.load(tmp_path / run / "last.ckpt", weights_only=True) for run in ("compiled", "plain")]
    for part in ("model", "averaged"):
        assert states[0][part].keys() == states[1][part].keys()


@pytest.mark.ci
def test_so_many_sizes_of_a_canvas_are_compiled_and_others_run_as_they_are(
    tiny_config: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="eager"))  # traced alike, without a compiler
    torch._dynamo.reset()  # else it remembers graphs of another test
    assert torch._dynamo.config.recompile_limit == 8  # what the documents say
    monkeypatch.setattr(torch._dynamo.config, "recompile_limit", 2)  # tracing takes a second for each
    torch.manual_seed(0)
    network = RetinaNet(tiny_config().model, 3).train()
    plain = copy.deepcopy(network)
    compile_network(network)
    torch._dynamo.utils.counters.clear()
    graphs = []
    for height, width in [(64 + 32 * n, 96) for n in range(4)] + [(64, 96)]:
        images, sizes = torch.rand(1, 3, height, width) * 255, torch.tensor([[height, width]])
        torch.testing.assert_close(network(images, sizes).class_logits, plain(images, sizes).class_logits)
        graphs.append(torch._dynamo.utils.counters["stats"]["unique_graphs"])
    assert graphs == [1, 2, 2, 2, 2]


def test_without_a_compiler_a_user_reads_what_to_install(tiny_config: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.which", lambda name: None)
    with pytest.raises(InputError, match="needs a C\\+\\+ compiler"):
        compile_network(RetinaNet(tiny_config().model, 3))
