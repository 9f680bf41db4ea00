"""Pictures in: any file or array to RGB, and a check that decodes every file before a command starts.

One rule on EXIF orientation holds everywhere: a picture is turned upright, as viewers and most annotation tools show
it, unless the annotation declares the size of the unturned pixels, in which case the boxes were drawn on those.
"""

from __future__ import annotations

import math
import os
import struct
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from PIL import ExifTags, Image, UnidentifiedImageError

from retinaconf.data.ground_truth import Fault, GroundTruth
from retinaconf.errors import InputError, reason
from retinaconf.files import open_regular

# How stored pixels are turned upright, by EXIF orientation (Exif 2.3, tag 0x0112). 1 is upright already.
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_JPEG = ("JPEG", "MPO")  # MPO: a JPEG with further pictures after it, from phones
_SIDEWAYS = (5, 6, 7, 8)  # orientations that swap height and width
Check = Callable[[Path, tuple[int, int]], tuple[int, int]]  # path, declared size -> true size; raises InputError


def read_image(source: Any, size: tuple[int, int] | None = None, bgr: bool = False) -> Image.Image:
    """An upright picture in mode RGB.

    Transparent parts become white, as in a viewer; 16 bits become 8 by scaling; of an animation or a multi-page file
    the first frame is taken.

    Args:
        source: a path; a PIL image; a numpy array (H, W), (H, W, 1), (H, W, 3) or (H, W, 4), RGB order; or a torch
            tensor (C, H, W) with 1, 3 or 4 channels. Arrays and tensors are bool, uint8, uint16, or float in [0, 1].
        size: height and width as the annotation declares them, in pixels; a 0 means that it does not.
        bgr: the channels of an array or a tensor are blue, green, red (and alpha), as OpenCV has them.

    Raises:
        InputError: the file is missing, truncated or not an image; the picture does not have the declared size; the
            array has another shape or type, or values that are NaN or out of range.
    """
    if isinstance(source, str | os.PathLike):
        path = Path(source)
        with _opened(path) as (stream, image):
            if image.format in _JPEG and not _jpeg_is_complete(stream):
                raise _truncated_jpeg(path)
            _decode(image, path)
            return _upright_rgb(image, size, str(path))
    if isinstance(source, Image.Image):
        name = getattr(source, "filename", "") or "image"
        _decode(source, name)
        return _upright_rgb(source, size, str(name))
    torch = sys.modules.get("torch")  # a tensor can only come from a program that has imported torch
    if torch is not None and isinstance(source, torch.Tensor):
        if source.ndim != 3 or source.shape[0] not in (1, 3, 4):
            raise InputError(f"tensor of shape {tuple(source.shape)} is not an image; give (1, 3 or 4, H, W)")
        tensor = source.detach().cpu()
        source = (tensor.float() if tensor.is_floating_point() else tensor).movedim(0, -1).numpy()
    if isinstance(source, np.ndarray):
        pixels = _to_uint8(source)
        if bgr and pixels.ndim == 3:
            pixels = np.ascontiguousarray(pixels[:, :, (2, 1, 0, 3)[: pixels.shape[2]]])
        return _upright_rgb(Image.fromarray(pixels), size, "array")
    if isinstance(source, bytes | bytearray | memoryview):
        raise InputError("cannot read an image from bytes; open an encoded one by PIL.Image.open(io.BytesIO(them))")
    if hasattr(source, "read"):
        raise InputError(
            f"cannot read an image from {type(source).__name__}; open it by PIL.Image.open, or give a path"
        )
    raise InputError(
        f"cannot read an image from {type(source).__name__}; give a path, a PIL image, a numpy array or a torch tensor"
    )


def check_image(path: Path, size: tuple[int, int] | None = None) -> tuple[int, int]:
    """Height and width of the upright picture, after making sure that `read_image(path, size)` can read it.

    A JPEG file is decoded at an eighth of its size: that reads all of the file and computes few of the pixels. Any
    other format is decoded in full.

    Raises:
        InputError: as `read_image`.
    """
    return inspect_image(path, size)[0]


def inspect_image(path: Path, size: tuple[int, int] | None = None) -> tuple[tuple[int, int], int]:
    """As `check_image`, and the EXIF orientation, 1 to 8, besides."""
    path = Path(path)
    with _opened(path) as (stream, image):
        raw = image.height, image.width
        if image.format in _JPEG:
            if not _jpeg_is_complete(stream):
                raise _truncated_jpeg(path)
            image.draft(None, (1, 1))
            _decode(image, path)
        else:
            _decode(image, path)
            _to_rgb(image, str(path))
        orientation = _orientation(image)
        return _upright_size(raw, orientation, size, str(path))[1], orientation


