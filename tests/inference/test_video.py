import json
import sys
import wave
from collections.abc import Callable, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageDraw

import retinaconf
from retinaconf.errors import InputError
from retinaconf.inference.detector import BATCH
from retinaconf.inference.predict import predict_files
from retinaconf.inference.video import Frame, UnreadableVideo, frame_count, read_frames, video_writer

av = pytest.importorskip("av")


def picture(number: int, size: tuple[int, int] = (128, 96)) -> Image.Image:
    """A square that walks to the right."""
    image = Image.new("RGB", size, (120, 120, 120))
    ImageDraw.Draw(image).rectangle((4 * number, 30, 4 * number + 30, 60), fill=(230, 40, 40))
    return image


def write(
    path: Path, times: Sequence[float], size: tuple[int, int] = (128, 96), rotation: int = 0, codec: str = "libx264"
) -> Path:
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=30, width=size[0], height=size[1], pix_fmt="yuv420p")
        stream.codec_context.time_base = Fraction(1, 1000)
        if rotation:
            stream.set_display_rotation(rotation)
        for number, time in enumerate(times):
            frame = av.VideoFrame.from_image(picture(number, size))
            frame.pts, frame.time_base = round(1000 * time), Fraction(1, 1000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


UNEVEN = [0.0, 0.04, 0.08, 0.2, 0.24, 0.5, 0.54, 0.58, 0.62, 1.0, 1.04]


@pytest.mark.parametrize("suffix", [".mp4", ".mkv", ".mov"])
def test_frames_come_in_order_at_their_times(tmp_path: Path, suffix: str):
    path = write(tmp_path / f"a{suffix}", UNEVEN)
    frames = list(read_frames(path))
    assert [frame.time for frame in frames] == pytest.approx(UNEVEN, abs=1e-3)
    for number, frame in enumerate(frames):
        assert (frame.image.mode, frame.image.size) == ("RGB", (128, 96))
        assert np.abs(np.asarray(frame.image).astype(int) - np.asarray(picture(number))).mean() < 8
    assert frame_count(path) in (len(UNEVEN), None)  # Matroska does not say


@pytest.mark.skipif(
    int(av.__version__.split(".")[0]) < 18, reason="av reads turned videos since 15, and writes them since 18"
)
def test_a_turned_video_is_read_upright(tmp_path: Path):
    (frame, *_) = read_frames(write(tmp_path / "a.mp4", [0, 0.1], rotation=90))
    expected = np.asarray(picture(0).rotate(90, expand=True)).astype(int)
    assert frame.image.size == (96, 128)
    assert np.abs(np.asarray(frame.image) - expected).mean() < 8


@pytest.mark.parametrize("size", [(128, 96), (77, 51), (1, 1)], ids=str)
@pytest.mark.parametrize("codec", ["libx264", "mpeg4"])
def test_what_is_written_can_be_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size: tuple[int, int], codec: str
):
    monkeypatch.setattr(av, "codecs_available", {codec})
    with video_writer(tmp_path / "a.mp4") as append:
        for number, time in enumerate(UNEVEN):
            append(Frame(picture(number, size), time))
    frames = list(read_frames(tmp_path / "a.mp4"))
    assert [frame.time for frame in frames] == pytest.approx(UNEVEN, abs=1e-3)
    even = tuple(side + side % 2 for side in size)
    for number, frame in enumerate(frames):
        assert frame.image.size == even
        mine = np.asarray(frame.image)[: size[1], : size[0]].astype(int)
        assert np.abs(mine - np.asarray(picture(number, size))).mean() < 25
    with av.open(str(tmp_path / "a.mp4")) as container:
        assert container.streams.video[0].codec_context.name == {"libx264": "h264", "mpeg4": "mpeg4"}[codec]


def test_frames_of_one_time_are_written_one_after_the_other(tmp_path: Path):
    with video_writer(tmp_path / "a.mp4") as append:
        for _ in range(3):
            append(Frame(picture(0), 0.0))
    assert len(list(read_frames(tmp_path / "a.mp4"))) == 3


