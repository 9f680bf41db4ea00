"""What commands share: kinds of options, and the way from words to options or to a complaint of one line."""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import redirect_stderr
from itertools import dropwhile, takewhile
from typing import Any, Literal

import tyro

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
    except (SystemExit, ValueError) as stop:
        if isinstance(stop, SystemExit) and stop.code != 2:  # --help
            raise
        complaint = _of_settings(stop) or _first_paragraph(box.getvalue())
    raise UsageError(f"{complaint}; `retinaconf {command} --help` lists the options")


def _of_settings(error: BaseException) -> str | None:
    """What the settings' validation says against a value, if that is what ended the parsing."""
    from pydantic import ValidationError  # not before: `--help` of most commands needs no settings

    from retinaconf.config import validation_message

    invalid = next((found for found in (error, *_before(error)) if isinstance(found, ValidationError)), None)
    if invalid is None and isinstance(error, ValueError):
        raise error
    return None if invalid is None else validation_message(invalid)


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
