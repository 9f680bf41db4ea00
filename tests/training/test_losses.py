import pytest
import torch
import torch.nn.functional as F
from torchvision.ops import sigmoid_focal_loss

from retinaconf.config import Config, LossConfig, ModelConfig
from retinaconf.model.boxes import decode, encode, iou
from retinaconf.model.retinanet import Outputs
from retinaconf.training.losses import (
    detection_losses,
    focal_loss,
    quality_focal_loss,
    varifocal_loss,
)
from retinaconf.training.matching import IGNORED, NEGATIVE, Matches

N, A, K = 3, 40, 5


def random_case(seed=0):
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(N, A, K, generator=generator) * 3
    labels = torch.randint(-2, K, (N, A), generator=generator)
    return logits.requires_grad_(), labels


def matches_of(labels):
    return Matches(labels, torch.zeros_like(labels))


def one_hot(labels):
    return F.one_hot(labels.clamp(min=0), K).float() * (labels >= 0)[..., None]


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("gamma", [0.0, 1.5, 2.0])
def test_focal_loss_and_gradient_are_torchvisions(seed, gamma):
    logits, labels = random_case(seed)
    loss = focal_loss(logits, matches_of(labels), 0.25, gamma)
    theirs = (sigmoid_focal_loss(logits, one_hot(labels), 0.25, gamma) * (labels != IGNORED)[..., None]).sum()
    torch.testing.assert_close(loss, theirs)
    (gradient,) = torch.autograd.grad(loss, logits)
    (expected,) = torch.autograd.grad(theirs, logits)
    torch.testing.assert_close(gradient, expected, rtol=1e-4, atol=1e-6)


def test_parts_give_the_same_gradient_to_the_bit(monkeypatch):
    logits = (torch.randn(2, 500, 9) * 3).requires_grad_()
    labels = torch.randint(-2, 9, (2, 500))

    def loss_and_gradient(at_once):
        monkeypatch.setattr("retinaconf.training.losses.ENTRIES_AT_ONCE", at_once)
        loss = focal_loss(logits, matches_of(labels), 0.25, 2.0)
        return loss, torch.autograd.grad(loss, logits)[0]

    whole, part = loss_and_gradient(1 << 18), loss_and_gradient(1)
    torch.testing.assert_close(part[0], whole[0])
    assert torch.equal(part[1], whole[1])


def test_the_gradient_of_the_class_logits_is_made_once():
    """Not once more for each reading of the logits at the positives: a tensor of all classes of all anchors each."""
    logits = torch.randn(2, 50, 7, requires_grad=True)
    labels = torch.randint(-2, 7, (2, 50))
    matches = Matches(labels, torch.zeros_like(labels))
    for loss in (
        focal_loss(logits, matches, 0.25, 2.0),
        quality_focal_loss(logits, matches, torch.rand(matches.positives), 2.0),
        varifocal_loss(logits, matches, torch.rand(matches.positives), 2.0),
    ):
        with torch.profiler.profile() as profile:
            loss.backward()
        names = [event.name for event in profile.events() if event.name.startswith("autograd::engine::evaluate")]
        assert sum("Index" in name for name in names) == 0


