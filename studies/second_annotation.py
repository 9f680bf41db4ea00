"""What would a second annotator's box of every object be worth as its quality?

    python studies/second_annotation.py --data ROOT [RUN ...] [--json FILE]

A perfect quality, the IoU with the very box that evaluation compares with, knows more than any network can: where the
annotator's hand has been. Some fields of BCCD were photographed twice, shifted, and annotated twice by chance. Such
pairs are found by their pixels (circular correlation of thumbnails, then the correlation of the shared part at full
size), and their boxes compared where both photographs show them:

- Splits: photographs of each that show a field of another split, too.
- Agreement: objects in both annotations, by class; the IoU of their two boxes; objects in one annotation only.
- Of the RUNs, on the photographs that are not in `train`: what the joint score, equation (11), adds to AP when the
  quality of a box is its IoU with the first annotation (perfect; it is also what AP is computed with), with the second
  (an object as another person saw it, without the first one's hand), or what a RUN's quality branch says; the mean over
  RUNs.
- The order of each object's boxes, its best 50 by the class score: of two of them, how often the better one by the
  first annotation is ranked higher by the class score, the branch, the RUN's joint score, or the IoU with the second
  annotation; the mean over objects.

The second is no bound: it has a hand of its own, and a network that learned from many annotations may know an object's
box better than one person drew it.

AP is of the objects annotated twice; boxes outside the shared part, and boxes on an object annotated once, take no
part. Intervals are over a bootstrap of the photographs, 95%.
"""

from __future__ import annotations

import argparse
import json
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from torchvision.ops import box_iou

from retinaconf.data.ground_truth import GroundTruth
from retinaconf.data.layouts import find_layout, load_split
from retinaconf.detections import Detections
from retinaconf.diagnosis.measures.correlation import rank_correlation
from retinaconf.diagnosis.measures.post_processing import PostProcessing
from retinaconf.diagnosis.measures.task_alignment import best_of_objects
from retinaconf.evaluation.average_precision import curve_of, image_draws
from retinaconf.evaluation.compare import DRAWS, bootstrap_ap
from retinaconf.evaluation.overlaps import best_overlaps
from retinaconf.files import write_aside
from retinaconf.inference.detector import Detector, load
from retinaconf.paper.quality_statistics import ALPHAS, USES, class_ranked, detections_by_use

THUMBNAIL = 8  # times smaller
ALIKE = 0.45  # circular correlation of thumbnails from which a pair is looked at in full
LIKELY = 0.7  # correlation of the shared parts, found on every fourth pixel, from which each pixel is looked at
SAME = 0.9  # then; in BCCD nothing lies between 0.73 and 0.92
SHARED = 0.5  # least share of each side
MARGIN = 3  # pixels that an object keeps from the edge of the shared part
QUALITIES = ("first annotation", "second annotation", "branch")
MATCHED = 0.3  # IoU of two boxes of one object; by chance neighbours reach less


class Photograph(NamedTuple):
    split: str
    truth: GroundTruth
    row: int  # of the image in `truth`

    @property
    def name(self) -> str:
        return str(self.truth.file_names[self.row])

    def grey(self) -> np.ndarray:
        """(H, W) uint8."""
        return np.asarray(Image.open(self.truth.path(self.row)).convert("L"))

    def objects(self) -> tuple[np.ndarray, np.ndarray]:
        """Boxes (G, 4) and labels (G,)."""
        rows = slice(*self.truth.offsets[self.row : self.row + 2])
        return self.truth.boxes[rows], self.truth.labels[rows]


class Pair(NamedTuple):
    """Two photographs of one field: what is at (y, x) of `a` is at (y, x) + `shift` of `b`."""

    a: Photograph
    b: Photograph
    shift: tuple[int, int]
    correlation: float

    def turned(self) -> Pair:
        return Pair(self.b, self.a, (-self.shift[0], -self.shift[1]), self.correlation)

    def shared(self) -> np.ndarray:
        """The part of `a` that `b` shows, too: x0, y0, x1, y1."""
        (height, width), (dy, dx) = self.a.truth.image_sizes[self.a.row], self.shift
        return np.array([max(0, -dx), max(0, -dy), min(width, width - dx), min(height, height - dy)])

    def second(self) -> np.ndarray:
        """The boxes of `b` in the frame of `a`, (G, 4)."""
        dy, dx = self.shift
        return self.b.objects()[0] - [dx, dy, dx, dy]

    def twice(self) -> list[tuple[int, int, float]]:
        """Objects of both annotations: rows of a and of b, and the IoU of their boxes; each other's best."""
        boxes, others = self.a.objects()[0], self.second()
        overlap = box_iou(torch.from_numpy(boxes), torch.from_numpy(others)).numpy()
        found = []
        for row in np.flatnonzero(self.inside(boxes)):
            best = int(overlap[row].argmax()) if len(others) else -1
            if best >= 0 and overlap[row, best] >= MATCHED and overlap[:, best].argmax() == row:
                found.append((int(row), best, float(overlap[row, best])))
        return found

    def inside(self, boxes: np.ndarray) -> np.ndarray:
        """(G,) whether boxes in the frame of `a` are whole in both photographs."""
        low, high = self.shared()[:2] + MARGIN, self.shared()[2:] - MARGIN
        return np.asarray((boxes[:, :2] >= low).all(1) & (boxes[:, 2:] <= high).all(1))


