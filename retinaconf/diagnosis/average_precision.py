"""COCO's AP re-accumulated from matches, with a weight for every image: what the bootstrap needs.

AP itself is hotcoco's; the tests hold the two equal. Matches do not depend on which images are drawn, so that a
bootstrap draw is one weighted cumulative sum over detections matched once.
"""

from __future__ import annotations

from collections.abc import Iterator
from copy import copy

import numpy as np

from retinaconf.data.ground_truth import GroundTruth
from retinaconf.diagnosis.matching import Matches

RECALLS = np.linspace(0, 1, 101)


class AveragePrecision:
    """AP of one set of detections under any image weights; `ignored` overrides Matches.ignored, (M, T) bool."""

    def __init__(self, matches: Matches, ground_truth: GroundTruth, ignored: np.ndarray | None = None):
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
        starts = np.searchsorted(self._label, np.arange(self._num_classes))
        self._levels = [_Level(*columns, self._label, starts) for columns in zip(self._true.T, self._ignored.T)]

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
        present = np.count_nonzero(objects)
        if present == 0:
            return np.full(len(self._levels), np.nan)
        weight = image_weights[self._image]
        seen = np.concatenate([[0.0], np.cumsum(weight)])
        return np.array([level.precision_sum(weight, seen, objects) / present for level in self._levels])


class _Level:
    """One IoU threshold. Precision matters at the true positives only, so that their places are all it keeps."""

    def __init__(self, true: np.ndarray, ignored: np.ndarray, label: np.ndarray, class_starts: np.ndarray):
        self.hit = np.flatnonzero(true)
        self.label = label[self.hit]
        self.class_start = class_starts[self.label]
        self.first_hit = np.searchsorted(self.hit, self.class_start)  # of the hit's class
        self.skipped = np.flatnonzero(ignored)
        self.skipped_before = np.searchsorted(self.skipped, self.hit)
        self.skipped_before_class = np.searchsorted(self.skipped, self.class_start)

    def precision_sum(self, weight: np.ndarray, seen: np.ndarray, objects: np.ndarray) -> float:
        """The sum over classes of the mean precision at COCO's 101 recalls.

        Args:
            weight: (M,) of each detection.
            seen: (M + 1,) its sum over the detections before.
            objects: (K,) weight of each class's objects.
        """
        counted = seen[self.hit + 1] - seen[self.class_start]
        if len(self.skipped):
            lost = np.concatenate([[0.0], np.cumsum(weight[self.skipped])])
            counted -= lost[self.skipped_before] - lost[self.skipped_before_class]
        hits = np.concatenate([[0.0], np.cumsum(weight[self.hit])])
        found = hits[1:] - hits[self.first_hit]
        used = weight[self.hit] > 0
        label, found, counted = self.label[used], found[used], counted[used]
        # How many recall levels each hit reaches: whole numbers, so that a tie is decided as in COCO's code.
        reached = np.searchsorted(RECALLS, found / objects[label], side="right")
        new = np.diff(reached, prepend=0)
        first = np.flatnonzero(np.diff(label, prepend=-1))
        new[first] = reached[first]
        # The envelope of all classes in one pass: an offset keeps a class from seeing those after it.
        apart = 2.0 * (len(objects) - label)
        precision = np.maximum.accumulate((found / counted + apart)[::-1])[::-1] - apart
        return float(precision @ new) / len(RECALLS)


def image_draws(images: np.ndarray, num_images: int, replicates: int, seed: int) -> Iterator[np.ndarray]:
    """Bootstrap weights: for each replicate, how often each of the I images was drawn, (I,) float64.

    As many images as `images` (n,) has are drawn from them with replacement (Efron, 1979).
    """
    generator = np.random.default_rng(seed)
    for _ in range(replicates):
        drawn = images[generator.integers(0, len(images), len(images))]
        yield np.bincount(drawn, minlength=num_images).astype(np.float64)
