import pytest
import torch

from retinaconf.config import ModelConfig
from retinaconf.model.retinanet import RetinaNet

TINY = {"backbone": "resnet10t", "weights": "none", "channels": 16, "head_convs": 1}


def images(sizes, canvas, seed=0):
    torch.manual_seed(seed)
    batch = torch.zeros(len(sizes), 3, *canvas, dtype=torch.uint8)
    for n, (h, w) in enumerate(sizes):
        batch[n, :, :h, :w] = torch.randint(0, 256, (3, h, w), dtype=torch.uint8)
    return batch, torch.tensor(sizes)


def test_shapes():
    network = RetinaNet(ModelConfig(**TINY, quality="classification"), 3)
    outputs = network(*images([(64, 96), (50, 90)], (64, 96)))
    anchors = len(outputs.anchors)
    assert sum(outputs.level_sizes) == anchors == 9 * (8 * 12 + 4 * 6 + 2 * 3 + 1 * 2 + 1)
    assert outputs.class_logits.shape == (2, anchors, 3)
    assert outputs.box_deltas.shape == (2, anchors, 4)
    assert outputs.quality_logits.shape == (2, anchors)


def test_padding_is_zero_after_normalising_whatever_it_holds():
    network = RetinaNet(ModelConfig(**TINY), 3)
    batch, sizes = images([(40, 70)], (64, 96))
    noisy = batch.clone()
    noisy[:, :, 40:] = 77
    noisy[:, :, :, 70:] = 200
    normal = network.normalise(noisy, sizes)
    assert torch.equal(normal, network.normalise(batch, sizes))
    assert not normal[:, :, 40:].any()
    assert not normal[..., 70:].any()
    pixel = batch[0, :, 3, 5] / 255
    torch.testing.assert_close(normal[0, :, 3, 5], (pixel - network.mean.flatten()) / network.std.flatten())


def test_an_image_does_not_hear_of_its_neighbours():
    network = RetinaNet(ModelConfig(**TINY, quality="localization"), 3).eval()
    batch, sizes = images([(64, 96), (64, 96), (30, 40)], (64, 96))
    with torch.no_grad():
        together = network(batch, sizes)
        alone = network(batch[2:], sizes[2:])
    torch.testing.assert_close(together.class_logits[2:], alone.class_logits, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(together.quality_logits[2:], alone.quality_logits, rtol=1e-4, atol=1e-5)


def test_joint_head_excludes_a_branch():
    with pytest.raises(ValueError, match="joint score"):
        ModelConfig(**TINY, class_target="iou", quality="classification")
