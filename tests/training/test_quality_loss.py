import math
from typing import get_args

import pytest
import torch
import torch.nn.functional as F

from retinaconf.config import Config, LossConfig, ModelConfig, QualityLoss
from retinaconf.model.boxes import decode, iou
from retinaconf.model.retinanet import Outputs
from retinaconf.training.losses import detection_losses
from retinaconf.training.matching import IGNORED, NEGATIVE, Matches
from retinaconf.training.quality_loss import AT_POSITIVES, BEYOND_POSITIVES, cross_entropy, gfocal, quality_loss

N, A, K, G = 3, 60, 4, 5
BEYOND = ["ce-weighted", "varifocal", "gfocal-all", "ce-near", "ce-ranked"]


def test_equations_6_to_8():
    """Gradients in the logit x: sign(h - y) h (1 - h), (h - y) h (1 - h) (of half the square), h - y."""
    x = torch.linspace(-6, 6, 25, dtype=torch.float64, requires_grad=True)
    y = torch.linspace(0, 1, 25, dtype=torch.float64)
    h = torch.sigmoid(x).detach()
    slopes = {"l1": torch.sign(h - y) * h * (1 - h), "l2": 2 * (h - y) * h * (1 - h), "ce": h - y}
    for kind, expected in slopes.items():
        (gradient,) = torch.autograd.grad(quality_loss(x, y, LossConfig(quality=kind)), x)
        torch.testing.assert_close(gradient, expected)


def test_why_cross_entropy():
    """However wrong a saturated output is, L1 and L2 no longer move it."""
    x, y = torch.tensor([15.0], requires_grad=True), torch.tensor([0.0])
    slopes = {
        kind: torch.autograd.grad(quality_loss(x, y, LossConfig(quality=kind)), x)[0].item()
        for kind in ("l1", "l2", "ce")
    }
    assert slopes["ce"] == pytest.approx(1, abs=1e-6)
    assert slopes["l1"] < 1e-6
    assert slopes["l2"] < 1e-6


def test_the_setting_names_every_loss():
    assert tuple(AT_POSITIVES) == get_args(QualityLoss)
    assert tuple(BEYOND_POSITIVES) == get_args(QualityLoss)[-len(BEYOND_POSITIVES) :]


@pytest.mark.parametrize("kind", get_args(QualityLoss))
def test_quality_losses_by_hand(kind):
    x, y = torch.tensor([math.log(3.0)], dtype=torch.float64), torch.tensor([0.5], dtype=torch.float64)  # p = 0.75
    entropy = -(0.5 * math.log(0.75) + 0.5 * math.log(0.25))
    expected = {
        "l1": 0.25,
        "smooth-l1": 0.03125,
        "l2": 0.0625,
        "gfocal": 0.0625 * entropy,
        "ce": entropy,
        "ce-weighted": entropy,
        "varifocal": 0.5 * entropy,
        "gfocal-all": 0.0625 * entropy,
        "ce-near": entropy,
        "ce-ranked": entropy,
    }
    assert quality_loss(x, y, LossConfig(quality=kind)).item() == pytest.approx(expected[kind])


def test_cross_entropy_and_gfocal_against_torch_in_both_arguments():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(50, generator=generator, dtype=torch.float64, requires_grad=True)
    y = torch.rand(50, generator=generator, dtype=torch.float64, requires_grad=True)
    torch.testing.assert_close(cross_entropy(x, y), F.binary_cross_entropy_with_logits(x, y, reduction="none"))
    assert torch.autograd.gradcheck(lambda a, b: gfocal(a, b, 2.0), (x, y))
    torch.testing.assert_close(gfocal(x, torch.sigmoid(x), 2.0), torch.zeros_like(x))  # its minimum


def network_case(seed=0, positives=True):
    """Anchors around five objects an image, the last of which is padding; a third of them positive."""
    generator = torch.Generator().manual_seed(seed)
    corner = torch.rand(G, 2, generator=generator) * 100
    objects = torch.cat([corner, corner + 30 + torch.rand(G, 2, generator=generator) * 40], dim=1)
    objects[-1] = 0
    anchors = objects[torch.randint(0, G - 1, (A,), generator=generator)]
    anchors = anchors + 8 * torch.randn(A, 4, generator=generator)
    labels = torch.randint(-2, 1, (N, A), generator=generator)
    labels = torch.where(labels >= 0, torch.randint(0, K, (N, A), generator=generator), labels)
    if not positives:
        labels = labels.clamp(max=NEGATIVE)
    outputs = Outputs(
        torch.randn(N, A, K, generator=generator).requires_grad_(),
        (0.2 * torch.randn(N, A, 4, generator=generator)).requires_grad_(),
        torch.randn(N, A, generator=generator).requires_grad_(),
        anchors,
        (A,),
    )
    matched = torch.randint(0, G - 1, (N, A), generator=generator) * (labels >= 0)
    return outputs, Matches(labels, matched), objects.expand(N, G, 4)


