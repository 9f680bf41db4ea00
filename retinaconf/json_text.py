"""JSON of any size, a megabyte of text at a time.

An annotation file of COCO's size is 450 megabytes, and as Python objects several gigabytes; a file of candidates is
larger still. So the records of a list are decoded in batches, which whoever reads them turns into columns.
"""

from __future__ import annotations

import gc
import json
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache, partial
from io import TextIOWrapper
from pathlib import Path
from typing import Annotated, Any, BinaryIO

from pydantic import Field, TypeAdapter

from retinaconf.errors import InputError, reason
from retinaconf.files import open_regular

CHUNK = 1 << 20  # characters decoded at once; more of them would hold more objects in memory
LONGEST_RECORD = 1 << 24  # characters; a record that has not ended by then is broken
_SPACE = re.compile(r"\s*")
_TO_LAST_RECORD = re.compile(r".*\}(?=\s*,\s*\{)", re.DOTALL)  # the last place that looks like one between records

Box = Annotated[list[float], Field(min_length=4, max_length=4)]


@cache
def quick_decoder(record: type) -> Callable[[str], list[Any]]:
    """A function that decodes the text of a list of records that have the form of a `TypedDict`, without other fields.

    It raises ValueError where a record has another form: a text in the place of a number, say.
    """
    return partial(TypeAdapter(list[record]).validate_json, strict=True)  # type: ignore[valid-type]


class JsonText:
    """A window on a JSON text that moves on as it is read.

    Every method raises InputError where the text is not JSON or the file cannot be read.
    """

    def __init__(self, raw: BinaryIO, encoding: str, path: Path):
        self._raw, self._path = raw, path
        self._file = TextIOWrapper(raw, encoding, "surrogatepass", newline="")
        self._decode = json.JSONDecoder().raw_decode
        self._text, self._position = "", 0
        self._passed = 0  # characters before `_text`

    @property
    def bytes_read(self) -> int:
        """Of the file."""
        return self._raw.tell()

    def peek(self) -> str:
        """The next character that is not a space; empty at the file's end."""
        while True:
            self._position = _SPACE.match(self._text, self._position).end()  # type: ignore[union-attr]
            if self._position < len(self._text):
                return self._text[self._position]
            if not self._read_on():
                return ""

    def value(self, longest: float = float("inf")) -> Any:
        """The value that begins here, of so many characters at most."""
        self.peek()
        while True:
            try:
                value, end = self._decode(self._text, self._position)
            except json.JSONDecodeError as error:  # the value may go on beyond the window
                if len(self._text) - self._position < longest and self._read_on():
                    continue
                raise self._fault(f"{error.msg}, at character {self._passed + error.pos}") from None
            except (ValueError, RecursionError) as error:  # of a number or a nesting that is too long
                raise self._fault(str(error)) from None
            size = end - self._position
            if len(self._text) - end < 3 and self._read_on():  # a number may go on: 1 before .5 or e+5
                continue
            self._position += size
            return value

    def keys(self) -> Iterator[str]:
        """The keys of the object that begins here. Its reader takes each key's value before it goes on."""
        self._expect("{")
        more = self.peek() != "}"
        if not more:
            self._position += 1
        while more:
            self._expect('"')
            self._position -= 1
            key = self.value()
            self._expect(":")
            yield key
            more = self._expect(",}") == ","

    def records(self, decode: Callable[[str], list[Any]] = json.loads) -> Iterator[list[Any]]:
        """The elements of the list that begins here, some thousands at a time.

        Args:
            decode: makes the elements of the text of a list of some. Where it raises ValueError, because they are not
                what it expects, they come as `json.loads` gives them.
        """
        self._expect("[")
        more = self.peek() != "]"
        if not more:
            self._position += 1
        while more:
            if len(self._text) - self._position < CHUNK:
                self._read_on()
            cut = _TO_LAST_RECORD.match(self._text, self._position)
            end = cut.end() if cut else len(self._text)
            try:
                # A wrong place, in a text or in a list within a record, leaves something open: then this is no JSON.
                batch = decode(f"[{self._text[self._position : end]}]") if cut else []
            except (ValueError, RecursionError):
                batch = []
            if batch:
                self._position = end
                more = self._expect(",]") == ","
            stop = self._passed + end
            while more and (not batch or self._passed + self._position < stop):
                batch.append(self.value(LONGEST_RECORD))
                more = self._expect(",]") == ","
            yield batch

    def end(self) -> None:
        """See that nothing follows."""
        if self.peek():
            raise self._fault("more text after its end")

    def _expect(self, marks: str) -> str:
        mark = self.peek()
        if not mark or mark not in marks:
            where = self._passed + self._position
            raise self._fault(f"expected {' or '.join(map(repr, marks))}, at character {where}")
        self._position += 1
        return mark

    def _read_on(self) -> bool:
        """Drop what was used and read more; False at the file's end."""
        try:
            more = self._file.read(max(CHUNK, len(self._text) - self._position))
        except OSError as error:
            raise InputError(f"{self._path}: cannot be read ({reason(error)})") from None
        except UnicodeDecodeError as error:
            raise self._fault(str(error)) from None
        self._passed += self._position
        self._text, self._position = self._text[self._position :] + more, 0
        return bool(more)

    def _fault(self, what: str) -> InputError:
        return InputError(f"{self._path}: not valid JSON ({what})")


@contextmanager
def opened(path: Path, opener: Callable[[Path], BinaryIO] = open_regular) -> Iterator[JsonText]:
    """A JSON file, to be read. The garbage collector rests meanwhile.

    It would look at all living objects again and again, for a third of the time where torch is loaded, and find none to
    free: what JSON gives has no cycles.

    Raises:
        InputError: it is missing or cannot be read.
    """
    try:
        raw = opener(path)
        encoding = json.detect_encoding(raw.peek(4)[:4])  # type: ignore[attr-defined]
    except FileNotFoundError:
        raise InputError(f"{path}: no such file") from None
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({reason(error)})") from None
    collects = gc.isenabled()
    gc.disable()
    try:
        with raw:
            yield JsonText(raw, encoding, path)
    finally:
        if collects:
            gc.enable()
