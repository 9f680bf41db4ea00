"""A file of weights from anywhere, opened without running code from it."""

from __future__ import annotations

import collections
import importlib
import pickle
import types
import zipfile
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor

from retinaconf.errors import InputError
from retinaconf.files import see_no_bomb

SHARED = 8  # times that each number of a file may be part of a tensor


class WeightsFile(NamedTuple):
    """Tensors by name, and whatever plain values the file holds beside them."""

    path: Path
    tensors: dict[str, Tensor]
    meta: dict[str, Any]


def read_weights_file(path: Path) -> WeightsFile:
    """Read a .safetensors file, anything that `torch.save` wrote, or a pickle of arrays (Detectron2's model zoo).

    Objects of other kinds in it, such as MMDetection's logs, are left out: their classes are neither imported nor
    called.

    Raises:
        InputError: there is no such file, or it holds no tensors by name.
    """
    if not path.is_file():
        raise InputError(f"{path}: no such file with weights")
    try:
        content = _read(path)
    except Exception as error:  # a damaged pickle can raise anything
        raise InputError(f"{path}: not a readable file of weights ({type(error).__name__}: {error})") from None
    if not isinstance(content, dict):
        raise InputError(f"{path}: does not hold tensors by name but a {type(content).__name__}")
    state = next((content[key] for key in ("state_dict", "model") if isinstance(content.get(key), dict)), content)
    tensors = {str(name): tensor for name, value in state.items() if (tensor := _tensor(value)) is not None}
    if not tensors:
        raise InputError(f"{path}: does not hold tensors by name")
    unfolded, whole = sum(tensor.nbytes for tensor in tensors.values()), path.stat().st_size
    if unfolded > SHARED * whole:
        raise InputError(
            f"{path}: has {whole:,} bytes, and its tensors {unfolded:,}; give a file that holds all of them"
        )
    # `DataParallel` and its kin put this before every name.
    if all(name.startswith("module.") for name in tensors):
        tensors = {name.removeprefix("module."): tensor for name, tensor in tensors.items()}
    meta = content.get("meta")
    return WeightsFile(path, tensors, meta if isinstance(meta, dict) else {})


def _read(path: Path) -> Any:
    if path.suffix == ".safetensors":
        return load_file(path)
    if path.suffix == ".pkl":
        with path.open("rb") as file:
            return _Unpickler(file, encoding="latin1").load()
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            see_no_bomb(archive)
            if any(name.endswith("/constants.pkl") for name in archive.namelist()):
                raise ValueError("a TorchScript program, which is code; save its state_dict")  # torch.load would run it
    # torch.load brings the tensors, our unpickler decides about everything else.
    return torch.load(path, map_location="cpu", weights_only=False, pickle_module=_PICKLE)


def _tensor(value: Any) -> Tensor | None:
    if isinstance(value, Tensor):
        return value.detach() if value.layout == torch.strided and not value.is_quantized else None
    if isinstance(value, np.ndarray) and value.dtype.kind in "fiu":
        return torch.from_numpy(np.ascontiguousarray(value))
    return None


class _LeftOut:
    """Stands for an object of a class that is not let in; whatever is done to it does nothing."""

    def __new__(cls, *args: Any, **kwargs: Any) -> _LeftOut:
        return object.__new__(cls)

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        pass

    def __call__(self, *args: Any, **kwargs: Any) -> _LeftOut:
        return self

    def __setstate__(self, state: Any) -> None:
        pass

    def __setitem__(self, key: Any, value: Any) -> None:
        pass

    def append(self, item: Any) -> None:
        """Pickles fill lists with this ..."""

    def extend(self, items: Any) -> None:
        """... or with this ..."""

    def add(self, item: Any) -> None:
        """... and sets with this."""


def _encode(text: str, encoding: str = "latin1") -> bytes:
    """`_codecs.encode`, by which Python 2's protocol writes bytes, for the one encoding that it uses."""
    return text.encode("latin1")


_ADMITTED: dict[tuple[str, str], Any] = {
    ("collections", "OrderedDict"): collections.OrderedDict,
    ("_codecs", "encode"): _encode,
    ("numpy", "ndarray"): np.ndarray,
    ("numpy", "dtype"): np.dtype,
    **{
        (f"numpy.{core}.{module}", name): getattr(importlib.import_module(f"numpy._core.{module}"), name)
        for core in ("core", "_core")  # before and since numpy 2
        for module, name in (("multiarray", "_reconstruct"), ("multiarray", "scalar"), ("numeric", "_frombuffer"))
    },
    **{
        ("torch._utils", name): getattr(torch._utils, name)
        for name in ("_rebuild_tensor", "_rebuild_tensor_v2", "_rebuild_parameter")
    },
    ("torch", "Size"): torch.Size,
    ("torch", "device"): torch.device,
    **{
        ("torch", name): getattr(torch, name)
        for name in (
            *("FloatStorage", "DoubleStorage", "HalfStorage", "BFloat16Storage", "LongStorage", "IntStorage"),
            *("ShortStorage", "CharStorage", "ByteStorage", "BoolStorage"),
        )
    },
}


class _Unpickler(pickle._Unpickler):
    """Admits tensors, arrays and plain containers.

    The one that is written in Python: that in C makes room for every index up to the largest that a pickle names.
    """

    def find_class(self, module: str, name: str) -> Any:
        return _ADMITTED.get((module, name), _LeftOut)


def _load(file: Any, **kwargs: Any) -> Any:
    return _Unpickler(file, **kwargs).load()


# What torch.load takes for the pickle module.
_PICKLE = types.SimpleNamespace(__name__="pickle", Unpickler=_Unpickler, load=_load)
