"""What works where no extra is installed, and what each command says there. In a process of its own."""

from __future__ import annotations

import json
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from retinaconf.cli import COMMANDS
from retinaconf.errors import EXTRAS

PROGRAM = """
import contextlib, io, json, linecache, sys
from importlib.abc import MetaPathFinder

class Blocker(MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name.partition(".")[0] in blocked:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

blocked, commands = json.loads(sys.argv[1])
sys.meta_path.insert(0, Blocker())

def no_network(event, words):
    if event in ("socket.connect", "socket.sendto", "socket.getaddrinfo", "socket.gethostbyname"):
        raise RuntimeError(f"{event} {words}")

sys.addaudithook(no_network)  # for imports and commands alike

def slow():
    sources = [file for file in linecache.cache if "pydantic" in file]
    return [*sources, *({"numpy"} & sys.modules.keys())]

from retinaconf.cli import main
results = []
for words in commands:
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            main(words)
        except SystemExit as stop:
            results.append([stop.code, out.getvalue(), err.getvalue(), slow()])
import retinaconf
try:
    if "torch" in blocked:  # else it would take seconds to be imported
        retinaconf.load("run")
except Exception as error:
    results.append([0, "", f"{type(error).__name__}: {error}", []])
print(json.dumps(results))
"""


def without(packages: tuple[str, ...], commands: list[list[str]]) -> list[tuple[int, str, str, list[str]]]:
    """Exit code, stdout and stderr of each command, and what has been done by then that takes long: numpy imported, a
    source file of pydantic read; last, what `retinaconf.load` says without torch."""
    words = [sys.executable, "-c", PROGRAM, json.dumps([packages, commands])]
    done = subprocess.run(words, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    return [tuple(result) for result in json.loads(done.stdout)]


@pytest.mark.ci
def test_the_core_needs_no_extra(tiny_data: Path):
    truth = tiny_data / "val.json"
    annotation = json.loads(truth.read_text())["annotations"][0]
    record = {name: annotation[name] for name in ("image_id", "category_id", "bbox")} | {"score": 0.5}
    (tiny_data / "found.json").write_text(json.dumps([record]))
    (tiny_data / "other.json").write_text(json.dumps([record | {"score": 0.6}]))
    files = ["--detections", str(tiny_data / "found.json")]
    names = (
        "diagnosis.json",
        "report.html",
        "figures",
        "check.json",
        "map.json",
        "calibrated.json",
        "compared.json",
        "both.html",
    )
    outputs = [tiny_data / name for name in names]
    options = ["--json", str(outputs[0]), "--report", str(outputs[1]), "--figures", str(outputs[2])]
    helps = [[], ["--help"], ["--version"], *([name, "--help"] for name in COMMANDS)]
    wrong = [["nonsense"], ["train", "conf-lite0", "--data", "a", "--out", "b", "--inference.alpha", "3"]]
    work = [
        ["diagnose", *files, "--ground-truth", str(truth), *options],
        ["calibrate", *files, "--ground-truth", str(truth), "--out", str(outputs[4])],
        ["calibrate", *files, "--apply", str(outputs[4]), "--out", str(outputs[5])],
        ["calibrate", "--merge", files[1], str(tiny_data / "other.json"), "--out", str(tiny_data / "merged.json")],
        ["check", "--data", str(tiny_data), "--json", str(outputs[3])],
        ["compare", *files, str(tiny_data / "other.json"), "--data", str(tiny_data), "--json", str(outputs[6])],
        ["compare", *files, str(tiny_data / "other.json"), "--ground-truth", str(truth), "--report", str(outputs[7])],
    ]
    every_extra = tuple(package for packages in EXTRAS.values() for package in packages)
    results = without(every_extra, [*helps, *wrong, *work])
    codes = [code for code, *_ in results]
    assert codes == [*[0] * len(helps), 2, 2, *[0] * (len(work) + 1)], results
    assert not any(slow for *_, slow in results[: len(helps) + len(wrong)])  # so that help comes at once
    assert json.loads(outputs[0].read_text())
    assert all(output.exists() for output in outputs)


@pytest.mark.ci
def test_what_needs_an_extra_says_which_in_one_line(tiny_data: Path):
    data, out = ["--data", str(tiny_data)], ["--out", str(tiny_data / "out")]
    commands = [
        ["train", "conf-lite0", *data, *out],
        ["demo", *out],
        ["evaluate", "run", *data],
        ["predict", "run", "a.jpg", *out],
        ["tune", "run", *data],
        ["diagnose", "run", *data],
        ["compare", "run", "other", *data],
        ["retrofit", "run", *data, *out],
        ["export", "run", "--out", "a.onnx"],
        ["import", "weights.pth", *out],
        ["paper", "table1", *data, *out],
    ]
    assert {words[0] for words in commands} == COMMANDS.keys() - {"calibrate", "check"}
    *results, load = without(EXTRAS["torch"], commands)
    for words, (code, printed, line, _) in zip(commands, results):
        what = {"diagnose": "diagnose RUN", "compare": "compare A B"}.get(words[0], words[0])
        assert (code, printed) == (1, "")
        assert line == f"retinaconf: {what} needs torch; install it with: pip install 'retinaconf[torch]'\n"
    assert not (tiny_data / "out").exists()
    assert load[2] == "InputError: retinaconf.load needs torch; install it with: pip install 'retinaconf[torch]'"

    ((code, printed, line, _),) = without(EXTRAS["demo"], [["demo", *out]])
    assert (code, printed) == (1, "")
    assert line == "retinaconf: demo needs sklearn; install it with: pip install 'retinaconf[demo]'\n"


def test_the_extras_are_those_of_pyproject():
    pyproject = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text())
    extras = pyproject["project"]["optional-dependencies"]
    distributions = {"sklearn": "scikit-learn"}
    for extra, packages in EXTRAS.items():
        installed = {requirement.partition(">")[0].partition("=")[0] for requirement in extras[extra]}
        normal = {name.replace("-", "_") for name in installed} - {"retinaconf[torch]"}
        assert {distributions.get(package, package).replace("-", "_") for package in packages} == normal
    assert extras.keys() - EXTRAS == {"dev", "release"}


def test_most_helps_need_no_settings():
    """pydantic and the settings take half the time of such a help."""
    names = [name for name in COMMANDS if name not in ("train", "paper")]
    *results, _ = without(("torch", "pydantic"), [[name, "--help"] for name in names])
    assert [code for code, *_ in results] == [0] * len(names), results
