"""Runs of a tiny network on a tiny data set: killed and resumed, interrupted, on two processes, overfitting."""

import json
import os
import random
import signal
import socket
import subprocess
import sys
import time

import pytest
import torch
from children import differing
from detectors import ONE_ANCHOR, TASK_ALIGNED
from safetensors.torch import load_file

from retinaconf.cli import main
from retinaconf.config import Config
from retinaconf.data.scenes import write_scenes
from retinaconf.training.run import train_run

TINY = {
    "model.backbone": "test_resnet",
    "model.weights": "none",
    "model.freeze_norm": False,
    "model.freeze": "none",
    "model.channels": 16,
    "model.head_convs": 1,
    "model.quality": "classification",
    "data.short_side": 64,
    "data.long_side": 96,
    "data.scale": [0.7, 1.4],
    "data.batch_size": 4,
    "data.workers": 1,
    "optimizer.name": "adamw",
    "optimizer.lr": 1e-3,
    "optimizer.reference_batch": 4,
    "optimizer.ema": 0.9,
    "schedule.epochs": 3,
    "schedule.warmup_steps": 3,
    "inference.alpha": 0.4,
}


# Together: the assigners that see outputs, one anchor, distributions, and the losses of the score that ranks.
ATSS = ONE_ANCHOR | {
    "model.level_scale": True,
    "matching.assigner": "atss",
    "loss.box": "giou",
    "loss.box_weight": 2.0,
}
ALIGNED = TASK_ALIGNED | {"loss.box_weight": 2.0}


def options(**changes):
    """A configuration as command-line options."""
    flat = TINY | changes
    words = []
    for name, value in flat.items():
        name = name.replace("_", "-")
        if isinstance(value, bool):
            section, _, field = name.rpartition(".")
            words.append(f"--{section}.{'' if value else 'no-'}{field}")
        else:
            words += [f"--{name}", *map(str, value if isinstance(value, list) else [value])]
    return words


@pytest.fixture(scope="module")
def scenes(tmp_path_factory):
    return write_scenes(tmp_path_factory.mktemp("scenes") / "data", train=18, val=4, size=(120, 160))


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """Here and in the processes that are started, since sums depend on the number of threads."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def command(scenes, run, *extra, **changes):
    words = ["train", "conf-r50-1x", "--data", str(scenes), "--out", str(run), "--device", "cpu"]
    return [*words, *options(**changes), *extra]


def environment():
    return os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)}


def started(words):
    """The command in a process of its own, to be killed with its loading processes."""
    return subprocess.Popen(
        [sys.executable, "-m", "retinaconf", *words],
        env=environment(),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        start_new_session=True,
    )


def run_to_the_end(words):
    """The command in this process: to import torch takes another one longer than to train."""
    with pytest.raises(SystemExit) as stop:
        main(words)
    assert stop.value.code == 0


def lines(run, kind):
    return [r for r in map(json.loads, (run / "metrics.jsonl").read_text().splitlines()) if r["kind"] == kind]


@pytest.fixture(scope="module")
def uninterrupted(scenes, tmp_path_factory):
    run = tmp_path_factory.mktemp("runs") / "whole"
    run_to_the_end(command(scenes, run))
    return run


@pytest.mark.slow  # `make torture` kills more than a hundred
@pytest.mark.parametrize("seed", [0, 1])
def test_killed_at_a_random_step_and_resumed_is_the_uninterrupted_run(scenes, uninterrupted, tmp_path, seed):
    run = tmp_path / "killed"
    process = started(command(scenes, run))
    # Kill at a random moment between the first epoch's checkpoint and the end.
    first = run / "last.ckpt"
    deadline = time.monotonic() + 240
    while not first.exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.005)
    time.sleep(random.Random(seed).uniform(0, 0.25))
    os.killpg(process.pid, signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL  # and not ended before
    assert first.exists()
    run_to_the_end(command(scenes, run, "--resume"))
    assert not differing(run, uninterrupted)


@pytest.mark.slow
def test_killed_before_its_first_checkpoint_starts_over(scenes, uninterrupted, tmp_path):
    run = tmp_path / "early"
    process = started(command(scenes, run))
    while not (run / "config.json").exists() and process.poll() is None:
        time.sleep(0.005)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    run_to_the_end(command(scenes, run, "--resume"))
    assert not differing(run, uninterrupted)


@pytest.mark.slow  # test_resume.py sends the signals within one process
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interrupted_run_is_saved_in_the_middle_of_an_epoch_and_goes_on(scenes, uninterrupted, tmp_path, number):
    """Loading processes get the signal, too, as from a terminal or a scheduler."""
    run = tmp_path / "interrupted"
    process = started(command(scenes, run))
    while not (run / "last.ckpt").exists() and process.poll() is None:
        time.sleep(0.005)
    os.killpg(process.pid, number)
    _, stderr = process.communicate(timeout=240)
    if process.returncode == 0:
        pytest.skip("the run ended before the signal came")
    message = stderr.decode().strip().splitlines()[-1]
    assert process.returncode == 1
    assert "--resume continues" in message
    run_to_the_end(command(scenes, run, "--resume"))
    best = [load_file(folder / "model.safetensors") for folder in (run, uninterrupted)]
    assert all(torch.equal(tensor, best[1][name]) for name, tensor in best[0].items())


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def on_two_processes(*words):
    """`python WORDS` on two processes, which must succeed."""
    torchrun = ["-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-port", str(free_port())]
    result = subprocess.run(
        [sys.executable, *torchrun, *words], env=environment(), capture_output=True, text=True, timeout=300
    )
    assert result.returncode == 0, result.stderr[-2000:]


@pytest.mark.parametrize(
    ("detector", "losses"),
    [(ALIGNED, ("distribution", "rank")), pytest.param({}, ("quality",), marks=pytest.mark.slow)],
    ids=["aligned", "conf"],
)
@pytest.mark.ci
def test_two_processes_follow_one_with_the_same_batch(scenes, tmp_path, run_cli, detector, losses):
    """Loss curve within 1e-5 over 10 steps, and the same metrics; the first epoch of `aligned` with ATSS.

    So do the two halves of a batch, one by one. Plain SGD, whose steps are as close as the gradients are; norms frozen,
    since batch statistics are a process's own.
    """
    plain = {"model.freeze_norm": True, "optimizer.name": "sgd", "optimizer.lr": 0.01, "optimizer.ema": 0.0}
    plain |= {"data.workers": 0}

    def words(kind, **changes):
        return command(scenes, tmp_path / kind, "--max-steps", "10", **changes | plain | detector)

    on_two_processes("-m", "retinaconf", *words("two"))
    for run in (words("one"), words("parts", **{"optimizer.accumulate": 2})):
        assert run_cli(*run).code == 0
    one, *others = (tmp_path / kind for kind in ("one", "two", "parts"))
    for other in others:
        for a, b in zip(lines(one, "train"), lines(other, "train"), strict=True):
            assert a.keys() == b.keys()
            for name in ("loss", "class", "box", *losses):
                assert b[name] == pytest.approx(a[name], rel=1e-5), name
        for a, b in zip(lines(one, "val"), lines(other, "val"), strict=True):
            assert b["AP"] == pytest.approx(a["AP"], abs=1e-4)
            assert b["AR"] == pytest.approx(a["AR"], abs=1e-4)


# The validations are real but for their AP.
PATIENT = """
import sys
from retinaconf.cli import main
from retinaconf.training import loop
validate, aps = loop._validate, iter([0.1, 0.3, 0.2, 0.25])
def scripted(*args):
    table, metrics = validate(*args)
    metrics.overall["AP"] = next(aps)
    return table, metrics
