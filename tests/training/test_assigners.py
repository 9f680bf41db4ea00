"""Assigners against loops that follow the papers' text, one object and one anchor at a time."""

from __future__ import annotations

import statistics
from typing import Any

import pytest
import torch
from detectors import ONE_ANCHOR
from test_matching import ground_truth
from torch import Tensor
from torchvision.ops import box_iou

from retinaconf.config import Config
from retinaconf.model.anchors import anchor_boxes, level_shapes
from retinaconf.model.boxes import encode
from retinaconf.model.retinanet import Outputs
from retinaconf.training.assigners import ASSIGNERS, assigner_at, atss, task_aligned
from retinaconf.training.matching import NEGATIVE, Matches

NINE: dict[str, Any] = {}
QUALITY = {"model.quality": "classification", "inference.alpha": 0.4}
K = 4


def a_config(**changes: Any) -> Config:
    return Config().changed(**changes)


def a_network(config: Config, boxes: Tensor, labels: Tensor, size: tuple[int, int] = (128, 160), seed: int = 0):
    """What a half-trained network may say: each anchor's box lies near some object, more or less."""
    generator = torch.Generator().manual_seed(seed)
    shapes = level_shapes(*size)
    anchors = anchor_boxes(shapes, torch.device("cpu"), config.model.cell_anchors)
    per_cell = config.model.cell_anchors.count
    n, a = len(boxes), len(anchors)
    deltas = 0.3 * torch.randn(n, a, 4, generator=generator)
    if (labels >= 0).any():
        row = torch.randint(0, labels.shape[1], (n, a), generator=generator)
        near = boxes.gather(1, row[..., None].expand(-1, -1, 4)) + 4 * torch.randn(n, a, 4, generator=generator)
        near[..., 2:] = torch.maximum(near[..., 2:], near[..., :2] + 2)
        deltas = torch.where(torch.rand(n, a, 1, generator=generator) < 0.5, encode(anchors, near), deltas)
    return Outputs(
        2 * torch.randn(n, a, K, generator=generator) - 2,
        deltas,
        torch.randn(n, a, generator=generator) if config.model.quality != "none" else None,
        anchors,
        tuple(height * width * per_cell for height, width in shapes),
    )


def owners_of(claims: list[dict[int, float]], anchors: int) -> list[int]:
    """The object of each anchor, -1 for none: of those that claim it, the one with the largest IoU."""
    owners = []
    for anchor in range(anchors):
        claimants = [(claim[anchor], -g) for g, claim in enumerate(claims) if anchor in claim]
        owners.append(-max(claimants)[1] if claimants else -1)
    return owners


def is_inside(anchor: list[float], box: list[float]) -> bool:
    x, y = (anchor[0] + anchor[2]) / 2, (anchor[1] + anchor[3]) / 2
    return box[0] < x < box[2] and box[1] < y < box[3]


def slow_atss(outputs: Outputs, boxes: Tensor, per_cell: int) -> list[int]:
    """Algorithm 1 of ATSS, for the objects (G, 4) of one image; k cells, as the released code counts them."""
    anchors, claims = outputs.anchors, []
    overlaps = box_iou(anchors, boxes)
    for g, box in enumerate(boxes):
        centre = (box[:2] + box[2:]) / 2
        candidates, first = [], 0
        for size in outputs.level_sizes:
            cells = []
            for start in range(first, first + size, per_cell):
                middle = (anchors[start, :2] + anchors[start, 2:]) / 2
                cells.append((float((middle - centre).norm()), start))
            for _, start in sorted(cells)[:9]:
                candidates += range(start, start + per_cell)
            first += size
        found = [float(overlaps[a, g]) for a in candidates]
        threshold = statistics.mean(found) + statistics.stdev(found)
        claims.append(
            {
                a: overlap
                for a, overlap in zip(candidates, found)
                if overlap >= threshold and is_inside(anchors[a].tolist(), box.tolist())
            }
        )
    return owners_of(claims, len(anchors))


