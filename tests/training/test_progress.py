from pathlib import Path

import pytest

from retinaconf.training import progress
from retinaconf.training.progress import Progress

METRICS = {"AP": 0.25, "AP50": 0.5, "AP_S": float("nan")}


def test_a_line_is_printed_and_kept_as_it_is(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    log = tmp_path / "log.txt"
    said = Progress(log)
    lines = ["[red]not a colour[/red]", "x" * 300, "[1, 2] :smile: {}"]
    for line in lines:
        said.say(line)
    said.say("only kept", show=False)
    assert capsys.readouterr().out.splitlines() == lines
    assert log.read_text().splitlines() == [*lines, "only kept"]


def test_a_resumed_run_adds_to_its_log(tmp_path: Path):
    for part in ("first", "second"):
        Progress(tmp_path / "log.txt").say(part)
    assert (tmp_path / "log.txt").read_text() == "first\nsecond\n"


def test_all_processes_but_the_first_are_silent(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    silent = Progress(tmp_path / "log.txt", silent=True)
    with silent.training(0, 10, 4):
        silent.step(1, 0.1)
        silent.losses(1, {"loss": 1.0})
        silent.validated(0.1, METRICS)
        silent.say("hello")
    assert capsys.readouterr() == ("", "")
    assert list(tmp_path.iterdir()) == []


def test_validation_is_a_table_that_marks_the_best(capsys: pytest.CaptureFixture[str]):
    table = Progress()
    with table.training(0, 30, 4):
        for step, AP in ((10, 0.25), (20, 0.125), (30, 0.25)):
            table.validated(step / 10, METRICS | {"AP": AP})
    header, first, worse, equal = capsys.readouterr().out.splitlines()
    assert header.split() == ["epoch", "AP", "AP50", "AP_S"]
    assert first.split() == ["1", "0.250", "0.500", "-", "best"]
    assert worse.split() == ["2", "0.125", "0.500", "-"]
    assert equal.split() == ["3", "0.250", "0.500", "-", "best"]  # the later of equals is kept
    # Columns stand under their names.
    assert [header.index(name) + len(name) for name in ("AP", "AP50", "AP_S")] == [
        first.index(value) + len(value) for value in ("0.250", "0.500", "-")
    ]


def test_a_resumed_run_knows_the_best_so_far(capsys: pytest.CaptureFixture[str]):
    table = Progress()
    table.best = 0.3
    with table.training(0, 10, 4):
        table.validated(1, METRICS)
    assert "best" not in capsys.readouterr().out


def test_without_a_terminal_losses_are_lines_now_and_then(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    clock = iter(range(0, 1000, 20))  # each look at the clock is 20 seconds after the last
    monkeypatch.setattr(progress.time, "monotonic", lambda: float(next(clock)))
    monkeypatch.setattr("rich.progress.Progress.update", lambda *args, **kwargs: None)
    monkeypatch.setattr("rich.progress.Progress.add_task", lambda *args, **kwargs: 0)
    bar = Progress()
    with bar.training(0, 100, 4):
        for step in (10, 20, 30):
            bar.losses(step, {"loss": 1.5, "class": 0.5})
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) < 3  # not every time
    assert lines[0].startswith("step 20/100  loss 1.500  class 0.500  2.0 images/s")
    assert lines[0].endswith("3 min left")  # 80 steps of 4 images at 2 images/s
