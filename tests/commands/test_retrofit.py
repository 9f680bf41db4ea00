"""`retinaconf retrofit`: a run in, a run with a quality branch out."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from retinaconf.cell_anchors import CellAnchors
from retinaconf.commands.retrofit import _appearing_whole, retrofit
from retinaconf.data.layouts import load_split
from retinaconf.data.loader import training_batches
from retinaconf.data.scenes import write_scenes
from retinaconf.errors import InputError
from retinaconf.evaluation.coco import METRICS
from retinaconf.files import locked
from retinaconf.inference.detector import load
from retinaconf.inference.evaluate import evaluate
from retinaconf.run_folder import read_config, read_weights, write_weights
from retinaconf.training.branch_fit import positive_cells
from retinaconf.training.losses import detection_losses
from retinaconf.training.matching import match
from retinaconf.training.run import train_run

PLAIN = {"model.quality": "none", "inference.alpha": 0.0, "loss.quality": "l2", "inference.joint": "cls"}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory, make_data: Callable[..., Path], tiny_config: Any) -> Any:
    """A plain RetinaNet trained for seconds: `base.run`, `base.data`."""
    root = tmp_path_factory.mktemp("base")
    data = make_data(root / "data", train=12, val=8)
    train_run(tiny_config(**PLAIN, **{"schedule.epochs": 4}), data, root / "run", device="cpu")
    return SimpleNamespace(run=root / "run", data=data)


@pytest.fixture(scope="module", params=["classification", pytest.param("localization", marks=pytest.mark.slow)])
def fitted(base: Any, request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    out = tmp_path_factory.mktemp("fitted") / "deep" / "run"
    retrofit(base.run, base.data, out, request.param, device="cpu")
    return SimpleNamespace(run=out, quality=request.param)


@pytest.mark.ci
def test_at_alpha_0_detections_are_bit_identical(base: Any, fitted: Any):
    truth = load_split(base.data, "val", False, None)
    tables = []
    for run in (base.run, fitted.run):
        detector = load(run, "cpu")
        config = detector.inference_config(alpha=0.0, joint="product", score_threshold=0.01)
        tables += detector.detect(truth, config)
    before, after = tables
    assert len(before.scores) > 20
    for name in ("image_index", "boxes", "scores", "labels", "class_scores"):
        assert np.array_equal(getattr(before, name), getattr(after, name))
    assert before.quality is None
    assert after.quality is not None
    assert len(np.unique(after.quality)) > 5


def test_only_the_branch_is_new(base: Any, fitted: Any):
    before, after = read_weights(base.run), read_weights(fitted.run)
    assert after.state.keys() - before.state.keys() == {"head.quality_conv.weight", "head.quality_conv.bias"}
    assert all(torch.equal(after.state[name], tensor) for name, tensor in before.state.items())
    assert (after.classes, after.category_ids) == (before.classes, before.category_ids)
    assert sum(after.state[name].numel() for name in after.state.keys() - before.state.keys()) == 9 * (9 * 16 + 1)


def test_the_run_folder_says_what_it_is(base: Any, fitted: Any):
    assert {path.name for path in fitted.run.iterdir()} == {
        "checked-images.json",
        "config.json",
        "metrics.jsonl",
        "model.safetensors",
        "log.txt",
    }
    assert [path.name for path in fitted.run.parent.iterdir()] == ["run"]
    config = read_config(fitted.run / "config.json")
    assert config == read_weights(fitted.run).config
    old = read_config(base.run / "config.json").flat()
    changed = {name: value for name, value in config.flat().items() if value != old[name]}
    alpha = config.inference.alpha
    expected = {"model.quality": fitted.quality, "loss.quality": "ce", "inference.joint": "product"}
    assert changed == expected | ({"inference.alpha": alpha} if alpha else {})


def test_alpha_is_the_best_of_evaluates_sweep_and_its_metrics_are_recorded(base: Any, fitted: Any):
    report = evaluate(fitted.run, base.data, "val", sweep=True, device="cpu")
    by_alpha = {row["alpha"]: row["metrics"]["AP"] for row in report["sweep"] if row["alpha"] is not None}
    by_alpha.setdefault(read_config(fitted.run / "config.json").inference.alpha, report["metrics"]["AP"])
    best = max(sorted(by_alpha), key=by_alpha.__getitem__)
    assert report["joint"] == f"product({best:g})"
    *fits, val = (json.loads(line) for line in (fitted.run / "metrics.jsonl").read_text().splitlines())
    assert (val["kind"], val["alpha"]) == ("val", best)
    assert {name: val[name] for name in METRICS} == report["metrics"]
    assert val["per_class"] == report["per_class"]
    assert {record["kind"] for record in fits} == {"retrofit"}
    assert [record["step"] for record in (*fits, val)] == [*range(1, len(fits) + 1), len(fits)]
    log = (fitted.run / "log.txt").read_text()
    assert f"1,305 parameters on the {fitted.quality} tower" in log
    assert f"AP {by_alpha[0.0]:.3f} at alpha 0, {by_alpha[best]:.3f} at alpha {best:g}" in log
    assert "95% interval" in log


def test_the_branch_tells_how_well_boxes_fit(base: Any, fitted: Any):
    """The whole network's loss of training, on the images learned from, is below that of the best constant."""
    detector = load(fitted.run, "cpu")
    truth = load_split(base.data, "train", False, None)
    changes = {"batch_size": len(truth), "flip": 0.0, "scale": (1.0, 1.0)}
    (batch,) = training_batches(truth, detector.config.data.model_copy(update=changes), 0, 0, 1)
    with torch.no_grad():
        outputs = detector.model(batch.images, batch.sizes)
    matches = match(outputs.anchors, batch.boxes, batch.labels)
    config = detector.config
    losses = detection_losses(outputs, matches, batch.boxes, batch.labels, config, matches.positives)
    cells = positive_cells(load(base.run, "cpu").model, fitted.quality, batch, config)
    mean = cells.targets[~cells.targets.isnan()].mean()
    constant = -mean * mean.log() - (1 - mean) * (1 - mean).log()
    noise_floor = torch.special.entr(cells.targets).nansum() + torch.special.entr(1 - cells.targets).nansum()
    floor = noise_floor / cells.positives
    assert losses["quality"] - floor < 0.95 * (constant - floor)


