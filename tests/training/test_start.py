"""Runs that start from a trained detector: which weights they begin with, and what they learn."""

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from retinaconf.config import Config
from retinaconf.errors import InputError
from retinaconf.model.retinanet import RetinaNet
from retinaconf.run_folder import read_config, read_weights
from retinaconf.training import loop
from retinaconf.training.run import train_run
from retinaconf.training.start import describe, is_run, settings_from, start_from

NEW_CLASSES = ("fork lift", "Dark_Blue", "RED")  # of the trained "red", "green", "dark blue", one of a new kind


@pytest.fixture(scope="module")
def old(write_run: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A detector with random weights, none of which is at its first value."""
    run = write_run(tmp_path_factory.mktemp("old") / "old", {3: "red", 8: "green", 90: "dark blue"})
    tensors = load_file(run / "model.safetensors")
    for tensor in tensors.values():
        if tensor.is_floating_point():
            tensor += 0.01
    trained = read_weights(run)
    metadata = {"config": json.dumps(trained.config.flat()), "classes": json.dumps(trained.classes)}
    save_file(tensors, run / "model.safetensors", metadata | {"category_ids": json.dumps(trained.category_ids)})
    return run


@pytest.fixture
def new_data(tiny_data: Path) -> Path:
    """The tiny data under other names."""
    for file in tiny_data.glob("*.json"):
        document = json.loads(file.read_text())
        for category, name in zip(document["categories"], NEW_CLASSES):
            category["name"] = name
        file.write_text(json.dumps(document))
    return tiny_data


def train(monkeypatch: pytest.MonkeyPatch, config: Config, data: Path, out: Path, steps: int = 1) -> dict[str, Tensor]:
    """Train; the weights before the first step."""
    first: dict[str, Tensor] = {}
    build = loop.build_optimizer

    def look(network: RetinaNet, *args: Any) -> Any:
        first.update({name: tensor.clone() for name, tensor in network.state_dict().items()})
        return build(network, *args)

    with monkeypatch.context() as patch:
        patch.setattr(loop, "build_optimizer", look)
        train_run(config, data, out, max_steps=steps, device="cpu")
    return first


def started(old: Path, **changes: Any) -> Config:
    return settings_from(read_weights(old).config, str(old)).changed(**changes)


@pytest.mark.ci
def test_all_that_fits_is_kept_and_classes_by_name(
    run_cli: Callable[..., Any], old: Path, new_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    first = train(monkeypatch, started(old), new_data, tmp_path / "new")
    trained = load_file(old / "model.safetensors")
    assert first.keys() == trained.keys()
    for name, tensor in first.items():
        if not name.startswith("head.class_conv."):
            assert torch.equal(tensor, trained[name]), name
    for name in ("head.class_conv.weight", "head.class_conv.bias"):
        for anchor in range(9):
            fork_lift, dark_blue, red = first[name][3 * anchor : 3 * anchor + 3]
            was_red, _, was_dark_blue = trained[name][3 * anchor : 3 * anchor + 3]
            assert torch.equal(red, was_red)
            assert torch.equal(dark_blue, was_dark_blue)
            if name.endswith("bias"):
                assert torch.sigmoid(fork_lift) == pytest.approx(0.01)  # RetinaNet's prior
            else:
                assert 0.005 < fork_lift.std() < 0.015
    line = (
        f"starts from {old}; backbone, pyramid, towers, box, quality: kept; "
        "class: 2 of 3 by name (Dark_Blue, RED), new: fork lift"
    )
    assert line in (tmp_path / "new/log.txt").read_text()
    assert read_config(tmp_path / "new/config.json").model.weights == str(old)
    result = run_cli("train", old, "--data", new_data, "--out", tmp_path / "by-command", "--max-steps", 1)
    assert (result.code, result.err) == (0, "")
    for run in (tmp_path / "new", tmp_path / "by-command"):
        assert read_weights(run).classes == NEW_CLASSES
    assert (tmp_path / "new/model.safetensors").read_bytes() == (tmp_path / "by-command/model.safetensors").read_bytes()


def test_a_trained_product_starts_new_classes_where_the_product_is_the_prior(
    old: Path, new_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Of sqrt(quality * class) at a quality of 0.5 that is class = 0.01^2 / 0.5."""
    config = started(old, **{"loss.joint": "product", "inference.alpha": 0.5})
    first = train(monkeypatch, config, new_data, tmp_path / "new")
    new = first["head.class_conv.bias"].view(9, 3)[:, 0]
    torch.testing.assert_close(torch.sigmoid(new), torch.full((9,), 0.01**2 / 0.5))


@pytest.mark.ci
def test_a_branch_is_added_where_the_new_run_asks_for_one(
    run_cli: Callable[..., Any], write_run: Callable[..., Path], tiny_data: Path, tmp_path: Path
):
    plain = write_run(tmp_path / "plain", **{"model.quality": "none", "inference.alpha": 0.0})
    words = ["train", plain, "--data", tiny_data, "--out", tmp_path / "new", "--max-steps", 2]
    result = run_cli(*words, "--model.quality", "classification", "--inference.alpha", 0.4)
    assert (result.code, result.err) == (0, "")
    assert "backbone, pyramid, towers, box: kept; quality: started afresh; class: 3 of 3 by name (red, gr" in result.out
    assert "head.quality_conv.weight" in read_weights(tmp_path / "new").state


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"model.box": "distances"}, "backbone, pyramid, towers, quality: kept; box: started afresh; class: 2 of 3"),
        (
            {"model.quality": "localization"},
            "backbone, pyramid, towers, box: kept; quality: started afresh; class: 2 of 3",
        ),
        (
            {"model.anchor_ratios": (1.0,)},
            "backbone, pyramid, towers: kept; box, quality: started afresh; class: started afresh",
        ),
        (
            {"model.head_convs": 2},  # the second convolution of each tower is new
            "backbone, pyramid, box, quality: kept; towers: 2 of 4 layers kept; class: 2 of 3",
        ),
        (
            {"model.channels": 24},
            "backbone: kept; pyramid, towers, box, quality: started afresh; class: started afresh",
        ),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else "",
)
def test_what_does_not_fit_is_started_afresh_and_said(
    old: Path, new_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any], line: str
):
    first = train(monkeypatch, started(old, **changes), new_data, tmp_path / "new")
    assert line in (tmp_path / "new/log.txt").read_text()
    if "model.box" in changes:  # of the same shape, and it means something else
        assert not first["head.box_conv.bias"].any()
    if "model.quality" in changes:
        assert not first["head.quality_conv.bias"].any()


