"""What `train --dry-run` says, and that it leaves nothing."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from retinaconf.training import dry_run
from retinaconf.training.schedule import learning_rate


@pytest.fixture
def words(
    tiny_data: Path, tiny_flags: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> tuple[str | Path, ...]:
    """The command, with temporary files in a folder that can be looked at."""
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    out = ("--out", tmp_path / "run", "--device", "cpu")
    return ("train", "conf-lite0", "--data", tiny_data, *out, *tiny_flags, "--dry-run")


@pytest.mark.ci
def test_it_says_what_the_whole_training_takes_and_keeps_nothing(
    run_cli: Callable[..., Any], words: tuple[str | Path, ...], tmp_path: Path
):
    before = sorted(tmp_path.rglob("*"))
    steps = (
        "--schedule.epochs",
        "12",
        "--schedule.decay",
        "step",
        "--schedule.milestones",
        "2",
        "4",
        "--optimizer.accumulate",
        "2",
    )
    result = run_cli(*words, *steps)
    assert (result.code, result.err) == (0, "")
    assert sorted(tmp_path.rglob("*")) == before
    said = result.out.splitlines()
    assert said[-5:-2] == [  # 8 images in batches of 4
        "dry run of 20 steps; nothing is kept",
        "effective batch: 4 images = 1 process x 2 passes x 2",
        "steps: 24 = 12 epochs x 2; learning rate: warm-up to step 2, x0.1 after step 4 and 8",
    ]
    memory = re.fullmatch(r"memory: ([\d.]+) GiB at most in a training process; .*", said[-2])
    time = re.match(r"time: (\S+) s a step, (\S+) images/s \(images are loaded at (\S+) images/s.*; 24 steps", said[-1])
    assert memory is not None
    assert time is not None
    assert 0.1 < float(memory[1]) < 16
    seconds, speed, loaded = (float(number) for number in time.groups())
    assert speed == pytest.approx(4 / seconds, rel=0.02)
    assert loaded >= 0.98 * speed


def test_it_does_not_look_at_the_run_folder(run_cli: Callable[..., Any], words: tuple[str | Path, ...], tmp_path: Path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.json").write_text("mine")
    result = run_cli(*words, "--max-steps", "1")
    assert (result.code, result.err) == (0, "")
    assert "falls along a cosine to the last step; --max-steps ends it after step 1\n" in result.out
    assert "1 steps take 0.0 min" in result.out
    assert [path.read_text() for path in (tmp_path / "run").iterdir()] == ["mine"]


@pytest.mark.parametrize(
    ("more", "code", "message"),
    [
        (("--resume",), 2, "--dry-run measures the first steps of a new run; leave out --resume"),
        (("--model.backbone", "resnet99"), 1, "resnet99"),
        (("--optimizer.lr", "1e30", "--optimizer.clip-norm", "0"), 1, "not finite"),
    ],
)
def test_what_stops_it_is_one_line(
    run_cli: Callable[..., Any], words: tuple[str | Path, ...], tmp_path: Path, more: Any, code: int, message: str
):
    result = run_cli(*words, *more)
    assert result.code == code
    assert message in result.err
    assert result.err.count("\n") == 1
    assert not (tmp_path / "run").exists()
    assert not list((tmp_path / "temporary").iterdir())


def test_the_steps_of_the_decay_are_those_of_the_schedule(tiny_config: Any):
    """Where the line says that the learning rate falls, it does: by a tenth from the step before to that one."""
    config = tiny_config(**{"schedule.decay": "step", "schedule.milestones": (2, 4, 9)})
    line = dry_run._steps(config, 7, 42)
    steps = re.search(r"x0\.1 after step (\d+) and (\d+)$", line)
    assert steps is not None
    for step in map(int, steps.groups()):
        rates = [learning_rate(config, at, 7) for at in (step - 1, step)]
        assert rates[1] == pytest.approx(0.1 * rates[0])
    assert dry_run._steps(tiny_config(**{"schedule.decay": "step", "schedule.milestones": (6,)}), 7, 42).endswith(
        "does not fall"
    )


@pytest.mark.parametrize(("seconds", "mean"), [([7], 7), ([9, 2], 2), ([9] * 6 + [2] * 14, 2), ([9, 1, 3], 2)])
def test_the_first_quarter_of_the_steps_is_not_measured(seconds: list[float], mean: float):
    clock = dry_run.Clock(silent=True)
    clock.times = [sum(seconds[:n], 100.0) for n in range(len(seconds) + 1)]
    assert clock.seconds_per_step() == mean


@pytest.mark.parametrize(("step", "loading", "speed"), [(2.0, 0.5, "8 images/s"), (0.5, 2.0, "8 images/s")])
def test_the_slower_of_training_and_loading_is_the_limit(tiny_config: Any, step: float, loading: float, speed: str):
    line = dry_run._time(tiny_config(**{"data.batch_size": 16}), step, loading, 3600)
    assert line.startswith(f"time: 2 s a step, {speed} (")
    assert "3,600 steps take 2 h 0 min, start and validation not included" in line
    assert ("which is the limit" in line) == (loading > step)
