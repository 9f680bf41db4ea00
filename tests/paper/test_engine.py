"""`retinaconf paper` on a tiny data set: every item rendered, trainings shared, killed and gone on."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
from PIL import Image

from retinaconf.config import Config
from retinaconf.errors import InputError
from retinaconf.evaluation import compare
from retinaconf.model import backbone
from retinaconf.paper import engine, runs
from retinaconf.paper.engine import run_paper
from retinaconf.paper.items import ALL, ITEMS, Training, for_base, rows_of
from retinaconf.paper.misalignment import positive_anchors
from retinaconf.paper.runs import Experiments
from retinaconf.recipes import RECIPES
from retinaconf.run_folder import read_config

save_figure = engine.save_figure


@pytest.fixture(autouse=True)
def few_draws_and_no_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Figures take a second each: one test draws them all."""
    monkeypatch.setattr(compare, "DRAWS", 20)
    monkeypatch.setattr(engine, "save_figure", lambda *_: None)


@pytest.fixture
def base(tiny_config: Any) -> Config:
    return tiny_config(**{"model.quality": "none", "inference.alpha": 0.0})


@pytest.fixture
def trainings(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The runs that were trained, in their order."""
    done: list[Path] = []
    train = runs.train_run

    def counted(config: Config, root: Path, run: Path, *rest: Any) -> None:
        done.append(run)
        train(config, root, run, *rest)

    monkeypatch.setattr(runs, "train_run", counted)
    return done


def go(item: str, out: Path, data: Path, base: Config, **options: Any) -> None:
    run_paper(item, out, data, base, **({"recipe_base": "lite0", "max_steps": 2, "device": "cpu"} | options))


@pytest.mark.slow
def test_all_renders_every_item_and_trains_and_measures_nothing_twice(
    tiny_data: Path, tmp_path: Path, base: Config, trainings: list[Path], monkeypatch: pytest.MonkeyPatch
):
    out = tmp_path / "out"
    go("table1", out, tiny_data, base)
    table1 = (out / "table1.md").read_text()
    assert len(trainings) == len(set(trainings)) == 3  # RetinaNet, IoU-aware, Conf
    shutil.rmtree(out / "runs")
    with monkeypatch.context() as patch:
        patch.setattr(engine, "save_figure", save_figure)
        go("all", out, tiny_data, base)
        go("open-question", out, tiny_data, base)
    # What was measured outlives the weights. What is not known yet needs them: a run is trained anew, in its place.
    anew = [run for run in trainings[3:] if run in trainings[:3]]
    assert anew == [trainings[0], trainings[2]]  # for Figure 1's boxes before NMS, and for what Conf's quality says
    # Six more losses, and the gradient stopped; the joint head, and four losses.
    assert len(trainings) == len(set(trainings)) + 2 == 3 + 7 + 5 + 2
    assert (out / "table1.md").read_text() == table1
    pages = {}
    for name in (*ALL, "open-question"):
        item = ITEMS[name]
        page, document = (out / f"{name}.md").read_text(), json.loads((out / f"{name}.json").read_text())
        assert page.startswith(f"# {item.title}\n")
        assert document["item"] == name
        assert document["settings"]["data.short_side"] == base.data.short_side
        assert f"`data.short_side` {base.data.short_side}" in page or item.kind in ("figure4", "figure5")
        assert all(claim["verdict"] == "undecided" for claim in document["claims"])  # one seed
        with Image.open(out / f"{name}.png") as picture:
            assert min(picture.size) > 200
            assert np.asarray(picture.convert("L")).std() > 10  # something is drawn
        assert " nan" not in page
        assert "NaN" not in (out / f"{name}.json").read_text()
        pages[name] = page

    assert "published" not in pages["open-question"]  # the paper has no such rows
    assert "published" in pages["table2"]

    shutil.rmtree(out / "runs")
    go("all", out, tiny_data, base)
    go("open-question", out, tiny_data, base)
    assert {name: (out / f"{name}.md").read_text() for name in pages} == pages
    assert len(trainings) == 17
    go("table4", out, tiny_data, base, seeds=2)
    assert [run.name.split("-")[1] for run in trainings[17:]] == ["seed1"]
    assert len((out / "measured" / "conf-l1.jsonl").read_text().splitlines()) == 1  # and nothing is evaluated twice


@pytest.mark.slow
def test_a_run_made_by_hand_is_found_by_its_settings(
    tiny_data: Path, tmp_path: Path, base: Config, trainings: list[Path]
):
    experiments = Experiments(tmp_path, tiny_data, base, max_steps=2, device="cpu")
    config = experiments.config(Training("conf"), 3).changed(**{"data.workers": 1})
    runs.train_run(config, tiny_data, tmp_path / "runs" / "mine", False, 2, "cpu")
    assert experiments.run(Training("conf"), 3) == tmp_path / "runs" / "mine"
    assert len(trainings) == 1
    Experiments(tmp_path, tiny_data, base, max_steps=3, device="cpu").run(Training("conf"), 3)
    assert len(trainings) == 2  # one step longer is another run


@pytest.mark.ci
def test_what_was_measured_of_other_weights_is_measured_again(tiny_data: Path, tmp_path: Path, base: Config):
    experiments = Experiments(tmp_path, tiny_data, base, max_steps=2, device="cpu")
    (row,) = rows_of(Training("retinanet")).values()
    experiments.evaluate(row, 0)
    run = experiments.run(row.training, 0)
    path = tmp_path / "measured" / "retinanet.jsonl"
    (line,) = path.read_text().splitlines()
    document = json.loads(line)
    assert document["run"] == run.name
    for damage in ({"weights": "of another run"}, {"data": "of another split"}, {"steps": 1}):
        damaged = json.dumps(document | damage) + "\n"
        path.write_text(damaged + line[:100])  # and half a line of a command that was killed
        Experiments(tmp_path, tiny_data, base, max_steps=2, device="cpu").evaluate(row, 0)
        assert path.read_text() == f"{damaged}{line[:100]}\n{line}\n"


@pytest.mark.parametrize(
    ("folder", "item", "seeds", "rows"),
    [
        ("bccd", "table2", 5, ()),
        ("bccd", "switches", 5, ()),
        ("ladder-320", "ladder", 1, ("RetinaNet", "aligned", "aligned, voting")),
    ],
)
@pytest.mark.ci
def test_published_tables_are_made_again_from_what_was_measured(
    folder: str, item: str, seeds: int, rows: tuple[str, ...], tmp_path: Path, shared_data: Path, trainings: list[Path]
):
    bccd = shared_data / "bccd"
    kept = Path(__file__).parents[2] / "docs" / "results" / folder
    shutil.copytree(kept / "measured", tmp_path / "measured")
    shutil.copy(kept / "data.json", tmp_path)
    settings = json.loads((kept / f"{item}.json").read_text())["settings"]
    base = RECIPES["retinanet-lite0"].changed(**settings)
    go(item, tmp_path, bccd, base, seeds=seeds, split="test", max_steps=None, rows=rows)
    made, published = ((folder / f"{item}.md").read_text().splitlines() for folder in (tmp_path, kept))
    assert [line for line in made if str(bccd) not in line] == [line for line in published if "in bccd:" not in line]
    assert trainings == []


def test_trying_out_evaluates_a_few_images(
    tiny_data: Path, tmp_path: Path, base: Config, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(runs, "TRIED", 2)
    base = base.changed(**{"data.batch_size": 1})
    assert len(Experiments(tmp_path, tiny_data, base, max_steps=2).ground_truth) == 2
    assert len(Experiments(tmp_path, tiny_data, base).ground_truth) > 2


@pytest.mark.ci
def test_trying_out_needs_no_weights_from_the_network(
    tiny_data: Path, tmp_path: Path, base: Config, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setattr(backbone, "PACKAGED", {})
    create = timm.create_model

    def offline(name: str, pretrained: bool, **rest: Any) -> Any:
        if pretrained:
            raise OSError("no network")
        return create(name, pretrained=False, **rest)

    monkeypatch.setattr(timm, "create_model", offline)
    base = base.changed(**{"model.weights": "imagenet"})
    go("table4", tmp_path / "tried", tiny_data, base, max_steps=1)
    assert "could not be fetched" in capsys.readouterr().out
    assert "`model.weights` none" in (tmp_path / "tried" / "table4.md").read_text()
    with pytest.raises(InputError, match="could not be fetched"):  # a training that counts never starts otherwise
        go("table4", tmp_path / "real", tiny_data, base, max_steps=None)


def test_other_data_are_refused(tiny_data: Path, tmp_path: Path, base: Config, make_data: Callable[..., Path]):
    Experiments(tmp_path / "out", tiny_data, base)
    other = make_data(tmp_path / "other", seed=1)
    with pytest.raises(InputError, match="other data"):
        Experiments(tmp_path / "out", other, base)
    (tmp_path / "out/data.json").write_text('{"mine": 1}')
    with pytest.raises(InputError, match=r"data\.json: was not written by this command; choose another --out"):
        Experiments(tmp_path / "out", tiny_data, base)


@pytest.mark.ci
def test_detectors_of_a_seed_start_from_the_same_weights(base: Config, tiny_data: Path, tmp_path: Path):
    import torch

    from retinaconf.model.retinanet import RetinaNet

    experiments = Experiments(tmp_path, tiny_data, base)
    states = []
    items = [for_base(item, "lite0", base.model.channels) for item in ITEMS.values()]
    for training in {t: None for item in items for t in [*item.trainings, *(row.training for row in item.rows)]}:
        if not training.paper_scale:
            torch.manual_seed(4)
            states.append(RetinaNet(experiments.config(training, 4).model, 3).state_dict())
    for state in states[1:]:
        same_outputs = all(weights.shape == state[name].shape for name, weights in states[0].items())
        # Where the outputs of the head are others, its random numbers are, too.
        shared = [name for name in states[0] if same_outputs or not name.startswith("head.")]
        assert all(torch.equal(states[0][name], state[name]) for name in shared)


def test_schedule(base: Config, tiny_data: Path, tmp_path: Path):
    longer = Training("conf", longer=True)
    base = base.changed(**{"schedule.epochs": 12, "schedule.milestones": (8, 11)})
    once = Experiments(tmp_path, tiny_data, base).config(longer, 0).schedule
    assert (once.epochs, once.milestones) == (24, (16, 22))
    assert Experiments(tmp_path, tiny_data, base, schedule="2x").config(longer, 0).schedule.epochs == 12


@pytest.mark.slow  # test_loop.py kills a training, too
def test_kill_9_and_go_on(tiny_data: Path, tmp_path: Path, tiny_flags: list[str], trainings: list[Path]):
    out = tmp_path / "out"
    flags = " ".join(tiny_flags)
    for detector_own in ("--model.quality classification", "--inference.alpha 0.4"):
        flags = flags.replace(detector_own, "")
    words = ["paper", "table1", "--recipe-base", "lite0", "--data", tiny_data, "--out", out, "--device", "cpu"]
    process = subprocess.Popen(
        [sys.executable, "-m", "retinaconf", *map(str, words), *flags.split()],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    )
    deadline = time.monotonic() + 120
    while not list(out.glob("runs/*/last.ckpt")) and time.monotonic() < deadline and process.poll() is None:
        time.sleep(0.02)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert not (out / "table1.md").exists()
    (killed,) = out.glob("runs/*")

    config = read_config(killed / "config.json")
    go("table1", out, tiny_data, config, max_steps=None)
    assert (out / "table1.md").exists()
    assert trainings[0] == killed
    assert len(trainings) == len(list(out.glob("runs/*"))) == 3
    assert "continuing at step" in (killed / "log.txt").read_text()


def test_one_line_for_what_the_user_got_wrong(run_cli: Callable[..., Any], tiny_data: Path, tmp_path: Path):
    out = tmp_path / "out"
    assert run_cli("paper", "table7", "--data", tiny_data, "--out", out).code == 2
    assert run_cli("paper", "table1", "--data", tiny_data, "--out", out, "--seeds", 0).code == 2
    result = run_cli("paper", "table1", "--data", tiny_data, "--out", out, "--rows", "RetinaNet", "Conf")
    assert (result.code, len(result.err.splitlines())) == (1, 1)
    assert "no row 'Conf'; there are 'RetinaNet'" in result.err
    result = run_cli("paper", "table1", "--data", tiny_data, "--out", out, "--split", "test")
    assert result.code == 1
    assert "no split 'test'" in result.err
    assert len(result.err.splitlines()) == 1
    assert not out.exists()


def test_positive_anchors_are_counted_as_one_by_one(tiny_data: Path, base: Config):
    from retinaconf.data.layouts import load_split
    from retinaconf.data.transforms import canvas, resized
    from retinaconf.model.anchors import cell_boxes

    truth = load_split(tiny_data, "val")
    image = 3
    height, width = truth.image_sizes[image]
    size = resized((int(height), int(width)), base.data.short_side, base.data.long_side)
    boxes = truth.boxes[truth.offsets[image] : truth.offsets[image + 1]]
    count = 0
    padded = canvas([size])
    for stride in (8, 16, 32, 64, 128):
        for y in range(0, padded[0], stride):
            for x in range(0, padded[1], stride):
                for anchor in cell_boxes(stride, base.model.cell_anchors).tolist():
                    x1, y1, x2, y2 = anchor[0] + x, anchor[1] + y, anchor[2] + x, anchor[3] + y
                    for box in boxes:
                        a, b, c, d = (
                            box[0] * size[1] / width,
                            box[1] * size[0] / height,
                            box[2] * size[1] / width,
                            box[3] * size[0] / height,
                        )
                        inside = max(0, min(x2, c) - max(x1, a)) * max(0, min(y2, d) - max(y1, b))
                        if inside > 0.5 * ((x2 - x1) * (y2 - y1) + (c - a) * (d - b) - inside):
                            count += 1
                            break
    assert positive_anchors(truth, image, base) == count > 0