def test_names_that_read_the_same_take_the_exact_one_and_many_are_cut_short():
    """Two anchors, classes in rows a * K + k; the rows of the trained detector are numbered."""
    numbered = torch.arange(8.0)
    trained = {"head.class_conv.weight": numbered.view(8, 1, 1, 1), "head.class_conv.bias": numbered}
    fresh = {"head.class_conv.weight": torch.full((6, 1, 1, 1), -1.0), "head.class_conv.bias": torch.full((6,), -1.0)}
    start = start_from(trained, fresh, ("Cat", "cat", "d-o-g", "hen"), ("cat", "DOG", "C_A T"))
    assert start.state["head.class_conv.bias"].tolist() == [1, 2, 0, 5, 6, 4]
    assert start.state["head.class_conv.weight"].flatten().tolist() == [1, 2, 0, 5, 6, 4]
    assert start.known == ("cat", "DOG", "C_A T")
    assert fresh["head.class_conv.bias"].tolist() == [-1] * 6  # inputs stay as they are
    many = [str(n) for n in range(14)]
    assert describe(start, [*start.known, *many]).endswith("class: 3 of 17 by name (cat, DOG, C_A T), new: "
        "0, 1, 2, 3, 4, 5, 6, 7, 8, 9 and 4 more")  # fmt: skip


@pytest.mark.ci
def test_what_is_frozen_does_not_change(old: Path, new_data: Path, tmp_path: Path):
    """Two steps, with norms whose statistics learn if they may."""
    trained = load_file(old / "model.safetensors")

    def changed(freeze: str) -> set[str]:
        config = started(old, **{"model.freeze": freeze, "optimizer.ema": 0.5})
        train_run(config, new_data, tmp_path / freeze, max_steps=2, device="cpu")
        now = load_file(tmp_path / freeze / "model.safetensors")
        return {".".join(name.split(".")[:2]) for name, tensor in now.items() if not tensor.equal(trained[name])}

    assert changed("all but class") == {"head.class_conv"}
    learned = changed("backbone")
    assert not any(name.startswith("backbone.") for name in learned)
    assert {"head.class_conv", "head.box_conv", "head.quality_conv", "fpn.inner_blocks"} <= learned
    assert "backbone.body" in changed("none")


