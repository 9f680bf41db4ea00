"""`last.ckpt`: everything that a resumed run needs, and whether it fits the data of the continued run."""

from __future__ import annotations

import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch.optim import Optimizer

from retinaconf.data.ground_truth import GroundTruth
from retinaconf.data.splits import other_category
from retinaconf.errors import InputError, reason
from retinaconf.files import open_regular, see_no_bomb, write_aside
from retinaconf.run_folder import LAST, VAL, checkpoints, previous

_ANEW = "; train anew"
_FALLS_BACK = "the run continues from the checkpoint before it"


def write_state(path: Path, state: dict[str, Any]) -> None:
    """Save what a resumed run needs: tensors and plain values, nothing that would have to be unpickled.

    The checkpoint that was at `path` becomes the previous one, once the new one has been read back from the disk. A
    damaged one is not kept: it would take the place of a whole one.
    """

    def write(aside: Path) -> None:
        torch.save(state, aside)
        if damage := damage_of(aside):
            raise OSError(f"what was written cannot be read back: {damage}")

    is_whole = path.exists() and (_stamp(path) == _read_back.get(path) or not damage_of(path))
    write_aside(path, write, keep=previous(path) if is_whole else None)
    _read_back[path] = _stamp(path)


_read_back: dict[Path, tuple[int, ...]] = {}  # checkpoints that this process has written, as they were then


def _stamp(path: Path) -> tuple[int, ...]:
    found = path.stat()
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns


def damage_of(path: Path) -> str:
    """What is wrong with the bytes of a checkpoint, or nothing. Its parts have checksums; torch ignores them."""
    try:
        with open_regular(path) as file, zipfile.ZipFile(file) as archive:
            see_no_bomb(archive)
            part = archive.testzip()
    except Exception as error:
        return f"not a readable checkpoint ({type(error).__name__})"
    return f"damaged (its part {part.partition('/')[2]} does not have its checksum)" if part is not None else ""


def read_last(run: Path) -> tuple[dict[str, Any], str]:
    """The newest checkpoint of a run that can be read, and a warning if that is not `last.ckpt`.

    Raises:
        InputError: none can be read. The message is about the newest.
    """
    newest, *older = checkpoints(run)
    try:
        return read_state(newest), "" if newest.name == LAST else f"warning: {run / LAST} is missing; {_FALLS_BACK}"
    except InputError as error:
        for file in older:
            with suppress(InputError):
                return read_state(file), f"warning: {str(error).removesuffix(_ANEW)}; {_FALLS_BACK}"
        raise


def read_state(path: Path) -> dict[str, Any]:
    """Read `last.ckpt`, without running code from it.

    Raises:
        InputError: it is damaged or holds something else.
    """
    if damage := damage_of(path):
        raise InputError(f"{path}: {damage}{_ANEW}")
    try:
        state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise InputError(f"{path}: not a readable checkpoint ({type(error).__name__}){_ANEW}") from None
    needed: dict[str, Any] = {"step": int, "best": (float, int), "categories": object, "model": dict, "optimizer": dict}
    if not isinstance(state, dict) or not all(isinstance(state.get(name), kind) for name, kind in needed.items()):
        raise InputError(f"{path}: not a checkpoint of this version's training{_ANEW}")
    return state


@contextmanager
def restoring(path: Path) -> Iterator[None]:
    """Restore a run from the state in `path`, which may have keys, types or shapes of something else.

    Raises:
        InputError: it has.
    """
    try:
        yield
    except (InputError, OSError):
        raise
    except Exception as error:  # torch's parts raise many kinds
        raise InputError(f"{path}: does not fit this run ({type(error).__name__}: {reason(error)}){_ANEW}") from None


def load_optimizer(optimizer: Optimizer, state: dict[str, Any]) -> None:
    """Give an optimizer the state of a checkpoint, which may be of another device.

    Whether a step is fused, this device says. A fused step needs each tensor laid out in memory like its parameter.
    """
    for saved, group in zip(state["param_groups"], optimizer.param_groups, strict=True):
        saved["fused"] = group["fused"]
    optimizer.load_state_dict(state)
    for parameter, values in optimizer.state.items():
        for name, value in values.items():
            if name != "step" and value is not None:
                values[name] = torch.empty_like(parameter).copy_(value)


class _Categories(NamedTuple):
    """As a checkpoint keeps them."""

    category_ids: tuple[int, ...]
    classes: tuple[str, ...]


def data_of_run(train_set: GroundTruth, val_set: GroundTruth | None) -> dict[str, dict[str, int | str]]:
    """What `last.ckpt` keeps of the data, for `see_same_data`; of a run without validation nothing for `val`."""
    return {"train": train_set.fingerprint(), "val": val_set.fingerprint() if val_set is not None else {}}


def see_same_data(path: Path, state: Mapping[str, Any], train_set: GroundTruth, val_set: GroundTruth | None) -> None:
    """See that a run continues with the data that it began with; version 0.1 kept only their categories.

    Raises:
        InputError: other data. The message names the first part that differs.
    """

    def refuse(what: str) -> None:
        raise InputError(f"{path}: {what}; resume with the data of the run, or choose another --out")

    if state["categories"] != (train_set.category_ids, train_set.classes):
        other = other_category(train_set, _Categories(*state["categories"]))
        refuse(f"its categories are not those of {train_set.source} ({other})")
    now = data_of_run(train_set, val_set)
    before = state.get("data", now)
    if bool(before["val"]) != bool(now["val"]):
        had, have = ("boxes", f"none (nor has the run a {VAL})") if before["val"] else ("no boxes", "some")
        refuse(f"the run's data had {had} in a split 'val', and these have {have}")
    for split, ground_truth in (("train", train_set), ("val", val_set)):
        for part, value in before[split].items():
            assert ground_truth is not None
            if isinstance(value, int) and now[split][part] != value:
                refuse(f"{ground_truth.source} has {now[split][part]:,} {part}, and the run's data had {value:,}")
            if now[split][part] != value:
                refuse(f"the {part} of {ground_truth.source} are not those of the run's data")
