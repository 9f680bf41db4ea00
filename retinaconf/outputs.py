"""What may be written: nothing that is read."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

from retinaconf.data.folders import IMAGE_SUFFIXES
from retinaconf.errors import InputError
from retinaconf.run_folder import MODEL, RUN_FILES

_DATA_FILES = (  # by their lower-case names, in a data set's folder of any layout
    *("train.json", "val.json", "test.json", "instances_*.json", "_annotations.coco.json"),
    *("*.xml", "*.txt", "*.yaml", "*.yml"),
    *(f"*{suffix}" for suffix in sorted(IMAGE_SUFFIXES)),
)


def check_outputs(outputs: Iterable[Path | None], inputs: Iterable[Path | None]) -> None:
    """See that no file that is going to be written is one that is read, under whatever name, nor written twice.

    Args:
        outputs: files; None where one is not asked for.
        inputs: files, and folders of runs and data sets, which stand for the files that such a folder has.

    Raises:
        InputError: an output would replace an input, or another output.
    """
    places: dict[Path, Path] = {}
    replaced: dict[tuple[int, int], Path] = {}  # by what tells a file, whatever its name
    for path in outputs:
        if path is None or (path.exists() and not path.is_file()):  # pipes and devices are not replaced
            continue
        if places.setdefault(Path(os.path.realpath(path)), path) is not path:
            raise InputError(f"{path}: two outputs would be written to it; give each a file of its own")
        if path.exists():
            replaced[_identity(path)] = path
    for read in inputs if replaced else ():
        if read is None or not read.exists():
            continue
        run = read if (read / MODEL).is_file() else read.parent if read.name == MODEL else None
        if run is not None:
            known = [file for name in RUN_FILES if (file := run / name).exists()]
        else:
            known = [read, *(path for path in replaced.values() if read.is_dir() and _is_data_in(read, path))]
        for file in known:
            if (path := replaced.get(_identity(file))) is not None:
                where = "" if read == path else f" (of {read})"
                raise InputError(f"{path}: is an input{where} and would be overwritten; choose another place")


def _identity(path: Path) -> tuple[int, int]:
    known = path.stat()
    return known.st_dev, known.st_ino


def _is_data_in(folder: Path, path: Path) -> bool:
    """Whether `path`, by its name or by where links lead, is in `folder` and has the name of a file of a data set."""
    pairs = [(Path(of(path)), Path(of(folder))) for of in (os.path.abspath, os.path.realpath)]
    return any(
        one.is_relative_to(whole) and any(Path(str(one).lower()).match(pattern) for pattern in _DATA_FILES)
        for one, whole in pairs
    )
