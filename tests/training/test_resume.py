"""Runs that end early, in every way but kill -9 (test_loop.py), and what they leave to go on from."""

import json
import multiprocessing
import os
import resource
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from children import differing
from detectors import TASK_ALIGNED
from lightning_fabric import Fabric
from lightning_fabric.plugins import MixedPrecision

from retinaconf.data.layouts import load_split
from retinaconf.data.loader import training_batches
from retinaconf.errors import InputError, Interrupted
from retinaconf.run_folder import checkpoints
from retinaconf.training import loop
from retinaconf.training import replay as replay_module
from retinaconf.training import run as training_run
from retinaconf.training import step as step_module
from retinaconf.training.checkpoint import write_state
from retinaconf.training.progress import Progress
from retinaconf.training.run import train_run

# One image a step: eight steps an epoch, of which the losses make one line.
CHANGES = {"data.batch_size": 1, "optimizer.reference_batch": 1, "optimizer.lr": 1e-3, "schedule.epochs": 2}
EPOCH = 8


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory, make_data: Callable[..., Path]) -> Path:
    return make_data(tmp_path_factory.mktemp("resume") / "data", train=EPOCH, val=2)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, data: Path, tiny_config: Any) -> Path:
    """A run that nothing has stopped."""
    run = tmp_path_factory.mktemp("resume") / "whole"
    train_run(tiny_config(**CHANGES), data, run, device="cpu")
    return run