@pytest.mark.parametrize("of_class", [quality_focal_loss, varifocal_loss])
@pytest.mark.parametrize("beta", [1.0, 2.0])
def test_losses_of_a_class_score_that_learns_the_iou_against_their_definitions(beta, of_class):
    logits, labels = random_case()
    quality = torch.rand(int((labels >= 0).sum()), generator=torch.Generator().manual_seed(1))
    loss = of_class(logits, matches_of(labels), quality, beta)
    target = one_hot(labels)
    target[labels >= 0] *= quality[:, None]
    p = torch.sigmoid(logits)
    by_distance = (target - p).abs() ** beta
    weight = by_distance if of_class is quality_focal_loss else torch.where(target > 0, target, 0.75 * p**beta)
    terms = weight * F.binary_cross_entropy(p, target, reduction="none")
    expected = (terms * (labels != IGNORED)[..., None]).sum()
    torch.testing.assert_close(loss, expected, rtol=1e-4, atol=1e-4)
    (gradient,) = torch.autograd.grad(loss, logits, retain_graph=True)
    (by_definition,) = torch.autograd.grad(expected, logits)
    torch.testing.assert_close(gradient, by_definition, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("labels", [torch.full((N, A), NEGATIVE), torch.full((N, A), IGNORED)])
def test_no_positives(labels):
    logits = random_case()[0]
    loss = focal_loss(logits, matches_of(labels), 0.25, 2.0)
    (gradient,) = torch.autograd.grad(loss, logits)
    assert torch.isfinite(loss)
    assert gradient.any() == bool((labels == NEGATIVE).any())


def test_extreme_logits_stay_finite():
    logits = torch.tensor([[[-1e4, 1e4], [1e4, -1e4], [200.0, -200.0]]], requires_grad=True)
    for labels in ([[0, 1, NEGATIVE]], [[1, 0, 0]]):
        loss = focal_loss(logits, matches_of(torch.tensor(labels)), 0.25, 2.0)
        (gradient,) = torch.autograd.grad(loss, logits)
        assert torch.isfinite(loss)
        assert torch.isfinite(gradient).all()


def network_case(seed=0, quality=True):
    generator = torch.Generator().manual_seed(seed)
    corner = torch.rand(A, 2, generator=generator) * 100
    anchors = torch.cat([corner, corner + 20 + torch.rand(A, 2, generator=generator) * 60], dim=1)
    boxes = (anchors[:4] + torch.randn(4, 4, generator=generator)).expand(N, 4, 4)
    labels = torch.randint(-2, K, (N, A), generator=generator)
    matches = Matches(labels, torch.randint(0, 4, (N, A), generator=generator) * (labels >= 0))
    outputs = Outputs(
        torch.randn(N, A, K, generator=generator).requires_grad_(),
        (0.2 * torch.randn(N, A, 4, generator=generator)).requires_grad_(),
        torch.randn(N, A, generator=generator).requires_grad_() if quality else None,
        anchors,
        (A,),
    )
    return outputs, matches, boxes


def the_losses(outputs, matches, boxes, model, loss=None, normaliser=1.0, **settings):
    config = Config(model=ModelConfig(**model), loss=LossConfig(**(loss or {})), **settings)
    return detection_losses(outputs, matches, boxes, torch.zeros(boxes.shape[:2]).long(), config, normaliser)


def slow_losses(outputs, matches, boxes, weight=0.0):
    """Equations (5) and (9), an anchor at a time."""
    box = quality = 0.0
    for n in range(N):
        for a in range(A):
            label = int(matches.labels[n, a])
            if label >= 0:
                target = boxes[n, matches.boxes[n, a]]
                delta = outputs.box_deltas[n, a]
                box = box + (delta - encode(outputs.anchors[a], target)).abs().sum()
                y = iou(decode(outputs.anchors[a], delta), target)
                p = torch.sigmoid(outputs.quality_logits[n, a])
                quality = quality - y * p.log() - (1 - y) * (1 - p).log()
            elif label == NEGATIVE:
                quality = quality - weight * (1 - torch.sigmoid(outputs.quality_logits[n, a])).log()
    return box, quality


@pytest.mark.parametrize(("kind", "weight"), [("ce", 0.0), ("ce-weighted", 1e-3)])
def test_box_and_quality_losses_against_loops(kind, weight):
    outputs, matches, boxes = network_case()
    config = {"quality": kind, "quality_negative_weight": weight}
    losses = the_losses(outputs, matches, boxes, {"quality": "classification"}, config, 7.0)
    box, quality = slow_losses(outputs, matches, boxes, weight)
    torch.testing.assert_close(losses["box"], box / 7)
    torch.testing.assert_close(losses["quality"], quality / 7)
    torch.testing.assert_close(losses["class"], focal_loss(outputs.class_logits, matches, 0.25, 2.0) / 7)


def test_the_box_branch_hears_of_the_quality_loss_unless_detached():
    """With target y a positive with logit z gives the boxes -z dIoU."""
    for detach in (False, True):
        outputs, matches, boxes = network_case()
        config = {"detach_quality_target": detach}
        losses = the_losses(outputs, matches, boxes, {"quality": "classification"}, config)
        (gradient,) = torch.autograd.grad(losses["quality"], outputs.box_deltas, allow_unused=True)
        if detach:
            assert gradient is None
            continue
        image, anchor = torch.nonzero(matches.labels >= 0, as_tuple=True)
        overlap = iou(
            decode(outputs.anchors[anchor], outputs.box_deltas[image, anchor]),
            boxes[image, matches.boxes[image, anchor]],
        )
        z = outputs.quality_logits[image, anchor].detach()
        (expected,) = torch.autograd.grad((-z * overlap).sum(), outputs.box_deltas)
        torch.testing.assert_close(gradient, expected)


def test_joint_head_learns_the_iou_and_sends_no_gradient_through_it():
    outputs, matches, boxes = network_case(quality=False)
    losses = the_losses(outputs, matches, boxes, {"class_target": "iou"})
    image, anchor = torch.nonzero(matches.labels >= 0, as_tuple=True)
    overlap = iou(
        decode(outputs.anchors[anchor], outputs.box_deltas[image, anchor]), boxes[image, matches.boxes[image, anchor]]
    )
    expected = quality_focal_loss(outputs.class_logits, matches, overlap.detach(), 2.0)
    torch.testing.assert_close(losses["class"], expected)
    assert set(losses) == {"class", "box"}
    assert torch.autograd.grad(losses["class"], outputs.box_deltas, allow_unused=True)[0] is None


@pytest.mark.parametrize("g", [0, 2])
def test_batch_without_any_positive_is_finite_and_in_the_graph(g):
    outputs, _, _ = network_case()
    matches = Matches(torch.full((N, A), NEGATIVE), torch.zeros(N, A, dtype=torch.int64))
    losses = the_losses(outputs, matches, torch.zeros(N, g, 4), {"quality": "localization"})
    sum(losses.values()).backward()
    assert losses["box"] == losses["quality"] == 0
    assert torch.isfinite(losses["class"])
    assert not outputs.box_deltas.grad.any()


def test_losses_are_float32_under_half_precision():
    outputs, matches, boxes = network_case()
    half = outputs._replace(
        class_logits=outputs.class_logits.bfloat16(),
        box_deltas=outputs.box_deltas.bfloat16(),
        quality_logits=outputs.quality_logits.bfloat16(),
    )
    model = {"quality": "classification"}
    losses = the_losses(half, matches, boxes, model)
    whole = Outputs(*(t.float() if isinstance(t, torch.Tensor) else t for t in half))
    exact = the_losses(whole, matches, boxes, model)
    for name, loss in losses.items():
        assert loss.dtype == torch.float32
        torch.testing.assert_close(loss, exact[name], rtol=1e-6, atol=1e-6)
