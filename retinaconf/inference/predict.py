"""Images and folders of images to annotated pictures and `detections.json`."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from functools import partial
from pathlib import Path

from rich.progress import track

from retinaconf.data.images import check_image
from retinaconf.errors import InputError
from retinaconf.files import write_aside
from retinaconf.inference.detector import BATCH, load

SUFFIXES = {".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp", ".gif", ".ppm", ".pgm"}


def predict_files(
    run: Path,
    sources: Sequence[Path],
    out: Path,
    alpha: float | None = None,
    score_threshold: float = 0.3,
    device: str | None = None,
) -> int:
    """Detect in files and in the images of folders; returns how many images there were.

    `detections.json` is a COCO results list of all detections, with `file_name` beside an `image_id` that counts from
    1 in the order of the files; a picture shows those with a score above `score_threshold`.

    Raises:
        InputError: no such run, file or folder, an unreadable image, a wrong alpha, or `out` cannot be written or
            holds the images themselves.
    """
    detector = load(run, device)
    detector.inference_config(**({} if alpha is None else {"alpha": alpha}))
    if not 0 <= score_threshold < 1:
        raise InputError(f"--score-threshold {score_threshold:g}: give a number from 0 up to, not including, 1")
    files = list(_files(sources))
    names = _picture_names(files)
    given = {file.resolve() for file in files}
    for file, name in zip(files, names):
        # Before the first picture is written, so that a bad image leaves nothing behind.
        check_image(file)
        if (out / name).resolve() in given:
            raise InputError(f"{out / name}: is one of the images and would be overwritten; choose another --out")
    try:
        out.mkdir(parents=True, exist_ok=True)
        records = []
        for start in track(range(0, len(files), BATCH), "images", transient=True):
            part = files[start : start + BATCH]
            for n, found in enumerate(detector.predict(part, alpha=alpha), start):
                records += [record | {"file_name": str(files[n])} for record in found.to_coco(n + 1)]
                picture = found.above(score_threshold).draw(files[n])
                write_aside(out / names[n], partial(picture.save, format="JPEG", quality=92))
        write_aside(out / "detections.json", lambda aside: aside.write_text(json.dumps(records) + "\n"))
    except OSError as error:
        raise InputError(f"{out}: cannot be written ({error.strerror}); choose another --out") from None
    return len(files)


def _files(sources: Sequence[Path]) -> Iterable[Path]:
    if not sources:
        raise InputError("no images; give files, or folders of images")
    for source in sources:
        if source.is_dir():
            inside = sorted(path for path in source.rglob("*") if path.suffix.lower() in SUFFIXES)
            if not inside:
                raise InputError(f"{source}: no images in this folder ({', '.join(sorted(SUFFIXES))})")
            yield from inside
        elif source.exists():
            yield source
        else:
            raise InputError(f"{source}: no such file or folder")


def _picture_names(files: Sequence[Path]) -> list[str]:
    """A name in the output folder for each file; files of equal names in different folders are numbered."""
    names: dict[str, None] = {}  # in order, and quick to ask
    for path in files:
        name, number = f"{path.stem}.jpg", 2
        while name in names:
            name, number = f"{path.stem}-{number}.jpg", number + 1
        names[name] = None
    return list(names)
