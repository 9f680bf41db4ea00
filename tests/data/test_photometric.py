import numpy as np
import pytest
import torch
from torchvision.transforms import v2

from retinaconf.config import Augment
from retinaconf.data.augment import generator
from retinaconf.data.photometric import photometric

PICTURE = torch.rand(3, 4, 6, generator=torch.Generator().manual_seed(0))
PIXELS = (v2.functional.resize(PICTURE, [40, 60]) * 255).byte().permute(1, 2, 0).numpy()


def changed(seed: int = 0, pixels: np.ndarray = PIXELS, **knobs: float) -> np.ndarray:
    return photometric(pixels, Augment(**knobs), lambda name: generator(seed, 0, 0, name))


@pytest.mark.parametrize("knob", ["colour", "hue", "blur", "jpeg"])
def test_each_knob_changes_the_pixels_and_depends_on_the_generator_only(knob: str):
    some = [changed(seed, **{knob: 0.5 if knob in ("colour", "hue") else 1.0}) for seed in range(5)]
    assert len({one.tobytes() for one in (*some, PIXELS)}) == 6
    for one in some:
        assert (one.shape, one.dtype) == (PIXELS.shape, np.uint8)
    assert changed(3, **{knob: 0.5}).tobytes() == changed(3, **{knob: 0.5}).tobytes()


def test_nothing_on_is_nothing_done():
    assert changed() is PIXELS


def test_floats_stay_floats():
    """Those of torchvision's resizing, from 0 to 255; they are rounded first."""
    pixels = PIXELS.astype(np.float32) + np.float32(0.3)
    one = changed(pixels=pixels, colour=0.3, jpeg=1.0)
    assert one.dtype == np.float32
    np.testing.assert_array_equal(one, changed(colour=0.3, jpeg=1.0))


def test_colour_stays_in_its_range():
    """Brightness 0.8 to 1.2, contrast likewise: a mean grey of 100 is 80 to 120, whatever the contrast."""
    grey = np.full((8, 8, 3), 100, np.uint8)
    means = np.array([changed(seed, grey, colour=0.2).mean() for seed in range(300)])
    assert means.min() >= 79
    assert means.max() <= 121
    assert means.min() < 84
    assert means.max() > 116
    assert abs(means.mean() - 100) < 3


def test_hue_turns_the_colour_circle_by_at_most_its_share():
    red = np.full((8, 8, 3), (200, 50, 50), np.uint8)
    for seed in range(50):
        r, g, b = changed(seed, red, hue=0.05)[0, 0].astype(int)
        # A twentieth of the circle is 18 degrees, of the 60 in which green or blue rises by all of 150.
        assert r == pytest.approx(200, abs=2)
        assert min(g, b) == pytest.approx(50, abs=2)
        assert max(g, b) <= 50 + 150 * 18 / 60 + 5


def test_blur_and_jpeg_are_as_often_as_they_should_be():
    for knob in ("blur", "jpeg"):
        share = np.mean([changed(seed, **{knob: 0.25}).tobytes() != PIXELS.tobytes() for seed in range(400)])
        assert share == pytest.approx(0.25, abs=0.08)