def photographs_of(root: Path) -> list[Photograph]:
    """All photographs of a data set, split by split."""
    found = []
    for split in find_layout(root).splits(root):
        truth = load_split(root, split)
        found += [Photograph(split, truth, row) for row in range(len(truth))]
    return found


def not_trained_on(found: list[Pair]) -> list[Pair]:
    """The pairs, either side first, whose first photograph is not in train and has objects annotated twice."""
    return [side for pair in found for side in (pair, pair.turned()) if side.a.split != "train" and side.twice()]


def pairs(photographs: list[Photograph]) -> list[Pair]:
    """Photographs of equal size that show the same field."""
    greys = [photograph.grey() for photograph in photographs]
    small = [_thumbnail(grey) for grey in greys]
    found = []
    for first, photograph in enumerate(photographs):
        for second in range(first + 1, len(photographs)):
            if small[second].shape != small[first].shape:
                continue
            height, width = small[first].shape[0], 2 * (small[first].shape[1] - 1)
            circular = np.fft.irfft2(small[second] * small[first].conj(), s=(height, width))
            dy, dx = np.unravel_index(circular.argmax(), circular.shape)
            if circular[dy, dx] < ALIKE:
                continue
            near = (_signed(int(dy), height) * THUMBNAIL, _signed(int(dx), width) * THUMBNAIL)
            shift, correlation = _aligned(greys[first], greys[second], near)
            if correlation >= SAME:
                found.append(Pair(photograph, photographs[second], shift, correlation))
    return found