def slow_task_aligned(
    outputs: Outputs, image: int, boxes: Tensor, labels: Tensor, alpha: float
) -> tuple[list[int], list[float]]:
    """Section 3.2 of TOOD for one image: the owner of each anchor, and its normalised alignment."""
    anchors = outputs.anchors.tolist()
    overlaps = box_iou(outputs.boxes(image, torch.arange(len(anchors))), boxes).tolist()
    class_scores = torch.sigmoid(outputs.class_logits[image]).tolist()
    quality = None if outputs.quality_logits is None else torch.sigmoid(outputs.quality_logits[image]).tolist()
    alignment, claims = [], []
    for g, (label, box) in enumerate(zip(labels.tolist(), boxes.tolist())):
        aligned = {}
        for a in range(len(anchors)):
            if is_inside(anchors[a], box):
                score = class_scores[a][label]
                if quality is not None:
                    score = quality[a] ** alpha * score ** (1 - alpha)
                aligned[a] = score * overlaps[a][g] ** 6
        best = sorted(aligned, key=aligned.__getitem__, reverse=True)[:13]
        claims.append({a: overlaps[a][g] for a in best if aligned[a] > 0})
        alignment.append(aligned)
    owners = owners_of(claims, len(anchors))
    normalised = [0.0] * len(anchors)
    for g in range(len(labels)):
        own = [a for a, owner in enumerate(owners) if owner == g]
        largest, best_overlap = (
            max((by[b] for b in own), default=0.0) for by in (alignment[g], [row[g] for row in overlaps])
        )
        for a in own:
            normalised[a] = alignment[g][a] / largest * best_overlap
    return owners, normalised


def assert_owners(found: Matches, image: int, owners: list[int], labels: Tensor) -> None:
    owner = torch.tensor(owners)
    assert torch.equal(found.labels[image] >= 0, owner >= 0)
    assert torch.equal(found.boxes[image], owner.clamp(min=0))
    expected = torch.where(owner >= 0, labels[owner.clamp(min=0)], NEGATIVE) if len(labels) else owner
    assert torch.equal(found.labels[image], expected)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("anchors", [ONE_ANCHOR, NINE], ids=["one", "nine"])
def test_atss_against_its_algorithm_as_a_loop(anchors: dict[str, Any], seed: int) -> None:
    config = a_config(**anchors)
    boxes, labels = ground_truth([6, 1, 3, 0], seed)  # some leave the image
    outputs = a_network(config, boxes, labels)
    found = atss(outputs, boxes, labels, config)
    assert found.positives > 20
    assert found.alignments is None
    assert found.normaliser == found.positives
    for n in range(len(labels)):
        real = labels[n] >= 0
        owners = slow_atss(outputs, boxes[n, real], config.model.cell_anchors.count)
        assert_owners(found, n, owners, labels[n, real])


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(
    "changes", [ONE_ANCHOR, ONE_ANCHOR | QUALITY, QUALITY], ids=["one", "one-quality", "nine-quality"]
)
def test_task_aligned_against_its_text_as_a_loop(changes: dict[str, Any], seed: int) -> None:
    config = a_config(**changes)
    boxes, labels = ground_truth([6, 1, 3, 0], seed)
    outputs = a_network(config, boxes, labels, seed=seed)
    found = task_aligned(outputs, boxes, labels, config)
    assert found.positives > 20
    assert found.alignments is not None
    total = 0.0
    for n in range(len(labels)):
        real = labels[n] >= 0
        owners, alignments = slow_task_aligned(outputs, n, boxes[n, real], labels[n, real], config.inference.alpha)
        assert_owners(found, n, owners, labels[n, real])
        torch.testing.assert_close(found.alignments[n], torch.tensor(alignments), rtol=1e-4, atol=1e-6)
        total += sum(alignments)
    assert found.normaliser.item() == pytest.approx(total, rel=1e-4)


