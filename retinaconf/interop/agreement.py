"""Whether an exported file gives what torch gives, on random images, near-ties aside."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from retinaconf.config import SOFT_NMS_SIGMA, InferenceConfig
from retinaconf.errors import InputError
from retinaconf.inference.detector import Detector
from retinaconf.inference.joint_score import joint_score
from retinaconf.inference.postprocess import postprocess
from retinaconf.inference.suppression import Boxes, voted
from retinaconf.model.boxes import iou

Run = Callable[[dict[str, Tensor]], dict[str, Tensor]]

# Of float32 in another order of additions, through a hundred layers; a wrong graph differs by far more.
RELATIVE = 1e-3  # of logits, deltas, scores, IoU
PIXELS = 0.05  # of boxes
PAIRS = 400  # scored above the threshold, in both images together


def check_raw(run: Run, detector: Detector, out: Path) -> str:
    """Compare the network's outputs; returns the largest difference as words.

    Raises:
        InputError: they differ.
    """
    images, sizes = _random_images()
    given = run({"images": images, "sizes": sizes})
    wanted = detector.model(images, sizes)._asdict()
    largest = 0.0
    for name, values in given.items():
        if values.shape != wanted[name].shape:
            raise _differs(out, f"{name} has the shape {tuple(values.shape)} instead of {tuple(wanted[name].shape)}")
        difference = float((values - wanted[name]).abs().max())
        if not difference <= RELATIVE * max(1.0, float(wanted[name].abs().max())):  # nor NaN
            raise _differs(out, f"{name} by up to {difference:.2g}")
        largest = max(largest, difference)
    return f"{', '.join(given)} as in torch, largest difference {largest:.1e}"


def check_detections(run: Run, detector: Detector, out: Path, with_alpha: bool) -> str:
    """Compare finished detections at a threshold low enough for hundreds; returns the largest difference as words.

    Raises:
        InputError: they differ.
    """
    images, sizes = _random_images()
    changes = {"score_threshold": 0.0} | ({"alpha": 0.5} if with_alpha else {})
    config = detector.inference_config().model_copy(update=changes)
    joint = joint_score(config)
    outputs = detector.model(images, sizes)
    (candidates,) = postprocess(outputs, sizes, config, [joint], suppress=False)
    threshold = _threshold(torch.cat([found.scores for found in candidates]))
    inputs = {"images": images, "sizes": sizes, "score_threshold": torch.tensor(threshold)}
    given = run(inputs | ({"alpha": torch.tensor(0.5)} if with_alpha else {}))
    pixels = score = 0.0
    for n, (known, count) in enumerate(zip(candidates, given["counts"].tolist())):
        quality = given["quality"][n, :count] if "quality" in given else None
        boxes, scores, labels, classes = (
            given[name][n, :count] for name in ("boxes", "scores", "labels", "class_scores")
        )
        found = Boxes(boxes, scores, labels, classes, quality)
        if detector.tuning is not None:
            ids = np.array(detector.category_ids)[labels]
            confidence = detector.tuning.score_map(ids, scores.numpy().astype(np.float64))
            difference = float(np.abs(given["confidence"][n, :count].numpy() - confidence).max(initial=0))
            if not difference <= RELATIVE:
                raise _differs(out, f"confidence by up to {difference:.2g}")
        differences = differences_from_nms(found, known, threshold, config, out)
        pixels, score = max(pixels, differences[0]), max(score, differences[1])
    total = int(given["counts"].sum())
    return f"{total} detections as in torch, largest difference {pixels:.1e} pixels, {score:.1e} in score"


def differences_from_nms(
    found: Boxes, candidates: Boxes, threshold: float, config: InferenceConfig, out: Path
) -> tuple[float, float]:
    """How far `found` is from what NMS gives of the `candidates` above a threshold, in pixels and in score.

    Rounding decides between candidates that are nearly tied, so that two right lists may differ. What greedy NMS gives
    is therefore recognised by what defines it, each up to a tolerance: it consists of candidates (with `config.vote`,
    moved by the vote); no two of these in a class overlap by more than `config.nms_iou`; and every candidate that is
    not in it is overlapped by a better one in it, or not among the best.

    With Soft-NMS a score lies between two bounds (`_softened`).

    Raises:
        InputError: `found` is something else.
    """
    voters = candidates.rows(candidates.scores > threshold)
    candidates = candidates.rows(candidates.scores > threshold * (1 - 2 * RELATIVE))
    (expected,) = voted([candidates], [voters]) if config.vote else (candidates,)  # each as it is if NMS keeps it
    same_class = found.labels[:, None] == candidates.labels
    if not same_class.any(dim=1).all():
        raise _differs(out, "detections of a class that torch does not find")
    distance = (found.boxes[:, None] - expected.boxes).abs().amax(dim=2) / PIXELS
    distance += (found.class_scores[:, None] / expected.class_scores - 1).abs() / RELATIVE
    nearest = torch.where(same_class, distance, torch.inf).argmin(dim=1) if len(found.scores) else found.labels
    pair = expected.rows(nearest)
    boxes = candidates.boxes[nearest] if config.vote else found.boxes  # as NMS has them
    scores = pair.scores if config.soft_nms else found.scores
    overlap = iou(boxes[:, None], candidates.boxes)

    lowest = highest = torch.ones_like(candidates.scores)  # share of its score that a candidate keeps
    ahead = torch.zeros_like(candidates.labels)  # how many survivors of NMS are better, at most
    if config.soft_nms:
        surely_better = same_class & (scores[:, None] > candidates.scores * (1 + RELATIVE))
        lowest, highest, ahead = _softened(candidates, surely_better, overlap, config.nms_iou)

    pixels = score = 0.0
    if len(found.scores):
        pixels = float((found.boxes - pair.boxes).abs().max())
        wanted = found.scores.clamp(pair.scores * lowest[nearest], pair.scores * highest[nearest])
        fields = [(found.scores, wanted), (found.class_scores, pair.class_scores)]
        if found.quality is not None and pair.quality is not None:
            fields.append((found.quality, pair.quality))
        score = max(float((one - other).abs().max()) for one, other in fields)
        relative = max(float(((one - other).abs() / other).max()) for one, other in fields)
        if not (pixels <= PIXELS and relative <= RELATIVE):
            raise _differs(out, f"detections by up to {pixels:.2g} pixels, {score:.2g} in score")
        among = iou(boxes[:, None], boxes) * (found.labels[:, None] == found.labels)
        if float(among.fill_diagonal_(0).max()) > config.nms_iou + RELATIVE:
            raise _differs(out, "two detections of a class overlap by more than NMS allows")
    least = float(scores.min()) if len(scores) == config.detections else threshold
    itself = (boxes[:, None] - candidates.boxes).abs().amax(dim=2) <= PIXELS  # empty boxes do not overlap even that
    covers = same_class & (scores[:, None] >= candidates.scores * (1 - RELATIVE))
    covered = (covers & (itself | (overlap > config.nms_iou - RELATIVE))).any(dim=0)
    among_the_best = (candidates.scores > least * (1 + 2 * RELATIVE)) & (ahead < config.detections)
    if (~covered & among_the_best & (candidates.scores * lowest > threshold * (1 + 2 * RELATIVE))).any():
        raise _differs(out, "detections are missing")
    return pixels, score


def _softened(
    candidates: Boxes, surely_better: Tensor, overlap: Tensor, nms_iou: float
) -> tuple[Tensor, Tensor, Tensor]:
    """The least and the largest share of its score that Soft-NMS may leave a candidate, and how many may be better.

    Scores fall by the survivors of NMS, of which some are then below the threshold and not in what was found. So a
    share lies between what all that may have survived leave and what those that were found do. `surely_better` and
    `overlap` (D, S): of what was found with the candidates.
    """
    highest = torch.exp(-(overlap**2 * surely_better).sum(dim=0) / SOFT_NMS_SIGMA)
    survives = ~(surely_better & (overlap > nms_iou + RELATIVE)).any(dim=0)  # perhaps
    better = survives[:, None] & (candidates.scores[:, None] >= candidates.scores * (1 - RELATIVE))
    ahead = better.fill_diagonal_(False).sum(dim=0)
    better &= candidates.labels[:, None] == candidates.labels
    overlaps = iou(candidates.boxes[:, None], candidates.boxes)
    return torch.exp(-(overlaps**2 * better).sum(dim=0) / SOFT_NMS_SIGMA), highest, ahead


def _threshold(scores: Tensor) -> float:
    """A score that some PAIRS of `scores` exceed, in a wide gap, so that rounding does not decide which those are."""
    ranked = scores.sort(descending=True).values[PAIRS // 2 : PAIRS + 1]
    if len(ranked) < 2:
        return 0.0
    gap = int((ranked[:-1] / ranked[1:]).argmax())
    return float(ranked[gap : gap + 2].mean())


def _random_images() -> tuple[Tensor, Tensor]:
    """Two images of different sizes; P3 has more anchors than are decoded."""
    generator = torch.Generator().manual_seed(0)
    return torch.rand(2, 3, 128, 160, generator=generator) * 255, torch.tensor([[128, 160], [100, 130]])


def _differs(out: Path, what: str) -> InputError:
    return InputError(f"{out}: not written, the exported file differs from torch ({what}); please report this as a bug")