loop._validate = scripted
main(sys.argv[1:])
"""


@pytest.mark.slow
def test_where_patience_ends_a_run_it_ends_both_processes(scenes, tmp_path):
    script, run = tmp_path / "patient.py", tmp_path / "run"
    script.write_text(PATIENT)
    short = {"schedule.epochs": 6, "data.batch_size": 16, "data.workers": 0}
    on_two_processes(script, *command(scenes, run, "--schedule.patience", "2", **short))
    said = "AP was best in epoch 2 of 4; schedule.patience 2 stopped the run and saved 33% of the time"
    assert (run / "log.txt").read_text().splitlines()[-1] == said
    page = (run / "training.html").read_text()
    assert "AP 0.250 after 4 of 6 epochs" in page
    assert "The run has ended." in page


@pytest.mark.slow
@pytest.mark.parametrize(
    "detector",
    [
        {"model.quality": "none", "inference.alpha": 0.0},
        {"model.quality": "localization", "inference.alpha": 0.5},
        {"model.quality": "none", "inference.alpha": 0.0, "model.class_target": "iou"},
        # Twice the time: its classification tower, small here, learns for two losses.
        {"model.quality": "classification", "schedule.epochs": 80},
        {"model.quality": "classification", "schedule.epochs": 80, "loss.joint": "product"},
        ATSS | {"model.quality": "none", "inference.alpha": 0.0},
        ATSS
        | {"model.quality": "none", "inference.alpha": 0.0, "model.class_target": "iou", "model.box": "distribution"},
        ALIGNED | {"matching.assigner": "atss", "loss.rank": 0.0},
        ALIGNED | {"matching.assigner": "atss", "loss.rank": 0.0, "loss.iou_score": "varifocal"},
        ALIGNED,
    ],
    ids=["retinanet", "iou-aware", "joint", "conf", "product", "atss", "gfl", "aligned", "varifocal", "task-aligned"],
)
def test_overfits_8_real_images(shared_data, tmp_path, detector):
    """At least 0.9 AP50 on what it was trained on: the images five times an epoch to learn, once to judge."""
    split = json.loads((shared_data / "voc-animals" / "train.json").read_text())
    images = split["images"][:8]
    of_image = {image["id"]: [a for a in split["annotations"] if a["image_id"] == image["id"]] for image in images}
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "images").symlink_to(shared_data / "voc-animals" / "images")
    for name, times in (("train", 5), ("val", 1)):
        repeated = {"categories": split["categories"], "images": [], "annotations": []}
        for number, image in enumerate(images * times, 1):
            repeated["images"].append(image | {"id": number})
            for annotation in of_image[image["id"]]:
                repeated["annotations"].append(
                    annotation | {"id": len(repeated["annotations"]) + 1, "image_id": number}
                )
        (tmp_path / "data" / f"{name}.json").write_text(json.dumps(repeated))
    changes = {
        "model.backbone": "tf_efficientnet_lite0",
        "model.weights": str(shared_data / "backbones" / "tf_efficientnet_lite0.safetensors"),
        "model.freeze": "stem",
        "model.freeze_norm": True,
        "model.channels": 64,
        "model.head_convs": 2,
        "data.short_side": 192,
        "data.long_side": 256,
        "data.scale": (1.0, 1.0),
        "data.flip": 0.0,
        "optimizer.lr": 1e-3,
        "optimizer.clip_norm": 10.0,
        "optimizer.ema": 0.0,
        "schedule.decay": "cosine",
        "schedule.epochs": 40,
        "schedule.warmup_steps": 40,
    }
    train_run(Config().changed(**(TINY | changes | detector)), tmp_path / "data", tmp_path / "run", device="cpu")
    assert max(line["AP50"] for line in lines(tmp_path / "run", "val")) >= 0.9
