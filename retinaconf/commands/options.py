"""What commands share: kinds of options, and the way from words to options or to a complaint of one line."""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import redirect_stderr
from itertools import dropwhile, takewhile
from typing import Any, Literal

import tyro
from pydantic import ValidationError

from retinaconf.config import validation_message
from retinaconf.errors import UsageError

Device = Literal["auto", "cpu", "cuda", "mps"]
LayoutKey = Literal["coco", "flat", "roboflow", "voc", "yolo"]


def parse(target: Callable[..., Any], args: Sequence[str], command: str, **options: Any) -> Any:
    """What tyro makes of the options of a command; its complaint, a box of many lines, becomes one.

    Raises:
        UsageError: the options are not understood, or a value does not fit.
    """
    box = io.StringIO()
    try:
        with redirect_stderr(box):
            return tyro.cli(target, args=args, prog=f"retinaconf {command}", **options)
    except ValidationError as error:
        complaint = validation_message(error)
    except SystemExit as stop:
        if stop.code != 2:  # --help
            raise
        invalid = next((error for error in _before(stop) if isinstance(error, ValidationError)), None)
        complaint = validation_message(invalid) if invalid else _first_paragraph(box.getvalue())
    raise UsageError(f"{complaint}; `retinaconf {command} --help` lists the options")


def _before(error: BaseException) -> Iterator[BaseException]:
    """The errors in whose handling this one was raised."""
    while error.__context__ is not None:
        error = error.__context__
        yield error


def _first_paragraph(box: str) -> str:
    """What tyro's box says first, and the option that it thinks was meant."""
    rows = [row.strip("│ ") for row in re.sub(r"\x1b\[[\d;]*m", "", box).splitlines()]

    def is_text(row: str) -> bool:  # and neither a rule nor empty
        return row.strip("─-") != ""

    below_title = dropwhile(lambda row: not is_text(row), rows[1:])
    text = " ".join(takewhile(is_text, below_title)).rstrip(".")
    if "Perhaps you meant:" in rows:
        text += f"; perhaps you meant {rows[rows.index('Perhaps you meant:') + 1]}"
    return text
