"""What a run is on disk: its files, reading and writing them.

============================ ==============================================================
`config.json`                the configuration, flat and complete
`environment.json`           seed, versions, command, device and digests of the data (`training/environment.py`)
`metrics.jsonl`              a line every few training steps, a line every validation
`metrics.csv`                a row an epoch
`training.html`              the training as a page, drawn again every epoch (`training/page.py`)
`model.safetensors`          the best weights; classes, category ids, config, tuning as metadata
`last.ckpt`                  everything that a resumed run needs (`training/checkpoint.py`)
`last.ckpt.previous`         the one before it, should `last.ckpt` be damaged
`not-finite.safetensors`     the step at which a run had to end, to be taken again (`training/replay.py`)
`log.txt`                    what was printed
`val.txt`                    names of the images held out as `val`, if the data set has none
`checked-images.json`        the image files that need not be decoded again (`data/checked.py`)
`samples/`                   a few augmented training images with their boxes
============================ ==============================================================

Files are written aside and renamed, so that a run that is killed leaves the old or the new one, never half of one.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from retinaconf.errors import InputError, reason
from retinaconf.files import finite, parse_json, read_json, read_text, write_aside, write_json

if TYPE_CHECKING:
    from torch import Tensor

    from retinaconf.config import Config

CONFIG, MODEL, LAST, VAL = "config.json", "model.safetensors", "last.ckpt", "val.txt"
ENVIRONMENT = "environment.json"
LOG, METRICS_LOG, METRICS_TABLE, PAGE = "log.txt", "metrics.jsonl", "metrics.csv", "training.html"
NOT_FINITE, CHECKED = "not-finite.safetensors", "checked-images.json"
PREVIOUS = f"{LAST}.previous"
RUN_FILES = (
    CONFIG,
    ENVIRONMENT,
    METRICS_LOG,
    MODEL,
    LAST,
    PREVIOUS,
    NOT_FINITE,
    LOG,
    VAL,
    METRICS_TABLE,
    PAGE,
    CHECKED,
)
SAMPLES = "samples"  # a folder


class Weights(NamedTuple):
    """The contents of `model.safetensors`, or of `not-finite.safetensors`, which has a batch beside the weights."""

    config: Config
    classes: tuple[str, ...]
    category_ids: tuple[int, ...]
    state: dict[str, Tensor]
    tuning: dict[str, Any] | None = None  # what `retinaconf tune` has kept of these very weights
    replay: dict[str, Any] | None = None  # of a batch: its step, epoch and images


def write_config(path: Path, config: Config) -> None:
    """Save a configuration as flat JSON."""
    write_json(path, config.flat())


def read_config(path: Path) -> Config:
    """The configuration in a run's `config.json`.

    Raises:
        InputError: the file is missing, is not JSON, or does not fit.
    """
    try:
        flat = read_json(path)
    except FileNotFoundError:
        raise InputError(f"{path}: no such file; is {path.parent} a run folder?") from None
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: not a readable configuration ({reason(error)})") from None
    if not isinstance(flat, dict):
        raise InputError(f"{path}: not a readable configuration (it is not an object of settings)")
    from retinaconf.config import config_from_flat

    return config_from_flat(flat, str(path))


def val_list_text(names: Sequence[str]) -> str:
    """The text of `val.txt`: as `ImageSets/Main/val.txt` of a PASCAL VOC folder would have it."""
    return "".join(f"{name}\n" for name in names)


def write_val_list(path: Path, names: Sequence[str]) -> None:
    """Keep which images are `val`."""
    text = val_list_text(names)  # names of files that are no UTF-8 stay what they are
    write_aside(path, lambda aside: aside.write_text(text, encoding="utf-8", errors="surrogateescape"))


def val_list(run: Path) -> Path | None:
    """The file in which a run, given as its folder or a file in it, keeps which images are `val`, if it has one."""
    path = (run if run.is_dir() else run.parent) / VAL
    return path if path.is_file() else None


def checkpoints(run: Path) -> list[Path]:
    """The checkpoints of a run that are there: `last.ckpt`, and the one before it."""
    return [file for file in (run / LAST, previous(run / LAST)) if file.exists()]


def previous(last: Path) -> Path:
    """Where the checkpoint before `last` is kept: beside the file, even if `last` is a link to another disk."""
    return Path(os.path.realpath(last)).with_name(PREVIOUS)


def metrics_line(record: dict[str, Any]) -> str:
    """A line of `metrics.jsonl`; what is not finite becomes null."""
    return json.dumps(finite(record)) + "\n"


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The records of a `metrics.jsonl`, none where there is no such file.

    Lines that no training writes are left out, as half a line of a killed run is one.
    """
    records = []
    for line in read_text(path, "replace").splitlines() if path.is_file() else []:
        try:
            record = parse_json(line)
        except ValueError:
            continue
        if isinstance(record, dict) and _is_written(record):
            records.append(record)
    return records


