"""What a user is meant to read."""

from __future__ import annotations

from typing import Literal

# The kinds of fault that a file or a record of a data set can have.
FaultKind = Literal[
    "missing-image", "unreadable-image", "truncated-image", "size-mismatch", "bad-annotation", "degenerate-box"
]


class InputError(Exception):
    """Something the user gave cannot be used.

    The message is one line that says what is wrong, where (file, record), and what to do about it. The command line
    prints it without a traceback and exits with 1.

    Args:
        message: that line.
        kind: of a fault of an image file; None where the file is there and cannot be read for another reason.
    """

    def __init__(self, message: str, kind: FaultKind | None = None):
        super().__init__(message)
        self.kind = kind


def reason(error: Exception) -> str:
    """What went wrong, as part of one line: the system's words, else the library's, else the name of the error."""
    text = getattr(error, "strerror", None) or str(error).strip()
    return str(text).splitlines()[0] if text else type(error).__name__


class Interrupted(Exception):
    """A run was asked to stop; it is saved and resumes. The message says where."""