@pytest.mark.parametrize("name", ASSIGNERS)
@pytest.mark.parametrize("anchors", [ONE_ANCHOR, NINE], ids=["one", "nine"])
def test_a_batch_is_matched_as_its_images_one_by_one(name: str, anchors: dict[str, Any]) -> None:
    config = a_config(**anchors, **QUALITY)
    boxes, labels = ground_truth([5, 0, 2])
    outputs = a_network(config, boxes, labels)
    whole = ASSIGNERS[name](outputs, boxes, labels, config)
    for n in range(3):
        some = int((labels[n] >= 0).sum())  # without the padding, too
        alone = ASSIGNERS[name](image_of(outputs, n), boxes[n : n + 1, :some], labels[n : n + 1, :some], config)
        assert torch.equal(alone.labels[0], whole.labels[n])
        assert torch.equal(alone.boxes[0], whole.boxes[n])
        assert (alone.alignments is None) == (whole.alignments is None) == (name != "task-aligned")
        if alone.alignments is not None and whole.alignments is not None:
            assert torch.equal(alone.alignments[0], whole.alignments[n])


def image_of(outputs: Outputs, n: int) -> Outputs:
    class_logits, box_deltas, quality_logits, *rest = outputs
    assert quality_logits is not None
    return Outputs(class_logits[n : n + 1], box_deltas[n : n + 1], quality_logits[n : n + 1], *rest)


@pytest.mark.parametrize("name", ASSIGNERS)
@pytest.mark.parametrize(("n", "g"), [(1, 0), (3, 0), (2, 4)])
def test_images_without_boxes_are_all_negative(name: str, n: int, g: int) -> None:
    config = a_config(**ONE_ANCHOR)
    boxes, labels = torch.zeros(n, g, 4), torch.full((n, g), -1)
    found = ASSIGNERS[name](a_network(config, boxes, labels), boxes, labels, config)
    assert (found.labels == NEGATIVE).all()
    assert not found.boxes.any()
    assert found.normaliser == 0


@pytest.mark.parametrize("assign", [atss, task_aligned])
@pytest.mark.parametrize(
    "box",
    [[3.0, 3.0, 5.0, 5.0], [500.0, 500.0, 540.0, 540.0], [-90.0, -90.0, -10.0, -10.0]],
    ids=["between the centres", "beyond the image", "before the image"],
)
def test_an_object_with_no_centre_inside_has_no_anchor(assign: Any, box: list[float]) -> None:
    config = a_config(**ONE_ANCHOR)
    boxes, labels = torch.tensor([[box]]), torch.tensor([[1]])
    assert assign(a_network(config, boxes, labels), boxes, labels, config).positives == 0


def test_atss_has_nine_cells_a_level_where_distances_tie() -> None:
    """The object's centre is a corner of four cells: 4 are nearest, the next 8 tie for the other 5 places."""
    config = a_config()
    boxes, labels = torch.tensor([[[44.0, 36.0, 84.0, 84.0]]]), torch.tensor([[2]])  # around (64, 60): a tie on P3
    outputs = a_network(config, boxes, labels)
    found = atss(outputs, boxes, labels, config)
    assert found.positives > 0
    # A cell is a candidate with all of its anchors: its anchors of equal IoU are positive together.
    by_cell = (found.labels[0] >= 0).unflatten(0, (-1, 9))
    overlaps = box_iou(outputs.anchors, boxes[0])[:, 0].unflatten(0, (-1, 9))
    for positive, overlap in zip(by_cell, overlaps):
        if positive.any() and not positive.all():
            assert overlap[~positive].max() < overlap[positive].min()


