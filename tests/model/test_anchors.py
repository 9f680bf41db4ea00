import pytest
import torch
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.image_list import ImageList

from retinaconf.cell_anchors import STRIDES, CellAnchors
from retinaconf.model.anchors import anchor_boxes, cell_boxes, level_shapes

CPU = torch.device("cpu")
DEFAULT = CellAnchors()
OCTAVE_SCALES = (1.0, 2 ** (1 / 3), 2 ** (2 / 3))


def test_cell_boxes_by_hand():
    anchors = cell_boxes(8, DEFAULT)
    assert anchors.shape == (9, 4)
    # Ratio 0.5 (wide), scale 1: area 32^2, width twice the height.
    width, height = 32 * 2**0.5, 32 / 2**0.5
    torch.testing.assert_close(anchors[0], torch.tensor([-width, -height, width, height]) / 2)
    torch.testing.assert_close(anchors[3], torch.tensor([-16.0, -16.0, 16.0, 16.0]))
    sides = anchors[:, 2:] - anchors[:, :2]
    areas = sides.prod(1).reshape(3, 3)
    torch.testing.assert_close(areas, torch.tensor([[(32 * s) ** 2 for s in OCTAVE_SCALES]] * 3))


@pytest.mark.parametrize("stride", STRIDES)
def test_the_defaults_are_those_of_version_0_1_to_the_bit(stride):
    side = 4 * stride * torch.tensor(OCTAVE_SCALES, dtype=torch.float64)
    root = torch.tensor((0.5, 1.0, 2.0), dtype=torch.float64).sqrt()
    for whole_pixels in (False, True):
        side = side.floor() if whole_pixels else side
        width, height = (side / root[:, None]).flatten(), (side * root[:, None]).flatten()
        boxes = (torch.stack([-width, -height, width, height], dim=1) / 2).float()
        assert torch.equal(
            cell_boxes(stride, CellAnchors(whole_pixels=whole_pixels)), boxes.round() if whole_pixels else boxes
        )


def test_any_ratios_and_scales_are_those_of_torchvision():
    """It takes sides in whole pixels, and rounds the corners."""
    ratios, scales = (0.25, 1.0, 3.0, 5.0), (2.0, 5.5)
    height, width = 608, 1024
    theirs = AnchorGenerator(tuple(tuple(int(scale * stride) for scale in scales) for stride in STRIDES), (ratios,) * 5)
    shapes = level_shapes(height, width)
    maps = [torch.zeros(1, 1, *shape) for shape in shapes]
    expected = theirs(ImageList(torch.zeros(1, 3, height, width), [(height, width)]), maps)[0]
    assert torch.equal(anchor_boxes(shapes, CPU, CellAnchors(ratios, scales, whole_pixels=True)), expected)
    exact = anchor_boxes(shapes, CPU, CellAnchors(ratios, scales))
    on_p3 = slice(8 * shapes[0][0] * shapes[0][1])
    assert (exact - expected)[on_p3].abs().max() <= 0.5


def test_one_square_a_cell():
    anchors = anchor_boxes(level_shapes(64, 96), CPU, CellAnchors((1.0,), (8.0,)))
    assert len(anchors) == 8 * 12 + 4 * 6 + 2 * 3 + 2 + 1
    assert anchors[1].tolist() == [8 - 32, -32, 8 + 32, 32]
    assert anchors[-1].tolist() == [-512, -512, 512, 512]


@pytest.mark.parametrize(("height", "width"), [(608, 1024), (320, 448), (32, 32), (64, 2016)])
def test_torchvision_has_the_same_anchors_up_to_its_rounding(height, width):
    shapes = level_shapes(height, width)
    ours = anchor_boxes(shapes, CPU, DEFAULT)
    sizes = tuple(tuple(4 * stride * scale for scale in OCTAVE_SCALES) for stride in STRIDES)
    theirs = AnchorGenerator(sizes, ((0.5, 1.0, 2.0),) * 5)
    maps = [torch.zeros(1, 1, *shape) for shape in shapes]
    # torchvision takes strides from the ratio of image and map, and rounds the corners of the cell anchors.
    strides = [[stride, stride] for stride in STRIDES]
    theirs.set_cell_anchors(torch.float32, CPU)
    rounded = torch.cat(theirs.grid_anchors([list(shape) for shape in shapes], torch.tensor(strides)))
    assert ours.shape == rounded.shape
    assert (ours - rounded).abs().max() <= 0.5
    exact = [cell_boxes(stride, DEFAULT) for stride in STRIDES]
    assert all(torch.equal(cell, ours_cell.round()) for cell, ours_cell in zip(theirs.cell_anchors, exact))
    if all(height % s == 0 and width % s == 0 for s in STRIDES):  # then torchvision's own strides agree too
        whole = theirs(ImageList(torch.zeros(1, 3, height, width), [(height, width)]), maps)[0]
        assert torch.equal(whole, rounded)


def test_level_shapes_are_those_of_the_convolutions():
    for height, width in [(608, 1024), (320, 448), (32, 96), (800, 1344)]:
        shape = (height, width)
        expected = []
        for stride in (8, 16, 32):
            expected.append((height // stride, width // stride))
        shape = expected[-1]
        for _ in range(2):  # P6, P7: kernel 3, stride 2, padding 1
            shape = ((shape[0] - 1) // 2 + 1, (shape[1] - 1) // 2 + 1)
            expected.append(shape)
        assert level_shapes(height, width) == tuple(expected)


def test_count_order_and_cache():
    shapes = ((2, 3), (1, 2), (1, 1), (1, 1), (1, 1))
    anchors = anchor_boxes(shapes, CPU, DEFAULT)
    assert len(anchors) == 9 * (6 + 2 + 3)
    centres = (anchors[:, :2] + anchors[:, 2:]) / 2
    torch.testing.assert_close(centres[9], torch.tensor([8.0, 0.0]))  # the second cell is to the right
    torch.testing.assert_close(centres[27], torch.tensor([0.0, 8.0]))  # the fourth below the first
    assert anchor_boxes(shapes, CPU, CellAnchors()) is anchors


def test_cached_in_inference_mode_usable_in_training():
    with torch.inference_mode():
        anchors = anchor_boxes(((1, 1), (1, 1), (1, 1), (1, 1), (1, 7)), CPU, DEFAULT)
    deltas = torch.zeros(len(anchors), 4, requires_grad=True)
    (anchors * deltas).sum().backward()
    assert deltas.grad is not None
