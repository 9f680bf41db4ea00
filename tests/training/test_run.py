import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

from retinaconf.errors import InputError
from retinaconf.run_folder import read_config, read_weights
from retinaconf.training import run as training_run
from retinaconf.training.run import DROPPED_SHOWN, train_run


def change(file: Path, edit: Callable[[dict[str, Any]], Any]) -> None:
    document = json.loads(file.read_text())
    edit(document)
    file.write_text(json.dumps(document))


def lines(run: Path, kind: str) -> list[dict[str, Any]]:
    return [r for r in map(json.loads, (run / "metrics.jsonl").read_text().splitlines()) if r["kind"] == kind]


@pytest.fixture(scope="module")
def one_step(tmp_path_factory: pytest.TempPathFactory, make_data: Callable[..., Path], tiny_config: Any) -> Path:
    folder = tmp_path_factory.mktemp("one-step")
    train_run(tiny_config(), make_data(folder / "data"), folder / "run", max_steps=1, device="cpu")
    return folder / "run"


@pytest.fixture
def run(one_step: Path, tmp_path: Path) -> Path:
    """A run of its own for each test, begun on what is in `tiny_data`, too, and stopped after its first step."""
    return Path(shutil.copytree(one_step, tmp_path / "run"))


def test_a_run_folder_holds_all_there_is_to_know(trained: Any):
    assert {path.name for path in trained.run.iterdir()} == {
        "config.json",
        "metrics.jsonl",
        "metrics.csv",
        "model.safetensors",
        "last.ckpt",
        "last.ckpt.previous",
        "environment.json",
        "log.txt",
        "samples",
        "checked-images.json",
        "training.html",
    }
    assert read_config(trained.run / "config.json") == trained.config
    weights = read_weights(trained.run)
    assert weights.config == trained.config
    assert (weights.classes, weights.category_ids) == (("red", "green", "blue"), (3, 8, 90))
    log = (trained.run / "log.txt").read_text()
    assert "train.json, 20 images, " in log
    assert "val.json, 4 images, " in log
    assert "6 epochs x 5 steps of 4 images" in log


def test_metrics_are_lines_of_json(trained: Any):
    train, val = lines(trained.run, "train"), lines(trained.run, "val")
    assert [line["step"] for line in val] == [5, 10, 15, 20, 25, 30]
    assert [line["epoch"] for line in val] == [1, 2, 3, 4, 5, 6]
    assert {"AP", "AP50", "AP75", "AP_S", "AP_M", "AP_L", "AR", "AR_S", "AR_M", "AR_L"} <= set(val[0])
    assert set(val[0]["per_class"]) == {"red", "green", "blue"}
    assert val[0]["AP_S"] is None
    assert "NaN" not in (trained.run / "metrics.jsonl").read_text()
    assert train[-1]["step"] == 30
    for line in train:
        assert line["loss"] == pytest.approx(line["class"] + line["box"] + line["quality"], rel=1e-6)
    assert train[-1]["loss"] < 0.7 * train[0]["loss"]  # it learns


@pytest.mark.parametrize("alpha", [0.0, 0.999, 1.0])
def test_a_product_needs_both_of_its_factors(tiny_config: Any, tmp_path: Path, alpha: float):
    """Said before any of the data are read."""
    config = tiny_config(**{"loss.joint": "product", "inference.alpha": alpha})
    with pytest.raises(InputError, match=f"inference.alpha {alpha:g} leaves .*such as 0.4") as caught:
        train_run(config, tmp_path / "no data", tmp_path / "run", device="cpu")
    assert "\n" not in str(caught.value)


def test_nothing_is_written_for_a_run_that_cannot_start(tiny_data: Path, tiny_config: Any, tmp_path: Path):
    (tiny_data / "images/val-1.png").unlink()
    with pytest.raises(InputError, match=r"val-1\.png"):
        train_run(tiny_config(), tiny_data, tmp_path / "run", device="cpu")
    (tiny_data / "train.json").unlink()
    with pytest.raises(InputError, match="no split 'train'"):
        train_run(tiny_config(), tiny_data, tmp_path / "run", device="cpu")
    assert not (tmp_path / "run").exists()


