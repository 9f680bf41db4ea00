import numpy as np
import pytest
import torch
from torchvision.ops import box_iou

from retinaconf.cell_anchors import CellAnchors
from retinaconf.data.anchor_iou import best_anchor_iou
from retinaconf.model.anchors import anchor_boxes, level_shapes


@pytest.mark.parametrize(
    "cell_anchors",
    [
        CellAnchors(),
        CellAnchors(whole_pixels=True),
        CellAnchors((0.3, 1.0, 4.0, 6.0), (1.5, 5.0)),
        CellAnchors((1,), (8,)),
    ],
    ids=["default", "whole pixels", "ratios and scales", "one"],
)
def test_the_best_of_all_anchors(cell_anchors: CellAnchors):
    random = np.random.default_rng(0)
    for height, width in ((32, 32), (96, 160), (320, 256), (608, 224)):
        sides = np.exp(random.uniform(0, np.log(1.5 * width), (100, 2)))
        centers = random.uniform(0, 1, (100, 2)) * [width, height]
        boxes = np.concatenate([centers - sides / 2, centers + sides / 2], axis=1).clip(0, [width, height] * 2)
        boxes = boxes[(boxes[:, 2:] > boxes[:, :2]).all(axis=1)]
        anchors = anchor_boxes(level_shapes(height, width), torch.device("cpu"), cell_anchors).double()
        expected = box_iou(anchors, torch.from_numpy(boxes)).amax(dim=0).numpy()
        got = best_anchor_iou(boxes, np.tile([[height, width]], (len(boxes), 1)), cell_anchors)
        np.testing.assert_allclose(got, expected, atol=1e-5)  # the model's anchors have single precision


def test_an_anchor_fits_itself_and_far_boxes_none():
    boxes = np.array([[64.0, 64, 96, 96], [2000, 2000, 2010, 2010]])
    got = best_anchor_iou(boxes, np.array([[160, 160], [160, 160]]), CellAnchors())
    np.testing.assert_allclose(got, [1, 0])
    assert best_anchor_iou(np.zeros((0, 4)), np.zeros((0, 2)), CellAnchors()).shape == (0,)
