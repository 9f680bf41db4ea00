"""`retinaconf train`: a detector into a run folder."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro
from tyro.conf import Positional

from retinaconf.commands.options import Device, UsageError, parse
from retinaconf.config import Config
from retinaconf.recipes import RECIPES


@dataclass
class TrainOptions:
    """Train a detector into a run folder."""

    recipe: Positional[str]
    """A named set-up: {retinanet,iou-aware,joint,conf,aligned}-{r50,r101}-{1x,2x}, or one of the five with -lite0."""
    data: Path
    """The data set's folder."""
    out: Path
    """The run folder."""
    resume: bool = False
    """Go on with the run in --out where it stopped."""
    max_steps: int | None = None
    """Stop after this many steps in all; within the first epoch, without validation."""
    device: Device = "auto"
    """Where to compute."""
    config: Annotated[Config, tyro.conf.arg(name="")] = RECIPES["conf-r50-1x"]
    """Any field of the recipe."""


def train(args: Sequence[str]) -> None:
    """Train a detector into a run folder."""
    options = _with_defaults_of_its_recipe(args)
    if options.max_steps is not None and options.max_steps < 1:
        raise UsageError(f"--max-steps {options.max_steps}: give at least 1")

    from retinaconf.training.run import train_run

    train_run(options.config, options.data, options.out, options.resume, options.max_steps, options.device)


def _with_defaults_of_its_recipe(args: Sequence[str]) -> TrainOptions:
    """The options of `train`. The recipe, which may stand anywhere, decides the defaults of the others."""
    for name in dict.fromkeys([*(word for word in args if word in RECIPES), "conf-r50-1x"]):
        default: Any = TrainOptions(tyro.MISSING, tyro.MISSING, tyro.MISSING, config=RECIPES[name])
        description = f"Train a detector into a run folder. The defaults below are those of {name}."
        options: TrainOptions = parse(TrainOptions, args, "train", default=default, description=description)
        if options.recipe == name:  # and it is not a folder that has the name of a recipe
            return options
    raise UsageError(f"no recipe {options.recipe!r}; there are {', '.join(RECIPES)}")