@pytest.mark.ci
def test_the_same_seed_gives_the_same_run(base: Any, make_data: Callable[..., Path], tmp_path: Path):
    make_data(tmp_path / "data", train=4, val=0)
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        retrofit(base.run, tmp_path / "data", tmp_path / name, seed=seed, device="cpu")
    a, b, c = (read_weights(tmp_path / name).state["head.quality_conv.weight"] for name in "abc")
    assert torch.equal(a, b)
    assert not torch.equal(a, c)


@pytest.mark.parametrize("what", ["no split 'val'", "no boxes in the split 'val'"])
def test_without_validation_alpha_is_the_papers(base: Any, tmp_path: Path, what: str):
    shutil.copytree(base.data, tmp_path / "data")
    val = tmp_path / "data/val.json"
    if what == "no split 'val'":
        val.unlink()
    else:
        val.write_text(json.dumps(json.loads(val.read_text()) | {"annotations": []}))
    retrofit(base.run, tmp_path / "data", tmp_path / "run", val_fraction=0.0, device="cpu")
    assert read_config(tmp_path / "run/config.json").inference.alpha == 0.4
    assert f"{what} to choose alpha on; it is the paper's, 0.4" in (tmp_path / "run/log.txt").read_text()


@pytest.mark.slow
def test_scenes_from_the_command_line(run_cli: Callable[..., Any], write_run: Callable[..., Path], tmp_path: Path):
    data = write_scenes(tmp_path / "data", train=3, val=2, size=(120, 160))
    digits = {
        category["id"]: category["name"] for category in json.loads((data / "val.json").read_text())["categories"]
    }
    plain = write_run(tmp_path / "plain", digits, **PLAIN)
    out = tmp_path / "run"
    result = run_cli("retrofit", plain, "--data", data, "--out", out, "--quality", "localization", "--device", "cpu")
    assert (result.code, result.err) == (0, "")
    assert "3 of 3 images: " in result.out
    assert "too few images to say" in result.out or "95% interval" in result.out
    assert result.out == (out / "log.txt").read_text()
    for words in (["evaluate", out, "--data", data, "--sweep"], ["diagnose", out, "--data", data]):
        assert run_cli(*words, "--device", "cpu").code == 0
    result = run_cli("predict", out, data / "images", "--out", tmp_path / "pictures", "--device", "cpu")
    assert result.code == 0


