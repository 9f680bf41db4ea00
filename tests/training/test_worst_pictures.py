"""Against cases worked by hand."""

import re
from pathlib import Path

import numpy as np
import pytest
import torch

from retinaconf.data.ground_truth import GroundTruth, ground_truth_from_coco
from retinaconf.detections import Detections
from retinaconf.training.worst_pictures import Shown, best_boxes, from_state, gallery, outcome, worst_images

BOXES = {1: [0, 0, 10, 10], 2: [20, 0, 10, 10], 3: [40, 0, 10, 10]}  # xywh


@pytest.fixture
def truth(tmp_path: Path) -> GroundTruth:
    """Image a: two objects and a crowd region; b: three objects; c: none; d: one."""
    images = [{"id": n, "file_name": f"{name}<i>.png", "height": 60, "width": 80} for n, name in enumerate("abcd")]
    records = [(0, 1, 0), (0, 2, 0), (0, 3, 1), (1, 1, 0), (1, 2, 0), (1, 3, 0), (3, 1, 0)]
    annotations = [
        {"image_id": image, "category_id": 1 + place % 2, "bbox": BOXES[place], "iscrowd": crowd}
        for image, place, crowd in records
    ]
    categories = [{"id": 1, "name": "<b>cat"}, {"id": 2, "name": "dog"}]
    document = {"images": images, "annotations": annotations, "categories": categories}
    return ground_truth_from_coco(document, tmp_path, "case")


def table(truth: GroundTruth, *rows: tuple[int, int, int, float]) -> Detections:
    """Boxes on the places above: image, place, label, score."""
    image, place, label, score = (np.array(column) for column in zip(*rows))
    boxes = np.array([BOXES[int(one)] for one in place], dtype=np.float64)
    boxes[:, 2:] += boxes[:, :2]
    return Detections(image, label, boxes, score, classes=truth.classes, category_ids=truth.category_ids)


def test_as_many_boxes_as_objects_decide_what_is_missed(truth: GroundTruth):
    found = table(
        truth,
        *[(0, 1, 1, 0.9), (0, 2, 1, 0.8), (0, 2, 0, 0.7)],  # the second has the wrong class, and the third is too many
        *[(1, 1, 1, 0.1), (1, 1, 1, 0.3)],  # twice the same object
        (2, 1, 1, 0.9),  # on a picture without objects
    )
    best = best_boxes(found, truth)
    assert best.scores.tolist() == [0.9, 0.8, 0.1, 0.3]
    right, missed = outcome(best, truth)
    assert right.tolist() == [True, False, False, True]
    assert missed.tolist() == [False, True, False, False, True, True, True]  # the crowd region is no object to find
    assert worst_images(missed, truth) == [1, 3, 0]


def test_the_gallery_shows_both_validations_and_escapes_names(truth: GroundTruth):
    before = Shown(1, best_boxes(table(truth, (0, 1, 1, 0.9)), truth))
    now = Shown(2, best_boxes(table(truth, (0, 1, 1, 0.9), (0, 2, 0, 0.8), (1, 1, 1, 0.4)), truth))
    text = gallery([before, now], truth)
    assert re.findall("<h3>(.*?)</h3>", text) == ["b&lt;i&gt;.png", "d&lt;i&gt;.png"]
    captions = re.findall("<strong>(.*?)</strong>(.*?)</figcaption>", text)
    assert captions == [
        ("epoch 1: 3 of 3 missed", "2 dog, 1 &lt;b&gt;cat"),
        ("epoch 2: 2 of 3 missed", "1 &lt;b&gt;cat, 1 dog"),
        ("epoch 1: 1 of 1 missed", "1 dog"),
        ("epoch 2: 1 of 1 missed", "1 dog"),
    ]
    assert "<title>dog 0.40</title>" in text
    assert gallery([now._replace(boxes=best_boxes(_all(truth), truth))], truth) == "<p>No object is missed.</p>"


def _all(truth: GroundTruth) -> Detections:
    rows = np.flatnonzero(~truth.crowd)
    return Detections(truth.image_index[rows], truth.labels[rows], truth.boxes[rows], np.ones(len(rows)))


def test_what_a_checkpoint_keeps(truth: GroundTruth, tmp_path: Path):
    shown = Shown(2.5, table(truth, (0, 1, 1, 0.9), (1, 2, 0, 0.5)))
    torch.save(shown.state(), tmp_path / "state")
    again = from_state(torch.load(tmp_path / "state", weights_only=True), truth)
    assert (again.epoch, again.boxes.classes) == (2.5, truth.classes)
    for name, column in shown.boxes.columns().items():
        assert np.array_equal(column, again.boxes.columns()[name])
