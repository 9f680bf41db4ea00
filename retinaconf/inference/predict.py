"""Images, folders of images and videos to annotated pictures and `detections.json`."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Iterator, Sequence
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from retinaconf.data.images import check_image
from retinaconf.errors import InputError, reason
from retinaconf.files import write_aside
from retinaconf.inference import video
from retinaconf.inference.detections import Detections
from retinaconf.inference.detector import BATCH, Detector, load
from retinaconf.inference.sources import find_files


def predict_files(
    run: str | Path,
    sources: Sequence[str | Path],
    out: Path,
    alpha: float | None = None,
    score_threshold: float = 0.3,
    device: str = "auto",
) -> int:
    """Detect in files, in the images of folders, and in videos; returns how many images and frames there were.

    `detections.json` is a COCO results list of all detections, with `file_name` beside an `image_id` that counts from
    1: the images in the order of the files, then the frames of each video, which have their number from 0 as `frame`. A
    picture shows the detections with a score above `score_threshold`.

    Args:
        run: a run folder, or what else `load` takes.
        sources: as `retinaconf.inference.sources.find_files` takes them.
        out: folder for the pictures, videos and `detections.json`.
        alpha: exponent of the quality in the joint score, instead of the run's own.
        score_threshold: for the pictures.
        device: where to compute: `auto`, or what else `retinaconf.device.find_device` takes.

    Raises:
        InputError: no such run, file or folder, an unreadable image or video, a wrong alpha, or `out` cannot be written
            or holds the images themselves.
    """
    detector = load(run, device)
    detector.inference_config(**({} if alpha is None else {"alpha": alpha}))
    if not 0 <= score_threshold < 1:
        raise InputError(f"--score-threshold {score_threshold:g}: give a number from 0 up to, not including, 1")
    files = find_files(sources)
    names = dict(zip(files, _names(files)))
    given = {file.resolve() for file in files}
    frames: dict[Path, int | None] = {}  # how many, of each video
    for file, name in names.items():
        # Before the first picture is written, so that a bad file leaves nothing behind.
        if _is_video(file):
            frames[file] = video.frame_count(file)
        else:
            check_image(file)
        if (out / name).resolve() in given:
            raise InputError(f"{out / name}: is one of the images and would be overwritten; choose another --out")
    images = [file for file in names if file not in frames]
    records: list[dict[str, Any]] = []
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    console = Console(stderr=True)
    try:
        out.mkdir(parents=True, exist_ok=True)
        with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bars:
            if images:
                task = bars.add_task("images", total=len(images))
            for start in range(0, len(images), BATCH):
                part = images[start : start + BATCH]
                for n, found in enumerate(detector.predict(part, alpha=alpha), start):
                    records += [record | {"file_name": str(images[n])} for record in found.to_coco(n + 1)]
                    picture = found.above(score_threshold).draw(images[n])
                    write_aside(out / names[images[n]], partial(picture.save, format="JPEG", quality=92))
                    bars.advance(task)
            done = len(images)
            for file, count in frames.items():
                task = bars.add_task(file.name, total=count)
                for found in _annotate_video(detector, file, out / names[file], alpha, score_threshold):
                    done += 1
                    more = {"file_name": str(file), "frame": int(bars.tasks[task].completed)}
                    records += [record | more for record in found.to_coco(done)]
                    bars.advance(task)
        write_aside(out / "detections.json", lambda aside: aside.write_text(json.dumps(records) + "\n"))
    except OSError as error:
        raise InputError(f"{out}: cannot be written ({reason(error)}); choose another --out") from None
    return done


def _annotate_video(
    detector: Detector, file: Path, out: Path, alpha: float | None, score_threshold: float
) -> Iterator[Detections]:
    """Write the video `out` as it goes; yields the detections of each frame."""
    reader = video.read_frames(file)
    with tempfile.TemporaryDirectory(prefix=".", dir=out.parent) as folder:
        written = Path(folder) / out.name
        with video.video_writer(written) as write:
            while frames := list(islice(reader, BATCH)):
                for frame, found in zip(frames, detector.predict([frame.image for frame in frames], alpha=alpha)):
                    write(frame._replace(image=found.above(score_threshold).draw(frame.image)))
                    yield found
        write_aside(out, partial(os.replace, written))


def _is_video(file: Path) -> bool:
    return file.suffix.lower() in video.SUFFIXES


def _names(files: Sequence[Path]) -> list[str]:
    """A name in the output folder for each file; files of equal names in different folders are numbered."""
    names: dict[str, None] = {}  # in order, and quick to ask
    for path in files:
        suffix = ".mp4" if _is_video(path) else ".jpg"
        name, number = f"{path.stem}{suffix}", 2
        while name in names:
            name, number = f"{path.stem}-{number}{suffix}", number + 1
        names[name] = None
    return list(names)
