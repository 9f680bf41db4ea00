import inspect
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from retinaconf import __version__
from retinaconf.cli import COMMANDS, PARSE_THEMSELVES, load_command
from retinaconf.config import Config
from retinaconf.data import check
from retinaconf.evaluation.coco import METRICS
from retinaconf.recipes import RECIPES


def python(*words: Any, **options: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, *map(str, words)], capture_output=True, text=True, **options)


# --- in a process of its own, where exit code, stderr and imports matter -------------------------------------------


@pytest.mark.parametrize("encoding", ["utf-8", "ascii"])
def test_the_line_is_the_same_in_any_encoding(encoding: str):
    words = ["train", "conf-lite0", "--data", "x", "--out", "y", "--data.batchsize", "4"]
    result = python("-m", "retinaconf", *words, env=os.environ | {"PYTHONIOENCODING": encoding})
    assert result.stderr == (
        "retinaconf: Unrecognized options: --data.batchsize, 4; perhaps you meant --data.batch-size INT; "
        "`retinaconf train --help` lists the options\n"
    )


@pytest.mark.parametrize(
    ("words", "code", "line"),
    [
        (["nonsense"], 2, "retinaconf: no command 'nonsense'; there are demo, train, "),
        (["check", "--data", "nowhere"], 1, "retinaconf: nowhere: no such folder; "),
        (
            ["train", "conf-lite0", "--data", "x", "--out", "y", "--inference.alpha", "3"],
            2,
            "retinaconf: inference.alp",
        ),
    ],
    ids=["unknown command", "failure", "wrong value"],
)
def test_exit_codes_and_one_line_on_stderr(tmp_path: Path, words: list[str], code: int, line: str):
    result = python("-m", "retinaconf", *words, cwd=tmp_path)
    assert (result.returncode, result.stdout) == (code, "")
    assert result.stderr.startswith(line)
    assert result.stderr.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("word", "code"), [("--version", 0), ("nonsense", 2)])
def test_a_process_ends_as_others_do(word: str, code: int):
    """What is printed comes out, and what was registered to be done at the end is done."""
    program = "import atexit; from retinaconf.cli import main; atexit.register(print, 'done'); main()"
    result = python("-c", program, word)
    assert (result.returncode, result.stdout.endswith("done\n")) == (code, True)
    assert (__version__ in result.stdout) == (code == 0)


def test_a_reader_that_goes_away_is_no_error():
    process = subprocess.Popen(
        [sys.executable, "-m", "retinaconf", "--help"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    process.stdout.close()
    assert process.stderr is not None
    assert process.stderr.read() == ""
    assert process.wait() == 1


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (OSError("encoder error -2"), "encoder error -2"),
        (OSError(), "OSError"),
        (OSError(28, "No space left on device"), "No space left on device"),
        (PermissionError(13, "Permission denied", "a/b.json"), "a/b.json: Permission denied"),
    ],
    ids=repr,
)
def test_an_error_of_the_system_says_what_is_known(
    run_cli: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, error: OSError, line: str
):
    def fail(*_: Any) -> None:
        raise error

    monkeypatch.setattr(check, "find_layout", fail)
    result = run_cli("check", "--data", "x")
    assert (result.code, result.err) == (1, f"retinaconf: {line}\n")


# --- help ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("words", [[], ["--help"], ["-h"]], ids=str)
def test_help_lists_every_command_with_its_purpose(run_cli: Callable[..., Any], words: list[str]):
    result = run_cli(*words)
    assert (result.code, result.err) == (0, "")
    for name in COMMANDS:
        assert f"  {name:<10} {(load_command(name).__doc__ or '').splitlines()[0]}" in result.out


def test_version(run_cli: Callable[..., Any]):
    assert run_cli("--version").out == f"retinaconf {__version__}\n"


def test_options_grow_on_purpose_only(run_cli: Callable[..., Any]):
    """`options.txt` has every option of every command, and each setting once. Add a line there with a new one."""
    settings = {f"--{name.replace('_', '-')}" for name in Config().flat()}
    found = set()
    for name in COMMANDS:
        result = run_cli(name, "--help")
        assert (result.code, result.err) == (0, "")
        for option in re.findall(r"\s\s(--[a-z][a-z0-9.-]+)", result.out):
            is_setting = name in PARSE_THEMSELVES and option in settings
            found.add(f"{'settings' if is_setting else name} {option}")
    assert sorted(found) == (Path(__file__).parent / "options.txt").read_text().splitlines()


def test_a_recipes_help_shows_the_recipes_values(run_cli: Callable[..., Any]):
    words = " ".join(run_cli("train", "conf-lite0", "--help").out.replace("│", " ").split())
    assert "tf_efficientnet_lite0" in words
    assert "larger and costs time and memory. (default: 320)" in words
    assert "(default: 600)" in " ".join(run_cli("train", "conf-r50-1x", "--help").out.split())


