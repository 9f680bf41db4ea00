"""Writes config.md from the settings in retinaconf/config/: `.venv/bin/python docs/write_config.py`."""

from __future__ import annotations

import ast
import inspect
import json
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from retinaconf import config
from retinaconf.recipes import BACKBONES, DETECTORS, LITE0, RECIPES, SCHEDULES

HEAD = """# Settings

`docs/write_config.py` writes this page from `retinaconf/config/`. Change the text there.

Every setting is a key of a run's `config.json` and an option of `retinaconf train`. Options have hyphens instead of
underscores (`--data.short-side 480`). A setting that is true or false is switched on by its name, and switched off by
`no-` before its name (`--data.skip-bad`, `--model.no-freeze-norm`). A setting with several values takes them one after
the other (`--schedule.milestones 8 11`). The columns *r50-1x* and *lite0* show the values of the recipes
`retinanet-r50-1x` and `retinanet-lite0`. The names of the other recipes say how they differ from these two:

| part of the name | what it changes |
|---|---|
"""


def page() -> str:
    """The whole of config.md."""
    text = HEAD
    plain = RECIPES["retinanet-r50-1x"].flat()
    detectors = {
        name: {key: value for key, value in RECIPES[f"{name}-r50-1x"].flat().items() if value != plain[key]}
        for name in DETECTORS
    }
    for name, changes in (detectors | BACKBONES | SCHEDULES).items():
        changed = ", ".join(f"`{key}` {_value(value)}" for key, value in changes.items())
        text += f"| `{name}` | {changed or 'nothing'} |\n"
    for section, field in config.Config.model_fields.items():
        if inspect.isclass(field.annotation) and issubclass(field.annotation, BaseModel):
            text += f"\n## {section}\n\n{_sentence(field.annotation)}\n\n" + _table(field.annotation, f"{section}.")
    return text + "\n## The whole run\n\n" + _table(config.Config, "")


def _table(section: type[BaseModel], prefix: str) -> str:
    meanings = _docstrings(section)
    r50, lite0 = RECIPES["retinanet-r50-1x"].flat(), LITE0.flat()
    rows = "| setting | values | *r50-1x* | *lite0* | meaning |\n|---|---|---|---|---|\n"
    for name, field in section.model_fields.items():
        if (key := prefix + name) in r50:
            rows += f"| `{key}` | {_values(field)} | {_value(r50[key])} | {_value(lite0[key])} | {meanings[name]} |\n"
    return rows


def _docstrings(section: type[BaseModel]) -> dict[str, str]:
    """The text below each field in the source, on one line."""
    (definition,) = ast.parse(inspect.getsource(section)).body
    assert isinstance(definition, ast.ClassDef)
    return {
        field.target.id: " ".join(str(text.value.value).split())
        for field, text in zip(definition.body, definition.body[1:])
        if isinstance(field, ast.AnnAssign)
        and isinstance(field.target, ast.Name)
        and isinstance(text, ast.Expr)
        and isinstance(text.value, ast.Constant)
    }


def _sentence(section: type[BaseModel]) -> str:
    return inspect.getdoc(section) or ""


def _values(field: FieldInfo) -> str:
    """What a field takes: its type, or its values, and its bounds."""
    kind = field.annotation
    if type(None) in get_args(kind):  # Optional
        kind = next(inner for inner in get_args(kind) if inner is not type(None))
    if get_origin(kind) is Literal:
        return ", ".join(f"`{value}`" for value in get_args(kind))
    if get_origin(kind) is tuple:
        inner = get_args(kind)
        return f"{inner[0].__name__}s" if inner[-1] is ... else f"{len(inner)} {inner[0].__name__}s"
    signs = {"ge": "≥", "gt": ">", "le": "≤", "lt": "<"}
    bounds = [f"{signs[key]} {value:g}" for limit in field.metadata for key, value in _limits(limit) if key in signs]
    return " ".join([kind.__name__ if isinstance(kind, type) else str(kind), ", ".join(bounds)]).strip()


def _limits(limit: Any) -> list[tuple[str, Any]]:
    """Bounds of an annotated-types limit, by name."""
    return [(name, getattr(limit, name)) for name in ("ge", "gt", "le", "lt") if hasattr(limit, name)]


def _value(value: Any) -> str:
    return f"`{value if isinstance(value, str) else json.dumps(value)}`"


if __name__ == "__main__":
    Path(__file__).with_name("config.md").write_text(page())