def test_a_run_that_could_not_begin_leaves_what_was_in_its_folder(tiny_data: Path, tiny_config: Any, tmp_path: Path):
    run = tmp_path / "run"
    run.mkdir()
    (run / "notes.txt").write_text("mine")
    with pytest.raises(InputError, match="no such model"):
        train_run(tiny_config(**{"model.backbone": "resnet99"}), tiny_data, run, device="cpu")
    assert [path.name for path in run.iterdir()] == ["notes.txt"]
    train_run(tiny_config(), tiny_data, run, max_steps=1, device="cpu")
    assert (run / "last.ckpt").exists()


def test_a_run_that_could_not_begin_leaves_the_folder_that_it_was_given(
    tiny_data: Path, tiny_config: Any, tmp_path: Path
):
    (tmp_path / "run").mkdir()
    with pytest.raises(InputError, match="no such model"):
        train_run(tiny_config(**{"model.backbone": "resnet99"}), tiny_data, tmp_path / "run", device="cpu")
    assert list((tmp_path / "run").iterdir()) == []


@pytest.mark.parametrize("resume", [False, True], ids=["new", "resume"])
@pytest.mark.parametrize("backbone", ["test_resnet", "resnet99"], ids=["works", "fails"])
@pytest.mark.parametrize("name", ["log.txt", "metrics.jsonl", "model.safetensors", "last.ckpt"])
def test_a_start_leaves_the_files_of_others_alone(
    tiny_data: Path, tiny_config: Any, tmp_path: Path, name: str, backbone: str, resume: bool
):
    run = tmp_path / "run"
    run.mkdir()
    (run / name).write_text("mine")
    with pytest.raises(InputError, match=rf"run: holds {name} but no config\.json, .*; restore config\.json"):
        train_run(tiny_config(**{"model.backbone": backbone}), tiny_data, run, resume, max_steps=1, device="cpu")
    assert {path.name: path.read_text() for path in run.iterdir()} == {name: "mine"}


HOLDER = """
import os, sys, time
from pathlib import Path
from retinaconf.files import locked
with locked(Path(sys.argv[1])):
    if not os.fork():  # a worker, which outlives its parent
        print("held", flush=True)
    time.sleep(60)
"""


@pytest.mark.ci
def test_one_process_at_a_time_trains_in_a_folder(tiny_data: Path, tiny_config: Any, run: Path):
    other = subprocess.Popen(
        [sys.executable, "-c", HOLDER, run / "log.txt"], stdout=subprocess.PIPE, text=True, start_new_session=True
    )
    assert other.stdout is not None
    try:
        assert other.stdout.readline() == "held\n"
        before = (run / "metrics.jsonl").read_text()
        with pytest.raises(InputError, match="run: another process is at work in this folder; wait until it has ended"):
            train_run(tiny_config(), tiny_data, run, resume=True, max_steps=2, device="cpu")
        assert (run / "metrics.jsonl").read_text() == before
        os.kill(other.pid, signal.SIGKILL)
        other.wait()
        train_run(tiny_config(), tiny_data, run, resume=True, max_steps=2, device="cpu")
        assert lines(run, "train")[-1]["step"] == 2
    finally:
        os.killpg(other.pid, signal.SIGKILL)


@pytest.mark.parametrize("kept", [["val.txt"], ["val.txt", "config.json"]], ids=["val.txt", "config.json"])
def test_a_start_that_was_killed_does_not_stand_in_the_way(
    make_data: Callable[..., Path], tiny_config: Any, tmp_path: Path, kept: list[str]
):
    """It has left what the same command would write first; a record of it is made, too."""
    data, run = make_data(tmp_path / "data", val=0), tmp_path / "run"
    config = tiny_config()
    train_run(config, data, tmp_path / "whole", max_steps=1, device="cpu")
    run.mkdir()
    for name in kept:
        shutil.copy(tmp_path / "whole" / name, run)
    (run / "log.txt").write_text("")
    train_run(config, data, run, resume=True, max_steps=1, device="cpu")
    for name in ("config.json", "val.txt", "model.safetensors"):
        assert (run / name).read_bytes() == (tmp_path / "whole" / name).read_bytes(), name
    assert (run / "environment.json").exists()


