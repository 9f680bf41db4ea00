"""`retinaconf paper`: a table or figure of the paper."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro
from tyro.conf import Positional

from retinaconf.commands.options import Device, LayoutKey, parse
from retinaconf.config import Config
from retinaconf.errors import UsageError
from retinaconf.recipes import RECIPES, paper_recipe

PaperItem = Literal[
    "table1-statistics",
    "table1",
    "table2",
    "table3",
    "table4",
    "table5",
    "table6",
    "switches",
    "figure1",
    "figure2",
    "figure4",
    "figure5",
    "open-question",
    "ladder",
    "all",
]


@dataclass(kw_only=True)
class PaperBase:
    """What decides the defaults of the other options of `paper`."""

    recipe_base: Literal["r50", "lite0"] = "r50"
    """The recipes: the paper's, or those for CPUs and small data."""
    schedule: Literal["1x", "2x"] = "1x"
    """The recipes' schedule; 2x trains for twice the epochs."""


@dataclass(kw_only=True)
class PaperOptions(PaperBase):
    """Make a table or figure of the paper on a data set, beside the published one, with a verdict on its claims."""

    item: Positional[PaperItem]
    """What to regenerate."""
    data: Path
    """The data set's folder."""
    out: Path
    """Folder for ITEM.md, ITEM.json, ITEM.png and the runs, which are used again."""
    seeds: int = 1
    """Number of trainings of each kind. The seeds count up from --seed. Verdicts need two or more."""
    split: str = "val"
    """What is evaluated: train, val or test. Training always validates on val."""
    rows: tuple[str, ...] = ()
    """Train and show only these rows of the item, by name (docs/paper.md). Without it, all rows."""
    max_steps: int | None = None
    """Stop every training after this many steps, to try things out."""
    layout: LayoutKey | None = None
    """Layout of the data set's folder. Without it, the folder's content decides."""
    device: Device = "auto"
    """Where to compute."""
    config: Annotated[Config, tyro.conf.arg(name="")] = RECIPES["retinanet-r50-1x"]
    """Any field of the recipe of plain RetinaNet, for all detectors."""


def paper(args: Sequence[str]) -> None:
    """Make a table or figure of the paper on any data set, with a verdict on its claims."""
    words = [word for word in args if word not in ("-h", "--help")]
    first, _ = parse(PaperBase, words, "paper", return_unknown_args=True)
    base = paper_recipe(first.recipe_base, first.schedule)
    missing: Any = tyro.MISSING
    default = PaperOptions(item=missing, data=missing, out=missing, config=base)
    options = parse(PaperOptions, args, "paper", default=default)
    for name, value in (("--seeds", options.seeds), ("--max-steps", options.max_steps)):
        if value is not None and value < 1:
            raise UsageError(f"{name} {value}: give at least 1")
    config = options.config if options.layout is None else options.config.changed(**{"data.layout": options.layout})

    from retinaconf.paper.engine import run_paper

    run_paper(
        options.item,
        options.out,
        options.data,
        config,
        options.recipe_base,
        options.seeds,
        options.split,
        options.schedule,
        options.max_steps,
        options.device,
        options.rows,
    )
