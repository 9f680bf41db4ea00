"""What a user does with a run, on a GPU: `pytest -m gpu`. Tensors left on another device fail here and nowhere else."""

import json
import re
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from detectors import ALIGNED, TASK_ALIGNED

from retinaconf import load
from retinaconf.data.splits import read_train_and_val
from retinaconf.inference.cuda_graphs import RECORDED_AT
from retinaconf.model.anchors import anchor_boxes, level_shapes
from retinaconf.training.loop import launch, train
from retinaconf.training.progress import Progress
from retinaconf.training.run import train_run

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="torch finds no CUDA GPU here"),
]
DEVICE = "cuda"
PRECISIONS = ["32", "bf16-mixed", "16-mixed"]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory, make_data: Callable[..., Path]) -> Path:
    return make_data(tmp_path_factory.mktemp("gpu") / "data", train=20, val=4)


@pytest.fixture(scope="module", params=PRECISIONS)
def run(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, data: Path, tiny_config: Any) -> Path:
    """A run that has learnt something."""
    folder = tmp_path_factory.mktemp("gpu") / "run"
    train_run(tiny_config(**{"precision": request.param, "schedule.epochs": 20}), data, folder, device=DEVICE)
    return folder


def lines(run: Path, kind: str) -> list[dict[str, Any]]:
    return [line for line in map(json.loads, (run / "metrics.jsonl").open()) if line["kind"] == kind]


@pytest.mark.parametrize("precision", PRECISIONS)
def test_a_resumed_run_goes_on_as_the_whole_one_did(data: Path, tiny_config: Any, tmp_path: Path, precision: str):
    """Up to rounding: a GPU adds in no fixed order."""
    changes = {"precision": precision, "schedule.epochs": 2, "optimizer.lr": 1e-3, "optimizer.ema": 0.9}
    config = tiny_config(**changes)
    train_run(config, data, tmp_path / "whole", device=DEVICE)
    train_run(config, data, tmp_path / "resumed", max_steps=7, device=DEVICE)
    train_run(config, data, tmp_path / "resumed", resume=True, device=DEVICE)
    whole, resumed = (lines(tmp_path / name, "train")[-1] for name in ("whole", "resumed"))
    assert whole["step"] == resumed["step"] == 10
    for name in ("loss", "class", "box", "quality"):
        assert resumed[name] == pytest.approx(whole[name], rel=0.05)
    whole, resumed = (torch.load(tmp_path / name / "last.ckpt", map_location="cpu") for name in ("whole", "resumed"))
    assert whole["precision"] == resumed["precision"]
    assert bool(whole["precision"]) == (precision == "16-mixed")
    for one, other in zip(whole["optimizer"]["state"].values(), resumed["optimizer"]["state"].values(), strict=True):
        assert one["step"] == other["step"] > 0
        assert other["exp_avg_sq"].sum() == pytest.approx(float(one["exp_avg_sq"].sum()), rel=0.2)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_distributions_the_product_and_matching_by_outputs(
    data: Path, tiny_config: Any, tmp_path: Path, precision: str
):
    """The first epoch of three matches by ATSS, the others by the network's outputs."""
    changes = TASK_ALIGNED | {"precision": precision, "schedule.epochs": 3}
    train_run(tiny_config(**changes), data, tmp_path / "run", device=DEVICE)
    losses = lines(tmp_path / "run", "train")
    assert losses[-1]["step"] == 15
    assert all(line[name] > 0 for line in losses for name in ("loss", "class", "box", "distribution", "rank"))


DETECTORS: dict[str, dict[str, Any]] = {
    "retinanet": {"model.quality": "none", "inference.alpha": 0.0},
    "conf": {},
    "aligned": ALIGNED | {"loss.iou_score": "varifocal"},
    "task-aligned": ALIGNED | {"matching.assigner": "task-aligned", "loss.rank": 0.5},
}


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
@pytest.mark.parametrize("detector", DETECTORS)
def test_a_step_waits_for_the_gpu_once(
    make_data: Callable[..., Path], tiny_config: Any, tmp_path: Path, detector: str, optimizer: str
):
    """For the number of positives; between two lines of losses nothing else is read from the device."""
    data = make_data(tmp_path / "data", train=60, val=4)
    changes = {"precision": "bf16-mixed", "optimizer.name": optimizer, "optimizer.lr": 1e-3, "optimizer.ema": 0.9}
    config = tiny_config(**changes | {"schedule.epochs": 1} | DETECTORS[detector])
    train_set, _ = read_train_and_val(data, config.data)
    for sides in ((64, 64), (64, 96), (96, 64), (96, 96)):  # anchors of a new canvas are copied to the device
        anchor_boxes(level_shapes(*sides), torch.device(DEVICE, 0), config.model.cell_anchors)
    waited: dict[int, int] = {}

    class Waits(Progress):
        def step(self, step: int, epoch: float) -> None:
            super().step(step, epoch)
            waited[step] = sum("synchroniz" in str(warning.message) for warning in seen)

    (tmp_path / "run").mkdir()
    fabric = launch(config, DEVICE)
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            train(config, train_set, None, tmp_path / "run", fabric, Waits(silent=True))
        finally:
            torch.cuda.set_sync_debug_mode("default")
    assert max(waited) == 15
    # Losses are written at steps 10 and 15.
    assert [waited[step] - waited[step - 1] for step in (5, 6, 7, 8, 9, 11, 12, 13, 14)] == [1] * 9


