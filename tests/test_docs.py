"""What the documents say is so: their Python runs, their command lines parse, their links lead somewhere.

In a ```python block a value in the comment behind an expression is a claim: `x.shape  # (2, 3)` is compared. Words may
follow the value after two spaces.
"""

from __future__ import annotations

import ast
import functools
import importlib.util
import itertools
import re
import shlex
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from retinaconf import cli
from retinaconf.recipes import recipe

ROOT = Path(__file__).parents[1]
PAGES = ("README", "CONTRIBUTING", "CHANGELOG", "SECURITY")
DOCUMENTS = [*(ROOT / f"{page}.md" for page in PAGES), *sorted(ROOT.glob("docs/*.md"))]
NAMES = [str(path.relative_to(ROOT)) for path in DOCUMENTS]
# For other libraries, and run by tests of their own: tests/diagnosis/test_snippets.py, tests/interop/test_snippet.py.
SNIPPETS = ("docs/diagnosis.md", "docs/export.md")


def blocks(document: str, *languages: str) -> list[tuple[int, str]]:
    """(line number, text) of each fenced block in one of the languages."""
    pattern = rf"^```({'|'.join(languages)})\n(.*?)^```$"
    text = (ROOT / document).read_text()
    return [(text.count("\n", 0, m.start()) + 2, m[2]) for m in re.finditer(pattern, text, re.MULTILINE | re.DOTALL)]


# Python


@pytest.fixture(scope="session")
def a_users_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the documents' Python finds: `photo.jpg` (640 x 480), a data set `cells`, a run on it `runs/cells`."""
    from retinaconf.data.scenes import write_scenes
    from retinaconf.training.run import train_run

    folder = tmp_path_factory.mktemp("user")
    write_scenes(folder / "cells", train=2, val=1, size=(480, 640))
    shutil.copy(next((folder / "cells/images").glob("val-*")), folder / "photo.jpg")
    tiny = {"model.weights": "none", "model.channels": 16, "model.head_convs": 1, "data.short_side": 64}
    config = recipe("conf-lite0").changed(**tiny, **{"data.batch_size": 2, "data.workers": 0})
    train_run(config, folder / "cells", folder / "runs/cells", max_steps=1, device="cpu")
    return folder