def _is_written(record: dict[str, Any]) -> bool:
    """Whether a training writes such a record: numbers, or nulls where they were not finite."""

    def are_numbers(values: Any) -> bool:
        numbers = [value for value in values if value is not None]
        return all(isinstance(value, int | float) and abs(value) <= sys.float_info.max for value in numbers)

    numbers = {name: value for name, value in record.items() if name not in ("kind", "per_class")}
    by_class = record.get("per_class", {})
    needed = {"train": {"step", "epoch"}, "val": {"step", "epoch", "AP"}}.get(str(record.get("kind")))
    return (
        needed is not None
        and record.keys() >= needed
        and isinstance(record["step"], int)
        and isinstance(record["epoch"], int | float)
        and are_numbers(numbers.values())
        and isinstance(by_class, dict)
        and are_numbers(by_class.values())
    )


def write_weights(
    path: Path,
    state: Mapping[str, Tensor],
    config: Config,
    classes: tuple[str, ...],
    category_ids: tuple[int, ...],
    tuning: dict[str, Any] | None = None,
    replay: dict[str, Any] | None = None,
) -> None:
    """Save weights with what is needed to use them. The same weights give the same bytes.

    `tuning` is of these weights: whoever writes others leaves it out.
    """
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    metadata = {
        "format": "pt",
        "config": json.dumps(config.flat()),
        "classes": json.dumps(classes),
        "category_ids": json.dumps(category_ids),
        **({} if tuning is None else {"tuning": json.dumps(tuning)}),
        **({} if replay is None else {"replay": json.dumps(replay)}),
    }
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in state.items()}

    def write(aside: Path) -> None:
        try:
            save_file(tensors, aside, metadata)
        except SafetensorError as error:  # a full disk, say
            raise OSError(str(error)) from None
        _order_metadata(aside)

    write_aside(path, write)


def _order_metadata(file: Path) -> None:
    """Sort the metadata of a safetensors file, in place: the library writes its keys in random order.

    The header is JSON behind its length in 8 bytes, padded with spaces.
    """
    with file.open("r+b") as stream:
        length = int.from_bytes(stream.read(8), "little")
        header = json.loads(stream.read(length))
        header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
        ordered = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
        stream.seek(8)
        stream.write(ordered.ljust(length))


def read_weights(path: Path) -> Weights:
    """Read weights from a run folder or from its `model.safetensors`.

    Raises:
        InputError: there are none, they are not ours, or they are not finite.
    """
    import torch
    from safetensors import SafetensorError, safe_open

    file = path / MODEL if path.is_dir() else path
    if not file.is_file():
        raise InputError(f"{file}: no such file; give a run folder that `retinaconf train` has made")
    try:
        with safe_open(file, framework="pt") as tensors:
            metadata = tensors.metadata() or {}
            state = {name: tensors.get_tensor(name) for name in tensors.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise InputError(f"{file}: not a readable safetensors file ({reason(error)})") from None
    if missing := {"config", "classes", "category_ids"} - set(metadata):
        raise InputError(f"{file}: no '{min(missing)}' in its metadata; was it written by retinaconf?")
    try:
        flat, classes, category_ids = (parse_json(metadata[name]) for name in ("config", "classes", "category_ids"))
        tuning, replay = (parse_json(metadata.get(name, "null")) for name in ("tuning", "replay"))
        if not isinstance(flat, dict) or len(classes) != len(category_ids):
            raise ValueError
        if not all(isinstance(name, str) and type(id_) is int for name, id_ in zip(classes, category_ids)):
            raise ValueError
    except (ValueError, TypeError):
        raise InputError(f"{file}: its metadata is damaged; restore the file, or train anew") from None
    broken = [name for name, tensor in state.items() if not torch.isfinite(tensor).all()]
    if broken and replay is None:
        raise InputError(f"{file}: its weights are not finite (in {broken[0]}); restore the file, or train anew")
    from retinaconf.config import config_from_flat

    return Weights(config_from_flat(flat, str(file)), tuple(classes), tuple(category_ids), state, tuning, replay)