def check_images(
    ground_truth: GroundTruth, skip_bad: bool = False, max_skipped: float = 1.0, check: Check = check_image
) -> GroundTruth:
    """Check every image file that is not checked yet; returns the ground truth with the true (height, width) of each.

    Args:
        ground_truth: of one split, I images.
        skip_bad: leave bad images out, with their boxes, and list them in `dropped`; otherwise the first one raises.
        max_skipped: largest share of the images, and of the annotations, that may be left out, here and by the reader
            before; rounded up to whole ones.
        check: what checks an image: `check_image`, or `CheckedImages.check`, which remembers. Several threads call it.

    Raises:
        InputError: the image folder is missing, an image is bad, or with `skip_bad` none is left or too many are left
            out.
    """
    folder = ground_truth.image_folder
    if folder is not None and len(ground_truth) and not folder.is_dir():
        raise InputError(f"{folder}: no such folder; {ground_truth.source} expects its images there")

    def checked_size(index: int) -> tuple[int, int] | InputError:
        height, width = (int(side) for side in ground_truth.image_sizes[index])
        if ground_truth.images_checked:
            return height, width
        try:
            return check(ground_truth.path(index), (height, width))
        except InputError as fault:
            return fault

    with ThreadPoolExecutor(max_workers=8) as pool:
        results = list(pool.map(checked_size, range(len(ground_truth))))
    faults = [result for result in results if isinstance(result, InputError)]
    if faults and not skip_bad:
        others = f" ({len(faults) - 1} more images are bad)" if len(faults) > 1 else ""
        raise InputError(f"{faults[0]}{others}; or leave bad images out with --data.skip-bad")
    good = [index for index, result in enumerate(results) if not isinstance(result, InputError)]
    sizes = np.array([results[index] for index in good], dtype=np.int64).reshape(-1, 2)
    kept = ground_truth.subset(good) if faults else ground_truth
    dropped = [
        Fault.of_image(result, (ground_truth.classes[label] for label in ground_truth.labels[slice(*bounds)]))
        for result, bounds in zip(results, pairwise(ground_truth.offsets))
        if isinstance(result, InputError)
    ]
    checked = replace(kept, image_sizes=sizes, images_checked=True, dropped=(*ground_truth.dropped, *dropped))
    see_share_left_out(checked, max_skipped)
    return checked


def see_share_left_out(ground_truth: GroundTruth, max_skipped: float) -> None:
    """See that no more than a share of the images and annotations is left out, and not all images.

    Raises:
        InputError: more is.
    """
    left_out, images = ground_truth.left_out, len(ground_truth)
    first = {fault.image: fault for fault in reversed(ground_truth.dropped) if fault.kind != "degenerate-box"}
    if left_out.images and not images:
        raise InputError(
            f"{ground_truth.source}: none of its {left_out.images:,} images can be used; the first: {first[True]}"
        )
    for what, bad, good in (
        ("images", left_out.images, images),
        ("annotations", left_out.annotations, len(ground_truth.boxes)),
    ):
        if bad > math.ceil(max_skipped * (bad + good) - 1e-9):  # the product may be off by a rounding
            raise InputError(
                f"{ground_truth.source}: {bad:,} of {bad + good:,} {what} cannot be used, more than data.max-skipped "
                f"{max_skipped:g} allows; the first: {first[what == 'images']}; or train with a larger "
                "--data.max-skipped"
            )


@contextmanager
def _opened(path: Path) -> Iterator[tuple[BinaryIO, Image.Image]]:
    try:
        stream = open_regular(path)
    except FileNotFoundError:
        raise InputError(f"{path}: no such image file; restore it, or correct the path", "missing-image") from None
    except IsADirectoryError:
        raise InputError(f"{path}: is a folder, not an image; give the path of an image") from None
    except (OSError, ValueError) as error:  # ValueError: no file system holds such a name
        raise InputError(f"{path}: cannot be read ({reason(error)}); check the file and its permissions") from None
    with stream:
        try:
            image = Image.open(stream)
            if image.format == "EPS":  # to decode it, Pillow would run Ghostscript, which is an interpreter
                raise UnidentifiedImageError
        except Image.DecompressionBombError:
            most = 2 * (Image.MAX_IMAGE_PIXELS or 0)
            raise InputError(f"{path}: has more than {most:,} pixels; scale it down, or cut it into tiles") from None
        except UnidentifiedImageError:
            what = "not an image that Pillow can read" if stream.seek(0, os.SEEK_END) else "is empty"
            raise InputError(f"{path}: {what}; restore or remove the file") from None
        except Exception as error:  # damaged headers raise OSError, SyntaxError, struct.error, ...
            raise _damaged(path, error) from None
        yield stream, image


def _decode(image: Image.Image, name: str | Path) -> None:
    try:
        image.load()
    except Exception as error:  # as many kinds as there are decoders
        raise _damaged(name, error) from None


def _damaged(name: str | Path, error: Exception) -> InputError:
    return InputError(
        f"{name}: truncated or damaged image ({reason(error)}); restore or remove the file", "truncated-image"
    )


