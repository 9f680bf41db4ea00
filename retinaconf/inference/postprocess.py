"""From the network's outputs to detections (section 3.3): rank, decode, clip, suppress, soften, vote.

The paper's code and three libraries do this alike but for details that decide which boxes come out (`RULES`). Imported
weights keep the rules of the library that trained them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import accumulate
from typing import NamedTuple

import torch
from torch import Tensor

from retinaconf.config import InferenceConfig
from retinaconf.inference.joint_score import JointScore
from retinaconf.inference.suppression import Boxes, best_first, softened, suppressed, voted
from retinaconf.model.boxes import MAX_LOG_RATIO
from retinaconf.model.retinanet import Outputs
from retinaconf.threads import in_threads

VERY_MANY = 50_000  # anchors above the threshold, from which on it pays to look at the best few hundred first
SAMPLED = 31  # one anchor of so many is looked at to guess a score; a prime is out of step with rows and cells


class Rules(NamedTuple):
    """In what one post-processing differs from another."""

    pairs: bool  # of a level the best (anchor, class) pairs are taken, not the best anchors
    clip_first: bool  # boxes are clipped before NMS, not after it
    keep_empty: bool  # boxes without width or height stay
    min_log_ratio: float  # how far a side may shrink


RULES = {
    "paper": Rules(pairs=False, clip_first=True, keep_empty=False, min_log_ratio=-MAX_LOG_RATIO),
    "mmdetection": Rules(pairs=True, clip_first=True, keep_empty=False, min_log_ratio=-MAX_LOG_RATIO),
    "torchvision": Rules(pairs=True, clip_first=True, keep_empty=True, min_log_ratio=-math.inf),
    "detectron2": Rules(pairs=True, clip_first=False, keep_empty=False, min_log_ratio=-math.inf),
}


@torch.no_grad()
def postprocess(
    outputs: Outputs,
    sizes: Tensor,
    config: InferenceConfig,
    joints: Sequence[JointScore],
    suppress: bool = True,
    thresholds: Tensor | None = None,
) -> list[list[Boxes]]:
    """Detections by joint score and image: `result[j][n]`.

    Of each level the `config.candidates` anchors with the best joint score over classes are decoded; their (anchor,
    class) pairs above the threshold are clipped to the image (`sizes` (N, 2): height, width), dropped where that
    leaves no width or height, suppressed within their class, and cut to the best `config.detections`; with
    `config.soft_nms` these take the scores of `soft_nms`, and leave where that is not above the threshold; with
    `config.vote` they become the `vote` of all pairs of their class. Ties keep the order of level, cell, anchor,
    class. Without `suppress` all pairs are given: the candidates before NMS.
    With `thresholds` (N, K), of each image and class, only the pairs above these are given.

    These are the paper's rules and MMDetection's of its time; `config.rules` chooses others. By all rules an anchor
    with an output that is not finite is left out.
    """
    rules = RULES[config.rules]
    # The sigmoid and the joint score grow with the logit, so the best class is found on logits: K times less work.
    best_class = torch.sigmoid(outputs.class_logits.amax(dim=2).float())  # (N, A)
    quality = None if outputs.quality_logits is None else torch.sigmoid(outputs.quality_logits.float())
    finite = _finite(best_class, quality, outputs.box_deltas)
    limits = sizes.flip(1).repeat(1, 2).float()  # (N, 4): width, height, width, height
    clip_now = rules.clip_first or not suppress

    @torch.no_grad()  # a thread does not inherit it
    def ranked_by(joint: JointScore) -> list[Boxes]:
        joined = quality
        if quality is not None and joint.large_levels_only:
            joined = torch.where(_of_large_level(outputs, config), quality, 1)
        ranking = joint(best_class, joined)
        if finite is not None:
            ranking = torch.where(finite, ranking, -1)  # a NaN would count as the largest
        anchors = _Anchors(outputs, quality, joint, joined, ranking, limits if clip_now else None, config)
        images = anchors.survivors_of_the_best() if suppress and thresholds is None and not config.vote else None
        if images is None:
            candidates = anchors.pairs(*anchors.best_of_levels(), thresholds)
            if config.vote or not suppress:
                candidates = [found.rows(best_first(found.scores, len(found.scores))) for found in candidates]
            images = list(map(anchors.survivors, candidates)) if suppress else candidates
        if suppress and config.soft_nms:
            images = softened(images, config.score_threshold)
        if suppress and config.vote:
            images = voted(images, candidates)
        if not clip_now:
            images = [found._replace(boxes=_clip(found.boxes, limit)) for found, limit in zip(images, limits.cpu())]
            images = [found.rows(torch.nonzero(_has_area(found.boxes)).flatten()) for found in images]
        return images

    if len(joints) == 1:  # not worth a thread
        return [ranked_by(joints[0])]
    return list(in_threads(ranked_by, joints))


class _Anchors(NamedTuple):
    """The anchors of a batch, ranked by one joint score."""

    outputs: Outputs
    quality: Tensor | None  # (N, A)
    joint: JointScore
    joined: Tensor | None  # (N, A) what the score takes for the quality: 1 where it leaves it out
    ranking: Tensor  # (N, A) joint score of the best class; -1 where an output is not finite
    limits: Tensor | None  # (N, 4) width, height, width, height, if boxes are clipped here
    config: InferenceConfig

    def best_of_levels(self) -> tuple[Tensor, Tensor]:
        """Image and anchor, (P,) each, of the `config.candidates` best of each level that pass the threshold."""
        limit, level_sizes = self.config.candidates, self.outputs.level_sizes
        chosen = self.ranking > self.config.score_threshold
        for level, passes in zip(self.ranking.split(level_sizes, dim=1), chosen.split(level_sizes, dim=1)):
            on_cpu = level.device.type == "cpu"  # a GPU would have to be waited for
            if level.shape[1] > limit and not (on_cpu and passes.sum(dim=1).max() <= limit):
                index = level.topk(limit, dim=1, sorted=False).indices
                passes &= torch.zeros_like(passes).scatter_(1, index, True)
        image, anchor = torch.nonzero(chosen, as_tuple=True)  # image by image, anchors in their order
        return image, anchor

    def pairs(self, image: Tensor, anchor: Tensor, least: Tensor | None) -> list[Boxes]:
        """By image, the pairs of (P,) anchors that are above the threshold, and above `least` (N, K or 1)."""
        outputs, rules, limits = self.outputs, RULES[self.config.rules], self.limits
        boxes = outputs.boxes(image, anchor, rules.min_log_ratio)
        # Whole rows by one index: four times as fast on a CPU as by two.
        rows = outputs.class_logits.flatten(0, 1).index_select(0, image * len(outputs.anchors) + anchor)
        class_scores = torch.sigmoid(rows.float())  # (P, K)
        quality = None if self.quality is None else self.quality[image, anchor]  # (P,)
        scores = self.joint.of_classes(class_scores, None if self.joined is None else self.joined[image, anchor])
        taken = scores > self.config.score_threshold  # (P, K)
        if rules.pairs:
            _keep_best_pairs(taken, scores, image, anchor, outputs.level_sizes, self.config.candidates)
        if least is not None:
            taken &= scores > least[image]
        if limits is not None:
            boxes = _clip(boxes, limits[image])
            if not rules.keep_empty:
                taken &= _has_area(boxes)[:, None]
        row, label = torch.nonzero(taken, as_tuple=True)
        # The rest is done on the CPU: NMS computes in float64, which Apple's GPUs do not have.
        pairs = Boxes(
            boxes.index_select(0, row).cpu(),
            scores[row, label].cpu(),
            label.cpu(),
            class_scores[row, label].cpu(),
            None if quality is None else quality[row].cpu(),
        )
        counts = image[row].cpu().bincount(minlength=len(self.ranking)).tolist()
        return [pairs.rows(slice(end - count, end)) for count, end in zip(counts, accumulate(counts))]

    def survivors(self, candidates: Boxes) -> Boxes:
        """What NMS leaves of an image's pairs."""
        return candidates.rows(suppressed(candidates, self.config.nms_iou, self.config.detections))

    def survivors_of_the_best(self) -> list[Boxes] | None:
        """What NMS leaves of each image where very many anchors pass, found among the best few hundred alone.

        Whether a box survives depends on better boxes only. None if few anchors pass, or the best are not enough.
        """
        most, few = self.config.candidates, 4 * self.config.detections
        sample = self.ranking[:, ::SAMPLED]
        passing = (sample > self.config.score_threshold).sum(dim=1) * SAMPLED
        if few > most or (passing < VERY_MANY).any():
            return None
        bar = sample.topk(-(-few // SAMPLED), dim=1).values[:, -1:]  # (N, 1)
        image, anchor = torch.nonzero(self.ranking > bar, as_tuple=True)
        if image.cpu().bincount(minlength=1).max() > most:  # of all levels, and so perhaps of one
            return None
        # Other anchors have no pair above the bar, up to rounding.
        images = list(map(self.survivors, self.pairs(image, anchor, bar * (1 + 1e-6))))
        return images if all(len(kept.scores) == self.config.detections for kept in images) else None


def _finite(best_class: Tensor, quality: Tensor | None, box_deltas: Tensor) -> Tensor | None:
    """(N, A) whether all that is said of an anchor is finite; None if that is found out faster, and all are."""
    if best_class.device.type == "cpu":  # a GPU would have to be waited for
        # Sums of products: a NaN, or an infinite number, makes them so.
        total = torch.dot(box_deltas.flatten(), box_deltas.flatten())
        total = total + (best_class.sum() if quality is None else torch.dot(best_class.flatten(), quality.flatten()))
        if total.isfinite():
            return None
    # No term is negative, and the class score and the quality are at most 1. So the sum is infinite or NaN only where a
    # term is; `amax` keeps a NaN.
    of_anchor = best_class + box_deltas.abs().amax(dim=2)
    return (of_anchor if quality is None else of_anchor + quality) < math.inf  # False for NaN


def _of_large_level(outputs: Outputs, config: InferenceConfig) -> Tensor:
    """(A,) whether an anchor's level has more anchors than are decoded."""
    sizes = torch.tensor(outputs.level_sizes, device=outputs.anchors.device)
    return (sizes > config.candidates).repeat_interleave(sizes)


def _keep_best_pairs(
    taken: Tensor, scores: Tensor, image: Tensor, anchor: Tensor, level_sizes: tuple[int, ...], limit: int
) -> None:
    """Of the `taken` (P, K) pairs of each image and level leave the `limit` with the largest `scores`, in place.

    `image` and `anchor` (P,) say where the rows come from. All pairs of the best `limit` anchors of a level are
    enough to choose from: the best `limit` pairs are among them.
    """
    ends = torch.tensor(level_sizes, device=anchor.device).cumsum(0)
    level = torch.bucketize(anchor, ends, right=True)
    group = image * len(level_sizes) + level
    for key in group.unique():
        rows = torch.nonzero(group == key).flatten()
        if int(taken[rows].sum()) > limit:
            ranked = torch.where(taken[rows], scores[rows], -1).flatten()
            best = torch.zeros_like(ranked, dtype=torch.bool)
            best[ranked.topk(limit, sorted=False).indices] = True
            taken[rows] = best.view(len(rows), -1)


def _clip(boxes: Tensor, limits: Tensor) -> Tensor:
    """Boxes (P, 4) cut at the image's border; `limits` (..., 4): its width, height, width, height."""
    return torch.minimum(boxes.clamp(min=0), limits)


def _has_area(boxes: Tensor) -> Tensor:
    """(P,) whether boxes (P, 4) have width and height."""
    return (boxes[:, 2] > boxes[:, 0]) & (boxes[:, 3] > boxes[:, 1])
