"""A data set whose files change while they are in use: noticed by their size and their time of writing."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

from retinaconf.data.ground_truth import GroundTruth

NAMED = 3  # files in a warning
Stamp = tuple[int, int] | None  # size and time of writing; None: no such file


class Files:
    """The annotation files and the images of some splits, as they are at first."""

    def __init__(self, splits: Iterable[GroundTruth]):
        splits = list(splits)
        self._annotations = _stamps(file for truth in splits for file in truth.annotation_files)
        self._images = _stamps(truth.path(i) for truth in splits for i in range(len(truth)))

    def changes(self) -> list[str]:
        """What has changed since the last call, as warnings; nothing is read again but sizes and times."""
        annotations, images = _changed(self._annotations), _changed(self._images)
        missing = [image for image in images if self._images[image] is None]
        images = [image for image in images if self._images[image] is not None]
        warnings = []
        if annotations:
            warnings.append(
                f"{_named(annotations)} changed since the run read the data; it keeps the boxes that it has read, and "
                "continues with --resume only on these"
            )
        if images:
            warnings.append(
                f"{_named(images)} changed since the run began; it now sees the new pixels, with the old boxes"
            )
        if missing:
            warnings.append(
                f"{_named(missing)} disappeared since the run began; restore what is missing: the run stops at it"
            )
        return [f"warning: {warning}" for warning in warnings]


def _stamps(files: Iterable[Path]) -> dict[Path, Stamp]:
    return {file: _stamp(file) for file in files}


def _stamp(file: Path) -> Stamp:
    try:
        found = os.stat(file)
    except OSError:
        return None
    return found.st_size, found.st_mtime_ns


def _changed(stamps: dict[Path, Stamp]) -> list[Path]:
    """The files that have another stamp now, which they are given."""
    now = {file: stamp for file, before in stamps.items() if (stamp := _stamp(file)) != before}
    stamps |= now
    return list(now)


def _named(files: list[Path]) -> str:
    others = len(files) - NAMED
    more = f" and {others:,} more file{'s' if others > 1 else ''}" if others > 0 else ""
    return f"{', '.join(map(str, files[:NAMED]))}{more}"
