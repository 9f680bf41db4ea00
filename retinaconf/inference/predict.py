"""Images, folders of images and videos to annotated pictures and `detections.json`."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

from PIL import Image
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from retinaconf.config import InferenceConfig
from retinaconf.data.images import read_image
from retinaconf.detections import Detections
from retinaconf.errors import InputError, reason
from retinaconf.files import write_aside
from retinaconf.inference import video
from retinaconf.inference.detector import BATCH, Detector, load
from retinaconf.inference.joint_score import joint_score
from retinaconf.inference.sources import find_files
from retinaconf.outputs import check_outputs

DETECTIONS = "detections.json"
UNTUNED = 0.3  # score above which the pictures of a run without thresholds show a detection
NAMED = 10  # classes in a line


class Predicted(NamedTuple):
    """What `predict_files` has done."""

    images: int  # that detections were made of, frames of videos among them
    skipped: tuple[str, ...]  # for each file that cannot be read, what is wrong with it and what to do
    shown: str  # which detections the pictures show, in words


def predict_files(
    run: str | Path,
    sources: Sequence[str | Path],
    out: Path,
    alpha: float | None = None,
    score_threshold: float | None = None,
    device: str = "auto",
) -> Predicted:
    """Detect in files, in the images of folders, and in videos.

    A file that cannot be read is skipped: a video as a whole, also if it breaks off in the middle.

    `detections.json` is a COCO results list of all detections, with `file_name` beside an `image_id` that counts from
    1: the images in the order of the files, skipped ones too, then the frames of each video, which have their number
    from 0 as `frame`.

    Args:
        run: a run folder, or what else `load` takes.
        sources: as `retinaconf.inference.sources.find_files` takes them.
        out: folder for the pictures, videos and `detections.json`.
        alpha: exponent of the quality in the joint score, instead of the run's own.
        score_threshold: pictures show the detections with a score above this. Without it, a run that is tuned for its
            joint score shows those from the threshold of their class on, and another run those above 0.3.
        device: where to compute: `auto`, or what else `retinaconf.device.find_device` takes.

    Raises:
        InputError: no such run, file or folder, none of the files can be read, a wrong alpha, or `out` cannot be
            written or holds the images themselves.
    """
    detector = load(run, device)
    config = detector.inference_config(**({} if alpha is None else {"alpha": alpha}))
    if score_threshold is not None and not 0 <= score_threshold < 1:
        raise InputError(f"--score-threshold {score_threshold:g}: give a number from 0 up to, not including, 1")
    shown, rule = _shown(detector, config, score_threshold)
    files = find_files(sources)
    names = dict(zip(files, _names(files)))
    check_outputs([out / name for name in [*names.values(), DETECTIONS]], [Path(run), *files])
    images = [file for file in files if not _is_video(file)]
    skipped: dict[Path, str] = {}
    videos: dict[Path, int | None] = {}  # how many frames each has
    for file in filter(_is_video, files):
        try:
            videos[file] = video.frame_count(file)
        except video.UnreadableVideo as fault:
            skipped[file] = str(fault)
    records: list[dict[str, Any]] = []
    done, last_id = 0, len(images)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    console = Console(stderr=True)
    try:
        with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bars:
            if images:
                task = bars.add_task("images", total=len(images))
            for start in range(0, len(images), BATCH):
                pictures: dict[int, Image.Image] = {}
                for n, file in enumerate(images[start : start + BATCH], start):
                    try:
                        pictures[n] = read_image(file)
                    except InputError as fault:
                        skipped[file] = str(fault)
                for n, found in zip(pictures, detector.predict(list(pictures.values()), alpha)):
                    records += [record | {"file_name": str(images[n])} for record in found.to_coco(n + 1)]
                    picture = shown(found).draw(pictures[n])
                    out.mkdir(parents=True, exist_ok=True)
                    write_aside(out / names[images[n]], partial(picture.save, format="JPEG", quality=92))
                done += len(pictures)
                bars.advance(task, len(images[start : start + BATCH]))
            for file, count in videos.items():
                of_video: list[dict[str, Any]] = []
                frames = 0
                task = bars.add_task(file.name, total=count)
                try:
                    for found in _annotate_video(detector, file, out / names[file], alpha, shown):
                        more = {"file_name": str(file), "frame": frames}
                        frames += 1
                        of_video += [record | more for record in found.to_coco(last_id + frames)]
                        bars.advance(task)
                except video.UnreadableVideo as fault:
                    skipped[file] = str(fault)
                else:
                    records += of_video
                    done, last_id = done + frames, last_id + frames
        faults = tuple(skipped[file] for file in files if file in skipped)
        if not done:
            others = f" ({len(faults) - 1} more files cannot be read)" if len(faults) > 1 else ""
            raise InputError(f"{faults[0]}{others}")
        write_aside(out / DETECTIONS, lambda aside: aside.write_text(json.dumps(records) + "\n"))
    except OSError as error:
        raise InputError(f"{out}: cannot be written ({reason(error)}); choose another --out") from None
    return Predicted(done, faults, rule)


def _shown(
    detector: Detector, config: InferenceConfig, score_threshold: float | None
) -> tuple[Callable[[Detections], Detections], str]:
    """Which detections a picture shows, and the same in words."""
    tuning = detector.tuned_for(joint_score(config))
    if tuning is None or score_threshold is not None:
        threshold = UNTUNED if score_threshold is None else score_threshold
        return (lambda found: found.above(threshold)), f"score above {threshold:g}"
    thresholds = tuning.thresholds
    scores = [f"{name} {score:.2f}" for name, score in zip(detector.classes, thresholds.of(detector.category_ids))]
    more = f" and {len(scores) - NAMED} more" if len(scores) > NAMED else ""
    rule = f"score from the run's threshold of the class on ({thresholds.goal}: {', '.join(scores[:NAMED])}{more})"
    return (lambda found: found[thresholds.keep(found)]), rule


def _annotate_video(
    detector: Detector, file: Path, out: Path, alpha: float | None, shown: Callable[[Detections], Detections]
) -> Iterator[Detections]:
    """Write the video `out` as it goes; yields the detections of each frame."""
    reader = video.read_frames(file)
    frames = list(islice(reader, BATCH))
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".", dir=out.parent) as folder:
        written = Path(folder) / out.name
        with video.video_writer(written) as write:
            while frames:
                for frame, found in zip(frames, detector.predict([frame.image for frame in frames], alpha=alpha)):
                    write(frame._replace(image=shown(found).draw(frame.image)))
                    yield found
                frames = list(islice(reader, BATCH))
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
