"""The weights that a new run begins with: which of a trained detector's it takes (`retinaconf train RUN`)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from safetensors import SafetensorError, safe_open
from torch import Tensor

from retinaconf.config import Config, ModelConfig
from retinaconf.errors import InputError
from retinaconf.inference.detector import load
from retinaconf.model.retinanet import RetinaNet

# How the names of a part's tensors begin.
PARTS = {
    "backbone": ("backbone.",),
    "pyramid": ("fpn.",),
    "towers": ("head.classification_tower.", "head.localization_tower."),
    "box": ("head.box_conv.", "head.level_scales"),
    "quality": ("head.quality_conv.", "head.distribution_quality."),
}
CLASS_WEIGHT, CLASS_BIAS = "head.class_conv.weight", "head.class_conv.bias"
NAMED = 10  # classes in a line
OF_THE_DATA = ("data.layout", "data.val_fraction", "data.skip_bad", "data.max_skipped")
OF_THE_START = ("optimizer.kept_lr",)


class Start(NamedTuple):
    """The first weights of a new network."""

    state: dict[str, Tensor]  # complete
    kept: frozenset[str]  # names of the tensors that are the trained detector's; those of the class score aside
    known: tuple[str, ...] | None  # classes whose rows are the trained detector's; None: its class score does not fit


def is_run(weights: str) -> bool:
    """Whether `model.weights` names a run (folder, `model.safetensors` or Hub name), not weights of a backbone."""
    path = Path(weights)
    if weights in ("imagenet", "none"):
        return False
    if not path.is_file():
        return path.suffix not in (".safetensors", ".pth", ".pt")
    try:
        with safe_open(path, framework="pt") as tensors:
            return "classes" in (tensors.metadata() or {})
    except SafetensorError:
        return False


def settings_from(trained: Config, run: str) -> Config:
    """The defaults of a run that starts from `run`: its settings `trained`, but those of its data and its own start."""
    new = Config().flat()
    return trained.changed(**{name: new[name] for name in OF_THE_DATA + OF_THE_START}, **{"model.weights": run})


def begin(network: RetinaNet, config: Config, classes: tuple[str, ...]) -> tuple[list[str], frozenset[str]]:
    """Give the new `network` the weights of the run that `model.weights` names, if it does.

    Returns lines that say so, and the names of the tensors that have learned before: the run's, or without one those of
    a backbone that has weights.

    Raises:
        InputError: there is no such run, it is broken, it has another backbone, or `model.freeze` would freeze what has
            learned nothing.
    """
    weights, rate, lines = config.model.weights, config.optimizer.kept_lr, []
    kept = frozenset(name for name in network.state_dict() if name.startswith("backbone.") and weights != "none")
    if is_run(weights):
        trained = load(weights, "cpu")
        old, new = trained.config.model, config.model
        if old.backbone.split(".")[0] != new.backbone.split(".")[0]:  # a tag behind the dot names weights
            raise InputError(
                f"model.backbone {new.backbone} is not the backbone of {weights}, {old.backbone}; leave it out, or "
                "start from a recipe"
            )
        fresh = network.state_dict()
        start = start_from(trained.state, fresh, trained.classes, classes, _unlike(old, new))
        network.load_state_dict(start.state)
        kept = start.kept
        lines = [f"starts from {weights}; {describe(start, classes)}"]
    if rate != 1:
        slower = f"layers that have learned before learn at {rate:g} x the learning rate"
        if not any(name in kept for name, parameter in network.named_parameters() if parameter.requires_grad):
            slower = "no layer that has learned before learns on, so optimizer.kept-lr is not used"
        lines.append(slower)
    if config.model.freeze in ("backbone", "all but class"):
        frozen = {name for name, parameter in network.named_parameters() if not parameter.requires_grad}
        if parts := [part for part, begins in PARTS.items() if any(n.startswith(begins) for n in frozen - kept)]:
            raise InputError(
                f"model.freeze {config.model.freeze!r} would freeze what has learned nothing yet ({', '.join(parts)}); "
                "start from a run that has it, or freeze less"
            )
    return lines, kept


def start_from(
    trained: Mapping[str, Tensor],
    fresh: Mapping[str, Tensor],
    trained_classes: Sequence[str],
    classes: Sequence[str],
    unlike: tuple[str, ...] = (),
) -> Start:
    """The first weights of a network of which `fresh` are untrained ones, after a detector with weights `trained`.

    A layer is taken where all its tensors have the same names and shapes, unless these begin with one of `unlike`. Of
    the class score, the rows of classes of the same name are taken: case, spaces, `_` and `-` do not count. All else
    stays as in `fresh`: other classes begin as background, at the focal loss's prior.
    """
    misfits = {
        _layer(name)
        for name, tensor in fresh.items()
        if name not in trained or trained[name].shape != tensor.shape or name.startswith(unlike)
    }
    kept = frozenset(name for name in fresh if _layer(name) not in misfits) - {CLASS_WEIGHT, CLASS_BIAS}
    state = {name: (trained if name in kept else fresh)[name] for name in fresh}
    anchors = len(fresh[CLASS_BIAS]) // len(classes)  # of a cell; row a * K + k is class k of anchor a
    wanted = (anchors * len(trained_classes), *fresh[CLASS_WEIGHT].shape[1:])
    if trained[CLASS_WEIGHT].shape != wanted:
        return Start(state, kept, None)
    by_name = {name: n for n, name in enumerate(trained_classes)}
    alike = {_plain(name): n for n, name in reversed(list(enumerate(trained_classes)))}  # the first of several
    found = [by_name.get(name, alike.get(_plain(name))) for name in classes]
    source = {k: n for k, n in enumerate(found) if n is not None}
    for name in (CLASS_WEIGHT, CLASS_BIAS):
        rows = fresh[name].clone().unflatten(0, (anchors, -1))
        rows[:, list(source)] = trained[name].unflatten(0, (anchors, -1))[:, list(source.values())]
        state[name] = rows.flatten(0, 1)
    return Start(state, kept, tuple(classes[k] for k in source))


def describe(start: Start, classes: Sequence[str]) -> str:
    """What is kept, in one line."""
    fates: dict[str, list[str]] = {}
    for part, begins in PARTS.items():
        layers = {_layer(name): name in start.kept for name in start.state if name.startswith(begins)}
        kept = sum(layers.values())
        if layers:
            some = f"{kept} of {len(layers)} layers kept" if kept else "started afresh"
            fates.setdefault("kept" if kept == len(layers) else some, []).append(part)
    words = [f"{', '.join(parts)}: {fate}" for fate, parts in fates.items()]
    if start.known is None:
        return "; ".join([*words, "class: started afresh"])
    by_name = f"class: {len(start.known)} of {len(classes)} by name"
    if start.known:
        by_name += f" ({_listed(start.known)})"
    if new := [name for name in classes if name not in start.known]:
        by_name += f", new: {_listed(new)}"
    return "; ".join([*words, by_name])


def _unlike(old: ModelConfig, new: ModelConfig) -> tuple[str, ...]:
    """How the names of tensors begin that mean something else in the new network, even where their shapes fit."""
    differs = {"box": old.box != new.box, "quality": old.quality != new.quality}
    return tuple(begin for part, differ in differs.items() if differ for begin in PARTS[part])


def _layer(name: str) -> str:
    """The layer of a tensor."""
    return name.rpartition(".")[0]


def _plain(name: str) -> str:
    """A class name without case, spaces, `_` and `-`."""
    return name.casefold().translate({ord(mark): None for mark in " _-"})


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    return ", ".join(names[:NAMED]) + more