# --- what cannot be ------------------------------------------------------------------------------------------------


def other_classes(data: Path) -> None:
    for split in ("train", "val"):
        document = json.loads((data / f"{split}.json").read_text())
        document["categories"][0]["name"] = "purple"
        (data / f"{split}.json").write_text(json.dumps(document))


def no_boxes(data: Path) -> None:
    document = json.loads((data / "train.json").read_text())
    (data / "train.json").write_text(json.dumps(document | {"annotations": []}))


def one_image(data: Path) -> None:
    document = json.loads((data / "train.json").read_text())
    document["annotations"] = [one for one in document["annotations"] if one["image_id"] == 993]
    (data / "train.json").write_text(json.dumps(document))


FAULTS: dict[str, tuple[dict[str, Any], Callable[[Path], object], str]] = {
    "has a branch": (
        {"model.quality": "localization"},
        lambda data: None,
        "has a quality branch already, on its localization tower; give a RetinaNet",
    ),
    "quality of a distribution": (
        {"model.quality": "distribution", "model.box": "distribution"},
        lambda data: None,
        "has a quality branch already, on the distributions of its boxes; give a RetinaNet",
    ),
    "joint head": (PLAIN | {"model.class_target": "iou"}, lambda data: None, "is the joint score already"),
    "other classes": (PLAIN, other_classes, r"its 3 categories are not the 3 of .*plain"),
    "no training split": (PLAIN, lambda data: (data / "train.json").unlink(), "no split 'train'"),
    "no boxes": (PLAIN, no_boxes, "no boxes to learn from"),
    "one image": (PLAIN, one_image, r"train\.json: 1 images with objects; give at least 2"),
    "bad image": (PLAIN, lambda data: (data / "images/val-1.png").write_bytes(b"x"), r"val-1\.png: not an image"),
}


@pytest.mark.parametrize(("changes", "damage", "message"), FAULTS.values(), ids=FAULTS)
def test_what_cannot_be_retrofitted_leaves_nothing(
    tiny_data: Path,
    write_run: Callable[..., Path],
    tmp_path: Path,
    changes: dict[str, Any],
    damage: Callable[[Path], object],
    message: str,
):
    run = write_run(tmp_path / "plain", **changes)
    damage(tiny_data)
    with pytest.raises(InputError, match=message):
        retrofit(run, tiny_data, tmp_path / "out/run", device="cpu")
    assert {path.name for path in tmp_path.iterdir()} <= {"plain", "data", "out"}
    assert not list(tmp_path.glob("out/*")) + list(tmp_path.glob("out/.*"))


def test_a_network_whose_training_failed(tiny_data: Path, write_run: Callable[..., Path], tmp_path: Path):
    run = write_run(tmp_path / "plain", **PLAIN)
    weights = read_weights(run)
    weights.state["head.box_conv.bias"].fill_(3e38)  # finite; `load` refuses what is not
    write_weights(run / "model.safetensors", weights.state, *weights[:3])
    with pytest.raises(InputError, match=r"plain: its boxes are not finite; its training has failed"):
        retrofit(run, tiny_data, tmp_path / "run", device="cpu")
    assert {path.name for path in tmp_path.iterdir()} == {"plain", "data"}


@pytest.mark.ci
def test_out_must_be_new_or_empty(tiny_data: Path, write_run: Callable[..., Path], tmp_path: Path):
    run = write_run(tmp_path / "plain", **PLAIN)
    (tmp_path / "file").touch()
    for out, message in ((run, "exists already"), (tmp_path / "file", "exists already"), (tmp_path / "file/a", "writ")):
        with pytest.raises(InputError, match=rf"{out}: .*{message}.*; choose another --out"):
            retrofit(run, tiny_data, out, device="cpu")
    with pytest.raises(InputError, match="--seed -1: give at least 0"):
        retrofit(run, tiny_data, tmp_path / "new", seed=-1, device="cpu")
    (tmp_path / "empty").mkdir()
    retrofit(run, tiny_data, tmp_path / "empty", device="cpu")
    assert (tmp_path / "empty/model.safetensors").exists()


