"""COCO's AP re-accumulated from matches, with a weight for every image: what the bootstrap needs.

AP itself is hotcoco's; the tests hold the two equal. Matches do not depend on which images are drawn, so that a
bootstrap draw is one weighted cumulative sum over detections matched once.
"""

from __future__ import annotations

from collections.abc import Iterator
from copy import copy

import numpy as np

from retinaconf.data.ground_truth import GroundTruth
from retinaconf.evaluation.matching import MatchedDetections

RECALLS = np.linspace(0, 1, 101)


class AveragePrecision:
    """AP of one set of detections under any image weights; `ignored` (M, T) bool overrides that of the matches."""

    def __init__(self, matches: MatchedDetections, ground_truth: GroundTruth, ignored: np.ndarray | None = None):
        ignored = matches.ignored if ignored is None else ignored
        self._object_image = ground_truth.image_index[matches.objects]
        self._object_label = ground_truth.labels[matches.objects]
        self._num_classes = len(ground_truth.classes)
        by_class = np.argsort(matches.labels, kind="stable")  # within a class still in descending score
        by_class = by_class[~np.asarray(ignored.all(axis=1))[by_class]]  # what counts at no threshold is not needed
        self._image = matches.image_index[by_class]
        self._label = matches.labels[by_class]
        self._true = matches.matched[by_class] >= 0
        self._ignored = ignored[by_class]
        self._index()

    def _index(self) -> None:
        """Precision matters at the true positives only: their places at all T thresholds, one threshold after another.

        A group is the detections of one class at one threshold.
        """
        count, starts = len(self._label), np.searchsorted(self._label, np.arange(self._num_classes))
        levels, self._hit = np.nonzero(self._true.T)
        self._hit_label = self._label[self._hit]
        self._group = levels * self._num_classes + self._hit_label
        self._class_start = starts
        self._first_hit = np.searchsorted(self._group, self._group)
        self._group_start = np.flatnonzero(np.diff(self._group, prepend=-1))
        # The envelope of all groups takes one pass: an offset keeps a group from seeing those after it.
        self._apart = 2.0 * (self._true.shape[1] * self._num_classes - self._group)
        level, self._skipped = np.nonzero(self._ignored.T)
        place = level * count + self._skipped
        self._skipped_before = np.searchsorted(place, levels * count + self._hit)
        self._skipped_before_class = np.searchsorted(place, levels * count + starts[self._hit_label])

    def within(self, images: np.ndarray) -> AveragePrecision:
        """The same on some images only, quicker where the others never count; (n,) image rows."""
        part = copy(self)
        rows = np.isin(self._image, images)
        part._image, part._label = self._image[rows], self._label[rows]
        part._true, part._ignored = self._true[rows], self._ignored[rows]
        rows = np.isin(self._object_image, images)
        part._object_image, part._object_label = self._object_image[rows], self._object_label[rows]
        part._index()
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
        objects = np.bincount(
            self._object_label, weights=image_weights[self._object_image], minlength=self._num_classes
        )
        levels = self._true.shape[1]
        weight = image_weights.take(self._image)  # `take` is twice as fast as an index
        seen = _sums(weight)  # over the detections before
        counted = seen[1:].take(self._hit) - seen[self._class_start].take(self._hit_label)
        if len(self._skipped):
            lost = _sums(weight.take(self._skipped))
            counted -= lost.take(self._skipped_before) - lost.take(self._skipped_before_class)
        hits = _sums(weight.take(self._hit))
        found = hits[1:] - hits.take(self._first_hit)
        # How many recall levels each hit reaches: whole numbers, so that a tie is decided as in COCO's code.
        reached = _levels_reached(found / np.maximum(objects, 1e-12).take(self._hit_label))
        new = np.diff(reached, prepend=0)
        new[self._group_start] = reached[self._group_start]
        # A hit of weight 0 reaches no new level, and its precision is at most that of the hit before.
        precision = np.divide(found, counted, out=np.zeros_like(found), where=found > 0) + self._apart
        precision = np.maximum.accumulate(precision[::-1])[::-1] - self._apart
        total = np.bincount(self._group, weights=precision * new, minlength=levels * self._num_classes)
        return np.where(objects > 0, total.reshape(levels, self._num_classes) / len(RECALLS), np.nan)


def _sums(values: np.ndarray) -> np.ndarray:
    """(n + 1,) the sums of the first 0, 1 ... n values."""
    sums = np.zeros(len(values) + 1)
    np.cumsum(values, out=sums[1:])
    return sums


def _levels_reached(recall: np.ndarray) -> np.ndarray:
    """(n,) how many of RECALLS are at most each recall in [0, 1]: `searchsorted` from the right, but faster."""
    level = (recall * 100 + 1e-6).astype(np.int64)  # the last one, or the one after it
    reached: np.ndarray = level + (RECALLS.take(level) <= recall)
    return reached


def image_draws(images: np.ndarray, num_images: int, replicates: int, seed: int) -> Iterator[np.ndarray]:
    """Bootstrap weights: for each replicate, how often each of the I images was drawn, (I,) float64.

    As many images as `images` (n,) has are drawn from them with replacement (Efron, 1979).
    """
    generator = np.random.default_rng(seed)
    for _ in range(replicates):
        drawn = images[generator.integers(0, len(images), len(images))]
        yield np.bincount(drawn, minlength=num_images).astype(np.float64)
