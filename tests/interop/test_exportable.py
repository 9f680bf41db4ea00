import math

import numpy as np
import pytest
import torch
from timm.layers.conv2d_same import Conv2dSame

from retinaconf.config import InferenceConfig
from retinaconf.evaluation.score_map import Curve, ScoreMap
from retinaconf.inference.joint_score import joint_score
from retinaconf.inference.postprocess import postprocess
from retinaconf.interop import exportable
from retinaconf.interop.exportable import Confidence, FinishedDetections, RawOutputs, _EvenSame, suppress
from retinaconf.model.retinanet import Outputs, RetinaNet


def test_confidence_as_a_graph_is_the_score_map():
    """Curves of unlike lengths, of one knot, and with two knots at the same score."""
    rng = np.random.default_rng(0)
    curves = {7: Curve(np.sort(rng.random(40)), np.sort(rng.random(40))), 3: Curve(np.array([0.4]), np.array([0.6]))}
    common = Curve(np.array([0.2, 0.5, 0.5, 0.9]), np.array([0.0, 0.1, 0.7, 0.8]))
    score_map = ScoreMap(common, curves, {3: "a", 7: "b", 9: "c"})
    scores, labels = rng.random((2, 500)).astype(np.float32), rng.integers(0, 3, (2, 500))
    given = Confidence(score_map, [7, 9, 3])(torch.from_numpy(scores), torch.from_numpy(labels))
    expected = score_map(np.array([7, 9, 3])[labels.ravel()], scores.ravel().astype(np.float64))
    np.testing.assert_allclose(given.numpy().ravel(), expected, atol=1e-5)


@pytest.mark.parametrize("kernel", [3, 5])
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("size", [(2, 4), (32, 64), (160, 96)], ids=str)
def test_padding_as_numbers_is_same_padding_where_the_stride_divides(kernel, stride, size):
    """timm computes the padding from the image's sides; these are multiples of 32, so that the stride divides them."""
    conv = Conv2dSame(3, 6, kernel, stride=stride, groups=3)
    x = torch.randn(2, 3, *size, generator=torch.Generator().manual_seed(0))
    expected = conv(x)
    conv.__class__ = _EvenSame
    torch.testing.assert_close(conv(x), expected, rtol=0, atol=0)


@pytest.mark.parametrize(("quality", "alpha"), [("none", 0.0), ("classification", 0.4)])
def test_raw_outputs_are_the_network_s_with_norms_folded(tiny_config, quality, alpha):
    """Level by level, at several sizes; the network keeps its norms."""
    torch.manual_seed(0)
    model = RetinaNet(tiny_config(**{"model.quality": quality, "inference.alpha": alpha}).model, 3).eval()
    for name, values in model.named_buffers():
        if name.endswith("running_mean"):
            values.normal_()
        elif name.endswith("running_var"):
            values.uniform_(0.5, 2)
    raw = RawOutputs(model)
    for shape in ((1, 3, 32, 32), (3, 3, 128, 64), (2, 3, 160, 288)):
        images, sizes = torch.rand(shape) * 255, torch.tensor([[20, 30]] * shape[0])
        with torch.inference_mode():
            found, wanted = raw(images, sizes), model(images, sizes)
        named = ("class_logits", "box_deltas", "quality_logits", "anchors")
        assert list(found) == [name for name in named if getattr(wanted, name) is not None]
        for name, values in found.items():
            torch.testing.assert_close(values, getattr(wanted, name), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("soft", [False, True])
@pytest.mark.parametrize("vote", [False, True])
@pytest.mark.parametrize("rules", ["paper", "mmdetection", "torchvision"])
def test_anchors_that_are_not_finite_are_left_out_as_by_torch(tiny_config, monkeypatch, rules, vote, soft):
    config = InferenceConfig(rules=rules, candidates=200, detections=1000, alpha=0.4, vote=vote, soft_nms=soft)
    model, images = RetinaNet(tiny_config().model, 3).eval(), torch.rand(2, 3, 64, 96) * 255
    sizes = torch.tensor([[64, 96], [60, 90]])
    with torch.no_grad():
        outputs = model(images, sizes)
        for values in (outputs.class_logits, outputs.box_deltas, outputs.quality_logits):
            values.copy_(torch.randn(values.shape, generator=torch.Generator().manual_seed(0)) - 1)
        outputs.class_logits[0, [7, 9]] = outputs.class_logits[1, 3] = 3.0  # among the best
        outputs.class_logits[0, 5, 1] = outputs.quality_logits[0, 9] = math.nan
        outputs.box_deltas[0, 7, 2] = math.nan
        outputs.box_deltas[1, 3, 0] = math.inf
    columns = [outputs.class_logits, outputs.box_deltas, outputs.quality_logits]
    levels = [
        Outputs(*level[:3], level[3][0], (level[3].shape[1],))
        for level in zip(*(column.split(outputs.level_sizes, 1) for column in [*columns, outputs.anchors[None]]))
    ]
    monkeypatch.setattr(exportable, "_levels", lambda *given: levels)
    found = FinishedDetections(model, config, suppress)(images, sizes, torch.tensor(config.score_threshold))
    (wanted,) = postprocess(outputs, sizes, config, [joint_score(config)])
    for n, expected in enumerate(wanted):
        count = len(expected.scores)
        assert found["counts"][n] == count > 50
        for name, values in expected._asdict().items():
            torch.testing.assert_close(found[name][n, :count], values, rtol=1e-5, atol=1e-4 * vote)
            assert (found[name][n, count:] == (-1 if name == "labels" else 0)).all()


@pytest.mark.parametrize("soft", [False, True])
@pytest.mark.parametrize("vote", [False, True])
def test_an_image_whose_outputs_are_not_finite_has_empty_rows(tiny_config, monkeypatch, vote, soft):
    config = InferenceConfig(candidates=20, detections=30, alpha=0.4, vote=vote, soft_nms=soft)
    generator = torch.Generator().manual_seed(0)
    shapes = {"class_logits": (2, 90, 3), "box_deltas": (2, 90, 4), "quality_logits": (2, 90)}
    columns = {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}
    for values in columns.values():
        values[1] = math.nan
    corner = torch.rand(90, 2, generator=generator) * 50
    outputs = Outputs(**columns, anchors=torch.cat([corner, corner + 20], 1), level_sizes=(90,))
    monkeypatch.setattr(exportable, "_levels", lambda *given: [outputs])
    detector = FinishedDetections(RetinaNet(tiny_config().model, 3).eval(), config, suppress)
    found = detector(torch.zeros(2, 3, 64, 96), torch.tensor([[64, 96]] * 2), torch.tensor(config.score_threshold))
    assert found.pop("counts").tolist() == [int((found["labels"][0] >= 0).sum()), 0]
    assert (found.pop("labels")[1] == -1).all()
    for values in found.values():
        assert torch.isfinite(values).all()
        assert not values[1].any()