@pytest.mark.parametrize("name", [pytest.param("sgd", marks=pytest.mark.slow), "adamw"])
@pytest.mark.ci
def test_what_is_kept_learns_at_a_share_of_the_learning_rate(old: Path, new_data: Path, tmp_path: Path, name: str):
    """The first step of both optimizers is proportional to the learning rate; a second run goes on to the last bit."""
    plain = {"optimizer.name": name, "optimizer.lr": 1e-3, "optimizer.weight_decay": 0.0, "model.head_convs": 2}
    start = started(old, **plain, **{"optimizer.clip_norm": 0.0})
    trained = load_file(old / "model.safetensors")

    def after(kept_lr: float, *steps: int) -> dict[str, Tensor]:
        out = tmp_path / f"{kept_lr}-{steps}"
        for last in steps:
            train_run(start.changed(**{"optimizer.kept_lr": kept_lr}), new_data, out, True, last, "cpu")
        return load_file(out / "model.safetensors")

    whole, part = after(1.0, 1), after(0.25, 1)
    fresh = {"head.classification_tower.2", "head.localization_tower.2"}  # the second convolution of each tower
    for key, before in trained.items():
        if "running_" in key or "num_batches" in key:
            continue
        full, slow = whole[key] - before, part[key] - before
        if key.startswith("head.class_conv"):
            torch.testing.assert_close(part[key], whole[key], msg=key)
        else:
            torch.testing.assert_close(slow, 0.25 * full, rtol=0.05, atol=2e-7, msg=key)
    assert any((whole[key] - trained[key]).abs().max() > 1e-5 for key in trained if key.startswith("backbone"))
    new = [key for key in whole if key not in trained]
    assert {key.rpartition(".")[0] for key in new} == fresh
    assert all(torch.equal(whole[key], part[key]) for key in new)
    said = (tmp_path / "0.25-(1,)/log.txt").read_text()
    assert "\nlayers that have learned before learn at 0.25 x the learning rate\n" in said

    once, twice = after(0.25, 4), after(0.25, 2, 4)
    assert all(torch.equal(once[key], twice[key]) for key in once)


@pytest.mark.ci
def test_a_backbone_that_has_weights_learns_at_a_share_too(old: Path, new_data: Path, tmp_path: Path):
    """The rest learns at the full rate, as without the share."""
    weights = load_file(old / "model.safetensors")
    backbone = {name.removeprefix("backbone.body."): t for name, t in weights.items() if name.startswith("backbone.")}
    save_file(backbone, tmp_path / "backbone.safetensors")
    plain = {"optimizer.name": "adamw", "optimizer.lr": 1e-3, "optimizer.clip_norm": 0.0, "optimizer.weight_decay": 0.0}
    plain |= {"schedule.warmup_start": 1.0}
    start = started(old, **plain, **{"model.weights": str(tmp_path / "backbone.safetensors")})

    def after(kept_lr: float) -> dict[str, Tensor]:
        out = tmp_path / str(kept_lr)
        train_run(start.changed(**{"optimizer.kept_lr": kept_lr}), new_data, out, max_steps=1, device="cpu")
        return load_file(out / "model.safetensors")

    whole, part = after(1.0), after(0.25)
    for key, tensor in whole.items():
        if "running_" in key or "num_batches" in key:
            continue
        if key.startswith("backbone."):
            before = weights[key].float()
            torch.testing.assert_close(part[key] - before, 0.25 * (tensor - before), rtol=0.01, atol=2e-6, msg=key)
        else:
            assert torch.equal(part[key], tensor), key
    learned = [key for key in whole if key.startswith("backbone.") and key.endswith("weight")]
    assert all((whole[key] - weights[key]).abs().max() > 1e-4 for key in learned)
    said = "\nlayers that have learned before learn at 0.25 x the learning rate\n"
    assert said in (tmp_path / "0.25/log.txt").read_text()
    assert "x the learning rate" not in (tmp_path / "1.0/log.txt").read_text()


@pytest.mark.parametrize(
    "changes",
    [{"model.weights": "none"}, {"model.freeze": "all but class"}],
    ids=["no weights", "all frozen"],
)
@pytest.mark.ci
def test_a_share_for_nothing_that_learns_is_said(old: Path, new_data: Path, tmp_path: Path, changes: dict[str, Any]):
    """No error: a recipe with a share is also trained from random weights. The weights are those without the share."""
    after = []
    for kept_lr in (1.0, 0.1):
        config, out = started(old, **{"optimizer.kept_lr": kept_lr}, **changes), tmp_path / str(kept_lr)
        train_run(config, new_data, out, max_steps=1, device="cpu")
        after.append(load_file(out / "model.safetensors"))
    assert all(torch.equal(tensor, after[1][name]) for name, tensor in after[0].items())
    said = "\nno layer that has learned before learns on, so optimizer.kept-lr is not used\n"
    assert said in (tmp_path / "0.1/log.txt").read_text()


