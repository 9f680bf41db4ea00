"""COCO's AP re-accumulated from matches, with a weight for every image: what the bootstrap needs.

AP itself is hotcoco's; the tests hold the two equal. Matches do not depend on which images are drawn, so that a
bootstrap draw is one weighted cumulative sum over detections matched once.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from copy import copy
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from retinaconf.data.ground_truth import GroundTruth
from retinaconf.detections import Detections
from retinaconf.evaluation.calibration import finite_mean
from retinaconf.evaluation.matching import MatchedDetections, ascending, match_detections
from retinaconf.threads import MOST_THREADS, in_threads

RECALLS = np.linspace(0, 1, 101)
ENTRIES_AT_ONCE = 1 << 20  # of fewer, two threads take half as long again for a large set; more take memory
DRAWS_AT_ONCE = 25  # divides the usual numbers of draws by 4, 2 and 1 threads


@dataclass(frozen=True)
class _Runs:
    """The runs of true positives of each class at each IoU threshold, by threshold and class.

    In a run no detection lies between two true positives, unless it is ignored. Precision rises within a run, so the
    end of each run gives the whole precision envelope. Places are those of D detections by class and descending score.
    True positives (H) and ignored detections (S) are by threshold and place.
    """

    hit_image: np.ndarray  # (H,)
    skipped_image: np.ndarray  # (S,)
    end: np.ndarray  # (R,) the place behind each run's last true positive
    hits_until: np.ndarray  # (R,) true positives up to that one, included
    skipped_before: np.ndarray  # (R,) ignored ones before it
    level: np.ndarray  # (C,) the threshold of each class at a threshold that has a run
    label: np.ndarray  # (C,) the class
    first: np.ndarray  # (C,) its first run
    start: np.ndarray  # (C,) the place of the class's first detection
    hits_before: np.ndarray  # (C,) true positives before that one
    skipped_before_class: np.ndarray  # (C,) ignored ones before it
    pair: np.ndarray  # (R,) of which class at which threshold each run is: a row of C
    apart: np.ndarray  # (R,) falls from class to class by more than a precision can rise
    levels: tuple[slice, ...]  # (T,) the runs of each threshold

    def spread(self, by_class: np.ndarray) -> np.ndarray:
        """(B, R): to each run the value of its class and threshold, of (B, C)."""
        return by_class.take(self.pair, axis=1)


class AveragePrecision:
    """AP of one set of detections under any image weights; `ignored` (M, T) bool overrides that of the matches."""

    def __init__(self, matches: MatchedDetections, ground_truth: GroundTruth, ignored: np.ndarray | None = None):
        ignored = matches.ignored if ignored is None else ignored
        self._object_image = ground_truth.image_index[matches.objects]
        self._object_label = ground_truth.labels[matches.objects]
        self._num_classes = len(ground_truth.classes)
        by_class = ascending(matches.labels)  # within a class still in descending score
        by_class = by_class[~np.asarray(ignored.all(axis=1))[by_class]]  # what counts at no threshold is not needed
        place = np.full(len(ignored), -1, dtype=np.int64)
        place[by_class] = np.arange(len(by_class))

        def places(chosen: np.ndarray) -> list[np.ndarray]:  # at each threshold
            found = (place[np.flatnonzero(level)] for level in chosen.T)
            return [np.sort(part[part >= 0]) for part in found]

        self._keep(
            matches.image_index[by_class], matches.labels[by_class], places(matches.matched >= 0), places(ignored)
        )

    def _keep(self, image: np.ndarray, label: np.ndarray, hits: list[np.ndarray], skipped: list[np.ndarray]) -> None:
        """Keep what decides AP, of D detections by class and descending score: `image` and `label`, (D,).

        Precision matters at true positives only. So the detections after the last one of their class do not matter.

        Args:
            hits: ascending places of the true positives at each threshold.
            skipped: likewise of the detections that are ignored.
        """
        last = np.full(self._num_classes, -1)
        for places in hits:
            np.maximum.at(last, label[places], places)
        needed = np.arange(len(label)) <= last[label]
        place = np.cumsum(needed) - 1
        self._image, self._label = image[needed], label[needed]
        self._hits = [place[hit] for hit in hits]
        self._skipped = [place[skip[needed[skip]]] for skip in skipped]
        self._runs = self._find_runs()

    def _find_runs(self) -> _Runs:
        class_start = np.searchsorted(self._label, np.arange(self._num_classes))
        columns: dict[str, list[np.ndarray]] = {}
        levels, runs, pairs, hits_seen, skipped_seen = [], 0, 0, 0, 0
        for level, (hits, skipped) in enumerate(zip(self._hits, self._skipped)):
            skipped_before = np.searchsorted(skipped, hits)
            counted = hits - skipped_before  # how many detections count before each true positive
            label = self._label[hits]
            ends = (np.diff(counted, append=-1) != 1) | (np.diff(label, append=-1) != 0)
            last = np.flatnonzero(ends)
            classes, first, pair = np.unique(label[last], return_index=True, return_inverse=True)
            start = class_start[classes]
            found = {
                "hit_image": self._image[hits],
                "skipped_image": self._image[skipped],
                "end": hits[last] + 1,
                "hits_until": hits_seen + last + 1,
                "skipped_before": skipped_seen + skipped_before[last],
                "level": np.full(len(classes), level),
                "label": classes,
                "first": runs + first,
                "pair": pairs + pair,
                "start": start,
                "hits_before": hits_seen + np.searchsorted(hits, start),
                "skipped_before_class": skipped_seen + np.searchsorted(skipped, start),
                "apart": 2.0 * (self._num_classes - label[last]),
            }
            for name, column in found.items():
                columns.setdefault(name, []).append(column)
            levels.append(slice(runs, runs + len(last)))
            runs, pairs = runs + len(last), pairs + len(classes)
            hits_seen, skipped_seen = hits_seen + len(hits), skipped_seen + len(skipped)
        return _Runs(**{name: np.concatenate(parts) for name, parts in columns.items()}, levels=tuple(levels))

    def within(self, images: np.ndarray) -> AveragePrecision:
        """The same on some images only, quicker where the others never count; (n,) image rows."""
        objects, rows = np.isin(self._object_image, images), np.isin(self._image, images)
        if objects.all() and rows.all():
            return self
        part = copy(self)
        part._object_image, part._object_label = self._object_image[objects], self._object_label[objects]
        place = np.cumsum(rows) - 1
        part._keep(
            self._image[rows],
            self._label[rows],
            [place[hits[rows[hits]]] for hits in self._hits],
            [place[skipped[rows[skipped]]] for skipped in self._skipped],
        )
        return part

    def __call__(self, image_weights: np.ndarray) -> np.ndarray:
        """AP at each threshold, (T,) or (B, T): the mean over the classes that have an object in a weighted image.

        Args:
            image_weights: (I,), or (B, I) for B draws, how often each image counts; 1 for all gives COCO's AP. NaN if
                no object counts.
        """
        mean: np.ndarray = finite_mean(self.by_class(image_weights))
        return mean

    def by_class(self, image_weights: np.ndarray) -> np.ndarray:
        """AP at each threshold of each class, (T, K) or (B, T, K).

        NaN for a class without an object in a weighted image. Few detections take several draws hardly longer than one.
        """
        draws = np.atleast_2d(image_weights.astype(np.int32))  # summed faster than floats
        at_once = max(1, ENTRIES_AT_ONCE // max(1, len(self._image)))
        parts = [self._by_class(draws[start : start + at_once]) for start in range(0, len(draws), at_once)]
        return np.concatenate(parts).reshape(*image_weights.shape[:-1], len(self._hits), self._num_classes)

    def _by_class(self, weights: np.ndarray) -> np.ndarray:
        """(B, T, K) for weights (B, I)."""
        object_weights = weights.take(self._object_image, axis=1)
        objects = np.stack([np.bincount(self._object_label, draw, self._num_classes) for draw in object_weights])
        levels_reached, first_of_class = _levels_reached(tuple(objects.astype(np.int64).ravel().tolist()))
        first_of_class = first_of_class.reshape(objects.shape)
        runs = self._runs
        seen = _sums(weights.take(self._image, axis=1))
        lost = _sums(weights.take(runs.skipped_image, axis=1))
        all_found = _sums(weights.take(runs.hit_image, axis=1))
        counted = seen.take(runs.end, axis=1) - lost.take(runs.skipped_before, axis=1)
        counted -= runs.spread(seen.take(runs.start, axis=1) - lost.take(runs.skipped_before_class, axis=1))
        found = all_found.take(runs.hits_until, axis=1)
        found -= runs.spread(all_found.take(runs.hits_before, axis=1))
        # How many recall levels each run reaches: whole numbers, so that a tie is decided as in COCO's code.
        reached = levels_reached.take(found + runs.spread(first_of_class.take(runs.label, axis=1)))
        new = reached.copy()
        new[:, 1:] -= reached[:, :-1]
        new[:, runs.first] = reached[:, runs.first]
        precision = found / np.maximum(counted, 1)
        for level in runs.levels:
            # The envelope of all classes takes one pass: an offset keeps a class from seeing those after it.
            apart = runs.apart[level]
            precision[:, level] = _largest_from(precision[:, level] + apart) - apart
        precision *= new
        total = np.zeros((len(weights), len(self._hits), self._num_classes))
        total[:, runs.level, runs.label] = np.add.reduceat(precision, runs.first, axis=1)
        return np.where(objects[:, None] > 0, total / len(RECALLS), np.nan)


def _sums(values: np.ndarray) -> np.ndarray:
    """(B, n + 1) the sums of the first 0, 1 ... n whole numbers of each row."""
    sums = np.zeros((len(values), values.shape[1] + 1), dtype=values.dtype)
    np.cumsum(values, axis=1, dtype=values.dtype, out=sums[:, 1:])
    return sums


def _largest_from(values: np.ndarray) -> np.ndarray:
    """(B, n) the largest of each positive value and those behind it. Their bits have their order, and are faster."""
    return np.maximum.accumulate(values.view(np.int64)[:, ::-1], axis=1)[:, ::-1].view(np.float64)


@lru_cache(MOST_THREADS * DRAWS_AT_ONCE)  # the curves of one ground truth get the same draws
def _levels_reached(objects: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
    """How many of RECALLS are at most f / objects, for f = 0 ... objects of each of K classes; where these begin."""
    sizes = np.array(objects) + 1
    start = np.cumsum(sizes) - sizes
    found = np.arange(sizes.sum()) - np.repeat(start, sizes)
    recall = found / np.repeat(np.maximum(sizes - 1, 1), sizes)
    level = (recall * 100 + 1e-6).astype(np.int64)  # the last one that is reached, or the one after it
    return (level + (RECALLS.take(level) <= recall)).astype(np.uint8), start


def curve_of(detections: Detections, ground_truth: GroundTruth) -> AveragePrecision:
    """The AP of detections that are not matched yet."""
    return AveragePrecision(match_detections(detections, ground_truth), ground_truth)


def curves_of(tables: Iterable[Detections], ground_truth: GroundTruth) -> Iterator[AveragePrecision]:
    """The AP of each table, in their order: one is matched while the next is made."""
    return in_threads(lambda table: curve_of(table, ground_truth), tables)


def image_draws(images: np.ndarray, num_images: int, replicates: int, seed: int) -> Iterator[np.ndarray]:
    """Bootstrap weights: how often each of the I images was drawn, (B, I) float64 for each next B of the replicates.

    As many images as `images` (n,) has are drawn from them with replacement (Efron, 1979).
    """
    generator = np.random.default_rng(seed)
    for left in range(replicates, 0, -DRAWS_AT_ONCE):
        drawn = [images[generator.integers(0, len(images), len(images))] for _ in range(min(left, DRAWS_AT_ONCE))]
        yield np.stack([np.bincount(rows, minlength=num_images) for rows in drawn]).astype(np.float64)
