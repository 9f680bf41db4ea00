"""`last.ckpt`: everything that a resumed run needs, and whether it fits the data that the run goes on with."""

from __future__ import annotations

import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch.optim import Optimizer

from retinaconf.data.ground_truth import GroundTruth
from retinaconf.errors import InputError
from retinaconf.files import write_aside
from retinaconf.run_folder import VAL


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
        had, have = ("boxes", f"none (nor has the run a {VAL})") if before["val"] else ("no boxes", "some")
        refuse(f"the run's data had {had} in a split 'val', and these have {have}")
    for split, ground_truth in (("train", train_set), ("val", val_set)):
        for part, value in before[split].items():
            assert ground_truth is not None
            if isinstance(value, int) and now[split][part] != value:
                refuse(f"{ground_truth.source} has {now[split][part]:,} {part}, and the run's data had {value:,}")
            if now[split][part] != value:
                refuse(f"the {part} of {ground_truth.source} are not those of the run's data")