def _thumbnail(grey: np.ndarray) -> np.ndarray:
    """Its real Fourier transform; mean 0, length 1."""
    height, width = (side // THUMBNAIL // 2 * 2 for side in grey.shape)
    small = np.asarray(Image.fromarray(grey.astype(np.float32)).resize((width, height), Image.Resampling.BOX))
    small = small - small.mean()
    transformed: np.ndarray = np.fft.rfft2(small / max(np.linalg.norm(small), 1e-9))
    return transformed


def _signed(shift: int, length: int) -> int:
    return shift if shift < length // 2 else shift - length


def _aligned(a: np.ndarray, b: np.ndarray, near: tuple[int, int]) -> tuple[tuple[int, int], float]:
    """The shift about `near` at which the shared parts correlate best: on every fourth pixel first, then to one."""
    best, correlation = near, -1.0
    for step, reach in ((4, 3), (1, 4)):
        (y, x), correlation = best, -1.0
        for dy in range(y - step * reach, y + step * reach + 1, step):
            for dx in range(x - step * reach, x + step * reach + 1, step):
                here = _correlation(a, b, dy, dx, step)
                if here > correlation:
                    best, correlation = (dy, dx), here
        if correlation < LIKELY:
            break
    return best, correlation


def _correlation(a: np.ndarray, b: np.ndarray, dy: int, dx: int, step: int) -> float:
    height, width = a.shape[0] - abs(dy), a.shape[1] - abs(dx)
    if height < SHARED * a.shape[0] or width < SHARED * a.shape[1]:
        return -1.0
    ours = a[max(0, -dy) :, max(0, -dx) :][:height:step, :width:step]
    theirs = b[max(0, dy) :, max(0, dx) :][:height:step, :width:step]
    ours, theirs = ours - ours.mean(), theirs - theirs.mean()
    return float((ours * theirs).sum() / max(np.sqrt((ours**2).sum() * (theirs**2).sum()), 1e-9))


def agreement(found: list[Pair], classes: tuple[str, ...]) -> dict[str, Any]:
    """By class the IoUs of two annotations of one object, and how many objects have one only."""
    overlaps: dict[str, list[float]] = {name: [] for name in classes}
    once = other_class = 0
    for pair in found:
        twice = pair.twice()
        (_, labels), (_, others) = pair.a.objects(), pair.b.objects()
        for row, other, overlap in twice:
            if labels[row] == others[other]:
                overlaps[classes[labels[row]]].append(round(overlap, 4))
            else:
                other_class += 1
        once += int(pair.inside(pair.a.objects()[0]).sum()) - len(twice)
        once += int(pair.inside(pair.second()).sum()) - len(twice)
    return {"iou": overlaps, "other_class": other_class, "once": once}


def across_splits(found: list[Pair]) -> dict[str, int]:
    """How many photographs of each split show a field that another split shows, too."""
    sides = {
        (side.a.split, side.a.name) for pair in found if pair.a.split != pair.b.split for side in (pair, pair.turned())
    }
    return dict(Counter(split for split, _ in sorted(sides)))


class Worth(NamedTuple):
    """What qualities are worth to one detector."""

    average_precision: float  # by the class score
    gains: dict[str, dict[str, list[np.ndarray]]]  # by quality, use and alpha: (1 + B,), on all photographs and draws
    concordance: dict[str, list[float]]  # of what ranks an object's boxes: the mean over objects, low, high


def worth(detector: Detector, found: list[Pair]) -> Worth:
    """AP by the class score, what each quality adds to it, and how well each orders the boxes of an object.

    The uses are those of `retinaconf/paper/quality_statistics.py`.
    """
    photographs = stacked([pair.a for pair in found])
    first, second = (annotations(photographs, found, which) for which in ("first", "second"))
    boxes = class_ranked(detector, photographs)
    counted = takes_part(boxes, photographs, found)
    on_first, on_second = (best_overlaps(boxes, truth).any_iou for truth in (first, second))
    boxes = boxes[counted]
    assert boxes.quality is not None
    columns = (on_first[counted], on_second[counted], boxes.quality)
    baseline = average_precisions(PostProcessing()(boxes), first)
    gains: dict[str, dict[str, list[np.ndarray]]] = {name: {use: [] for use in USES} for name in QUALITIES}
    for name, use, detections in detections_by_use(boxes, dict(zip(QUALITIES, columns))):
        gains[name][use].append(average_precisions(detections, first) - baseline)
    scores, quality, alpha = boxes.scores, boxes.quality, detector.config.inference.alpha
    ranked_by = {"class score": scores, "branch": quality, "joint score": quality**alpha * scores ** (1 - alpha)}
    ranked_by["second annotation"] = columns[1]
    return Worth(float(baseline[0]), gains, concordance(boxes, first, ranked_by))


def takes_part(boxes: Detections, photographs: GroundTruth, found: list[Pair]) -> np.ndarray:
    """(D,) whether a box has its centre in the shared part and is not on an object annotated once."""
    x, y = (boxes.boxes[:, :2] + boxes.boxes[:, 2:]).T / 2
    low_x, low_y, high_x, high_y = np.array([pair.shared() for pair in found])[boxes.image_index].T
    shared = (x >= low_x) & (x <= high_x) & (y >= low_y) & (y <= high_y)
    on_first, on_second, on_once = (
        best_overlaps(boxes, annotations(photographs, found, which)).any_iou for which in ("first", "second", "once")
    )
    return np.asarray(shared & ~((on_once >= MATCHED) & (on_once > np.maximum(on_first, on_second))))


def concordance(boxes: Detections, truth: GroundTruth, ranked_by: dict[str, np.ndarray]) -> dict[str, list[float]]:
    """Of two boxes of an object, how often the better one is ranked higher: the mean over objects, its interval.

    An object has the same boxes whatever ranks them: its best by `boxes.scores`. The interval is of draws of images.
    """
    overlaps = best_overlaps(boxes, truth)
    on = best_of_objects(boxes.scores, overlaps)
    draws = np.concatenate([np.ones((1, len(truth))), *image_draws(np.arange(len(truth)), len(truth), DRAWS, seed=0)])
    found = {}
    for name, values in ranked_by.items():
        each = rank_correlation(values[on], overlaps.same_iou[on], overlaps.same_object[on], len(truth.boxes))
        known = np.isfinite(each.concordance)
        weights = draws[:, truth.image_index[known]]  # (1 + B, objects)
        means = (weights * each.concordance[known]).sum(axis=1) / np.maximum(weights.sum(axis=1), 1)
        found[name] = [float(means[0]), *map(float, np.quantile(means[1:], [0.025, 0.975]))]
    return found


def average_precisions(detections: Detections, truth: GroundTruth) -> np.ndarray:
    """AP on all photographs, then on each draw of them."""
    curve = curve_of(detections, truth)
    return np.array([curve(np.ones(len(truth))).mean(), *bootstrap_ap(detections, truth)])


def over_runs(found: list[dict[str, dict[str, list[np.ndarray]]]]) -> dict[str, Any]:
    """The mean gain over the runs, with its interval over photographs: [gain, low, high] by quality, use and alpha."""
    document: dict[str, Any] = {name: {} for name in QUALITIES}
    for name in QUALITIES if found else ():
        for use in USES:
            mean = np.mean([gains[name][use] for gains in found], axis=0)  # (alphas, 1 + B)
            low, high = np.nanquantile(mean[:, 1:], [0.025, 0.975], axis=1)
            document[name][use] = np.stack([mean[:, 0], low, high], axis=1).round(5).tolist()
    return document


def stacked(photographs: list[Photograph]) -> GroundTruth:
    """One ground truth of photographs of several splits; one that is in two pairs comes twice."""
    parts = [photograph.truth.subset([photograph.row]) for photograph in photographs]
    columns = ("image_ids", "image_sizes", "boxes", "labels", "crowd", "areas")
    joined = {name: np.concatenate([getattr(part, name) for part in parts]) for name in columns}
    counts = [len(part.boxes) for part in parts]
    # Splits may have folders of their own: names become whole paths.
    paths = np.array([str(part.path(0).resolve()) for part in parts])
    offsets = np.concatenate([[0], np.cumsum(counts)])
    return replace(parts[0], file_names=paths, image_folder=None, offsets=offsets, **joined)


def annotations(photographs: GroundTruth, found: list[Pair], which: str) -> GroundTruth:
    """The objects annotated twice, by their `first` or `second` box; or those annotated `once`, all their boxes."""
    boxes, labels = [], []
    for pair in found:
        (ours, our_labels), theirs, their_labels = pair.a.objects(), pair.second(), pair.b.objects()[1]
        twice = [(row, other) for row, other, _ in pair.twice() if our_labels[row] == their_labels[other]]
        rows, others = (np.array([each[k] for each in twice], dtype=np.int64) for k in (0, 1))
        if which == "first":
            boxes.append(ours[rows])
            labels.append(our_labels[rows])
        elif which == "second":
            boxes.append(theirs[others])
            labels.append(their_labels[others])
        else:
            boxes.append(np.concatenate([np.delete(ours, rows, axis=0), np.delete(theirs, others, axis=0)]))
            labels.append(np.concatenate([np.delete(our_labels, rows), np.delete(their_labels, others)]))
    all_boxes = np.concatenate(boxes)
    return replace(
        photographs,
        boxes=all_boxes,
        labels=np.concatenate(labels),
        crowd=np.zeros(len(all_boxes), dtype=bool),
        areas=(all_boxes[:, 2:] - all_boxes[:, :2]).prod(1),
        offsets=np.concatenate([[0], np.cumsum([len(part) for part in boxes])]),
    )


def report(document: dict[str, Any]) -> None:
    """For reading."""
    print(f"{len(document['pairs'])} pairs of photographs; of a field in another split: {document['across_splits']}")
    for name, values in document["agreement"]["iou"].items():
        if values:
            quarter, median, three = np.quantile(values, [0.25, 0.5, 0.75])
            print(
                f"  {name}: {len(values)} objects annotated twice, IoU {np.mean(values):.3f} in the mean, standard "
                f"deviation {np.std(values):.3f}, quartiles {quarter:.2f} {median:.2f} {three:.2f}"
            )
    print(f"  {document['agreement']['once']} annotated once, {document['agreement']['other_class']} as another class")
    if not document["runs"]:
        return
    mean = 100 * np.mean(list(document["runs"].values()))
    print(f"AP {mean:.1f} of {document['objects']} objects in {document['photographs']} photographs, mean of the runs")
    for quality, result in document["gains"].items():
        for use in USES:
            words = (
                f"alpha {alpha:g} {100 * gain:+.1f} ({100 * low:+.1f} to {100 * high:+.1f})"
                for alpha, (gain, low, high) in zip(ALPHAS, result[use])
            )
            print(f"  {quality}, {use}: " + ", ".join(words))
    for run, order in document["concordance"].items():
        words = (
            f"{name} {100 * mean:.1f} % ({100 * low:.1f} to {100 * high:.1f})"
            for name, (mean, low, high) in order.items()
        )
        print(f"  order of an object's boxes, {run}: " + ", ".join(words))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path, nargs="*")
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    photographs = photographs_of(options.data)
    found = pairs(photographs)
    unseen = not_trained_on(found)
    results = {run.name: worth(load(run, "cpu"), unseen) for run in options.runs}
    document = {
        "pairs": [[p.a.split, p.a.name, p.b.split, p.b.name, *p.shift, round(p.correlation, 3)] for p in found],
        "across_splits": across_splits(found),
        "agreement": agreement(found, photographs[0].truth.classes),
        "photographs": len(unseen),
        "objects": sum(len(pair.twice()) for pair in unseen),
        "alphas": ALPHAS,
        "runs": {name: result.average_precision for name, result in results.items()},
        "gains": over_runs([result.gains for result in results.values()]),
        "concordance": {name: result.concordance for name, result in results.items()},
    }
    report(document)
    if options.json:
        text = json.dumps(document)
        write_aside(options.json, lambda aside: aside.write_text(text + "\n"))


if __name__ == "__main__":
    main()
