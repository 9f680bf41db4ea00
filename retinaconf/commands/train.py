"""`retinaconf train`: a detector into a run folder."""

from __future__ import annotations

from argparse import ArgumentParser
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro
from tyro.conf import Positional

from retinaconf.api import settings_of, unknown_start
from retinaconf.commands.options import Device, parse
from retinaconf.config import Config
from retinaconf.errors import UsageError
from retinaconf.recipes import RECIPES
from retinaconf.run_folder import CONFIG, read_config


@dataclass
class TrainOptions:
    """Train a detector into a run folder."""

    recipe: Positional[str]
    """A named set-up: {retinanet,iou-aware,joint,conf,aligned}-{r50,r101}-{1x,2x}, or one of the five with -lite0. Or,
    as the first word, a run to start from: its folder, its model.safetensors, or its name on the Hugging Face Hub."""
    data: Path
    """The data set's folder."""
    out: Path
    """The run folder."""
    resume: bool = False
    """Continue the run in --out where it stopped."""
    max_steps: int | None = None
    """Stop after this many steps in total; within the first epoch, without validation."""
    dry_run: bool = False
    """Take up to 20 steps, print batch, schedule, memory and time of the whole training, and keep nothing."""
    device: Device = "auto"
    """Where to compute."""
    tensorboard: bool = False
    """Also write the curves for TensorBoard, into the run's folder tensorboard."""
    like: Path | None = None
    """Repeat this run: with its settings, on its data and for as many steps, unless other options say otherwise."""
    replay: Path | None = None
    """Only take the step again that ended a run, from its not-finite.safetensors, and print losses and gradient."""
    config: Annotated[Config, tyro.conf.arg(name="")] = RECIPES["conf-r50-1x"]
    """Any setting of the recipe or the run."""


def train(args: Sequence[str]) -> None:
    """Train a detector into a run folder."""
    options = _parsed(args)

    if options.replay is not None:
        if options.resume or options.dry_run:
            raise UsageError("--replay takes one step of a run again; leave out --resume and --dry-run")
        from retinaconf.training.loop import launch
        from retinaconf.training.replay import replay

        print(replay(options.replay, options.config, launch(options.config, options.device)))
        return

    from retinaconf.training.run import train_run

    more = (options.resume, options.max_steps, options.device, options.tensorboard, options.like, options.dry_run)
    train_run(options.config, options.data, options.out, *more)


def _parsed(args: Sequence[str]) -> TrainOptions:
    """The options of `train`. The recipe or the run decides the defaults of the others.

    A recipe may stand anywhere, as its name is known; a run must be the first word.
    """
    parser = ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--replay", nargs="?", type=Path)
    parser.add_argument("--like", nargs="?", type=Path)
    words, _ = parser.parse_known_args(args)
    if words.replay is not None or words.like is not None:
        default = _of_replay(words.replay) if words.replay is not None else _of_run(words.like)
        options: TrainOptions = parse(TrainOptions, args, "train", default=default)
        if options.recipe:
            raise UsageError(f"{options.recipe}: --like and --replay take their settings from a run; leave it out")
        return options
    first = [word for word in args[:1] if not word.startswith("-")]
    for name in first or dict.fromkeys([*(word for word in args if word in RECIPES), "conf-r50-1x"]):
        default = TrainOptions(tyro.MISSING, tyro.MISSING, tyro.MISSING, config=_defaults(name, args))
        description = f"Train a detector into a run folder. The defaults below are those of {name}."
        options = parse(TrainOptions, args, "train", default=default, description=description)
        if options.recipe == name:  # and it is not a folder that has the name of a recipe
            return options
    raise unknown_start(options.recipe)


def _of_replay(file: Path) -> Any:
    """The options that take a step again, with the settings of its run."""
    from retinaconf.run_folder import read_weights

    return TrainOptions("", Path(), Path(), config=read_weights(file).config)


def _of_run(run: Path) -> Any:
    """The options that repeat a run."""
    from retinaconf.training.environment import read_environment

    made = read_environment(run)
    config = read_config(run / CONFIG)
    return TrainOptions("", Path(made["data"]), tyro.MISSING, max_steps=made["max_steps"], config=config)


def _defaults(name: str, args: Sequence[str]) -> Config:
    """The settings that `train` begins with; two options are found before the others have defaults."""
    parser = ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--out", nargs="?", default="")
    parser.add_argument("--resume", nargs="?", const=True)
    words, _ = parser.parse_known_args(args)
    return settings_of(name, Path(words.out or ""), bool(words.resume))
