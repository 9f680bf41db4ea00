"""The losses of the score that ranks against their definitions, written densely or as loops."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torchvision.ops import box_iou, generalized_box_iou

from retinaconf.config import Config
from retinaconf.inference.joint_score import product
from retinaconf.model.boxes import encode
from retinaconf.model.distances import BINS
from retinaconf.model.head import PRIOR, Head
from retinaconf.model.retinanet import Outputs
from retinaconf.training.box_loss import distribution_focal_loss
from retinaconf.training.joint_loss import class_prior, log_score, product_focal_loss, product_varifocal_loss, rank_loss
from retinaconf.training.losses import detection_losses, quality_focal_loss, varifocal_loss
from retinaconf.training.matching import IGNORED, NEGATIVE, Matches

N, A, K = 2, 50, 4


def random_case(seed: int = 0) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    class_logits = 3 * torch.randn(N, A, K, generator=generator) - 1
    quality_logits = 3 * torch.randn(N, A, generator=generator)
    labels = torch.randint(-2, K, (N, A), generator=generator)
    target = torch.rand(int((labels >= 0).sum()), generator=generator)
    return class_logits.requires_grad_(), quality_logits.requires_grad_(), labels, target


def matches_of(labels: Tensor) -> Matches:
    return Matches(labels, torch.zeros_like(labels))


LOSSES = {"quality-focal": product_focal_loss, "varifocal": product_varifocal_loss}


def dense_product_loss(
    kind: str, class_logits: Tensor, quality_logits: Tensor, labels: Tensor, target: Tensor, alpha: float, beta: float
) -> Tensor:
    """The definition in float64, with a target for every class of every anchor."""
    p = torch.sigmoid(quality_logits)[..., None] ** alpha * torch.sigmoid(class_logits) ** (1 - alpha)
    y = torch.zeros_like(p)
    image, anchor = torch.nonzero(labels >= 0, as_tuple=True)
    y[image, anchor, labels[image, anchor]] = target.to(y.dtype)
    entropy = -y * p.log() - (1 - y) * (1 - p).log()
    weight = (y - p).abs() ** beta if kind == "quality-focal" else torch.where(y > 0, y, 0.75 * p**beta)
    return (weight * entropy)[labels != IGNORED].sum()


# --- the product ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", LOSSES)
@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(("alpha", "beta"), [(0.4, 2.0), (0.4, 1.0), (0.8, 2.0), (0.1, 1.5), (0.5, 0.0)])
def test_product_loss_and_both_gradients_against_a_dense_one(seed: int, alpha: float, beta: float, kind: str) -> None:
    case = random_case(seed)
    class_logits, quality_logits, labels, target = case
    loss = LOSSES[kind](class_logits, quality_logits, matches_of(labels), target, alpha, beta)
    assert loss.dtype == torch.float32
    doubled = [tensor.detach().double().requires_grad_() for tensor in case[:2]]
    expected = dense_product_loss(kind, *doubled, *case[2:], alpha, beta)
    torch.testing.assert_close(loss.double(), expected, rtol=1e-5, atol=1e-5)
    gradients = torch.autograd.grad(3 * loss, case[:2])
    for gradient, by_definition in zip(gradients, torch.autograd.grad(3 * expected, doubled)):
        torch.testing.assert_close(gradient.double(), by_definition, rtol=1e-4, atol=1e-5)
        assert not gradient[case[2] == IGNORED].any()


@pytest.mark.parametrize("kind", LOSSES)
@pytest.mark.parametrize("labels", [torch.full((N, A), NEGATIVE), torch.full((N, A), IGNORED)])
def test_product_loss_without_positives(labels: Tensor, kind: str) -> None:
    class_logits, quality_logits, _, target = random_case()
    loss = LOSSES[kind](class_logits, quality_logits, matches_of(labels), target[:0], 0.4, 2.0)
    expected = dense_product_loss(kind, class_logits.double(), quality_logits.double(), labels, target[:0], 0.4, 2.0)
    torch.testing.assert_close(loss.double(), expected, rtol=1e-5, atol=1e-5)
    for gradient in torch.autograd.grad(loss, (class_logits, quality_logits)):
        assert gradient.any() == bool((labels == NEGATIVE).any())


EXTREMES = torch.tensor([-1e4, -200.0, -90.0, -20.0, 0.0, 20.0, 90.0, 200.0, 1e4])


@pytest.mark.parametrize("kind", LOSSES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("target", [None, 0.0, 0.5, 1.0])
def test_product_loss_of_extreme_logits_is_finite(target: float | None, dtype: torch.dtype, kind: str) -> None:
    """At positives with `target`, None: at negatives. Every pair of a large and a small class and quality."""
    class_logits, quality_logits = (grid.flatten() for grid in torch.meshgrid(EXTREMES, EXTREMES, indexing="ij"))
    class_logits = class_logits[None, :, None].to(dtype).requires_grad_()
    quality_logits = quality_logits[None].to(dtype).requires_grad_()
    labels = torch.full(quality_logits.shape, NEGATIVE if target is None else 0)
    targets = torch.zeros(0) if target is None else torch.full((labels.numel(),), target)
    loss = LOSSES[kind](class_logits, quality_logits, matches_of(labels), targets, 0.4, 2.0)
    assert torch.isfinite(loss)
    for gradient in torch.autograd.grad(loss, (class_logits, quality_logits)):
        assert gradient.dtype == dtype
        assert torch.isfinite(gradient).all()
        assert gradient.abs().max() < 200


def test_a_confident_mistake_still_has_a_gradient() -> None:
    """Where a product in float32 is 1 already, 1 - p is not yet 0; where it is 0, its log is finite."""
    for class_logit, quality_logit, target, sign in ((30.0, 30.0, 0.0, 1), (-60.0, -60.0, 1.0, -1)):
        logits = [
            torch.tensor([[[class_logit]]], requires_grad=True),
            torch.tensor([[quality_logit]], requires_grad=True),
        ]
        loss = product_focal_loss(*logits, matches_of(torch.tensor([[0]])), torch.tensor([target]), 0.4, 2.0)
        class_slope, quality_slope = (gradient.item() for gradient in torch.autograd.grad(loss, logits))
        assert sign * class_slope > 0.3
        assert sign * quality_slope > 0.3


def test_the_product_is_the_joint_score_of_inference() -> None:
    class_logits, quality_logits, _, _ = random_case()
    scores = product(0.4)(torch.sigmoid(class_logits), torch.sigmoid(quality_logits)[..., None])
    torch.testing.assert_close(log_score(class_logits, quality_logits[..., None], 0.4).exp(), scores)
    torch.testing.assert_close(log_score(class_logits, None, 0.4).exp(), torch.sigmoid(class_logits))


@pytest.mark.parametrize("alpha", [0.1, 0.4, 0.9])
def test_the_product_starts_at_the_prior(alpha: float) -> None:
    """The quality of an untrained branch is 0.5."""
    torch.manual_seed(0)
    head = Head(32, 3, 1, quality="classification")
    head.start_at(class_prior(PRIOR, alpha))
    class_logits, _, quality_logits, _ = head([torch.zeros(1, 32, 4, 4)] * 5)
    assert quality_logits is not None
    scores = log_score(class_logits, quality_logits[..., None], alpha).exp()
    torch.testing.assert_close(scores, torch.full_like(scores, 0.01), rtol=1e-4, atol=0)
    assert class_prior(0.01, 0.0) == 0.01


# --- the order of an object's boxes --------------------------------------------------------------------------------


def ranking_case(seed: int = 0, counts: tuple[int, ...] = (3, 0, 1), a: int = 60) -> tuple[Outputs, Tensor, Tensor]:
    """Objects far from each other, and anchors whose boxes lie around them; half of these are candidates."""
    generator = torch.Generator().manual_seed(seed)
    n, g = len(counts), max(counts)
    boxes, labels = torch.zeros(n, g, 4), torch.full((n, g), -1)
    for image, count in enumerate(counts):
        for row in range(count):
            boxes[image, row] = torch.tensor([200.0 * row, 0, 200.0 * row + 80, 60])
            labels[image, row] = int(torch.randint(0, K, (), generator=generator))
    anchors = torch.tensor([0.0, 0, 64, 64]).expand(a, 4) + 200 * torch.randint(0, g, (a, 1), generator=generator)
    anchors = anchors * torch.tensor([1.0, 0, 1, 0]) + torch.tensor([0.0, 0, 0, 64])
    predicted = torch.tensor([0.0, 0, 80, 60]) + anchors[:, :1] * torch.tensor([1.0, 0, 1, 0])
    predicted = predicted + 10 * torch.randn(n, a, 4, generator=generator)
    outputs = Outputs(
        torch.randn(n, a, K, generator=generator).requires_grad_(),
        encode(anchors.expand(n, a, 4), predicted).requires_grad_(),
        torch.randn(n, a, generator=generator).requires_grad_(),
        anchors,
        (a,),
    )
    return outputs, boxes, labels


def slow_rank_loss(outputs: Outputs, boxes: Tensor, labels: Tensor, alpha: float) -> Tensor:
    """All ordered pairs of each object's candidates, one after the other, in float64."""
    total = torch.zeros((), dtype=torch.float64)
    for n in range(len(labels)):
        predicted = outputs.boxes(n, torch.arange(len(outputs.anchors))).detach()
        class_scores = torch.sigmoid(outputs.class_logits[n].double())
        for box, label in zip(boxes[n], labels[n].tolist()):
            if label < 0:
                continue
            p = class_scores[:, label]
            if outputs.quality_logits is not None:
                p = torch.sigmoid(outputs.quality_logits[n].double()) ** alpha * p ** (1 - alpha)
            overlaps = box_iou(predicted, box[None])[:, 0].tolist()
            candidates = [a for a, overlap in enumerate(overlaps) if overlap >= 0.5]
            candidates = sorted(candidates, key=lambda a: p[a].item(), reverse=True)[:32]
            losses, weights = torch.zeros((), dtype=torch.float64), 0.0
            for better in candidates:
                for worse in candidates:
                    difference = overlaps[better] - overlaps[worse]
                    if difference > 0.02:
                        odds = [p[a] / (1 - p[a]) for a in (better, worse)]
                        losses = losses + difference * torch.log1p(odds[1] / odds[0])
                        weights += difference
            total = total + (losses / weights if weights else 0)
    return total


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(("alpha", "quality", "a"), [(0.4, True, 60), (0.0, False, 60), (0.6, True, 400)])
def test_rank_loss_against_a_double_loop(seed: int, alpha: float, quality: bool, a: int) -> None:
    outputs, boxes, labels = ranking_case(seed, a=a)  # of 400 anchors an object has more than 32 candidates
    if not quality:
        outputs = outputs._replace(quality_logits=None)
    loss = rank_loss(outputs, boxes, labels, alpha)
    expected = slow_rank_loss(outputs, boxes, labels, alpha)
    torch.testing.assert_close(loss.double(), expected, rtol=1e-4, atol=1e-5)
    assert loss > 1
    logits = [tensor for tensor in (outputs.class_logits, outputs.quality_logits) if tensor is not None]
    gradients = torch.autograd.grad(loss, logits, retain_graph=True)
    for gradient, by_loop in zip(gradients, torch.autograd.grad(expected, logits)):
        torch.testing.assert_close(gradient, by_loop, rtol=1e-3, atol=1e-6)
    assert torch.autograd.grad(loss, outputs.box_deltas, allow_unused=True) == (None,)


