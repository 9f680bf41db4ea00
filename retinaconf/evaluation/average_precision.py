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
        objects = ~ground_truth.crowd
        self._object_image = ground_truth.image_index[objects]
        self._object_label = ground_truth.labels[objects]
        self._num_classes = len(ground_truth.classes)
        by_class = np.argsort(matches.labels, kind="stable")  # within a class still in descending score
        self._image = matches.image_index[by_class]
        self._label = matches.labels[by_class]
        self._true = matches.matched[by_class] >= 0
        self._ignored = (matches.ignored if ignored is None else ignored)[by_class]
        self._index()

    def _index(self) -> None:
        """Precision matters at the true positives only: their places at all T thresholds, one threshold after another.

        A group is the detections of one class at one threshold.
        """
        count, starts = len(self._label), np.searchsorted(self._label, np.arange(self._num_classes))
        self._level, self._hit = np.nonzero(self._true.T)
        label = self._label[self._hit]
        self._group = self._level * self._num_classes + label
        self._class_start = starts[label]
        self._first_hit = np.searchsorted(self._group, self._group)
        level, self._skipped = np.nonzero(self._ignored.T)
        place = level * count + self._skipped
        self._skipped_before = np.searchsorted(place, self._level * count + self._hit)
        self._skipped_before_class = np.searchsorted(place, self._level * count + self._class_start)

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
        objects = np.bincount(
            self._object_label, weights=image_weights[self._object_image], minlength=self._num_classes
        )
        present, levels = np.count_nonzero(objects), self._true.shape[1]
        if present == 0:
            return np.full(levels, np.nan)
        weight = image_weights[self._image]
        seen = _sums(weight)  # over the detections before
        counted = seen[self._hit + 1] - seen[self._class_start]
        if len(self._skipped):
            lost = _sums(weight[self._skipped])
            counted -= lost[self._skipped_before] - lost[self._skipped_before_class]
        hits = _sums(weight[self._hit])
        found = hits[1:] - hits[self._first_hit]
        used = weight[self._hit] > 0
        group, found, counted = self._group[used], found[used], counted[used]
        # How many recall levels each hit reaches: whole numbers, so that a tie is decided as in COCO's code.
        reached = np.searchsorted(RECALLS, found / objects[group % self._num_classes], side="right")
        new = np.diff(reached, prepend=0)
        first = np.flatnonzero(np.diff(group, prepend=-1))
        new[first] = reached[first]
        # The envelope of all groups in one pass: an offset keeps a group from seeing those after it.
        apart = 2.0 * (levels * self._num_classes - group)
        precision = np.maximum.accumulate((found / counted + apart)[::-1])[::-1] - apart
        total = np.bincount(self._level[used], weights=precision * new, minlength=levels)
        return total / (len(RECALLS) * present)


def _sums(values: np.ndarray) -> np.ndarray:
    """(n + 1,) the sums of the first 0, 1 ... n values."""
    return np.concatenate([[0.0], np.cumsum(values)])


def image_draws(images: np.ndarray, num_images: int, replicates: int, seed: int) -> Iterator[np.ndarray]:
    """Bootstrap weights: for each replicate, how often each of the I images was drawn, (I,) float64.

    As many images as `images` (n,) has are drawn from them with replacement (Efron, 1979).
    """
    generator = np.random.default_rng(seed)
    for _ in range(replicates):
        drawn = images[generator.integers(0, len(images), len(images))]
        yield np.bincount(drawn, minlength=num_images).astype(np.float64)
