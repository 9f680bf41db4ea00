"""The run folder.

============================ ==========================================================
`config.json`                the configuration, flat and complete
`metrics.jsonl`              a line every few training steps, a line every validation
`model.safetensors`          the best weights; classes, category ids, config as metadata
`last.ckpt`                  everything that a resumed run needs
`log.txt`                    what was printed
============================ ==========================================================

Files are written aside and renamed, so that a run that is killed leaves the old or the new one, never half of one.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from retinaconf.config import Config, config_from_flat
from retinaconf.errors import InputError
from retinaconf.files import write_aside

CONFIG, METRICS, MODEL, LAST, LOG = "config.json", "metrics.jsonl", "model.safetensors", "last.ckpt", "log.txt"


class Weights(NamedTuple):
    """The contents of `model.safetensors`."""

    config: Config
    classes: tuple[str, ...]
    category_ids: tuple[int, ...]
    state: dict[str, Tensor]


def write_config(path: Path, config: Config) -> None:
    """Save a configuration as flat JSON."""
    write_aside(path, lambda aside: aside.write_text(json.dumps(config.flat(), indent=1) + "\n"))


def metrics_line(record: dict[str, Any]) -> str:
    """A line of `metrics.jsonl`. JSON knows no NaN: a metric that nothing decides becomes null."""

    def known(value: Any) -> Any:
        if isinstance(value, dict):
            return {name: known(part) for name, part in value.items()}
        return None if value != value else value

    return json.dumps(known(record)) + "\n"


def write_weights(
    path: Path, state: Mapping[str, Tensor], config: Config, classes: tuple[str, ...], category_ids: tuple[int, ...]
) -> None:
    """Save weights with what is needed to use them."""
    metadata = {
        "format": "pt",
        "config": json.dumps(config.flat()),
        "classes": json.dumps(classes),
        "category_ids": json.dumps(category_ids),
    }
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in state.items()}
    write_aside(path, lambda aside: save_file(tensors, aside, metadata))


def read_weights(path: Path) -> Weights:
    """Read weights from a run folder or from its `model.safetensors`.

    Raises:
        InputError: there are none, or they are not ours.
    """
    file = path / MODEL if path.is_dir() else path
    if not file.is_file():
        raise InputError(f"{file}: no such file; give a run folder that `retinaconf train` has made")
    try:
        with safe_open(file, framework="pt") as tensors:
            metadata = tensors.metadata() or {}
            state = {name: tensors.get_tensor(name) for name in tensors.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise InputError(f"{file}: not a readable safetensors file ({error})") from None
    if missing := {"config", "classes", "category_ids"} - set(metadata):
        raise InputError(f"{file}: no '{min(missing)}' in its metadata; was it written by retinaconf?")
    try:
        flat, classes, category_ids = (json.loads(metadata[name]) for name in ("config", "classes", "category_ids"))
        if not isinstance(flat, dict) or len(classes) != len(category_ids):
            raise ValueError
    except (ValueError, TypeError):
        raise InputError(f"{file}: its metadata is damaged; restore the file, or train anew") from None
    return Weights(config_from_flat(flat, str(file)), tuple(classes), tuple(category_ids), state)


def write_state(path: Path, state: dict[str, Any]) -> None:
    """Save what a resumed run needs: tensors and plain values, nothing that would have to be unpickled."""
    write_aside(path, lambda aside: torch.save(state, aside))


def read_state(path: Path) -> dict[str, Any]:
    """Read `last.ckpt`, without running code from it.

    Raises:
        InputError: it is damaged or holds something else.
    """
    try:
        state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise InputError(f"{path}: not a readable checkpoint ({type(error).__name__}); train anew") from None
    if not isinstance(state, dict) or not {"step", "best", "categories", "model", "optimizer"} <= set(state):
        raise InputError(f"{path}: not a checkpoint of this version's training; train anew")
    return state