def two_candidates() -> tuple[Outputs, Tensor, Tensor]:
    """The first of two boxes fits better, by IoU 0.9 to 0.6, and has the lower score."""
    anchors = torch.tensor([[0.0, 0, 90, 100], [0.0, 0, 60, 100], [300.0, 0, 400, 100]])
    outputs = Outputs(
        torch.tensor([[[-2.0, 5.0], [1.0, -5.0], [4.0, 4.0]]], requires_grad=True),
        torch.zeros(1, 3, 4, requires_grad=True),
        torch.tensor([[0.5, 0.0, 3.0]], requires_grad=True),
        anchors,
        (3,),
    )
    return outputs, torch.tensor([[[0.0, 0, 100, 100]]]), torch.tensor([[0]])


def test_the_gradient_of_the_rank_loss_lifts_the_better_box() -> None:
    outputs, boxes, labels = two_candidates()
    loss = rank_loss(outputs, boxes, labels, 0.4)
    better, worse = (
        torch.sigmoid(torch.tensor(q)) ** 0.4 * torch.sigmoid(torch.tensor(c)) ** 0.6
        for q, c in ((0.5, -2.0), (0.0, 1.0))
    )
    assert loss.item() == pytest.approx(math.log1p(worse / (1 - worse) * (1 - better) / better), rel=1e-5)
    assert outputs.quality_logits is not None
    by_class, by_quality = torch.autograd.grad(loss, (outputs.class_logits, outputs.quality_logits))
    assert by_class[0, 0, 0] < 0 < by_class[0, 1, 0]  # a step against it lifts the first and lowers the second
    assert by_quality[0, 0] < 0 < by_quality[0, 1]
    assert not by_class[0, :, 1].any()  # of the other class
    assert not by_class[0, 2].any()  # of the box elsewhere
    assert not by_quality[0, 2].any()