def test_a_compiled_step(make_data: Callable[..., Path], tiny_config: Any, tmp_path: Path):
    """The losses of the first steps are those of a plain run, up to the rounding of a GPU.

    One canvas and no validation: each graph can take a minute to translate.
    """
    data = make_data(tmp_path / "data", train=60, val=4)
    train = json.loads((data / "train.json").read_text())
    train["images"] = [image for image in train["images"] if image["width"] == 128]
    kept = {image["id"] for image in train["images"]}
    train["annotations"] = [box for box in train["annotations"] if box["image_id"] in kept]
    (data / "train.json").write_text(json.dumps(train))
    for name, compiled in (("plain", False), ("compiled", True)):
        config = tiny_config(**{"compile": compiled, "optimizer.lr": 1e-3})
        train_run(config, data, tmp_path / name, max_steps=4, device=DEVICE)
    plain, compiled = (lines(tmp_path / name, "train")[-1] for name in ("plain", "compiled"))
    for name in ("loss", "class", "box", "quality"):
        assert compiled[name] == pytest.approx(plain[name], rel=0.02)


@pytest.mark.parametrize(("first", "then"), [("cpu", DEVICE), (DEVICE, "cpu")])
def test_a_run_goes_on_on_another_device(data: Path, tiny_config: Any, tmp_path: Path, first: str, then: str):
    """A fused step and one that isn't have each other's state; so do weights in either memory format."""
    config = tiny_config(**{"precision": "bf16-mixed", "schedule.epochs": 2, "optimizer.lr": 1e-3})
    train_run(config, data, tmp_path / "run", max_steps=7, device=first)
    train_run(config, data, tmp_path / "run", resume=True, device=then)
    assert lines(tmp_path / "run", "train")[-1]["step"] == 10


def test_a_dry_run_measures_the_gpu(data: Path, tiny_config: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    train_run(tiny_config(), data, tmp_path / "run", device=DEVICE, dry=True)
    memory, time = capsys.readouterr().out.splitlines()[-2:]
    total = torch.cuda.get_device_properties(0).total_memory / 2**30
    assert re.fullmatch(rf"memory: \d\.\d\d GiB at most in tensors, of {total:.1f} GiB on the GPU", memory)
    assert time.startswith("time: ")
    assert not (tmp_path / "run").exists()


def test_evaluate_agrees_with_training_and_with_a_cpu(run_cli: Any, run: Path, data: Path, tmp_path: Path):
    found = {}
    for device in (DEVICE, "cpu"):
        file = tmp_path / f"{device}.json"
        words = ("evaluate", run, "--data", data, "--device", device, "--json", file)
        assert run_cli(*words).code == 0
        found[device] = json.loads(file.read_text())["metrics"]
    best = max(lines(run, "val"), key=lambda line: (line["AP"], line["step"]))
    assert best["AP50"] > 0.1
    for name in ("AP", "AP50", "AR"):
        assert found[DEVICE][name] == pytest.approx(best[name], abs=1e-3)
        assert found[DEVICE][name] == pytest.approx(found["cpu"][name], abs=0.1)


def test_predict(run_cli: Any, run: Path, data: Path, tmp_path: Path):
    out = tmp_path / "out"
    words = ("predict", run, data / "images", "--out", out, "--device", DEVICE)
    assert run_cli(*words).code == 0
    assert len(list(out.glob("*.jpg"))) == 24
    found = json.loads((out / "detections.json").read_text())
    assert max(box["score"] for box in found) > 0.3


def test_an_image_of_a_size_that_comes_often(run: Path, data: Path):
    """Its kernels are recorded and replayed."""
    detector = load(run, device=DEVICE)
    images = [data / "images" / f"train-{number}.png" for number in (4, 7)]
    found = [[detector.predict(image)[0] for image in images] for _ in range(RECORDED_AT + 3)]
    assert detector._graphs is not None
    assert [recording is not None for recording in detector._graphs.recordings.values()] == [True]
    for one, other in zip(found[0], found[-1]):
        assert len(one) == len(other) > 0
        np.testing.assert_array_equal(one.labels, other.labels)
        np.testing.assert_allclose(one.scores, other.scores, atol=1e-3)
        np.testing.assert_allclose(one.boxes, other.boxes, atol=0.1)
    assert len(found[0][0]) != len(found[0][1]) or not np.array_equal(found[0][0].boxes, found[0][1].boxes)


def test_diagnose(run_cli: Any, run: Path, data: Path, tmp_path: Path):
    file = tmp_path / "diagnosis.json"
    words = ("diagnose", run, "--data", data, "--json", file, "--device", DEVICE)
    assert run_cli(*words, "--report", tmp_path / "report.html").code == 0
    assert json.loads(file.read_text())
    assert (tmp_path / "report.html").stat().st_size > 0


def test_retrofit(run_cli: Any, data: Path, tiny_config: Any, tmp_path: Path):
    plain = {"model.quality": "none", "inference.alpha": 0.0, "schedule.epochs": 2}
    train_run(tiny_config(**plain), data, tmp_path / "run", device=DEVICE)
    words = ("retrofit", tmp_path / "run", "--data", data, "--out", tmp_path / "branch", "--device", DEVICE)
    assert run_cli(*words).code == 0
    assert run_cli("evaluate", tmp_path / "branch", "--data", data, "--device", DEVICE).code == 0