def quality_term(kind, outputs, matches, boxes):
    config = Config(
        model=ModelConfig(quality="classification"), loss=LossConfig(quality=kind, quality_negative_weight=0.01)
    )
    return detection_losses(outputs, matches, boxes, torch.zeros(N, G).long(), config, 1.0)["quality"]


@torch.no_grad()
def slow_term(kind, outputs, matches, boxes):
    """An anchor at a time, by the table at the head of quality_loss.py."""
    best = outputs.class_logits.detach().amax(2)
    total = torch.zeros(())
    for n in range(N):
        positives = sum(int(label) >= 0 for label in matches.labels[n])
        scores = sorted((float(best[n, a]) for a in range(A) if matches.labels[n, a] < 0), reverse=True)
        least = scores[:positives][-1] if positives else math.inf
        for a in range(A):
            predicted = decode(outputs.anchors[a], outputs.box_deltas[n, a]).detach()
            overlaps = [float(iou(predicted, box)) for box in boxes[n]]
            p = torch.sigmoid(outputs.quality_logits[n, a])

            def entropy(y, p=p):
                return -y * p.log() - (1 - y) * (1 - p).log()

            label = int(matches.labels[n, a])
            if label >= 0:
                y = overlaps[int(matches.boxes[n, a])]
                weight = {"varifocal": y, "gfocal-all": float(y - p) ** 2}.get(kind, 1)
                total = total + weight * entropy(y)
            elif kind in ("ce-near", "ce-ranked"):
                is_asked = max(overlaps) >= 0.5 if kind == "ce-near" else float(best[n, a]) >= least
                total = total + is_asked * entropy(max(overlaps))
            elif label == NEGATIVE and kind in ("ce-weighted", "varifocal", "gfocal-all"):
                weight = {"ce-weighted": 0.01, "varifocal": 0.75 * float(p) ** 2, "gfocal-all": float(p) ** 2}[kind]
                total = total + weight * entropy(0.0)
    return total


@pytest.mark.parametrize("positives", [True, False])
@pytest.mark.parametrize("kind", BEYOND)
def test_losses_beyond_positives_against_loops(kind, positives):
    outputs, matches, boxes = network_case(positives=positives)
    term = quality_term(kind, outputs, matches, boxes)
    torch.testing.assert_close(term, slow_term(kind, outputs, matches, boxes), rtol=1e-4, atol=1e-4)
    assert (term > 0) == (positives or kind != "ce-ranked")


@pytest.mark.parametrize("kind", get_args(QualityLoss))
def test_a_batch_in_parts_has_the_loss_of_the_whole(kind):
    """As `optimizer.accumulate` and several processes split it; the images have 20, 0 and 35 positives."""
    outputs, matches, boxes = network_case()
    labels = torch.where(matches.labels >= 0, NEGATIVE, matches.labels)
    for n, positives in enumerate((20, 0, 35)):
        labels[n, :positives] = 0
    matches = Matches(labels, matches.boxes * (labels >= 0))
    parts = [
        quality_term(
            kind,
            Outputs(*(part[n : n + 1] for part in outputs[:3]), outputs.anchors, outputs.level_sizes),
            Matches(matches.labels[n : n + 1], matches.boxes[n : n + 1]),
            boxes[n : n + 1],
        )
        for n in range(N)
    ]
    torch.testing.assert_close(sum(parts), quality_term(kind, outputs, matches, boxes))


@pytest.mark.parametrize("kind", BEYOND)
def test_ignored_anchors_count_only_where_their_boxes_are_asked(kind):
    outputs, matches, boxes = network_case()
    (gradient,) = torch.autograd.grad(quality_term(kind, outputs, matches, boxes), outputs.quality_logits)
    assert gradient[matches.labels == IGNORED].any() == (kind in ("ce-near", "ce-ranked"))


@pytest.mark.parametrize("kind", BEYOND)
def test_beyond_positives_no_gradient_reaches_the_boxes(kind):
    outputs, matches, boxes = network_case()
    (gradient,) = torch.autograd.grad(quality_term(kind, outputs, matches, boxes), outputs.box_deltas)
    assert not gradient[matches.labels < 0].any()
    assert gradient[matches.labels >= 0].any()


@pytest.mark.parametrize("kind", BEYOND)
@pytest.mark.parametrize("g", [0, G])
def test_a_batch_without_objects(kind, g):
    """With no ground truth at all, and with padding only."""
    outputs, matches, _ = network_case(positives=False)
    term = quality_term(kind, outputs, matches, torch.zeros(N, g, 4))
    assert torch.isfinite(term)
    assert (term > 0) == (kind in ("ce-weighted", "varifocal", "gfocal-all"))