def lines(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def at_step(monkeypatch: pytest.MonkeyPatch, step: int, act: Callable[[], object]) -> None:
    """Let something happen after a step of training."""
    told = Progress.step

    def tell(self: Progress, done: int, epoch: float) -> None:
        told(self, done, epoch)
        if done == step:
            act()

    monkeypatch.setattr(Progress, "step", tell)


# --- what is restored ----------------------------------------------------------------------------------------------


def in_64_bits() -> Fabric:
    """As a GPU does, its setup puts the parameters where the optimizer's state is not: into another type."""
    return Fabric(accelerator="cpu", precision="64-true")


def in_16_bits() -> Fabric:
    """What `16-mixed` is on a GPU; on a CPU Fabric would take bfloat16. The scale doubles every second step."""
    scaler = torch.amp.GradScaler("cpu", init_scale=256.0, growth_interval=2)
    return Fabric(accelerator="cpu", plugins=[MixedPrecision("16-mixed", "cpu", scaler)])


@pytest.mark.parametrize("fabric", [pytest.param(in_64_bits, marks=pytest.mark.slow), in_16_bits])
@pytest.mark.ci
def test_optimizer_and_gradient_scaler_go_on_where_they_were(
    data: Path, tiny_config: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fabric: Callable[[], Fabric]
):
    monkeypatch.setattr(training_run, "launch", lambda *_: fabric())
    config = tiny_config(**(CHANGES | {"data.batch_size": 4}))
    train_run(config, data, tmp_path / "whole", device="cpu")
    with monkeypatch.context() as patch:
        at_step(patch, 3, lambda: os.kill(os.getpid(), signal.SIGINT))
        with pytest.raises(Interrupted, match="stopped at step 3 of 4; the same command with --resume continues"):
            train_run(config, data, tmp_path / "run", device="cpu")
    train_run(config, data, tmp_path / "run", resume=True, device="cpu")
    assert not differing(tmp_path / "run", tmp_path / "whole")
    if fabric is in_16_bits:
        assert torch.load(tmp_path / "run/last.ckpt")["precision"]["scale"] == 1024


@pytest.mark.parametrize("iou_score", [pytest.param("quality-focal", marks=pytest.mark.slow), "varifocal"])
@pytest.mark.ci
def test_a_run_with_other_assigners_and_losses_goes_on_where_it_was(
    data: Path, tiny_config: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, iou_score: str
):
    """Its first epoch matches by ATSS, its second by the outputs; it is stopped once in each."""
    config = tiny_config(**(CHANGES | TASK_ALIGNED | {"loss.iou_score": iou_score}))
    train_run(config, data, tmp_path / "whole", device="cpu")
    run = tmp_path / "run"
    for step in (5, EPOCH + 3):
        with monkeypatch.context() as patch:
            at_step(patch, step, lambda: os.kill(os.getpid(), signal.SIGTERM))
            with pytest.raises(Interrupted, match=f"stopped at step {step} of 16"):
                train_run(config, data, run, resume=run.exists(), device="cpu")
    train_run(config, data, run, resume=True, device="cpu")
    assert not differing(run, tmp_path / "whole")
    losses = lines(run)[-2]
    assert {name for name in losses if isinstance(losses[name], float)} >= {"class", "box", "distribution", "rank"}


@pytest.mark.ci
def test_a_run_goes_on_with_every_kind_of_augmentation(
    data: Path, tiny_config: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """From no workers to two, in the middle of an epoch; `strong` with everything that it leaves out."""
    knobs = {f"data.{name}": 0.5 for name in ("turn", "vertical_flip", "blur", "jpeg")}
    changes = CHANGES | knobs | {"data.augment": "strong", "data.batch_size": 2, "schedule.epochs": 1}
    train_run(tiny_config(**changes), data, tmp_path / "whole", device="cpu")
    run = tmp_path / "run"
    with monkeypatch.context() as patch:
        at_step(patch, 1, lambda: os.kill(os.getpid(), signal.SIGTERM))
        with pytest.raises(Interrupted, match="stopped at step 1 of 4"):
            train_run(tiny_config(**changes), data, run, device="cpu")
    train_run(tiny_config(**changes | {"data.workers": 2}), data, run, resume=True, device="cpu")
    assert not differing(run, tmp_path / "whole", ["metrics.jsonl"])  # the other file names the number of workers


@pytest.mark.slow
def test_a_run_that_started_from_another_goes_on_without_it(
    data: Path, write_run: Callable[..., Path], run_cli: Callable[..., Any], tmp_path: Path, monkeypatch: Any
):
    """With the same command or as itself, with its own settings; stopped before it has a model, and after."""
    monkeypatch.chdir(tmp_path)
    write_run(Path("old"), **CHANGES)
    words = ("--data", data, "--device", "cpu")
    assert run_cli("train", "old", *words, "--out", "whole", "--data.flip", 0).code == 0
    legs = {3: ("old", "--data.flip", 0), 5: ("old", "--resume"), EPOCH + 2: ("new", "--resume")}
    for step, again in (legs | {EPOCH + 4: ("old", "--resume")}).items():
        with monkeypatch.context() as patch:
            at_step(patch, step, lambda: os.kill(os.getpid(), signal.SIGINT))
            result = run_cli("train", *again, *words, "--out", "new")
            assert f"stopped at step {step} of 16" in result.err
        if Path("old").exists():
            Path("old").rename("gone")
    result = run_cli("train", "new", *words, "--out", "new", "--resume")
    assert (result.code, result.err) == (0, "")
    assert not differing(Path("new"), Path("whole"))
    result = run_cli("train", "gone", *words, "--out", "new", "--resume")
    assert (result.code, result.err.count("\n")) == (1, 1)
    assert "model.weights is 'old' there and 'gone' here" in result.err


# --- runs that end early ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("step", "workers", "number"),
    [
        (5, 1, signal.SIGTERM),
        pytest.param(EPOCH, 0, signal.SIGTERM, marks=pytest.mark.slow),
        pytest.param(EPOCH + 3, 1, signal.SIGINT, marks=pytest.mark.slow),
    ],
)
@pytest.mark.ci
def test_interrupted_between_two_lines_of_metrics_and_resumed_is_the_whole_run(
    data: Path,
    whole: Path,
    tiny_config: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    step: int,
    workers: int,
    number: int,
):
    """Loading processes get the signal, too, as from a terminal or a scheduler."""

    def interrupt() -> None:
        loading = multiprocessing.active_children()
        assert len(loading) == workers
        for process in loading:
            os.kill(process.pid or 0, number)
        os.kill(os.getpid(), number)

    run, config = tmp_path / "run", tiny_config(**(CHANGES | {"data.workers": workers}))
    with monkeypatch.context() as patch:
        at_step(patch, step, interrupt)
        with pytest.raises(Interrupted, match=f"stopped at step {step} of 16; .* --resume continues"):
            train_run(config, data, run, device="cpu")
    train_run(tiny_config(**CHANGES), data, run, resume=True, device="cpu")
    assert not differing(run, whole)


@pytest.mark.ci
def test_a_killed_loading_process_ends_a_run_in_one_line_and_costs_no_step(
    data: Path, whole: Path, tiny_config: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    def kill_workers() -> None:
        for worker in multiprocessing.active_children():
            worker.kill()

    run = tmp_path / "run"
    config = tiny_config(**(CHANGES | {"data.workers": 1}))
    with monkeypatch.context() as patch:
        at_step(patch, 3, kill_workers)
        with pytest.raises(InputError, match=r"killed \(SIGKILL\).*; stopped at step 3 of 16; .* --resume continues"):
            train_run(config, data, run, device="cpu")
    assert torch.load(run / "last.ckpt")["step"] == 3
    train_run(tiny_config(**CHANGES), data, run, resume=True, device="cpu")
    assert not differing(run, whole)


@pytest.mark.ci
def test_a_failing_validation_costs_no_step_and_is_made_up_for(
    data: Path, whole: Path, tiny_config: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    def fail(*_: Any) -> Any:
        raise InputError("val-1.png: cannot be read")

    run = tmp_path / "run"
    with monkeypatch.context() as patch:
        patch.setattr(loop, "_validate", fail)
        with pytest.raises(InputError, match=r"^val-1.png: cannot be read; stopped at step 8 of 16; the same"):
            train_run(tiny_config(**CHANGES), data, run, device="cpu")
    assert not (run / "model.safetensors").exists()
    with monkeypatch.context() as patch:  # killed behind the line of the validation, before the next save
        patch.setattr(loop, "write_weights", fail)
        with pytest.raises(InputError):
            train_run(tiny_config(**CHANGES), data, run, resume=True, device="cpu")
    assert [line["kind"] for line in lines(run)] == ["train", "val"]
    train_run(tiny_config(**CHANGES), data, run, resume=True, device="cpu")
    assert not differing(run, whole)


def test_a_bad_image_in_the_first_batch_leaves_nothing(data: Path, tiny_config: Any, tmp_path: Path, monkeypatch: Any):
    def fail(*_: Any) -> Any:
        raise InputError("train-1.png: cannot be read")
        yield

    monkeypatch.setattr(loop, "training_batches", fail)
    with pytest.raises(InputError, match=r"^train-1.png: cannot be read$"):
        train_run(tiny_config(**CHANGES), data, tmp_path / "run", device="cpu")
    assert not (tmp_path / "run").exists()


@pytest.mark.ci
def test_data_that_change_in_a_run_are_told_at_the_end_of_the_epoch(
    make_data: Callable[..., Path], whole: Path, tiny_config: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """The run keeps the boxes that it has read, and does not continue on others."""
    data, run = make_data(tmp_path / "data", train=EPOCH, val=2), tmp_path / "run"

    def rewrite() -> None:
        document = json.loads((data / "train.json").read_text())
        document["annotations"][0]["bbox"] = [1, 2, 30, 40]
        (data / "train.json").write_text(json.dumps(document))
        (data / "images/train-1.png").write_bytes((data / "images/train-1.png").read_bytes() + b"\0")

    with monkeypatch.context() as patch:
        at_step(patch, 3, rewrite)
        train_run(tiny_config(**CHANGES), data, run, max_steps=EPOCH, device="cpu")
    told = [line for line in (run / "log.txt").read_text().splitlines() if line.startswith("warning")]
    assert [line.split(" changed ")[0] for line in told] == [
        f"warning: {file}" for file in (data / "train.json", data / "images/train-1.png")
    ]
    assert lines(run) == lines(whole)[: len(lines(run))]
    with pytest.raises(InputError, match=r"the box coordinates of .*train\.json are not those of the run's data"):
        train_run(tiny_config(**CHANGES), data, run, resume=True, device="cpu")


# --- runs that diverge -----------------------------------------------------------------------------------------------

DIVERGES = CHANGES | {"optimizer.name": "sgd", "optimizer.lr": 1e30, "optimizer.clip_norm": 0.0}


def test_a_run_that_diverges_before_its_first_checkpoint_keeps_its_curve(data: Path, tiny_config: Any, tmp_path: Path):
    run = tmp_path / "run"
    with pytest.raises(InputError, match="the loss is not finite at step 2: loss nan") as caught:
        train_run(tiny_config(**DIVERGES), data, run, device="cpu")
    message = str(caught.value)
    assert "last.ckpt" not in message
    assert "a lower --optimizer.lr (now 1e+30) or --optimizer.clip-norm 10. " in message
    assert message.endswith(f"{run / 'metrics.jsonl'} holds the losses")
    kept = ["checked-images.json", "config.json", "environment.json", "log.txt", "metrics.jsonl"]
    kept += ["not-finite.safetensors", "samples"]
    assert sorted(path.name for path in run.iterdir()) == kept
    assert [(line["step"], line["loss"]) for line in lines(run)] == [(2, None)]


@pytest.mark.ci
def test_a_run_that_diverges_later_says_what_it_leaves(
    data: Path, tiny_config: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    run = tmp_path / "run"
    rate = loop.learning_rate
    monkeypatch.setattr(loop, "learning_rate", lambda *args: 1e30 if args[1] == EPOCH + 1 else rate(*args))
    with pytest.raises(InputError, match="the loss is not finite at step 11: ") as caught:
        train_run(tiny_config(**(CHANGES | {"precision": "bf16-mixed"})), data, run, device="cpu")
    assert " or --precision 32. " in str(caught.value)
    assert str(caught.value).endswith(f"holds the losses, {run / 'model.safetensors'} the best weights before")
    state = torch.load(run / "last.ckpt")
    assert state["step"] == EPOCH
    assert all(tensor.isfinite().all() for tensor in state["model"].values())


@pytest.mark.parametrize(("part", "fused"), [("gradient", None), ("loss", True)], ids=["as on a CPU", "as on a GPU"])
@pytest.mark.ci
def test_the_step_that_is_not_finite_is_kept_and_gives_the_same_numbers_again(
    data: Path,
    tiny_config: Any,
    run_cli: Callable[..., Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    fused: bool | None,
    part: str,
):
    """One image spoils a loss, or a gradient whose loss is finite. The file has the weights before it."""
    at = 3
    losses = step_module.detection_losses

    def spoil(outputs: Any, matches: Any, boxes: torch.Tensor, *args: Any) -> dict[str, torch.Tensor]:
        terms = losses(outputs, matches, boxes, *args)
        if torch.equal(boxes, target):
            terms["class"] = terms["class"] * torch.inf if part == "loss" else terms["class"] + slope(terms["class"])
        return terms

    def slope(loss: torch.Tensor) -> torch.Tensor:
        return (loss * 0).sqrt()  # 0, with an infinite gradient

    with monkeypatch.context() as patch:
        patch.setattr(loop, "fused_on", lambda *_: fused)
        patch.setattr(replay_module, "fused_on", lambda *_: fused)
        patch.setattr(step_module, "detection_losses", spoil)
        config = tiny_config(**CHANGES, **{"data.flip": 0.0})
        truth = load_split(data, "train", False, None)
        (batch,) = training_batches(truth, config.data, config.seed, at - 1, at)
        target, name = batch.boxes, truth.file_names[batch.index.item()]
        run = tmp_path / "run"
        with pytest.raises(InputError) as caught:
            train_run(config, data, run, device="cpu")
        message = str(caught.value)
        assert message.startswith(f"the {part} is not finite at step {at}: loss ")
        numbers = message.partition(": ")[2].partition(f", on {name}. `retinaconf train --replay ")[0]
        assert ("loss inf" in numbers) == (part == "loss")
        result = run_cli("train", "--replay", run / "not-finite.safetensors", "--device", "cpu")
        assert (result.code, result.err) == (0, "")
        assert result.out.splitlines()[-1] == f"step {at} on {name}: {numbers}"
        assert [line["step"] for line in lines(run)] == [at + bool(fused)]
        train_run(config, data, tmp_path / "sound", max_steps=at - 1, device="cpu")
    before = torch.load(tmp_path / "sound/last.ckpt")["model"]
    kept = safetensors.torch.load_file(run / "not-finite.safetensors")
    learned = [tensor for tensor in before if "running" not in tensor and "num_batches" not in tensor]
    assert all(torch.equal(before[tensor], kept[tensor]) for tensor in learned)
    for more in ("--resume", "--dry-run"):
        result = run_cli("train", "--replay", run / "not-finite.safetensors", "--device", "cpu", more)
        assert (result.code, result.err.count("\n")) == (2, 1)
        assert "leave out --resume and --dry-run" in result.err
    result = run_cli("train", "--replay", tmp_path / "sound/model.safetensors", "--device", "cpu")
    assert (result.code, result.err.count("\n")) == (1, 1)
    assert "holds no batch; give a not-finite.safetensors that a run has left" in result.err


def test_signals_that_come_together_are_one_wish_to_stop(monkeypatch: pytest.MonkeyPatch):
    """A scheduler signals every process, and torchrun its own again: the second must not end the run unsaved."""
    now = 100.0
    monkeypatch.setattr(loop.time, "monotonic", lambda: now)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a job in the background ignores it
    with loop._stop_signals() as stop_wanted:
        assert not stop_wanted()
        for number in (signal.SIGTERM, signal.SIGTERM, signal.SIGINT):
            signal.raise_signal(number)
            assert stop_wanted()
        now += 3
        with pytest.raises(KeyboardInterrupt):  # somebody does not want to wait
            signal.raise_signal(signal.SIGINT)
    assert signal.signal(signal.SIGINT, before) is signal.default_int_handler


@pytest.mark.parametrize("ending", ["the epoch's", "a stop"])
def test_weights_that_are_not_finite_are_never_written(
    data: Path, tiny_config: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ending: str
):
    """The last step before a checkpoint spoils them, and its loss is still finite."""
    run = tmp_path / "run"
    step = EPOCH if ending == "the epoch's" else 3
    spoiled: list[torch.nn.Module] = []
    made = loop.RetinaNet

    def make(*args: Any) -> Any:
        spoiled.append(made(*args))
        return spoiled[-1]

    def spoil() -> None:
        with torch.no_grad():
            next(spoiled[-1].parameters())[0].fill_(float("nan"))
        if ending == "a stop":
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(loop, "RetinaNet", make)
    at_step(monkeypatch, step, spoil)
    with pytest.raises(InputError, match=f"the weights are not finite at step {step}; "):
        train_run(tiny_config(**CHANGES), data, run, device="cpu")
    assert sorted(path.name for path in run.iterdir()) == [
        "checked-images.json",
        "config.json",
        "environment.json",
        "log.txt",
        "metrics.jsonl",
        "samples",
    ]
    assert [line["step"] for line in lines(run)] == [step]
    assert lines(run)[0]["loss"] > 0


# --- disks ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("file", ["last.ckpt", pytest.param("model.safetensors", marks=pytest.mark.slow)])
@pytest.mark.ci
def test_a_disk_that_is_full_at_the_first_save_takes_nothing_away(
    data: Path, whole: Path, tiny_config: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, file: str
):
    def full(thing: Any, aside: Path, *args: Any) -> None:
        aside.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    run = tmp_path / "run"
    with monkeypatch.context() as patch:
        patch.setattr(*((torch, "save") if file == "last.ckpt" else (safetensors.torch, "save_file")), full)
        with pytest.raises(InputError, match=rf"{file}: cannot be written \(No space left"):
            train_run(tiny_config(**CHANGES), data, run, device="cpu")
    kept = {
        "checked-images.json",
        "config.json",
        "environment.json",
        "log.txt",
        "metrics.jsonl",
        "last.ckpt",
        "samples",
    }
    assert {path.name for path in run.iterdir()} == kept - {file}
    train_run(tiny_config(**CHANGES), data, run, resume=True, device="cpu")
    assert not differing(run, whole)


def flip(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 4
    file.write_bytes(content)


DAMAGE: dict[str, tuple[Callable[[Path], object], str]] = {
    "torn": (lambda file: os.truncate(file, file.stat().st_size // 2), "not a readable checkpoint (BadZipFile)"),
    "flipped": (flip, "damaged (its part"),
    "killed between the two renamings": (Path.unlink, "is missing"),
}


@pytest.mark.parametrize(
    ("damage", "message"),
    # A torn file is found as a flipped one is: by reading it back.
    [pytest.param(*how, id=name, marks=pytest.mark.slow if name == "torn" else ()) for name, how in DAMAGE.items()],
)
@pytest.mark.ci
def test_a_damaged_checkpoint_costs_the_steps_since_the_one_before_it(
    data: Path,
    whole: Path,
    tiny_config: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    damage: Callable[[Path], object],
    message: str,
):
    """Stopped at step 11; the one before it is of step 8. Stopped again soon after, it is still there."""
    run = tmp_path / "run"

    def train_until(step: int) -> None:
        with monkeypatch.context() as patch:
            at_step(patch, step, lambda: os.kill(os.getpid(), signal.SIGTERM))
            with pytest.raises(Interrupted, match=f"stopped at step {step} of 16"):
                train_run(tiny_config(**CHANGES), data, run, resume=run.exists(), device="cpu")

    train_until(EPOCH + 3)
    damage(run / "last.ckpt")
    capsys.readouterr()
    train_until(EPOCH + 1)  # the damaged one does not take the place of the whole one
    (warning,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("warning")]
    assert f"{run / 'last.ckpt'}" in warning
    assert message in warning
    assert warning.endswith("; the run continues from the checkpoint before it")
    assert torch.load(run / "last.ckpt.previous")["step"] == EPOCH
    damage(run / "last.ckpt")
    train_run(tiny_config(**CHANGES), data, run, resume=True, device="cpu")
    assert not differing(run, whole)


def test_a_checkpoint_that_cannot_be_read_back_replaces_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    file = tmp_path / "last.ckpt"
    write_state(file, {"step": 1})
    save = torch.save

    def spoiled(state: Any, aside: Path) -> None:
        save(state, aside)
        flip(aside)

    monkeypatch.setattr(torch, "save", spoiled)
    with pytest.raises(InputError, match=r"cannot be written \(what was written cannot be read back: damaged"):
        write_state(file, {"step": 2, "weights": torch.arange(1000)})
    assert [path.name for path in tmp_path.iterdir()] == ["last.ckpt"]
    assert torch.load(file)["step"] == 1


def test_a_limit_on_file_sizes_leaves_both_checkpoints(tmp_path: Path):
    file = tmp_path / "last.ckpt"
    for step in (1, 2):
        write_state(file, {"step": step})
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, hard))
    try:
        with pytest.raises(InputError, match=r"last\.ckpt: cannot be written \(.*\); free space there"):
            write_state(file, {"step": 3, "weights": torch.zeros(100_000)})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["last.ckpt", "last.ckpt.previous"]
    assert [torch.load(path)["step"] for path in checkpoints(tmp_path)] == [2, 1]


@pytest.mark.parametrize("resume", [True, False])
def test_copies_that_killed_processes_have_left_are_removed_at_the_next_start(
    data: Path, tiny_config: Any, tmp_path: Path, resume: bool
):
    """A link's copies are beside what it points to."""
    run, disk = tmp_path / "run", tmp_path / "disk"
    run.mkdir()
    disk.mkdir()
    if resume:
        train_run(tiny_config(**CHANGES), data, run, max_steps=1, device="cpu")
        (run / "model.safetensors").rename(disk / "weights")
        (run / "model.safetensors").symlink_to(disk / "weights")
    left = [run / ".last.ckpt.123", run / ".metrics.jsonl.45", *([disk / ".weights.6"] if resume else [])]
    others = [run / ".last.ckpt.bak", run / ".mine.123", run / "last.ckpt.123"]
    for file in left + others:
        file.write_text("half")
    train_run(tiny_config(**CHANGES), data, run, resume=resume, max_steps=1, device="cpu")
    assert [file for file in left if file.exists()] == []
    assert [file.read_text() for file in others] == ["half"] * 3