@pytest.mark.parametrize(
    ("changes", "parts"),
    [
        ({"model.freeze": "backbone", "model.weights": "none"}, "(backbone)"),
        ({"model.freeze": "all but class", "model.weights": "none"}, "(backbone, pyramid, towers, box, quality)"),
        ({"model.freeze": "all but class", "model.quality": "localization"}, "(quality)"),
        ({"model.freeze": "all but class", "model.head_convs": 2}, "(towers)"),
    ],
    ids=["random backbone", "random detector", "new branch", "new layers"],
)
def test_what_has_learned_nothing_is_not_frozen(
    old: Path, new_data: Path, tmp_path: Path, changes: dict[str, Any], parts: str
):
    with pytest.raises(InputError, match=re.escape(parts)) as caught:
        train_run(started(old, **changes), new_data, tmp_path / "new", max_steps=1, device="cpu")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "new").exists()


def test_a_run_and_a_backbones_weights_are_told_apart(old: Path, tmp_path: Path):
    backbone = {name: t for name, t in load_file(old / "model.safetensors").items() if name.startswith("backbone")}
    save_file(backbone, tmp_path / "model.safetensors")
    torch.save(backbone, tmp_path / "backbone.pth")
    for weights in ("imagenet", "none", tmp_path / "model.safetensors", tmp_path / "backbone.pth", "absent.pth"):
        assert not is_run(str(weights)), weights
    for weights in (old, old / "model.safetensors", "owner/name", "absent"):
        assert is_run(str(weights)), weights


def test_the_settings_are_the_runs_but_for_those_of_its_data():
    data = {"data.layout": "voc", "data.skip_bad": True, "data.max_skipped": 0.5, "data.val_fraction": 0.1}
    data |= {"optimizer.kept_lr": 0.1}  # it is about what that run has started from
    own = {"optimizer.lr": 0.5, "data.short_side": 333, "loss.rank": 0.5, "schedule.epochs": 3, "seed": 4}
    assert settings_from(Config().changed(**data, **own), "r") == Config().changed(**own, **{"model.weights": "r"})


# --- on the command line ---------------------------------------------------------------------------------------------


def test_help_shows_the_runs_settings(run_cli: Callable[..., Any], old: Path):
    words = " ".join(run_cli("train", old, "--help").out.replace("│", " ").split())
    assert f"The defaults below are those of {old}" in words
    assert "larger and costs time and memory. (default: 64)" in words


def test_mistakes_are_one_line(
    run_cli: Callable[..., Any], old: Path, new_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(old, "old")
    shutil.copytree(old, "broken")
    model = Path("broken/model.safetensors")
    model.write_bytes(model.read_bytes()[:-100])
    Path("empty").mkdir()
    data = ("--data", new_data, "--out", "new")
    before = sorted(path.name for path in Path().iterdir())
    for words, code, message in (
        (("absent", *data), 2, "no recipe 'absent'; there are .*aligned-lite0; or give, as the first word, a run to "),
        (("old/absent", *data), 2, "no recipe 'old/absent'; there are "),
        ((*data, "old"), 2, "no recipe 'old'; there are .* as the first word, a run to start from"),
        (("empty", *data), 1, "empty/model.safetensors: no such file; give a run folder"),
        (("broken", *data), 1, "broken/model.safetensors: not a readable safetensors file"),
        (("old", "--data", new_data, "--out", "old"), 1, "old holds a run already; continue it with --resume, or"),
        (
            ("old", *data, "--model.backbone", "resnet10t"),
            1,
            "resnet10t is not the backbone of old, test_resnet",
        ),
        (("old", *data, "--model.quality", "none"), 2, "alpha, joint and min-quality need a quality branch"),
        (("old", *data, "--resume=x"), 2, "Unrecognized options: x"),
    ):
        result = run_cli("train", *words, "--device", "cpu")
        assert (result.code, result.err.count("\n")) == (code, 1), result.err
        assert re.search(message, result.err), result.err
        assert sorted(path.name for path in Path().iterdir()) == before
