"""Videos in and out, frame by frame, by FFmpeg: the package `av`, extra `video`."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path
from typing import Any, NamedTuple

from PIL import Image

from retinaconf.errors import InputError, extras_needed_by, reason
from retinaconf.files import open_regular

SUFFIXES = {".avi", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".webm", ".wmv"}
_TICKS = 60_000  # a second in a written video: a multiple of the usual frame rates, and MPEG-4 takes no more


class UnreadableVideo(InputError):
    """The file is damaged, or no video."""


class Frame(NamedTuple):
    """One picture of a video."""

    image: Image.Image  # upright, RGB
    time: float  # in seconds from the first frame


def read_frames(path: Path) -> Iterator[Frame]:
    """The frames of a video's first picture stream, in the order and at the times in which they are shown.

    Raises:
        UnreadableVideo: the file is missing, damaged, or no video.
        InputError: `av` is not installed.
    """
    av = _av(path)
    try:
        with open_regular(path) as file, av.open(file) as container:
            if not container.streams.video:
                raise UnreadableVideo(f"{path}: has no pictures in it; give a video")
            stream = container.streams.video[0]
            stream.thread_type = "AUTO"
            first = None
            for number, frame in enumerate(container.decode(stream)):
                time = float(number / (stream.average_rate or 25)) if frame.time is None else frame.time
                first = time if first is None else first
                image = frame.to_image()
                # Phones store a video as the sensor lies, and how far it is to be turned anticlockwise.
                yield Frame(image.rotate(frame.rotation, expand=True) if frame.rotation else image, time - first)
            if first is None:
                raise UnreadableVideo(f"{path}: no frame of it can be read; restore the file")
    except (OSError, av.error.FFmpegError) as error:
        raise UnreadableVideo(f"{path}: not a video that can be read ({reason(error)}); restore the file") from None


def frame_count(path: Path) -> int | None:
    """How many frames the file says that it has; None where it does not.

    Raises:
        UnreadableVideo, InputError: as `read_frames`; one frame is read.
    """
    next(frames := read_frames(path))
    frames.close()  # type: ignore[attr-defined]
    with open_regular(path) as file, _av(path).open(file) as container:
        return int(container.streams.video[0].frames) or None


@contextmanager
def video_writer(path: Path) -> Iterator[Callable[[Frame], None]]:
    """A function that appends a frame to a new MP4 file, which is complete when the context ends.

    The video is H.264 where FFmpeg has it, else MPEG-4, as large as the first frame; these codecs want even sides, so
    that an odd one gets a row or column of black.

    Raises:
        InputError: the file cannot be written.
    """
    av = _av(path)
    stream: Any = None
    last = -1

    def write(frame: Frame) -> None:
        nonlocal stream, last
        width, height = (side + side % 2 for side in frame.image.size)
        if stream is None:
            codec, options = "libx264", {"crf": "20"}
            if codec not in av.codecs_available:
                codec, options = "mpeg4", {"b": str(8 * width * height)}
            size = {"width": width, "height": height, "pix_fmt": "yuv420p"}
            stream = container.add_stream(codec, rate=30, options=options, **size)
            stream.codec_context.time_base = Fraction(1, _TICKS)  # frames have times of their own; the rate is a hint
        picture = Image.new("RGB", (width, height))
        picture.paste(frame.image)
        coded = av.VideoFrame.from_image(picture)
        last = coded.pts = max(last + 1, round(frame.time * _TICKS))
        coded.time_base = Fraction(1, _TICKS)
        container.mux(stream.encode(coded))

    try:
        with av.open(str(path), "w", format="mp4") as container:
            yield write
            if stream is not None:
                container.mux(stream.encode(None))
    except av.error.FFmpegError as error:
        raise InputError(f"{path}: cannot be written ({reason(error)}); choose another place") from None


def _av(path: Path) -> Any:
    with extras_needed_by(f"{path}: a video"):
        import av

        return av