@pytest.mark.ci
def test_dropped_records_are_all_in_the_log_of_the_run(
    tiny_data: Path, write_run: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    document = json.loads((tiny_data / "train.json").read_text())
    flat = {"image_id": document["images"][0]["id"], "category_id": 3, "bbox": [1, 2, 0, 4]}
    document["annotations"] += [flat | {"id": 500 + n} for n in range(15)]
    (tiny_data / "train.json").write_text(json.dumps(document))
    retrofit(write_run(tmp_path / "plain", **PLAIN), tiny_data, tmp_path / "run", device="cpu")
    assert (tmp_path / "run/log.txt").read_text().count("has width 0; dropped") == 15
    out = capsys.readouterr().out
    assert "... and 5 more, all in the run's log.txt" in out
    assert ".run." not in out  # the folder that it was written in


@pytest.mark.parametrize(
    "step",
    [
        "training.branch_fit.collect",
        "training.branch_fit.fit_branch",
        "inference.choose_alpha.compare_alphas",
        "run_folder.write_weights",
    ],
)
def test_interrupted_anywhere_it_leaves_nothing(
    tiny_data: Path, write_run: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str
):
    def interrupt(*args: Any) -> None:
        raise KeyboardInterrupt

    run = write_run(tmp_path / "plain", **PLAIN)
    monkeypatch.setattr(f"retinaconf.{step}", interrupt)
    with pytest.raises(KeyboardInterrupt):
        retrofit(run, tiny_data, tmp_path / "run", device="cpu")
    assert {path.name for path in tmp_path.iterdir()} == {"plain", "data"}


def test_training_does_not_go_on_from_a_retrofitted_run(
    tiny_data: Path, write_run: Callable[..., Path], tmp_path: Path
):
    out = tmp_path / "run"
    retrofit(write_run(tmp_path / "plain", **PLAIN), tiny_data, out, device="cpu")
    before = (out / "model.safetensors").read_bytes()
    with pytest.raises(InputError, match=r"holds a model and no last\.ckpt to continue from; choose another --out"):
        train_run(read_config(out / "config.json"), tiny_data, out, resume=True, device="cpu")
    assert (out / "model.safetensors").read_bytes() == before


@pytest.mark.slow
def test_a_run_with_other_anchors_is_trained_evaluated_diagnosed_and_retrofitted(
    run_cli: Callable[..., Any], tiny_data: Path, tiny_flags: list[str], tmp_path: Path
):
    run, other = tmp_path / "run", tmp_path / "retrofitted"
    words = ["retinanet-lite0", *tiny_flags, "--model.quality", "none", "--inference.alpha", 0]
    words += ["--model.anchor-ratios", 1, 0.3, "--model.anchor-scales", 4]
    for command in (
        ["train", *words, "--data", tiny_data, "--out", run, "--schedule.epochs", 1],
        ["evaluate", run, "--data", tiny_data],
        ["retrofit", run, "--data", tiny_data, "--out", other],
        ["diagnose", other, "--data", tiny_data],
    ):
        assert run_cli(*command).code == 0, command
    assert read_config(run / "config.json").model.anchor_ratios == (1, 0.3)
    weights = read_weights(other)
    assert weights.config.model.cell_anchors == CellAnchors((1.0, 0.3), (4.0,))
    assert [len(weights.state[f"head.{conv}_conv.bias"]) for conv in ("class", "box", "quality")] == [2 * 3, 2 * 4, 2]


def test_what_a_killed_retrofit_has_left_goes_and_what_another_is_writing_stays(tmp_path: Path):
    for left in (".[out].123", ".[out].456", ".[out].notes", ".other.123"):
        (tmp_path / left).mkdir()
    with locked(tmp_path / ".[out].456/log.txt"), _appearing_whole(tmp_path / "[out]"):
        pass
    assert {path.name for path in tmp_path.iterdir()} == {"[out]", ".[out].456", ".[out].notes", ".other.123"}


@pytest.mark.parametrize("exists", [True, False])
def test_a_link_to_a_folder_leads_there(tmp_path: Path, exists: bool):
    if exists:
        (tmp_path / "disk").mkdir()
    (tmp_path / "out").symlink_to("disk")
    with _appearing_whole(tmp_path / "out") as folder:
        (folder / "log.txt").touch()
    assert (tmp_path / "out").is_symlink()
    assert [path.name for path in (tmp_path / "disk").iterdir()] == ["log.txt"]
    assert len(list(tmp_path.iterdir())) == 2
