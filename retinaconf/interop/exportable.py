"""A detector as one graph of tensors, the form that a runtime without this package executes."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

import numpy as np
import torch
import torch.nn.functional as F
from timm.layers.conv2d_same import Conv2dSame
from torch import Tensor, nn
from torchvision.ops import nms

from retinaconf.cell_anchors import STRIDES
from retinaconf.config import InferenceConfig
from retinaconf.evaluation.score_map import RAW_WEIGHT, ScoreMap
from retinaconf.inference.joint_score import JointScore, joint_score
from retinaconf.inference.postprocess import RULES
from retinaconf.inference.suppression import soft_nms, vote
from retinaconf.model.anchors import level_anchors
from retinaconf.model.backbone import make_plain
from retinaconf.model.boxes import decode
from retinaconf.model.retinanet import Outputs, RetinaNet

Suppress = Callable[[Tensor, Tensor, float, int], Tensor]


class RawOutputs(nn.Module):
    """The network alone: class logits, box deltas, quality logits, anchors."""

    def __init__(self, model: RetinaNet):
        super().__init__()
        self.model = _for_export(model)

    def forward(self, images: Tensor, sizes: Tensor) -> dict[str, Tensor]:
        """As `RetinaNet.forward`; `quality_logits` only with a quality branch."""
        class_logits, box_deltas, quality_logits, anchors, *_ = zip(*_levels(self.model, images, sizes))
        outputs = {"class_logits": torch.cat(class_logits, 1), "box_deltas": torch.cat(box_deltas, 1)}
        if quality_logits[0] is not None:
            outputs["quality_logits"] = torch.cat(quality_logits, 1)
        return outputs | {"anchors": torch.cat(anchors)}


class Confidence(nn.Module):
    """A score map, for K classes in the order of `category_ids`."""

    start: Tensor  # (K, segments) of each the least score
    length: Tensor  # (K, segments)
    rise: Tensor  # (K, segments) of the IoU over a segment
    first: Tensor  # (K,) the least IoU

    def __init__(self, score_map: ScoreMap, category_ids: Sequence[int]):
        super().__init__()
        curves = [score_map.by_class.get(id_, score_map.common) for id_ in category_ids]
        longest = max(len(curve.scores) for curve in curves)
        # Knots at the end, repeated, change nothing.
        scores, ious = (
            torch.tensor(np.array([np.pad(column, (0, longest - len(column)), mode="edge") for column in columns]))
            for columns in zip(*((curve.scores, curve.ious) for curve in curves))
        )
        self.register_buffer("start", scores[:, :-1].float())
        self.register_buffer("length", scores.diff(dim=1).clamp(min=1e-7).float())
        self.register_buffer("rise", ious.diff(dim=1).float())
        self.register_buffer("first", ious[:, 0].float())

    def forward(self, scores: Tensor, labels: Tensor) -> Tensor:
        """Confidences (N, D) of scores (N, D) and labels (N, D), each at least 0."""
        # The sum over the segments of how much of each lies below the score: no search, which graphs do badly.
        share = ((scores[..., None] - self.start[labels]) / self.length[labels]).clamp(0, 1)
        iou = self.first[labels] + (share * self.rise[labels]).sum(-1)
        return (1 - RAW_WEIGHT) * iou + RAW_WEIGHT * scores


class FinishedDetections(nn.Module):
    """The network with the post-processing of `retinaconf.inference.postprocess` behind it.

    The same steps, but for rules that clip after NMS, in shapes that do not depend on what is found, as a graph needs
    them: S anchors, `config.candidates` of each level, and what is not above the threshold is masked instead of left
    out.

    Args:
        model: the network.
        config: everything but alpha and the score threshold, which are inputs.
        suppress: `suppress`, or `suppress_node`.
        confidence: of a detector that is tuned.
    """

    def __init__(
        self, model: RetinaNet, config: InferenceConfig, suppress: Suppress, confidence: Confidence | None = None
    ):
        super().__init__()
        self.model = _for_export(model)
        self.config = config
        self.suppress = suppress
        self.confidence = confidence

    def forward(
        self, images: Tensor, sizes: Tensor, score_threshold: Tensor, alpha: Tensor | None = None
    ) -> dict[str, Tensor]:
        """The best D = `config.detections` boxes of each image, best first; an image with fewer has empty rows behind.

        Args:
            images: (N, 3, H, W), 0 to 255, H and W multiples of 32.
            sizes: (N, 2) int64 height and width of the part that image n fills, at the top left.
            score_threshold: () at least 0.
            alpha: () in [0, 1]; without it, the configured joint score.

        Returns:
            `counts` (N,) of rows that are not empty, `boxes` (N, D, 4) in pixels of `images`, `scores` (N, D), `labels`
            (N, D), `class_scores` (N, D) and, with a quality branch, `quality` (N, D), and of a detector that is tuned
            `confidence` (N, D). Empty rows have label -1, and zeros otherwise.
        """
        config = self.config
        joint = joint_score(config)
        if alpha is not None:
            joint = replace(joint, quality_exponent=alpha, class_exponent=1 - alpha)  # type: ignore[arg-type]
        rules = RULES[config.rules]
        image = torch.arange(images.shape[0], device=images.device)[:, None]  # (N, 1)
        levels = [_best(image, level, joint, config.candidates) for level in _levels(self.model, images, sizes)]
        logits, deltas, anchors, quality, exists = (torch.cat(parts, dim=1) for parts in zip(*levels))  # (N, S, ...)
        class_scores = torch.sigmoid(logits)
        scores = joint.of_classes(class_scores, quality if self.model.head.quality != "none" else None)
        scores = torch.where(exists[..., None], scores, -1.0)  # (N, S, K)
        # Zeros where there is nothing: a NaN in one box would reach the others by way of NMS.
        boxes = torch.where(exists[..., None], decode(anchors, deltas.float(), rules.min_log_ratio), 0.0)
        class_scores = torch.where(exists[..., None], class_scores, 0.0)
        quality = torch.where(exists, quality, 0.0)
        if rules.pairs:  # all pairs of a level's best anchors are enough to choose from: the best pairs are among them
            flat = scores.unflatten(1, (len(levels), -1)).flatten(2)  # (N, levels, C * K)
            best = flat.topk(config.candidates, dim=2)
            scores = torch.full_like(flat, -1.0).scatter(2, best.indices, best.values).view_as(scores)

        limits = sizes.flip(1).repeat(1, 2).to(boxes)  # (N, 4): width, height, width, height
        boxes = torch.minimum(boxes.clamp(min=0), limits[:, None])
        stays = (boxes[..., 2] > boxes[..., 0]) & (boxes[..., 3] > boxes[..., 1]) | rules.keep_empty
        scores = torch.where((scores > score_threshold) & stays[..., None], scores, -1.0)  # (N, S, K)
        kept = self.suppress(boxes, scores, config.nms_iou, config.detections)

        # More than there may be, so that there are always enough to take the best of.
        ranked = F.pad(kept.flatten(1), (0, config.detections), value=-1.0)
        best, pair = ranked.topk(config.detections, dim=1)
        pair = torch.where(best > 0, pair, 0)
        if config.soft_nms:  # empty rows come last, so that they change no other
            softened = soft_nms(boxes[image, pair // scores.shape[2]], best, pair % scores.shape[2])
            best, order = torch.where(softened > score_threshold, softened, -1.0).topk(config.detections, dim=1)
            pair = pair.gather(1, order)
        found = best > 0  # (N, D)
        row, label = pair // scores.shape[2], pair % scores.shape[2]
        best_boxes = boxes[image, row]  # (N, D, 4)
        if config.vote:
            best_boxes = vote(best_boxes, boxes, scores.transpose(1, 2)[image, label].clamp(min=0))
        detections = {
            "counts": found.sum(dim=1),
            "boxes": best_boxes * found[..., None],
            "scores": best * found,
            "labels": torch.where(found, label, -1),
            "class_scores": class_scores[image, row, label] * found,
        }
        if self.model.head.quality != "none":
            detections["quality"] = quality[image, row] * found
        if self.confidence is not None:
            detections["confidence"] = self.confidence(best * found, label) * found
        return detections


def suppress(boxes: Tensor, scores: Tensor, iou_threshold: float, limit: int) -> Tensor:
    """Scores (N, S, K) of boxes (N, S, 4), -1 where a better box of the image and class overlaps by more than allowed.

    Scores of 0 and less take no part. After the best `limit` of a class the caller does not look.
    """
    image, row, label = (scores > 0).nonzero(as_tuple=True)
    part = scores[image, row, label]  # (P,)
    # In float64, so that the shift which separates images and classes costs the coordinates nothing.
    shift = (image * scores.shape[2] + label) * (boxes.double().max() + 1)
    shifted = boxes[image, row].double() + shift[:, None]
    # Two empty boxes besides, which overlap nothing: torchvision declares that two boxes or more survive, and an
    # exported program insists on what was declared.
    kept = nms(F.pad(shifted, (0, 0, 0, 2)), F.pad(part.double(), (0, 2)), iou_threshold)
    survives = torch.zeros(part.shape[0] + 2, dtype=torch.bool, device=boxes.device).index_fill(0, kept, True)[:-2]
    return torch.full_like(scores, -1.0).index_put((image, row, label), torch.where(survives, part, -1.0))


# `suppress` as one node, for which ONNX has an operator: NonMaxSuppression.
suppress_node = torch.library.custom_op("retinaconf::suppress", suppress, mutates_args=())
suppress_node.register_fake(lambda boxes, scores, iou_threshold, limit: torch.empty_like(scores))


class _EvenSame(Conv2dSame):
    """TensorFlow's "same" convolution where the stride divides the sides, as it does in images of multiples of 32.

    The padding is then the same at every size; as a formula in H and W it takes the exporter hours.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Pad and convolve."""
        paddings = []
        for kernel, stride, dilation in zip(self.kernel_size, self.stride, self.dilation):
            total = max((kernel - 1) * dilation + 1 - stride, 0)
            paddings.append((total // 2, total - total // 2))
        vertical, horizontal = paddings
        x = F.pad(x, (*horizontal, *vertical))
        return F.conv2d(x, self.weight, self.bias, self.stride, 0, self.dilation, self.groups)


def _for_export(model: RetinaNet) -> RetinaNet:
    """A copy whose norms are part of its convolutions, whose paddings are numbers, and which does not learn."""
    plain = copy.deepcopy(model).eval().requires_grad_(False).to(memory_format=torch.contiguous_format)
    make_plain(plain)
    for module in plain.modules():
        if isinstance(module, Conv2dSame):
            module.__class__ = _EvenSame
    return plain.requires_grad_(False)


def _levels(model: RetinaNet, images: Tensor, sizes: Tensor) -> Iterator[Outputs]:
    """The outputs of each level, P3 ... P7.

    Level by level, since the number of all anchors is a formula in H and W that takes the exporter minutes.
    """
    features = model.fpn(model.backbone(model.normalise(images, sizes)))
    for level, (feature, stride) in enumerate(zip(features, STRIDES, strict=True)):
        anchors = level_anchors(_sides(feature), stride, _sides(images), model.cell_anchors)
        class_logits, box_deltas, quality_logits, _ = model.head([feature], level)
        yield Outputs(class_logits, box_deltas, quality_logits, anchors, (anchors.shape[0],))


def _sides(maps: Tensor) -> tuple[int, int]:
    return maps.shape[2], maps.shape[3]


def _best(
    image: Tensor, outputs: Outputs, joint: JointScore, candidates: int
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """The C = `candidates` best finite anchors of a level, in the anchors' order.

    Class logits (N, C, K), box deltas (N, C, 4), anchors (N, C, 4), quality (N, C) (0 without a branch), and whether
    there is such an anchor (N, C): a level may have fewer.
    """
    best_class = torch.sigmoid(outputs.class_logits.amax(dim=2))
    quality = None if outputs.quality_logits is None else torch.sigmoid(outputs.quality_logits)
    # Not by a maximum, as `postprocess` does it: other runtimes let a NaN get lost in one.
    finite = torch.isfinite(best_class) & torch.isfinite(outputs.box_deltas).all(dim=2)
    if quality is not None:
        finite = finite & torch.isfinite(quality)
    ranking = torch.where(finite, joint(best_class, quality), -1.0)  # (N, A_l)
    index = F.pad(ranking, (0, candidates), value=-1.0).topk(candidates, dim=1).indices.sort(dim=1).values
    exists = index < outputs.anchors.shape[0]  # (N, C)
    index = torch.where(exists, index, 0)
    deltas = outputs.box_deltas[image, index]
    chosen_quality = torch.zeros_like(deltas[..., 0]) if quality is None else quality[image, index]
    exists = exists & finite[image, index]
    return outputs.class_logits[image, index], deltas, outputs.anchors[index], chosen_quality, exists