@pytest.mark.parametrize("case", ["no rows", "padding only", "one candidate", "no candidate", "equal boxes"])
def test_nothing_to_rank(case: str) -> None:
    outputs, boxes, labels = two_candidates()
    if case == "no rows":
        boxes, labels = boxes[:, :0], labels[:, :0]
    elif case == "padding only":
        labels = labels - 1
    elif case == "one candidate":
        boxes = torch.tensor([[[0.0, 0, 125, 100]]])  # by which the second has IoU 0.48
    elif case == "no candidate":
        boxes = boxes + 1000
    else:
        outputs = outputs._replace(anchors=outputs.anchors[[0, 0, 0]])
    loss = rank_loss(outputs, boxes, labels, 0.4)
    assert loss == 0
    (loss + 0 * outputs.class_logits.sum()).backward()
    assert outputs.class_logits.grad is not None
    assert not outputs.class_logits.grad.any()


@pytest.mark.parametrize("logit", [1e4, -1e4])
def test_rank_loss_of_extreme_logits_is_finite(logit: float) -> None:
    outputs, boxes, labels = two_candidates()
    class_logits, quality_logits = torch.full((1, 3, 2), logit), torch.full((1, 3), logit)
    class_logits[0, 0] *= -1
    outputs = outputs._replace(
        class_logits=class_logits.requires_grad_(), quality_logits=quality_logits.requires_grad_()
    )
    loss = rank_loss(outputs, boxes, labels, 0.4)
    assert torch.isfinite(loss)
    for gradient in torch.autograd.grad(loss, (class_logits, quality_logits)):
        assert torch.isfinite(gradient).all()


