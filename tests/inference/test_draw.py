from typing import Any

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from PIL import Image, ImageCms, ImageDraw

from retinaconf.detections import Detections
from retinaconf.inference import draw
from retinaconf.inference.draw import class_colour, draw_detections


def detections(boxes: list[list[float]], classes: tuple[str, ...] = ("cat", "dog")) -> Detections:
    count = len(boxes)
    return Detections(
        np.zeros(count, int),
        np.arange(count) % len(classes),
        np.array(boxes, float).reshape(-1, 4),
        np.linspace(0.9, 0.1, count),
        classes=classes,
    )


class Recorder(ImageDraw.ImageDraw):
    """Remembers the plates that labels stand on."""

    plates: list[tuple[float, float, float, float]]

    def rectangle(self, xy: Any, fill: Any = None, outline: Any = None, width: int = 1) -> None:
        if fill is not None:
            self.plates.append(xy)
        super().rectangle(xy, fill, outline, width)


@given(
    st.integers(30, 2000),
    st.integers(16, 2000),
    st.tuples(*[st.floats(0, 1)] * 4),
    st.sampled_from(["x", "cat", "traffic light", "Ünïcödé"]),
)
@example(100, 20, (0.1, 0.5, 0.9, 0.9), "cat")  # room neither above nor below nor, from its top on, inside
def test_a_label_is_never_cut_off_where_it_fits(width: int, height: int, corners: tuple[float, ...], name: str):
    x1, x2 = sorted((corners[0] * width, corners[2] * width))
    y1, y2 = sorted((corners[1] * height, corners[3] * height))
    Recorder.plates = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(draw.ImageDraw, "Draw", Recorder)
        picture = draw_detections(Image.new("RGB", (width, height)), detections([[x1, y1, x2, y2]], (name,)))
    assert picture.size == (width, height)
    ((left, top, right, bottom),) = Recorder.plates
    assert left >= 0
    assert top >= 0
    # Pillow's corners are inclusive. A plate as large as the picture starts at its corner.
    assert right <= width - 1 or left == 0
    assert bottom <= height - 1 or top == 0
    assert right > left
    assert bottom > top


@pytest.mark.parametrize(
    ("box", "where"),
    [
        ([50, 50, 90, 90], "above"),
        ([50, 2, 90, 60], "below"),
        ([50, 0, 90, 100], "inside"),
        ([80, 50, 100, 90], "above"),
    ],
    ids=["room above", "at the top", "over the full height", "at the right"],
)
def test_a_label_stands_above_the_box_else_below_else_inside(box: list[float], where: str):
    Recorder.plates = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(draw.ImageDraw, "Draw", Recorder)
        draw_detections(Image.new("RGB", (100, 100)), detections([box], ("cat",)))
    ((left, top, right, bottom),) = Recorder.plates
    expected = {"above": bottom < box[1], "below": top >= box[3], "inside": top >= box[1] and bottom < box[3]}
    assert [name for name, true in expected.items() if true] == [where]
    assert left <= box[0]
    assert right <= 99


@pytest.mark.parametrize("size", [(1, 1), (5, 3), (20, 12), (640, 480), (30, 3000)], ids=str)
def test_any_picture_and_box_can_be_drawn(size: tuple[int, int]):
    w, h = size
    image = Image.new("RGB", size)
    boxes = [[0, 0, w, h], [0, 0, 0, 0], [w, h, w, h], [w - 1, 0, w, 1], [0, h - 1, 1, h], [w / 3, h / 3, w / 2, h / 2]]
    picture = draw_detections(image, detections(boxes))
    assert (picture.size, picture.mode) == (size, "RGB")
    assert picture.getbbox() is not None


def test_the_box_is_drawn_in_its_classes_colour_where_it_is():
    picture = np.asarray(draw_detections(Image.new("RGB", (200, 200)), detections([[60, 80, 120, 150]])))
    for x, y in ((60, 115), (120, 115), (90, 80), (90, 150)):
        assert tuple(picture[y, x]) == class_colour(0)
    assert picture[115, 90].sum() == 0  # not filled