def test_a_run_that_another_process_has_made_meanwhile_is_not_replaced(
    tiny_data: Path, tiny_config: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """It was not there yet when this one looked, and has ended when this one gets the lock."""
    run, locked = tmp_path / "run", training_run.locked

    @contextmanager
    def wait_for_the_other(file: Path) -> Iterator[None]:
        monkeypatch.setattr(training_run, "locked", locked)
        (run / "log.txt").unlink(missing_ok=True)
        train_run(tiny_config(), tiny_data, run, max_steps=1, device="cpu")
        with locked(file):
            yield

    monkeypatch.setattr(training_run, "locked", wait_for_the_other)
    with pytest.raises(InputError, match="holds a run already"):
        train_run(tiny_config(seed=1), tiny_data, run, device="cpu")
    assert read_config(run / "config.json").seed == 0
    assert lines(run, "train")[-1]["step"] == 1


def test_a_run_that_stands_is_not_removed_by_a_failing_resume(tiny_data: Path, tiny_config: Any, run: Path):
    for checkpoint in run.glob("last.ckpt*"):
        checkpoint.write_text("damaged")
    with pytest.raises(InputError, match=r"last\.ckpt"):
        train_run(tiny_config(), tiny_data, run, resume=True, device="cpu")
    assert (run / "config.json").exists()
    assert (run / "metrics.jsonl").exists()
    assert (run / "model.safetensors").exists()


@pytest.mark.ci
def test_only_the_number_of_workers_may_change_on_resuming(tiny_data: Path, tiny_config: Any, run: Path):
    train_run(tiny_config(**{"data.workers": 1}), tiny_data, run, resume=True, max_steps=2, device="cpu")
    assert lines(run, "train")[-1]["step"] == 2
    for name, value in (("data.flip", 0.25), ("seed", 3), ("inference.alpha", 0.1), ("schedule.epochs", 7)):
        with pytest.raises(InputError, match=rf"config\.json: {name} is .* there and .* here; resume with the"):
            train_run(tiny_config(**{name: value}), tiny_data, run, resume=True, device="cpu")
    with pytest.raises(InputError, match="holds a run already; continue it with --resume, or choose another --out"):
        train_run(tiny_config(), tiny_data, run, device="cpu")
    old = {name: value for name, value in tiny_config().flat().items() if name not in ("data.augment", "data.crop")}
    (run / "config.json").write_text(json.dumps(old | {"data.flip": 0.5}))  # as version 0.1 wrote it
    train_run(tiny_config(), tiny_data, run, resume=True, max_steps=3, device="cpu")
    assert lines(run, "train")[-1]["step"] == 3


OTHER_DATA: dict[str, tuple[str, Callable[[dict[str, Any]], Any], str]] = {
    "fewer images": ("train", lambda d: d["images"].pop(0), "train.json has 7 images, and the run's data had 8"),
    "one box more": (
        "train",
        lambda d: d["annotations"].append(d["annotations"][0] | {"id": 999}),
        "train.json has 16 boxes, and the run's data had 15",
    ),
    "another box": (
        "train",
        lambda d: d["annotations"][0].update(bbox=[1, 2, 30, 40]),
        "the box coordinates of .*train.json are not those of the run's data",
    ),
    "another class": (
        "train",
        lambda d: d["annotations"][0].update(category_id=8 if d["annotations"][0]["category_id"] == 3 else 3),
        "the box labels of .*train.json are not",
    ),
    "another order": ("train", lambda d: d["images"].reverse(), "the image ids of .*train.json are not those"),
    "in validation": ("val", lambda d: d["annotations"][0].update(iscrowd=1), "the crowd flags of .*val.json are not"),
    "no validation": (
        "val",
        lambda d: d["annotations"].clear(),
        "data had boxes in a split 'val', and these have none",
    ),
}


@pytest.mark.parametrize(("split", "edit", "message"), OTHER_DATA.values(), ids=OTHER_DATA)
def test_a_run_does_not_go_on_with_other_data(
    tiny_data: Path, tiny_config: Any, run: Path, split: str, edit: Any, message: str
):
    before = {path: path.read_bytes() for path in run.rglob("*.*") if path.name != "log.txt"}
    change(tiny_data / f"{split}.json", edit)
    with pytest.raises(InputError, match=rf"last\.ckpt: .*{message}.*; resume with the data of the run, or choose"):
        train_run(tiny_config(), tiny_data, run, resume=True, max_steps=2, device="cpu")
    assert {path: path.read_bytes() for path in run.rglob("*.*") if path.name != "log.txt"} == before


@pytest.mark.ci
def test_a_run_goes_on_in_another_place_and_after_version_0_1(
    tiny_data: Path, tiny_config: Any, run: Path, tmp_path: Path
):
    moved = tiny_data.rename(tmp_path / "moved")
    train_run(tiny_config(), moved, run, resume=True, max_steps=2, device="cpu")
    state = torch.load(run / "last.ckpt", weights_only=True)
    del state["data"]  # version 0.1 did not know it
    torch.save(state, run / "last.ckpt")
    train_run(tiny_config(), moved, run, resume=True, max_steps=3, device="cpu")
    assert lines(run, "train")[-1]["step"] == 3


@pytest.mark.parametrize("part", [{"categories": 5}, {"categories": ((3,), 4)}, {"data": [1]}], ids=str)
def test_a_checkpoint_whose_data_are_of_another_form(tiny_data: Path, tiny_config: Any, run: Path, part: Any):
    torch.save(torch.load(run / "last.ckpt", weights_only=True) | part, run / "last.ckpt")
    with pytest.raises(InputError, match=r"last\.ckpt: does not fit this run \(.*\); train anew"):
        train_run(tiny_config(), tiny_data, run, resume=True, max_steps=2, device="cpu")


@pytest.mark.ci
def test_a_run_does_not_go_back(tiny_data: Path, tiny_config: Any, tmp_path: Path):
    train_run(tiny_config(), tiny_data, tmp_path / "run", max_steps=3, device="cpu")
    with pytest.raises(InputError, match="has taken 3 steps already, more than the 2 of this command; give a larger"):
        train_run(tiny_config(), tiny_data, tmp_path / "run", resume=True, max_steps=2, device="cpu")


def test_resuming_where_nothing_is_starts_a_run(tiny_data: Path, tiny_config: Any, tmp_path: Path):
    train_run(tiny_config(), tiny_data, tmp_path / "run", resume=True, max_steps=1, device="cpu")
    assert (tmp_path / "run/model.safetensors").exists()


@pytest.mark.ci
def test_stopped_within_its_first_epoch_a_run_is_not_validated(tiny_data: Path, tiny_config: Any, tmp_path: Path):
    run = tmp_path / "run"
    train_run(tiny_config(), tiny_data, run, max_steps=1, device="cpu")
    assert lines(run, "val") == []
    first = read_weights(run).state
    train_run(tiny_config(), tiny_data, run, resume=True, max_steps=2, device="cpu")
    assert [line["step"] for line in lines(run, "val")] == [2]
    kept = read_weights(run).state
    assert not all(torch.equal(kept[name], tensor) for name, tensor in first.items())


def test_classes_without_a_training_box_are_told(
    tiny_data: Path, tiny_config: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    def drop_red(document: dict[str, Any]) -> None:
        document["annotations"] = [box for box in document["annotations"] if box["category_id"] != 3 or box["iscrowd"]]

    train_run(tiny_config(), tiny_data, tmp_path / "all", max_steps=1, device="cpu")
    assert "warning" not in capsys.readouterr().out
    change(tiny_data / "train.json", drop_red)
    train_run(tiny_config(), tiny_data, tmp_path / "run", max_steps=1, device="cpu")
    warning = f"warning: no box of red in {tiny_data / 'train.json'}; nothing is learned of it"
    assert warning in capsys.readouterr().out.splitlines()


@pytest.mark.parametrize("what", ["no split 'val'", "no boxes in the split 'val'"])
@pytest.mark.ci
def test_without_validation_the_last_weights_are_kept(tiny_data: Path, tiny_config: Any, tmp_path: Path, what: str):
    if what == "no split 'val'":
        (tiny_data / "val.json").unlink()
    else:
        change(tiny_data / "val.json", lambda document: document["annotations"].clear())
    run = tmp_path / "run"
    train_run(tiny_config(**{"schedule.epochs": 2, "data.val_fraction": 0.0}), tiny_data, run, device="cpu")
    assert f"{what}; training without validation, the last weights are kept" in (run / "log.txt").read_text()
    assert lines(run, "val") == []
    last = torch.load(run / "last.ckpt", weights_only=True)
    assert last["step"] == 4
    kept = read_weights(run).state
    assert all(torch.equal(kept[name], tensor) for name, tensor in last["model"].items())


def test_what_was_dropped_is_named_ten_on_the_terminal_all_in_the_log(
    tiny_data: Path, tiny_config: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    flat = {"image_id": 1000, "category_id": 3, "bbox": [1, 2, 0, 4]}
    change(
        tiny_data / "train.json",
        lambda document: document["annotations"].extend(flat | {"id": 500 + n} for n in range(15)),
    )
    run = tmp_path / "run"
    train_run(tiny_config(), tiny_data, run, max_steps=1, device="cpu")
    out, log = capsys.readouterr().out, (run / "log.txt").read_text()
    expected = [f"annotation {500 + n} (image train-0.png) has width 0; dropped" for n in range(15)]
    assert [name in out for name in expected] == [True] * DROPPED_SHOWN + [False] * 5
    assert all(name in log for name in expected)
    assert "... and 5 more, all in the run's log.txt" in out


def test_an_unwritable_folder(tiny_data: Path, tiny_config: Any, tmp_path: Path):
    (tmp_path / "file").touch()
    for out in (tmp_path / "file", tmp_path / "file/run"):
        with pytest.raises(InputError, match=rf"{out}: cannot be written \(.*\); choose another --out"):
            train_run(tiny_config(), tiny_data, out, device="cpu")


# --- runs that are repeated ------------------------------------------------------------------------------------------


@pytest.mark.ci
def test_a_run_is_repeated_to_the_bit(
    tiny_data: Path, tiny_flags: list[str], run_cli: Callable[..., Any], tmp_path: Path
):
    first, second = tmp_path / "first", tmp_path / "second"
    words = ["--data", tiny_data, "--out", first, *tiny_flags, "--device", "cpu", "--seed", 7]
    assert run_cli("train", "conf-r50-1x", *words, "--max-steps", 2).code == 0
    assert run_cli("train", "conf-r50-1x", *words, "--max-steps", 4, "--resume").code == 0
    made = json.loads((first / "environment.json").read_text())
    assert (made["seed"], made["max_steps"], made["data"]) == (7, 4, str(tiny_data.resolve()))
    assert (made["device"], made["versions"]["torch"]) == ("cpu", torch.__version__)
    assert made["digests"]["train"]["images"] == 8

    result = run_cli("train", "--like", first, "--out", second, "--device", "cpu")
    assert (result.code, result.err) == (0, "")
    assert "warning" not in result.out
    for name in ("model.safetensors", "config.json", "metrics.jsonl"):
        assert (second / name).read_bytes() == (first / name).read_bytes(), name

    change(tiny_data / "train.json", lambda document: document["annotations"].pop())
    (first / "environment.json").write_text(json.dumps(made | {"versions": made["versions"] | {"torch": "1.0"}}))
    result = run_cli("train", "--like", first, "--out", tmp_path / "other", "--device", "cpu")
    (warning,) = [line for line in result.out.splitlines() if line.startswith("warning")]
    assert (
        f"the result may differ: torch 1.0 there and {torch.__version__} here; other data in train (boxes, " in warning
    )
    assert "other data in val" not in warning


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda file: file.unlink(), "no such file, so the run cannot be repeated"),
        (lambda file: file.write_text("[1]"), "not a readable record of a run"),
        (lambda file: file.write_text('{"data": 1, "max_steps": null}'), "its data or max_steps are of another type"),
    ],
)
def test_a_run_without_its_record_is_not_repeated(
    trained: Any, run_cli: Callable[..., Any], tmp_path: Path, edit: Callable[[Path], object], message: str
):
    shutil.copytree(trained.run, tmp_path / "run")
    edit(tmp_path / "run/environment.json")
    result = run_cli("train", "--like", tmp_path / "run", "--out", tmp_path / "again")
    assert (result.code, result.err.count("\n")) == (1, 1)
    assert message in result.err
    result = run_cli("train", "conf-lite0", "--like", trained.run, "--out", tmp_path / "again")
    assert (result.code, "take their settings from a run" in result.err) == (2, True)
    assert not (tmp_path / "again").exists()
