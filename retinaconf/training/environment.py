"""`environment.json`: where a run was trained, on what and how, so that `train --like RUN` repeats it."""

from __future__ import annotations

import functools
import platform
import shlex
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from lightning_fabric import Fabric

import retinaconf
from retinaconf.data.ground_truth import GroundTruth
from retinaconf.errors import InputError, reason
from retinaconf.files import read_json
from retinaconf.run_folder import ENVIRONMENT
from retinaconf.training.checkpoint import data_of_run

PACKAGES = ("torchvision", "timm", "lightning-fabric", "numpy", "pillow", "safetensors")


def environment(
    root: Path, train_set: GroundTruth, val_set: GroundTruth | None, fabric: Fabric, seed: int, max_steps: int | None
) -> dict[str, Any]:
    """What `environment.json` holds of a run on the data in `root`. The digests are of all but the images' pixels."""
    cuda = fabric.device.type == "cuda"
    return {
        "command": shlex.join(sys.argv),
        "data": str(root.resolve()),
        "max_steps": max_steps,
        "seed": seed,
        "device": torch.cuda.get_device_name(fabric.device) if cuda else fabric.device.type,
        "processes": fabric.world_size,
        "threads": torch.get_num_threads(),
        "system": platform.platform(),
        "versions": {
            "retinaconf": retinaconf.__version__,
            "commit": _commit(),
            "python": platform.python_version(),
            "torch": torch.__version__,  # and for which devices it is built
            **{name: version(name) for name in PACKAGES},
        },
        "digests": data_of_run(train_set, val_set),
    }


def read_environment(run: Path) -> dict[str, Any]:
    """The `environment.json` of a run.

    Raises:
        InputError: there is none, as version 0.1 wrote none, or it cannot be read.
    """
    file = run / ENVIRONMENT
    try:
        found: dict[str, Any] = read_json(file)
        if not isinstance(found["data"], str) or not isinstance(found["max_steps"], int | None):
            raise ValueError("its data or max_steps are of another type")
        if not all(isinstance(found[name], dict) for name in ("versions", "digests")):
            raise ValueError("its versions or digests are no objects")
        if not all(isinstance(parts, dict) for parts in found["digests"].values()):
            raise ValueError("the digests of a split are no object")
    except FileNotFoundError:
        raise InputError(f"{file}: no such file, so the run cannot be repeated; train with its settings") from None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{file}: not a readable record of a run ({reason(error)}); restore it") from None
    return found


def differences(before: dict[str, Any], now: dict[str, Any]) -> str:
    """A warning that names what a repeated run has otherwise than the first, or nothing."""
    names = ("device", "processes", "threads")
    pairs = [(name, before.get(name), now[name]) for name in names]
    pairs += [(name, before["versions"].get(name), value) for name, value in now["versions"].items()]
    words = [f"{name} {old} there and {new} here" for name, old, new in pairs if old != new]
    for split, parts in now["digests"].items():
        old = before["digests"].get(split, {})
        other = [part for part in {**old, **parts} if old.get(part) != parts.get(part)]
        words += [f"other data in {split} ({', '.join(other)})"] if other else []
    return f"warning: the result may differ: {'; '.join(words)}" if words else ""


@functools.cache
def _commit() -> str | None:
    """The commit of a package that is used from its git checkout, with `-dirty` if files were changed since."""
    checkout = Path(retinaconf.__file__).parents[1]
    if not (checkout / ".git").exists():
        return None
    words = ["git", "-C", str(checkout), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        result = subprocess.run(words, capture_output=True, text=True, timeout=20)
    except (OSError, subprocess.SubprocessError):
        return None
    return result.stdout.strip() or None