def test_the_best_lies_on_top():
    box = [60.0, 80.0, 120.0, 150.0]
    best_last = np.asarray(draw_detections(Image.new("RGB", (200, 200)), detections([box, box])))
    assert tuple(best_last[115, 60]) == class_colour(0)


@pytest.mark.parametrize("source", ["array", "grey", "file"])
def test_what_predict_takes_can_be_drawn_on(tmp_path: Any, source: str):
    image = Image.new("L", (200, 150), 128) if source == "grey" else Image.new("RGB", (200, 150), (128, 128, 128))
    image.save(tmp_path / "a.png")
    given = {"array": np.asarray(image), "grey": np.asarray(image), "file": tmp_path / "a.png"}[source]
    picture = draw_detections(given, detections([[50, 50, 90, 90]]))
    assert (picture.size, picture.mode) == ((200, 150), "RGB")
    assert picture.getpixel((70, 70)) == (128, 128, 128)
    assert picture.getpixel((50, 70)) == class_colour(0)


def test_neighbouring_classes_have_colours_that_differ():
    colours = [class_colour(label) for label in range(80)]
    assert len(set(colours)) == 80
    assert all(0 <= value <= 255 for colour in colours for value in colour)
    assert class_colour(256) == class_colour(0)
    assert len({class_colour(label) for label in range(256)}) == 256


@pytest.mark.parametrize(("count", "difference"), [(5, 60), (10, 35), (20, 20), (80, 9)])
def test_colours_of_many_classes_differ_to_the_eye(count: int, difference: float):
    """By CIE 1976's distance, of which 2.3 is just noticeable; Pillow's profiles, not ours, make L*a*b*."""
    picture = Image.fromarray(np.array([[class_colour(label) for label in range(count)]], np.uint8))
    lab = ImageCms.profileToProfile(
        picture, ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB"), outputMode="LAB"
    )
    lightness, a, b = (np.asarray(band)[0].astype(float) for band in lab.split())
    wrapped = [(band + 128) % 256 - 128 for band in (a, b)]  # stored as signed bytes
    table = np.stack([lightness * 100 / 255, *wrapped], axis=1)
    distance = np.linalg.norm(table[:, None] - table, axis=2) + 1000 * np.eye(count)
    assert distance.min() > difference


def test_labels_can_be_read(monkeypatch: pytest.MonkeyPatch):
    """WCAG 2.2, 1.4.3: a contrast of at least 4.5 between text and plate."""
    written: list[Any] = []
    monkeypatch.setattr(ImageDraw.ImageDraw, "text", lambda self, xy, text, fill, font: written.append(fill))
    draw_detections(Image.new("RGB", (400, 400)), detections([[20, 60, 180, 90]] * 80, ("x",) * 80))

    def luminance(colour: Any) -> float:
        linear = [v / 12.92 if v <= 0.04045 else ((v + 0.055) / 1.055) ** 2.4 for v in (c / 255 for c in colour)]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    for label, text in zip(reversed(range(80)), written, strict=True):  # the best is drawn last
        dark, light = sorted((luminance(class_colour(label)), luminance(text)))
        assert (light + 0.05) / (dark + 0.05) > 4.5


@pytest.mark.parametrize(
    ("width", "expected"), [(200, "traffic light 0.90"), (70, "traffic light"), (40, "0.90"), (5, "0.90")]
)
def test_a_label_says_what_fits_on_a_small_picture(monkeypatch: pytest.MonkeyPatch, width: int, expected: str):
    written: list[str] = []
    original = ImageDraw.ImageDraw.text

    def text(self: Any, xy: Any, text: str, **more: Any) -> None:
        written.append(text)
        original(self, xy, text, **more)

    monkeypatch.setattr(ImageDraw.ImageDraw, "text", text)
    draw_detections(Image.new("RGB", (width, 60)), detections([[1, 20, 4, 50]], ("traffic light",)))
    assert written == [expected]