@pytest.mark.parametrize(
    "words",
    [
        ["train", "--help", "conf-lite0"],
        ["train", "--data", "x", "conf-lite0", "--help"],
        ["paper", "table1", "--recipe-base", "lite0", "--help"],
        ["paper", "-h", "table1", "--recipe-base=lite0"],
    ],
    ids=" ".join,
)
def test_help_shows_the_values_of_what_was_chosen(run_cli: Callable[..., Any], words: list[str]):
    shown = " ".join(run_cli(*words).out.replace("│", " ").split())
    assert "larger and costs time and memory. (default: 320)" in shown
    assert words[0] == "paper" or "The defaults below are those of conf-lite0." in shown


def test_check_judges_for_the_training_that_comes_next_in_the_readme():
    readme = (Path(__file__).parents[1] / "README.md").read_text()
    following = readme[readme.index("retinaconf check --data") :]
    following = following[following.index("retinaconf train ") :].split()[2]
    assert inspect.signature(load_command("check")).parameters["recipe"].default == following
    assert inspect.signature(check.check).parameters["config"].default == RECIPES[following]


def test_check_takes_a_recipe_and_another_size(run_cli: Callable[..., Any], tiny_data: Path):
    assert "at input size 320 x 544" in run_cli("check", "--data", tiny_data).out
    assert "at input size 600 x 1000" in run_cli("check", "--data", tiny_data, "--recipe", "retinanet-r50-1x").out
    assert "at input size 64 x 544" in run_cli("check", "--data", tiny_data, "--short-side", 64).out
    result = run_cli("check", "--data", tiny_data, "--short-side", 700)
    assert (result.code, result.out) == (1, "")
    assert "data.long-side 544 is less than data.short-side 700" in result.err
    result = run_cli("check", "--data", tiny_data, "--recipe", "yolo")
    assert (result.code, result.err[:28]) == (2, "retinaconf: no recipe 'yolo'")


# --- usage ---------------------------------------------------------------------------------------------------------

TRAIN = ["train", "conf-lite0", "--data", "nowhere", "--out", "run"]
USAGE = {
    "unknown command": (["evalute", "run"], "no command 'evalute'; there are"),
    "an option for a command": (["--data", "x"], "no command '--data'"),
    "unknown recipe": (["train", "conf-r18-1x", "--data", "x", "--out", "run"], "no recipe 'conf-r18-1x'; there are"),
    "no recipe": (["train", "--data", "x", "--out", "run"], "Missing from retinaconf train: STR"),
    "no data": (["train", "conf-lite0", "--out", "run"], "Missing from retinaconf train: --data PATH"),
    "no arguments": (["evaluate"], "Missing from retinaconf evaluate: PATH"),
    "unknown option": ([*TRAIN, "--data.batchsize", "4"], "--data.batchsize, 4; perhaps you meant --data.batch-size"),
    "one argument too many": (["evaluate", "run", "more", "--data", "x"], "Unrecognized options: more"),
    "no number": ([*TRAIN, "--data.batch-size", "abc"], "Error parsing --data.batch-size: invalid literal for int()"),
    "no choice": ([*TRAIN, "--model.quality", "both"], "invalid choice 'both' for argument '--model.quality'"),
    "unknown device": (["evaluate", "run", "--data", "x", "--device", "tpu"], "invalid choice 'tpu'"),
    "one value of two": ([*TRAIN, "--data.scale", "1.2"], "Missing value for argument '--data.scale'"),
    "alpha above 1": ([*TRAIN, "--inference.alpha", "3"], "inference.alpha: Input should be less than or equal to 1"),
    "alpha NaN": ([*TRAIN, "--inference.alpha", "nan"], "inference.alpha: Input should be a finite number, not nan"),
    "alpha without a branch": (
        ["train", "retinanet-lite0", "--data", "x", "--out", "run", "--inference.alpha", "0.4"],
        "model.quality is none; leave them out, or take a detector with a branch",
    ),
    "no learning rate": ([*TRAIN, "--optimizer.lr", "0"], "optimizer.lr: Input should be greater than 0, not 0.0"),
    "range reversed": ([*TRAIN, "--data.scale", "2", "1"], "data.scale (2.0, 1.0) is not a range"),
    "sides": ([*TRAIN, "--data.short-side", "900"], "data.long-side 544 is less than data.short-side 900"),
    "no steps": ([*TRAIN, "--max-steps", "0"], "--max-steps 0: give at least 1"),
    "negative steps": ([*TRAIN, "--max-steps", "-5"], "--max-steps -5: give at least 1"),
    "diagnose what": (["diagnose"], "give either RUN --data ROOT, or --detections"),
    "diagnose without data": (["diagnose", "run"], "give the data set with --data ROOT"),
    "diagnose files at an alpha": (
        ["diagnose", "--detections", "a.json", "--ground-truth", "b.json", "--alpha", "7"],
        "--alpha: it is for the diagnosis of a run",
    ),
    "diagnose a run at an NMS IoU": (
        ["diagnose", "run", "--data", "d", "--nms-iou", "0.6"],
        "--nms-iou: it is for the diagnosis of files",
    ),
    "compare what": (["compare"], "give either two runs, A B --data ROOT, or --detections A B"),
    "compare one": (["compare", "run", "--data", "d"], "compare: 1 runs; give two, A and B"),
    "compare runs without data": (["compare", "a", "b"], "give the data set with --data ROOT"),
    "compare files without truth": (
        ["compare", "--detections", "a", "b"],
        "give either --ground-truth GT or --data",
    ),
    "compare runs on a file": (
        ["compare", "a", "b", "--data", "d", "--ground-truth", "g"],
        "--ground-truth: it is for files, and these are runs",
    ),
    "diagnose without truth": (["diagnose", "--detections", "a.json"], "give either --ground-truth GT or --data ROOT"),
    "pictures twice": (
        ["compare", "--detections", "a", "b", "--data", "d", "--images", "i"],
        "--images: it is for --ground-truth, and --data has the images; leave it out",
    ),
    "a layout of a file": (
        ["diagnose", "--detections", "a", "--ground-truth", "b", "--layout", "yolo"],
        "--layout: it is for --data; leave it out",
    ),
}


