"""Where to compute: one rule for every command and for Python."""

from __future__ import annotations

import torch

from retinaconf.errors import InputError


def find_device(device: str | torch.device = "auto") -> torch.device:
    """The device of a name: `cpu`, `cuda`, `cuda:1`, `mps`, or `auto`, the first of cuda, mps and cpu that is here.

    Raises:
        InputError: the name is another one, or there is no such device here.
    """
    gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    apple_gpus = int(torch.backends.mps.is_available())
    if device == "auto":
        return torch.device("cuda" if gpus else "mps" if apple_gpus else "cpu")
    try:
        found = torch.device(device)
        here = {"cpu": 1, "cuda": gpus, "mps": apple_gpus}[found.type]
    except (RuntimeError, TypeError, KeyError):  # torch knows many more devices; nobody has tried them here
        raise InputError(f"--device {device}: no device is called so; give auto, cpu, cuda or mps") from None
    if (found.index or 0) >= here:
        what = {"cuda": "GPU", "mps": "Apple GPU"}.get(found.type, "device")
        raise InputError(f"--device {device}: torch finds no {'such ' if here else ''}{what} here; use --device cpu")
    return found