@pytest.mark.parametrize("document", [name for name in NAMES if blocks(name, "python") and name not in SNIPPETS])
@pytest.mark.ci
def test_python_blocks_run_in_order(
    document: str, a_users_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(a_users_folder, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    namespace: dict[str, Any] = {"__name__": "__main__"}
    for first_line, text in blocks(document, "python"):
        lines = text.splitlines()
        for statement in ast.parse(text).body:
            claim = _claim(statement, lines)
            ast.increment_lineno(statement, first_line - 1)  # so that a traceback shows the document's line
            if claim is None:
                exec(compile(ast.Module([statement], []), str(ROOT / document), "exec"), namespace)
            else:
                assert isinstance(statement, ast.Expr)
                value = eval(compile(ast.Expression(statement.value), str(ROOT / document), "eval"), namespace)
                assert value == claim, f"{document}:{statement.lineno}: says {claim}, is {value}"


def _claim(statement: ast.stmt, lines: list[str]) -> Any:
    """The value in the comment behind an expression; None if it is no expression or no value."""
    if not isinstance(statement, ast.Expr) or statement.end_lineno is None:
        return None
    behind = lines[statement.end_lineno - 1].encode()[statement.end_col_offset :].decode()
    try:
        value = ast.literal_eval(behind.strip().removeprefix("# ").split("  ")[0])
    except (ValueError, SyntaxError):
        return None
    return pytest.approx(value, rel=1e-3) if isinstance(value, float) else value


@pytest.mark.parametrize(
    ("line", "value"),
    [
        ("f(x).shape  # (1, 2)", (1, 2)),
        ("f('ü')  # 0.5  a half", 0.5),
        ("f(x)  # what it does", None),
        ("y = f(x)  # 3", None),
    ],
)
def test_a_claim_is_read_from_the_comment(line: str, value: Any) -> None:
    assert _claim(ast.parse(line).body[0], [line]) == value


# Command lines


def commands(document: str) -> Iterator[tuple[int, list[str]]]:
    """(line number of its block, words) of each command in the document's shell blocks."""
    for language in ("bash", "console"):
        for line, text in blocks(document, language):
            lines = text.replace("\\\n", " ").splitlines()
            if language == "console":  # commands and what they print
                lines = [shown.removeprefix("$ ") for shown in lines if shown.startswith("$ ")]
            for command in itertools.chain(*(shown.split("&&") for shown in lines)):
                words = shlex.split(command, comments=True)
                words = list(itertools.dropwhile(lambda word: re.fullmatch(r"[A-Z_]+=.*", word), words))
                if words:
                    yield line, words


@pytest.fixture
def parse_only(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[[list[str]], int]:
    """The command line with nothing behind it: the exit code says whether it is understood."""
    monkeypatch.setattr("retinaconf.training.run.train_run", lambda *args: None)
    monkeypatch.setattr("retinaconf.paper.engine.run_paper", lambda *args: None)
    # A run to start from, whose settings are the defaults.
    detector = SimpleNamespace(config=recipe("retinanet-lite0"))
    monkeypatch.setattr("retinaconf.inference.detector.load", lambda name, device: detector)
    monkeypatch.setattr("retinaconf.run_folder.read_weights", lambda file: detector)
    monkeypatch.setattr("retinaconf.commands.train.read_config", lambda file: detector.config)
    record = {"data": "cells", "max_steps": None}
    monkeypatch.setattr("retinaconf.training.environment.read_environment", lambda run: record)
    monkeypatch.setattr("retinaconf.training.replay.replay", lambda *args: "")
    monkeypatch.chdir(tmp_path)

    for name in set(cli.COMMANDS) - set(cli.PARSE_THEMSELVES):
        command = cli.load_command(name)

        @functools.wraps(command)  # tyro sees the same parameters and help
        def nothing(*args: Any, **kwargs: Any) -> None:
            return None

        monkeypatch.setattr(f"retinaconf.commands.{cli.COMMANDS[name]}.{cli.COMMANDS[name]}", nothing)

    def run(args: list[str]) -> int:
        with pytest.raises(SystemExit) as ended:
            cli.main(args)
        return int(ended.value.code or 0)

    return run


@pytest.mark.parametrize("document", [name for name in NAMES if blocks(name, "bash", "console")])
def test_commands_parse(document: str, parse_only: Callable[[list[str]], int]) -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    for line, words in commands(document):
        place = f"{document}:{line}: {' '.join(words)}"
        program = words[0].removeprefix(".venv/bin/")
        if "retinaconf" in words and program in ("retinaconf", "python", "torchrun"):
            assert parse_only(words[words.index("retinaconf") + 1 :]) == 0, place
        elif program == "make":
            assert {word for word in words[1:] if "=" not in word} <= targets, place
        elif words[1:3] == ["-m", "pytest"]:
            for path in (word for word in words if word.startswith("tests/")):
                assert (ROOT / path).exists(), place
        elif program == "python":
            assert (ROOT / words[1]).exists(), place
        else:
            assert program in ("pip", "git", "cd", "tensorboard"), f"{place}: teach this test what to make of it"


@pytest.mark.parametrize(
    ("line", "code"),
    [
        ("train conf-lite0 --data d --out r --optimizer.lr 0.005 --schedule.milestones 8 11", 0),
        ("train conf-lite0 --data d --out r --optimizer.rate 0.005", 2),
        ("train conf-lite1 --data d --out r", 2),
        ("train conf-lite0 --data d", 2),
        ("evaluate r --data d --sweep --json f.json", 0),
        ("evaluate r --data d --sweeps", 2),
        ("unheard-of r", 2),
    ],
)
def test_a_wrong_command_line_would_be_found(line: str, code: int, parse_only: Callable[[list[str]], int]) -> None:
    assert parse_only(line.split()) == code


def test_cli_md_has_every_command_and_option() -> None:
    page = (ROOT / "docs/cli.md").read_text()
    sections = dict(re.findall(r"^## `retinaconf (\S+)[^\n]*`\n(.*?)(?=^## |\Z)", page, re.MULTILINE | re.DOTALL))
    for line in (ROOT / "tests/options.txt").read_text().splitlines():  # test_cli.py holds it against the commands
        name, option = line.split()
        if name != "settings":  # of which docs/config.md tells
            assert name in sections, f"docs/cli.md has no section '## `retinaconf {name} ...`'"
            assert f"`{option}" in sections[name], f"docs/cli.md: {name} lacks {option}"


def test_config_md_is_up_to_date() -> None:
    specification = importlib.util.spec_from_file_location("write_config", ROOT / "docs/write_config.py")
    assert specification is not None
    assert specification.loader is not None
    writer = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(writer)
    assert (ROOT / "docs/config.md").read_text() == writer.page(), "run .venv/bin/python docs/write_config.py"


@pytest.mark.parametrize("document", NAMES)
def test_tables_are_whole(document: str) -> None:
    """Each row begins with a bar and has as many cells as the head; no Python type stands for values."""
    text = re.sub(r"^```.*?^```$", "", (ROOT / document).read_text(), flags=re.MULTILINE | re.DOTALL).replace(r"\|", "")
    for table in re.findall(r"(?:^[^\n]+\n)*^\|[-:| ]+\|\n(?:^[^\n]+\n)*", text, re.MULTILINE):
        head, *rows = table.splitlines()
        assert [row for row in rows if not row.startswith("|") or row.count("|") != head.count("|")] == []
        assert "typing." not in table


# Links


def anchors(path: Path) -> set[str]:
    """The anchors that GitHub gives to a document's headings."""
    text = re.sub(r"^```.*?^```$", "", path.read_text(), flags=re.MULTILINE | re.DOTALL)
    found: set[str] = set(re.findall(r'<a (?:id|name)="([^"]+)"', text))
    for heading in re.findall(r"^#+ +(.+?) *$", text, re.MULTILINE):
        slug = re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")
        numbered = (slug if n == 0 else f"{slug}-{n}" for n in itertools.count())
        found.add(next(one for one in numbered if one not in found))
    return found


@pytest.mark.parametrize("document", NAMES)
def test_links_lead_somewhere(document: str) -> None:
    path = ROOT / document
    text = re.sub(r"^```.*?^```$|`[^`\n]*`", "", path.read_text(), flags=re.MULTILINE | re.DOTALL)
    targets = re.findall(r"\]\(([^)\s]+)\)", text) + re.findall(r'(?:src|href|srcset)="([^"]+)"', text)
    for target in targets:
        if re.match(r"[a-z]+:", target):
            continue
        file, _, anchor = target.partition("#")
        place = (path.parent / file).resolve() if file else path
        assert place.exists(), f"{document}: {target} does not exist"
        if anchor and place.suffix == ".md":
            assert anchor in anchors(place), f"{document}: {target}: no such heading; there are {anchors(place)}"
