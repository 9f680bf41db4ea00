"""Who imports whom: data flows one way, and what promises to do without torch does not import it.

The order differs from DESIGN's in one place. `evaluation` stands above `model`: it needs only boxes and ground truth,
and what runs a network may then choose by its metrics and name them.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from functools import cache
from graphlib import TopologicalSorter
from pathlib import Path
from typing import NamedTuple

from retinaconf.errors import EXTRAS

PACKAGE = Path(__file__).parents[1] / "retinaconf"
FILES = {
    ".".join(path.relative_to(PACKAGE).with_suffix("").parts).removesuffix(".__init__"): path
    for path in PACKAGE.rglob("*.py")
    if path != PACKAGE / "__init__.py"  # it imports each public name when it is asked for
}

# A module imports only from its own room and from rooms before it.
ROOMS = (
    *(
        "errors",
        "files",
        "progress",
        "threads",
        "cell_anchors",
        "config",
        "recipes",
        "run_folder",
        "device",
        "json_text",
        "data",
    ),
    *("outputs", "pages", "coco_results", "detections", "evaluation", "model", "inference", "training"),
    *("diagnosis.measures", "diagnosis.report", "diagnosis", "interop", "paper", "api", "commands", "cli", "__main__"),
)
# What may import packages of the extra `torch` as it is imported: these rooms, and the batches of `data`.
WITH_TORCH = (
    "device",
    "data.loader",
    "data.photometric",
    "data.workers",
    "model",
    "inference",
    "training",
    "interop",
    "paper",
)

# Imports against the order, each within a function, and why.
AGAINST_THE_ORDER = {
    ("detections", "inference.draw"): "the method `draw`; drawing knows the table",
}


class Import(NamedTuple):
    """What a module imports."""

    name: str  # of the package's own modules, without `retinaconf.`
    at_once: bool  # and not in a function, or for type checkers only


@cache
def imports(module: str) -> list[Import]:
    return list(_imports(ast.parse(FILES[module].read_text()), True))


def _imports(node: ast.AST, at_once: bool) -> Iterator[Import]:
    for child in ast.iter_child_nodes(node):
        names = []
        if isinstance(child, ast.Import):
            names = [alias.name for alias in child.names]
        elif isinstance(child, ast.ImportFrom):
            assert child.level == 0, "imports are absolute"
            names = [f"{child.module}.{alias.name}" for alias in child.names]
        for name in names:
            ours = name.removeprefix("retinaconf.")
            yield Import(ours if ours in FILES else ours.rpartition(".")[0] or ours, at_once)
        checked_only = isinstance(child, ast.If) and ast.unparse(child.test) == "TYPE_CHECKING"
        in_function = isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef)
        yield from _imports(child, at_once and not checked_only and not in_function)


def room(module: str) -> str:
    return max((name for name in ROOMS if f"{module}.".startswith(f"{name}.")), key=len)


def test_every_module_has_a_room_and_every_room_a_module():
    assert {room(module) for module in FILES} == set(ROOMS)


def test_a_module_imports_only_from_rooms_before_its_own():
    pairs = {(module, name) for module in FILES for name, _ in imports(module) if name in FILES}
    against = {(module, name) for module, name in pairs if ROOMS.index(room(name)) > ROOMS.index(room(module))}
    assert against | (pairs & AGAINST_THE_ORDER.keys()) == AGAINST_THE_ORDER.keys()


def test_no_circle():
    graph = {
        module: {name for name, _ in imports(module) if name in FILES and (module, name) not in AGAINST_THE_ORDER}
        for module in FILES
    }
    assert len(list(TopologicalSorter(graph).static_order())) == len(FILES)  # a circle raises, and is named


def test_what_needs_no_torch_does_not_import_it():
    def reached(module: str, seen: set[str]) -> set[str]:
        """All that an import of the module imports with it."""
        for name, at_once in imports(module):
            if at_once and name not in seen:
                seen.add(name)
                if name in FILES:
                    reached(name, seen)
        return seen

    found = {
        module for module in FILES if {name.partition(".")[0] for name in reached(module, set())} & {*EXTRAS["torch"]}
    }
    assert [module for module in sorted(found) if not f"{module}.".startswith(tuple(f"{w}." for w in WITH_TORCH))] == []
    assert {"data.loader", "device", "model.head"} <= found  # and it would be noticed