def test_prediction_annotates_every_frame(trained: Any, tmp_path: Path, run_cli: Callable[..., Any]):
    video = write(tmp_path / "walk.mkv", UNEVEN)
    assert len(UNEVEN) > BATCH
    image = trained.data / "images/val-3.png"
    out = tmp_path / "out"
    result = run_cli("predict", trained.run, video, image, "--out", out, "--device", "cpu", "--score-threshold", "0.1")
    line = f"12 images: {out / 'detections.json'} and the pictures beside it; boxes in them: score above 0.1\n"
    assert (result.code, result.out) == (0, line)
    assert sorted(path.name for path in out.iterdir()) == ["detections.json", "val-3.jpg", "walk.mp4"]
    written = list(read_frames(out / "walk.mp4"))
    assert [frame.time for frame in written] == pytest.approx(UNEVEN, abs=1e-3)

    records = json.loads((out / "detections.json").read_text())
    detector = retinaconf.load(trained.run, device="cpu")
    given = list(read_frames(video))
    expected = detector.predict([frame.image for frame in given])
    assert sum(len(found) for found in expected) > len(given)
    for number, found in enumerate(expected):
        mine = [record for record in records if record.get("frame") == number]
        place = {"file_name": str(video), "frame": number}
        boxes = [record["bbox"] for record in found.to_coco(1)]
        np.testing.assert_allclose([record["bbox"] for record in mine], boxes, atol=0.01)
        assert all(record | place | {"image_id": 2 + number} == record for record in mine)  # the image is the first
        # In grey: a video has half the resolution in colour, of which lines a pixel wide suffer.
        plain, shown = (np.asarray(frame.image.convert("L"), int) for frame in (given[number], written[number]))
        drawn = np.asarray(found.above(0.1).draw(given[number].image).convert("L"), int)
        assert np.abs(shown - drawn).mean() < 8
        assert np.abs(shown - plain).mean() > 2 * np.abs(shown - drawn).mean()
    assert {record["image_id"] for record in records if "frame" not in record} == {1}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"hello", "not a video that can be read"),
        (b"", "not a video that can be read"),
        (None, "not a video that can be read"),
    ],
    ids=["text", "empty", "cut"],
)
def test_a_video_that_cannot_be_read(
    trained: Any, tmp_path: Path, run_cli: Callable[..., Any], content: bytes | None, message: str
):
    video = write(tmp_path / "a.mp4", UNEVEN)
    data = video.read_bytes()
    video.write_bytes(data[: len(data) // 2] if content is None else content)
    result = run_cli("predict", trained.run, video, "--out", tmp_path / "out", "--device", "cpu")
    assert result.code == 1
    assert result.err.startswith(f"retinaconf: {video}: {message}")
    assert result.err.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_sound_is_no_video(trained: Any, tmp_path: Path):
    with wave.open(str(tmp_path / "a.mkv"), "wb") as sound:  # FFmpeg looks at the content, not at the name
        sound.setparams((1, 2, 8000, 4000, "NONE", ""))
        sound.writeframes(bytes(8000))
    with pytest.raises(InputError, match=r"a\.mkv: has no pictures in it"):
        predict_files(trained.run, [tmp_path / "a.mkv"], tmp_path / "out", device="cpu")


def test_a_video_that_breaks_off_leaves_nothing_half(trained: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def breaking(path: Path) -> Any:
        yield Frame(picture(0), 0.0)
        raise UnreadableVideo(f"{path}: not a video that can be read (Invalid data); restore the file")

    monkeypatch.setattr("retinaconf.inference.video.read_frames", breaking)
    video = write(tmp_path / "a.mp4", [0, 0.1])
    with pytest.raises(InputError, match="Invalid data"):
        predict_files(trained.run, [video], tmp_path / "out", device="cpu")
    assert not (tmp_path / "out").exists()
    # With others it is skipped as a whole, and takes no numbers.
    image = trained.data / "images/val-3.png"
    done = predict_files(trained.run, [video, image], tmp_path / "out", device="cpu")
    assert (done.images, len(done.skipped)) == (1, 1)
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["detections.json", "val-3.jpg"]
    records = json.loads((tmp_path / "out/detections.json").read_text())
    assert {record["file_name"] for record in records} == {str(image)}


def test_without_av_the_extra_is_named(trained: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    video = write(tmp_path / "a.mp4", [0, 0.1])
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(InputError, match=r"a\.mp4: a video needs av; install it with: .* 'retinaconf\[video\]'"):
        predict_files(trained.run, [video], tmp_path / "out", device="cpu")
    assert not (tmp_path / "out").exists()
    assert predict_files(trained.run, [trained.data / "images/val-3.png"], tmp_path / "out", device="cpu").images == 1


def test_a_video_is_not_written_over(trained: Any, tmp_path: Path):
    video = write(tmp_path / "a.mp4", [0, 0.1])
    before = video.read_bytes()
    with pytest.raises(InputError, match=r"a\.mp4: is an input and would be overwritten"):
        predict_files(trained.run, [video], tmp_path, device="cpu")
    assert video.read_bytes() == before
