"""What a person points at: files, folders, patterns and `file://` addresses, to files; any images, to single ones."""

from __future__ import annotations

import glob
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from urllib.request import url2pathname

import numpy as np
from torch import Tensor

from retinaconf.data.images import check_image
from retinaconf.errors import InputError
from retinaconf.inference import video

SUFFIXES = {".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp", ".gif", ".ppm", ".pgm"}
_URL = re.compile(r"([a-z][a-z0-9+.-]+):/", re.IGNORECASE)  # one slash: a Path makes one of two; "C:/" is none


def find_files(sources: Sequence[str | Path]) -> list[Path]:
    """The files that `sources` name, in their order, each once.

    A folder stands for the images in it, at any depth; a pattern (`photos/**/*.jpg`) for the images and videos that it
    matches. What exists under a name is that, whatever characters are in it.

    Raises:
        InputError: there is no such file, a folder or pattern has no image, or it is an address on the network.
    """
    if not sources:
        raise InputError("no images; give files, folders of images, or patterns such as 'photos/*.jpg'")
    return list(dict.fromkeys(file for source in sources for file in _files(str(source))))


def _files(source: str) -> Iterator[Path]:
    path = Path(source)
    if not path.exists() and (url := _URL.match(source)):
        if url[1].lower() != "file":
            raise InputError(f"{source}: addresses on the network are not read; download it first")
        path = Path(url2pathname(urlsplit(source).path))
    if path.is_dir():
        inside = sorted(file for file in path.rglob("*") if file.suffix.lower() in SUFFIXES)
        if not inside:
            raise InputError(f"{source}: no images in this folder ({', '.join(sorted(SUFFIXES))})")
        yield from inside
    elif path.exists():
        yield path
    elif glob.has_magic(source):
        matches = sorted(_matches(path))
        images = [file for file in matches if file.suffix.lower() in SUFFIXES | video.SUFFIXES and file.is_file()]
        if not images:
            raise InputError(f"{source}: no image matches this pattern")
        yield from images
    else:
        raise InputError(f"{source}: no such file or folder")


def _matches(pattern: Path) -> Iterator[Path]:
    """What matches a pattern. `**` follows no links, which may lead in circles; `*` takes no hidden names."""

    def is_hidden(path: Path) -> bool:
        return any(part.startswith(".") and part != ".." for part in path.parts)

    pattern = pattern / "*" if pattern.name == "**" else pattern
    for path in Path(pattern.anchor).glob(str(pattern.relative_to(pattern.anchor))):
        if is_hidden(pattern) or not is_hidden(path):
            yield path


def find_images(images: Any) -> Iterable[Any]:
    """The single images of `images`, which `Detector.predict` describes, each as `read_image` takes it.

    Raises:
        InputError: a folder or a pattern has no image, a file of a list cannot be read, or it is a batch in one array.
    """
    if isinstance(images, str | os.PathLike):
        path = os.fspath(images)
        return find_files([path]) if Path(path).is_dir() or glob.has_magic(path) else [images]
    if isinstance(images, np.ndarray | Tensor):
        if images.ndim == 4:
            raise InputError(
                f"a batch of shape {tuple(images.shape)} in one {type(images).__name__} is not taken; give a list of "
                "images, arrays (H, W, 3) or tensors (3, H, W)"
            )
        return [images]
    encoded = isinstance(images, bytes | bytearray | memoryview) or hasattr(images, "read")
    if encoded or not isinstance(images, Iterable):
        return [images]
    if isinstance(images, Sequence):
        _check_files([image for image in images if isinstance(image, str | os.PathLike)])
    return images


def _check_files(files: list[Any]) -> None:
    def fault(file: Any) -> InputError | None:
        try:
            check_image(Path(file))
        except InputError as error:
            return error
        return None

    with ThreadPoolExecutor(max_workers=8) as pool:
        faults = [found for found in pool.map(fault, files) if found is not None]
    if faults:
        others = f" ({len(faults) - 1} more images are bad)" if len(faults) > 1 else ""
        raise InputError(f"{faults[0]}{others}")
