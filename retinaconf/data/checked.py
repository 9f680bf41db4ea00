"""`checked-images.json` of a run: the image files that were found good, so that a later start decodes only what is new.

A file counts as the same if its size, its times of writing and of change, its number on the disk and the size that its
annotation declares are the same. Nothing but time is lost with this file: what it does not know is decoded.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from pathlib import Path
from typing import Any

from retinaconf.data.images import check_image
from retinaconf.files import read_json, write_aside
from retinaconf.run_folder import CHECKED

SETTLED_SECONDS = 2  # the coarsest file system's clock: a younger file may yet change without another time


class CheckedImages:
    """What a run knows about image files, and what is found by `check`."""

    def __init__(self, run: Path | None = None):
        """As the folder `run`, or that of the file `run`, keeps it; a missing or damaged file says nothing."""
        folder = run if run is None or run.is_dir() else run.parent
        self.known = {} if folder is None else _read(folder / CHECKED)
        self.found: dict[str, list[int]] = {}

    def check(self, path: Path, size: tuple[int, int] | None = None) -> tuple[int, int]:
        """As `check_image`, which is not called for a file that has been found good and is the same.

        Raises:
            InputError: as `check_image`.
        """
        try:
            now = os.stat(path)
        except (OSError, ValueError):
            return check_image(path, size)  # it says what is wrong
        name = os.fsencode(os.path.abspath(path)).decode("latin-1")  # every name has a text so
        same = [now.st_size, now.st_mtime_ns, now.st_ctime_ns, now.st_ino, *(size or (0, 0))]
        known = self.known.get(name, [])
        if known[:-2] != same:
            settled = max(now.st_mtime, now.st_ctime) < time.time() - SETTLED_SECONDS
            known = [*same, *check_image(path, size)]
            if not settled:
                return known[-2], known[-1]
        self.found[name] = known
        return known[-2], known[-1]

    def write(self, run: Path) -> None:
        """Keep what was found in the folder `run`."""
        if self.found != self.known or not (run / CHECKED).exists():
            text = json.dumps({"images": self.found, "digest": _digest(self.found)})
            write_aside(run / CHECKED, lambda aside: aside.write_text(text))


def _read(file: Path) -> dict[str, list[int]]:
    try:
        kept = read_json(file)
        images: dict[str, Any] = kept["images"]
        sound = kept["digest"] == _digest(images) and all(map(_is_entry, images.values()))
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        return {}
    return images if sound else {}


def _is_entry(values: Any) -> bool:
    return isinstance(values, list) and len(values) == 8 and all(type(value) is int for value in values)


def _digest(images: Any) -> str:
    return hashlib.sha256(json.dumps(images).encode()).hexdigest()