@pytest.mark.parametrize(("words", "message"), USAGE.values(), ids=USAGE)
def test_wrong_usage_is_one_line_and_exit_2(
    run_cli: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: list[str], message: str
):
    monkeypatch.chdir(tmp_path)
    result = run_cli(*words)
    assert (result.code, result.out) == (2, "")
    assert result.err.startswith("retinaconf: ")
    assert message in result.err
    assert result.err.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "words",
    [
        ["train", "--data", "nowhere", "--out", "run", "retinanet-lite0"],
        ["train", "--data", "nowhere", "--out", "conf-r50-1x", "retinanet-lite0"],
        ["train", "--data.long-side", "500", "conf-lite0", "--data", "nowhere", "--out", "run"],  # of short side 320
        ["paper", "table1", "--recipe-base", "lite0", "--data.long-side", "500", "--data", "nowhere", "--out", "run"],
    ],
    ids=" ".join,
)
def test_the_recipe_may_stand_anywhere(run_cli: Callable[..., Any], words: list[str]):
    result = run_cli(*words)
    assert (result.code, result.err.split(";")[0]) == (1, "retinaconf: nowhere: no such folder")


@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_is_known_to_train(run_cli: Callable[..., Any], name: str):
    result = run_cli("train", name, "--data", "nowhere", "--out", "run")
    assert (result.code, result.err.split(";")[0]) == (1, "retinaconf: nowhere: no such folder")


# --- the whole way -------------------------------------------------------------------------------------------------


def test_train_evaluate_predict(
    run_cli: Callable[..., Any], trained: Any, tiny_data: Path, tiny_flags: list[str], tmp_path: Path
):
    run = tmp_path / "run"
    words = ["train", "conf-r50-1x", "--data", tiny_data, "--out", run, *tiny_flags, "--device", "cpu"]
    result = run_cli(*words, "--max-steps", 1)
    assert (result.code, result.err) == (0, "")
    assert {path.name for path in run.iterdir()} == {path.name for path in trained.run.iterdir()}
    assert "flat COCO layout" in result.out
    result = run_cli(*words, "--max-steps", 2, "--resume")
    assert (result.code, result.err) == (0, "")
    assert "continuing at step 1 of 2" in result.out
    steps = [json.loads(line)["step"] for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert steps == sorted(steps)
    assert set(steps) == {1, 2}

    report = tmp_path / "report.json"
    result = run_cli("evaluate", run, "--data", tiny_data, "--sweep", "--json", report, "--device", "cpu")
    assert (result.code, result.err) == (0, "")
    for name in (*METRICS, "red", "green", "blue", "product(0.4)", "cls*obj(obj>0.5)"):
        assert name in result.out
    assert list(json.loads(report.read_text())["metrics"]) == list(METRICS)

    out = tmp_path / "pictures"
    result = run_cli("predict", run, tiny_data / "images", "--out", out, "--device", "cpu")
    assert (result.code, result.err) == (0, "")
    assert f"12 images: {out / 'detections.json'}" in result.out
    assert len(list(out.iterdir())) == 13