def _truncated_jpeg(path: Path) -> InputError:
    """Pillow may decode such a file without a word, and leave the missing part grey."""
    what = "truncated JPEG (no end-of-image marker)"
    return InputError(f"{path}: {what}; restore or remove the file", "truncated-image")


def _orientation(image: Image.Image) -> int:
    try:
        orientation = image.getexif().get(ExifTags.Base.Orientation, 1)
    except Exception:  # damaged metadata is no reason to refuse good pixels
        return 1
    return orientation if orientation in _UPRIGHT else 1


def _upright_size(
    raw: tuple[int, int], orientation: int, declared: tuple[int, int] | None, name: str
) -> tuple[bool, tuple[int, int]]:
    """Whether to turn the picture, and its (height, width) then."""
    upright = raw[::-1] if orientation in _SIDEWAYS else raw
    if declared is None or 0 in declared or tuple(declared) == upright:
        return orientation != 1, upright
    if tuple(declared) == raw:
        return False, raw
    turned = f" ({upright[1]} x {upright[0]} when turned as its EXIF says)" if upright != raw else ""
    raise InputError(
        f"{name}: the image is {raw[1]} x {raw[0]} pixels{turned}, its annotation says {declared[1]} x {declared[0]}; "
        "correct the annotation's width and height, or restore the image that was annotated",
        "size-mismatch",
    )


def _upright_rgb(image: Image.Image, size: tuple[int, int] | None, name: str) -> Image.Image:
    orientation = _orientation(image)
    turn, _ = _upright_size((image.height, image.width), orientation, size, name)
    rgb = _to_rgb(image, name)
    if turn:
        rgb = rgb.transpose(_UPRIGHT[orientation])
    rgb.info = {}  # without the orientation tag: reading the result again must not turn it again
    return rgb


def _to_rgb(image: Image.Image, name: str) -> Image.Image:
    """A new RGB image; the source is left as it is."""
    if image.mode.startswith("I") or image.mode == "F":
        values = np.asarray(image)
        if image.mode == "I":  # 32 bits, but what is met in it is 16-bit pictures
            if values.min() < 0 or values.max() > 65535:
                raise InputError(
                    f"{name}: pixel values from {values.min()} to {values.max()}; save it with 8 or 16 bits"
                )
            values = values.astype(np.uint16)
        image = Image.fromarray(_to_uint8(values, name))
    try:
        if image.has_transparency_data:
            rgba = image.convert("RGBA")
            image = Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba)
        return image.convert("RGB")
    except ValueError:
        raise InputError(f"{name}: pixels of mode {image.mode} have no RGB form; save it as an RGB image") from None


def _to_uint8(array: np.ndarray, name: str = "array") -> np.ndarray:
    """(H, W), (H, W, 3) or (H, W, 4) uint8."""
    if array.ndim == 3 and array.shape[2] == 1:
        array = array[:, :, 0]
    if not (array.ndim == 2 or (array.ndim == 3 and array.shape[2] in (3, 4))) or array.size == 0:
        raise InputError(f"{name} of shape {array.shape} is not an image; give (H, W) or (H, W, 1, 3 or 4)")
    if array.dtype == np.uint8:
        return np.ascontiguousarray(array)
    if array.dtype == bool:
        return array.astype(np.uint8) * 255
    if array.dtype.kind == "u" and array.dtype.itemsize == 2:
        return ((array.astype(np.uint32) + 128) // 257).astype(np.uint8)  # 65535 = 255 * 257
    if array.dtype.kind == "f":
        low, high = float(array.min()), float(array.max())
        if not (low >= -1e-4 and high <= 1 + 1e-4):  # also false of NaN; the slack is rounding, 1/40 of a grey level
            raise InputError(f"{name} has values from {low:g} to {high:g}; floats must lie in [0, 1] and be finite")
        return np.rint(array.clip(0, 1) * 255).astype(np.uint8)
    raise InputError(f"{name} has type {array.dtype}; give bool, uint8, uint16, or float in [0, 1]")


def _jpeg_is_complete(stream: BinaryIO) -> bool:
    """Whether an end-of-image marker comes after the start of the pixel data (thumbnails have theirs before it)."""
    stream.seek(2)
    marker = b""
    while marker != b"\xff\xda":  # start of scan: the last segment before pixel data
        marker = stream.read(2)
        if marker == b"\xff\xff":  # padding before a marker
            stream.seek(-1, os.SEEK_CUR)
            continue
        length = stream.read(2)
        if marker[:1] != b"\xff" or len(length) < 2:
            return False
        stream.seek(struct.unpack(">H", length)[0] - 2, os.SEEK_CUR)
    pixels = stream.tell()
    for tail in (65536, stream.seek(0, os.SEEK_END)):  # the whole file only where much was appended, as phones do
        stream.seek(max(pixels, stream.seek(0, os.SEEK_END) - tail))
        if b"\xff\xd9" in stream.read():
            return True
    return False