# --- in the sum of all losses --------------------------------------------------------------------------------------


def a_whole_case(seed: int = 0) -> tuple[Outputs, Matches, Tensor, Tensor]:
    outputs, boxes, labels = ranking_case(seed)
    generator = torch.Generator().manual_seed(seed)
    n, a = outputs.box_deltas.shape[:2]
    positive = (torch.rand(n, a, generator=generator) < 0.3) & (labels >= 0).any(1, keepdim=True)
    row = torch.zeros(n, a, dtype=torch.int64)
    matched = torch.where(positive, labels.gather(1, row), NEGATIVE)
    alignments = torch.where(positive, torch.rand(n, a, generator=generator), 0)
    return outputs, Matches(matched, row, alignments), boxes, labels


PRODUCT = {
    "model.quality": "classification",
    "loss.joint": "product",
    "loss.rank": 0.5,
    "loss.box": "giou",
    "loss.box_weight": 2.0,
    "inference.alpha": 0.4,
}


@pytest.mark.parametrize("kind", LOSSES)
def test_the_product_replaces_class_and_quality_and_learns_the_iou(kind: str) -> None:
    outputs, matches, boxes, labels = a_whole_case()
    config = Config().changed(**PRODUCT, **{"loss.iou_score": kind})
    matches = Matches(matches.labels, matches.boxes)
    losses = detection_losses(outputs, matches, boxes, labels, config, 5.0)
    assert set(losses) == {"class", "box", "rank"}
    predicted, objects = outputs.boxes(*matches.index), matches.objects(boxes)
    overlaps = box_iou(predicted, objects).diagonal()
    assert outputs.quality_logits is not None
    expected = LOSSES[kind](outputs.class_logits, outputs.quality_logits, matches, overlaps.detach(), 0.4, 2.0)
    torch.testing.assert_close(losses["class"], expected / 5)
    assert torch.autograd.grad(losses["class"], outputs.box_deltas, allow_unused=True) == (None,)
    torch.testing.assert_close(losses["rank"], 0.5 * rank_loss(outputs, boxes, labels, 0.4) / 5)