@pytest.mark.parametrize("name", ["atss", "task-aligned"])
def test_two_objects_that_claim_an_anchor(name: str) -> None:
    """Both centres are the anchor's; it overlaps the first by 0.81, the second by 0.64. Of equals the first has it."""
    config = a_config(**ONE_ANCHOR)
    boxes = torch.tensor([[[35.2, 35.2, 92.8, 92.8], [38.4, 38.4, 89.6, 89.6]]])
    boxes = torch.stack([boxes[0], boxes[0].flip(0), boxes[0, [0, 0]]])
    labels = torch.tensor([[1, 2], [2, 1], [3, 0]])
    outputs = a_network(config, boxes, labels)
    outputs = outputs._replace(box_deltas=torch.zeros_like(outputs.box_deltas))  # each predicts its anchor
    found = ASSIGNERS[name](outputs, boxes, labels, config)
    (middle,) = torch.nonzero((outputs.anchors == torch.tensor([32.0, 32, 96, 96])).all(1))
    assert found.labels[:, middle].flatten().tolist() == [1, 1, 3]
    assert found.boxes[:, middle].flatten().tolist() == [0, 1, 0]


def test_an_object_that_loses_all_its_anchors_has_none() -> None:
    config = a_config(**ONE_ANCHOR)
    boxes, labels = torch.tensor([[[35.2, 35.2, 92.8, 92.8]]]).expand(1, 2, 4), torch.tensor([[3, 0]])
    outputs = a_network(config, boxes, labels)
    outputs = outputs._replace(class_logits=torch.zeros_like(outputs.class_logits))  # both claim the same
    found = task_aligned(outputs, boxes, labels, config)
    assert set(found.labels.unique().tolist()) == {NEGATIVE, 3}
    assert found.alignments is not None
    assert found.alignments.isfinite().all()


def test_alignment_of_a_score_of_almost_nothing() -> None:
    """Scores of 1e-27 still rank, and the largest alignment is still the largest IoU."""
    config = a_config(**ONE_ANCHOR)
    boxes, labels = ground_truth([2])
    outputs = a_network(config, boxes, labels)
    plain = task_aligned(outputs, boxes, labels, config)
    faint = task_aligned(outputs._replace(class_logits=outputs.class_logits - 60), boxes, labels, config)
    assert plain.alignments is not None
    assert faint.alignments is not None
    assert faint.alignments.max().item() == pytest.approx(plain.alignments.max().item(), rel=1e-3)


@pytest.mark.parametrize("what", ["box_deltas", "class_logits"])
@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
def test_outputs_that_are_not_finite_spoil_only_their_image_and_are_not_hidden(what: str, bad: float) -> None:
    """A loss that were finite would hide that the run has diverged: the box loss sees positives only."""
    config = a_config(**ONE_ANCHOR)
    boxes, labels = ground_truth([3, 3])
    outputs = a_network(config, boxes, labels)
    before = task_aligned(outputs, boxes, labels, config)
    spoiled = getattr(outputs, what).clone()
    spoiled[0] = bad
    outputs = outputs._replace(**{what: spoiled})
    after = task_aligned(outputs, boxes, labels, config)
    assert after.alignments is not None
    assert before.alignments is not None
    assert torch.equal(after.labels[1], before.labels[1])
    assert torch.equal(after.alignments[1], before.alignments[1])
    if what == "box_deltas" or bad != bad:
        assert not after.normaliser.isfinite()


def test_task_aligned_training_starts_with_atss() -> None:
    def names(name: str, epochs: int) -> list[str]:
        config = a_config(**{"matching.assigner": name, "schedule.epochs": epochs})
        by_function = {function: key for key, function in ASSIGNERS.items()}
        return [by_function[assigner_at(config, epoch)] for epoch in range(epochs)]

    assert names("task-aligned", 12) == ["atss"] * 4 + ["task-aligned"] * 8
    assert names("task-aligned", 2) == ["atss", "task-aligned"]
    assert names("atss", 3) == ["atss"] * 3
    assert names("max-iou", 3) == ["max-iou"] * 3
