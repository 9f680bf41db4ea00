import numpy as np
import pytest

from retinaconf.cell_anchors import SCALES, CellAnchors
from retinaconf.data.anchor_iou import best_anchor_iou
from retinaconf.data.anchor_proposal import propose_anchors

CANVAS = (320, 320)


def boxes_of(sizes: list[tuple[float, float]], seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Boxes of these (width, height) anywhere in a canvas, and the canvas of each."""
    random = np.random.default_rng(seed)
    corner = np.array([random.uniform(0, 320 - np.array(size)) for size in sizes]).reshape(-1, 2)
    return np.concatenate([corner, corner + np.array(sizes).reshape(-1, 2)], axis=1), np.full((len(sizes), 2), CANVAS)


def test_the_ratio_that_the_objects_have_is_added_and_no_other():
    boxes = boxes_of([(28.6, 143.1)] * 50 + [(80, 80)] * 50)
    assert propose_anchors(*boxes, CellAnchors()) == CellAnchors((0.5, 1.0, 2.0, 5.0), SCALES)
    flat = boxes_of([(143.1, 28.6)] * 50 + [(80, 80)] * 50)
    assert propose_anchors(*flat, CellAnchors()) == CellAnchors((0.2, 0.5, 1.0, 2.0), SCALES)


def test_a_scale_is_added_for_small_objects():
    boxes = boxes_of([(16, 16)] * 50)
    proposal = propose_anchors(*boxes, CellAnchors())
    assert proposal == CellAnchors((0.5, 1.0, 2.0), (2.0, *SCALES))
    assert (best_anchor_iou(*boxes, proposal) >= 0.5).mean() > 0.8


@pytest.mark.parametrize(("long", "expected"), [(2, None), (4, CellAnchors((0.5, 1.0, 2.0, 5.0), SCALES))])
def test_each_anchor_of_a_cell_must_fit_a_hundredth_of_the_objects(long: int, expected: CellAnchors | None):
    """A ratio is three anchors: for 2 objects of 100 it is not worth it, for 4 it is."""
    assert propose_anchors(*boxes_of([(28.6, 143.1)] * long + [(80, 80)] * (100 - long)), CellAnchors()) == expected


def test_what_fits_already_or_never_gets_no_proposal():
    assert propose_anchors(*boxes_of([(80, 80)] * 20), CellAnchors()) is None
    assert propose_anchors(*boxes_of([(4, 300)] * 20), CellAnchors()) is None
    assert propose_anchors(*boxes_of([]), CellAnchors()) is None


def test_the_anchors_of_the_detector_are_what_is_added_to():
    boxes = boxes_of([(28.6, 143.1)] * 50)
    assert propose_anchors(*boxes, CellAnchors((1.0, 5.0), (4.0, 5.0), whole_pixels=True)) is None
    proposal = propose_anchors(*boxes, CellAnchors((1.0,), (8.0,), whole_pixels=True))
    assert proposal is not None
    assert proposal.whole_pixels
    assert 8.0 in proposal.scales
    assert (best_anchor_iou(*boxes, proposal) >= 0.5).mean() > (
        best_anchor_iou(*boxes, CellAnchors((1.0,), (8.0,), True)) >= 0.5
    ).mean()


@pytest.mark.ci
def test_of_many_objects_a_sample_is_looked_at():
    boxes = boxes_of([(28.6, 143.1)] * 30_000)
    assert propose_anchors(*boxes, CellAnchors()) == CellAnchors((0.5, 1.0, 2.0, 5.0), SCALES)
