"""The run folder.

============================ ==========================================================
`config.json`                the configuration, flat and complete
`metrics.jsonl`              a line every few training steps, a line every validation
`model.safetensors`          the best weights; classes, category ids, config as metadata
`last.ckpt`                  everything that a resumed run needs
`log.txt`                    what was printed
`val.txt`                    names of the images of `val`, if the data set does not name its splits
============================ ==========================================================

Files are written aside and renamed, so that a run that is killed leaves the old or the new one, never half of one.
"""

from __future__ import annotations

import json
import math
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from retinaconf.config import Config, config_from_flat
from retinaconf.data.ground_truth import GroundTruth
from retinaconf.data.val_split import ValSplit
from retinaconf.errors import InputError, reason
from retinaconf.files import write_aside
from retinaconf.outputs import RUN_FILES

CONFIG, METRICS, MODEL, LAST, LOG, VAL = RUN_FILES


class Weights(NamedTuple):
    """The contents of `model.safetensors`."""

    config: Config
    classes: tuple[str, ...]
    category_ids: tuple[int, ...]
    state: dict[str, Tensor]


def write_config(path: Path, config: Config) -> None:
    """Save a configuration as flat JSON."""
    write_aside(path, lambda aside: aside.write_text(json.dumps(config.flat(), indent=1) + "\n"))


def write_val_list(path: Path, val_split: ValSplit) -> None:
    """Keep which images are `val`, as the file `ImageSets/Main/val.txt` of a PASCAL VOC folder would."""
    write_aside(path, lambda aside: aside.write_text("".join(f"{name}\n" for name in val_split.names)))


def val_list(run: Path) -> Path | None:
    """The file in which a run, given as its folder or a file in it, keeps which images are `val`, if it has one."""
    path = (run if run.is_dir() else run.parent) / VAL
    return path if path.is_file() else None


def metrics_line(record: dict[str, Any]) -> str:
    """A line of `metrics.jsonl`. JSON knows neither NaN nor infinity: what is not finite becomes null."""

    def known(value: Any) -> Any:
        if isinstance(value, dict):
            return {name: known(part) for name, part in value.items()}
        return None if isinstance(value, float) and not math.isfinite(value) else value

    return json.dumps(known(record)) + "\n"


def write_weights(
    path: Path, state: Mapping[str, Tensor], config: Config, classes: tuple[str, ...], category_ids: tuple[int, ...]
) -> None:
    """Save weights with what is needed to use them. The same weights give the same bytes."""
    metadata = {
        "format": "pt",
        "config": json.dumps(config.flat()),
        "classes": json.dumps(classes),
        "category_ids": json.dumps(category_ids),
    }
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in state.items()}

    def write(aside: Path) -> None:
        save_file(tensors, aside, metadata)
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
        flat, classes, category_ids = (json.loads(metadata[name]) for name in ("config", "classes", "category_ids"))
        if not isinstance(flat, dict) or len(classes) != len(category_ids):
            raise ValueError
    except (ValueError, TypeError):
        raise InputError(f"{file}: its metadata is damaged; restore the file, or train anew") from None
    if broken := [name for name, tensor in state.items() if not torch.isfinite(tensor).all()]:
        raise InputError(f"{file}: its weights are not finite (in {broken[0]}); restore the file, or train anew")
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
        with zipfile.ZipFile(path) as archive:  # its parts have checksums, and torch does not look at them
            damaged = archive.testzip()
        if damaged is not None:
            raise InputError(
                f"{path}: damaged (its part {damaged.partition('/')[2]} does not have its checksum); train anew"
            )
        state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    except InputError:
        raise
    except Exception as error:
        raise InputError(f"{path}: not a readable checkpoint ({type(error).__name__}); train anew") from None
    if not isinstance(state, dict) or not {"step", "best", "categories", "model", "optimizer"} <= set(state):
        raise InputError(f"{path}: not a checkpoint of this version's training; train anew")
    return state


def data_of_run(train_set: GroundTruth, val_set: GroundTruth | None) -> dict[str, dict[str, int | str]]:
    """What `last.ckpt` keeps of the data, for `see_same_data`; of a run without validation nothing for `val`."""
    return {"train": train_set.fingerprint(), "val": val_set.fingerprint() if val_set is not None else {}}


def see_same_data(path: Path, state: Mapping[str, Any], train_set: GroundTruth, val_set: GroundTruth | None) -> None:
    """See that a run goes on with the data that it began with; version 0.1 kept only their categories.

    Raises:
        InputError: other data. The message names the first part that differs.
    """

    def refuse(what: str) -> None:
        raise InputError(f"{path}: {what}; resume with the data of the run, or choose another --out")

    if state["categories"] != (train_set.category_ids, train_set.classes):
        refuse(f"its categories are not those of {train_set.source}")
    now = data_of_run(train_set, val_set)
    before = state.get("data", now)
    if bool(before["val"]) != bool(now["val"]):
        had, have = ("boxes", "none") if before["val"] else ("no boxes", "some")
        refuse(f"the run's data had {had} in a split 'val', and these have {have}")
    for split, ground_truth in (("train", train_set), ("val", val_set)):
        for part, value in before[split].items():
            assert ground_truth is not None
            if isinstance(value, int) and now[split][part] != value:
                refuse(f"{ground_truth.source} has {now[split][part]:,} {part}, and the run's data had {value:,}")
            if now[split][part] != value:
                refuse(f"the {part} of {ground_truth.source} are not those of the run's data")
