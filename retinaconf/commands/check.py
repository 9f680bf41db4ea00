"""`retinaconf check`: what is wrong with a data set."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from retinaconf.commands.options import LayoutKey, UsageError
from retinaconf.errors import InputError
from retinaconf.files import write_json
from retinaconf.outputs import check_outputs
from retinaconf.recipes import RECIPES


def check(
    data: Path,
    json: Path | None = None,
    recipe: str = "conf-lite0",
    short_side: int | None = None,
    long_side: int | None = None,
    layout: LayoutKey | None = None,
    val_fraction: float | None = None,
) -> None:
    """What is wrong with a data set, file by file, before a training finds out.

    Args:
        data: the data set's folder.
        json: also write the findings to this file.
        recipe: the training that is planned: objects are compared with its anchors, at its input size.
        short_side: another short side than the recipe's.
        long_side: another long side likewise.
        layout: of the data set's folder; without it, found by looking.
        val_fraction: share of images that is val where the data set does not say which, instead of the recipe's.
    """
    check_outputs([json], [data])
    from retinaconf.data.check import check as check_data

    if recipe not in RECIPES:
        raise UsageError(f"no recipe {recipe!r}; there are {', '.join(RECIPES)}")
    changes: dict[str, Any] = {"data.short_side": short_side, "data.long_side": long_side}
    changes |= {"data.layout": layout, "data.val_fraction": val_fraction}
    config = RECIPES[recipe].changed(**{name: value for name, value in changes.items() if value is not None})
    report = check_data(data, config)
    report.print()
    if json is not None:
        write_json(json, report.to_json())
    if report.failed:
        raise InputError(f"{data}: training on this is impossible; the findings marked as errors say why")