def test_alignments_are_the_target_and_weigh_the_boxes() -> None:
    outputs, matches, boxes, labels = a_whole_case()
    config = Config().changed(**PRODUCT)
    losses = detection_losses(outputs, matches, boxes, labels, config, 5.0)
    assert matches.alignments is not None
    aligned = matches.alignments[matches.labels >= 0]
    expected = product_focal_loss(outputs.class_logits, outputs.quality_logits, matches, aligned, 0.4, 2.0)
    torch.testing.assert_close(losses["class"], expected / 5)
    predicted, objects = outputs.boxes(*matches.index), matches.objects(boxes)
    giou = 1 - generalized_box_iou(predicted, objects).diagonal()
    torch.testing.assert_close(losses["box"], 2 * (giou * aligned).sum() / 5)


@pytest.mark.parametrize(("kind", "class_loss"), [("quality-focal", quality_focal_loss), ("varifocal", varifocal_loss)])
@pytest.mark.parametrize("aligned", [False, True])
def test_a_joint_head_with_distributions(aligned: bool, kind: str, class_loss: Callable[..., Tensor]) -> None:
    """Its target is the alignment where there is one, and the distribution loss is weighed like that of the boxes."""
    outputs, matches, boxes, labels = a_whole_case()
    box_logits = torch.randn(*outputs.box_deltas.shape, BINS, generator=torch.Generator().manual_seed(2))
    outputs = outputs._replace(quality_logits=None, box_logits=box_logits)
    config = Config().changed(**{"model.class_target": "iou", "model.box": "distribution", "loss.iou_score": kind})
    weight = matches.alignments[matches.labels >= 0] if aligned else torch.ones(matches.positives)
    matches = matches if aligned else Matches(matches.labels, matches.boxes)
    losses = detection_losses(outputs, matches, boxes, labels, config, 1.0)
    assert set(losses) == {"class", "box", "distribution"}
    image, anchor = matches.index
    objects = matches.objects(boxes)
    target = weight if aligned else box_iou(outputs.boxes(image, anchor), objects).diagonal()
    torch.testing.assert_close(losses["class"], class_loss(outputs.class_logits, matches, target, 2.0))
    distribution = distribution_focal_loss(box_logits[image, anchor], outputs.anchors[anchor], objects)[:, 0]
    torch.testing.assert_close(losses["distribution"], 0.25 * (distribution * weight).sum())
    l1 = (outputs.box_deltas[image, anchor] - encode(outputs.anchors[anchor], objects)).abs().sum(1)
    torch.testing.assert_close(losses["box"], (l1 * weight).sum())


@pytest.mark.parametrize("kind", LOSSES)
@pytest.mark.parametrize("aligned", [False, True])
def test_losses_of_a_batch_are_the_sum_of_its_images(aligned: bool, kind: str) -> None:
    outputs, matches, boxes, labels = a_whole_case()
    config = Config().changed(**PRODUCT, **{"loss.iou_score": kind})

    def losses_of(rows: slice) -> dict[str, Tensor]:
        assert outputs.quality_logits is not None
        assert matches.alignments is not None
        part = outputs._replace(
            class_logits=outputs.class_logits[rows],
            box_deltas=outputs.box_deltas[rows],
            quality_logits=outputs.quality_logits[rows],
        )
        some = Matches(matches.labels[rows], matches.boxes[rows], matches.alignments[rows] if aligned else None)
        return detection_losses(part, some, boxes[rows], labels[rows], config, 1.0)

    whole = losses_of(slice(None))
    parts = [losses_of(slice(n, n + 1)) for n in range(len(labels))]
    for name, loss in whole.items():
        torch.testing.assert_close(loss, torch.stack([part[name] for part in parts]).sum())
