"""COCO's AP re-accumulated from matches, with a weight for every image: what the bootstrap needs.

AP itself is hotcoco's; the tests hold the two equal. Matches do not depend on which images are drawn, so that a
bootstrap draw is one weighted cumulative sum over detections matched once.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from copy import copy
from itertools import pairwise

import numpy as np

from retinaconf.data.ground_truth import GroundTruth
from retinaconf.detections import Detections
from retinaconf.evaluation.matching import MatchedDetections, ascending, match_detections
from retinaconf.threads import in_threads

RECALLS = np.linspace(0, 1, 101)
HITS_AT_ONCE = 1 << 14  # what fits a CPU's cache; larger is slower


class AveragePrecision:
    """AP of one set of detections under any image weights; `ignored` (M, T) bool overrides that of the matches."""

    def __init__(self, matches: MatchedDetections, ground_truth: GroundTruth, ignored: np.ndarray | None = None):
        ignored = matches.ignored if ignored is None else ignored
        self._object_image = ground_truth.image_index[matches.objects]
        self._object_label = ground_truth.labels[matches.objects]
        self._num_classes = len(ground_truth.classes)
        self._levels = ignored.shape[1]
        by_class = ascending(matches.labels)  # within a class still in descending score
        by_class = by_class[~np.asarray(ignored.all(axis=1))[by_class]]  # what counts at no threshold is not needed
        self._image = matches.image_index[by_class]
        self._label = matches.labels[by_class]
        place = np.full(len(ignored), -1, dtype=np.int64)
        place[by_class] = np.arange(len(by_class))

        def places(chosen: np.ndarray) -> np.ndarray:
            row, level = np.divmod(np.flatnonzero(chosen), self._levels)
            return np.sort((level * len(by_class) + place[row])[place[row] >= 0])

        self._index(places(matches.matched >= 0), places(ignored))

    def _index(self, hits: np.ndarray, skipped: np.ndarray) -> None:
        """Precision matters at the true positives only: their places at all T thresholds, one threshold after another.

        A group is the detections of one class at one threshold: G = T K of them, whose hits are contiguous.

        Args:
            hits: (H,) ascending: the threshold times the number of detections, plus the place of the detection.
            skipped: (S,) likewise, of those that are ignored.
        """
        self._hits, self._skipped, count = hits, skipped, len(self._label)
        class_start = np.searchsorted(self._label, np.arange(self._num_classes))
        group_place = (np.arange(self._levels)[:, None] * count + class_start).ravel()  # (G,) where each begins
        self._hit = hits % max(count, 1)
        self._hit_image = self._image[self._hit]
        self._skipped_image = self._image[skipped % max(count, 1)]
        self._skipped_before = np.searchsorted(skipped, hits)
        self._class_start = np.tile(class_start, self._levels)  # (G,)
        self._group_hit = np.searchsorted(hits, np.append(group_place, self._levels * count))  # (G + 1,)
        self._group_skipped = np.searchsorted(skipped, group_place)
        # Whole groups with about HITS_AT_ONCE hits.
        blocks = np.unique(self._group_hit[:-1] // HITS_AT_ONCE, return_index=True)[1]
        self._blocks = [slice(*ends) for ends in pairwise([*blocks.tolist(), len(group_place)])]

    def within(self, images: np.ndarray) -> AveragePrecision:
        """The same on some images only, quicker where the others never count; (n,) image rows."""
        part = copy(self)
        rows = np.isin(self._image, images)
        part._image, part._label = self._image[rows], self._label[rows]
        place = np.cumsum(rows) - 1

        def places(before: np.ndarray) -> np.ndarray:
            level, row = np.divmod(before, max(len(rows), 1))
            return (level * len(part._label) + place[row])[rows[row]]

        part._index(places(self._hits), places(self._skipped))
        rows = np.isin(self._object_image, images)
        part._object_image, part._object_label = self._object_image[rows], self._object_label[rows]
        return part

    def __call__(self, image_weights: np.ndarray) -> np.ndarray:
        """AP at each threshold, (T,): the mean over the classes that have an object in a weighted image.

        Args:
            image_weights: (I,) how often each image counts; 1 for all gives COCO's AP. NaN if no object counts.
        """
        by_class = self.by_class(image_weights)
        present = np.isfinite(by_class[0])
        if not present.any():
            return by_class[:, :1].mean(axis=1)
        mean: np.ndarray = by_class[:, present].mean(axis=1)
        return mean

    def by_class(self, image_weights: np.ndarray) -> np.ndarray:
        """AP at each threshold of each class, (T, K); NaN for a class without an object in a weighted image."""
        weights = image_weights.astype(np.int64)  # whole numbers are summed several times faster than floats
        objects = np.bincount(self._object_label, weights[self._object_image], self._num_classes).astype(np.int64)
        levels_reached, first_of_class = _levels_reached(objects)
        seen = _sums(weights.take(self._image))  # over the detections before
        lost = _sums(weights.take(self._skipped_image))
        found = _sums(weights.take(self._hit_image))
        before = found[self._group_hit[:-1]]
        counted_before = seen[self._class_start] - lost[self._group_skipped]
        place_of_none = np.tile(first_of_class, self._levels) - before
        total = np.empty(len(before))
        for block in self._blocks:
            ends = self._group_hit[block.start : block.stop + 1]
            hits, sizes = slice(ends[0], ends[-1]), np.diff(ends)
            group = np.repeat(np.arange(len(sizes)), sizes)
            counted = seen[1:].take(self._hit[hits])
            if len(self._skipped_image):
                counted -= lost.take(self._skipped_before[hits])
            counted -= counted_before[block].take(group)
            found_here = found[1:][hits]
            # How many recall levels each hit reaches: whole numbers, so that a tie is decided as in COCO's code.
            reached = levels_reached.take(found_here + place_of_none[block].take(group))
            new = np.diff(reached, prepend=0)
            first = ends[:-1][sizes > 0] - ends[0]
            new[first] = reached[first]
            # A hit of weight 0 reaches no new level, and its precision is at most that of the hit before.
            precision = (found_here - before[block].take(group)) / np.maximum(counted, 1)
            # The envelope of all groups takes one pass: an offset keeps a group from seeing those after it.
            apart = 2.0 * (len(sizes) - group)
            precision = _largest_from(precision + apart) - apart
            total[block] = np.bincount(group, weights=precision * new, minlength=len(sizes))
        return np.where(objects > 0, total.reshape(self._levels, self._num_classes) / len(RECALLS), np.nan)


def _sums(values: np.ndarray) -> np.ndarray:
    """(n + 1,) the sums of the first 0, 1 ... n whole numbers."""
    sums = np.zeros(len(values) + 1, dtype=np.int64)
    np.cumsum(values, out=sums[1:])
    return sums


def _largest_from(values: np.ndarray) -> np.ndarray:
    """(n,) the largest of each positive value and those behind it. Their bits have their order, and are faster."""
    return np.maximum.accumulate(values.view(np.int64)[::-1])[::-1].view(np.float64)


def _levels_reached(objects: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """How many of RECALLS are at most f / objects, for f = 0 ... objects of each of K classes; where these begin."""
    start = np.cumsum(objects + 1) - objects - 1
    found = np.arange(len(objects) + objects.sum()) - np.repeat(start, objects + 1)
    recall = found / np.repeat(np.maximum(objects, 1), objects + 1)
    level = (recall * 100 + 1e-6).astype(np.int64)  # the last one that is reached, or the one after it
    return level + (RECALLS.take(level) <= recall), start


def curves_of(tables: Iterable[Detections], ground_truth: GroundTruth) -> Iterator[AveragePrecision]:
    """The AP of each table, in their order: one is matched while the next is made."""
    return in_threads(lambda table: AveragePrecision(match_detections(table, ground_truth), ground_truth), tables)


def image_draws(images: np.ndarray, num_images: int, replicates: int, seed: int) -> Iterator[np.ndarray]:
    """Bootstrap weights: for each replicate, how often each of the I images was drawn, (I,) float64.

    As many images as `images` (n,) has are drawn from them with replacement (Efron, 1979).
    """
    generator = np.random.default_rng(seed)
    for _ in range(replicates):
        drawn = images[generator.integers(0, len(images), len(images))]
        yield np.bincount(drawn, minlength=num_images).astype(np.float64)
