"""COCO's AP re-accumulated from matches, with a weight for every image: what the bootstrap needs.

AP itself is hotcoco's; the tests hold the two equal. Matches do not depend on which images are drawn, so that a
bootstrap draw is one weighted cumulative sum over detections matched once.
"""

from __future__ import annotations

from collections.abc import Iterator

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
        label = matches.labels[by_class]
        self._class_start = np.searchsorted(label, np.arange(self._num_classes))
        true = matches.matched[by_class] >= 0
        ignored = (matches.ignored if ignored is None else ignored)[by_class]
        # Precision matters at true positives only: per threshold their places, and the places of what is ignored.
        self._levels = []
        for threshold in range(true.shape[1]):
            hit = np.flatnonzero(true[:, threshold])
            skipped = np.flatnonzero(ignored[:, threshold])
            before = np.searchsorted(skipped, hit)
            self._levels.append((hit, label[hit], skipped, before, np.searchsorted(skipped, self._class_start)))

    def __call__(self, image_weights: np.ndarray) -> np.ndarray:
        """AP at each threshold, (T,): the mean over the classes that have an object in a weighted image.

        Args:
            image_weights: (I,) how often each image counts; 1 for all gives COCO's AP. NaN if no object counts.
        """
        objects = np.bincount(
            self._object_label, weights=image_weights[self._object_image], minlength=self._num_classes
        )
        present = np.flatnonzero(objects > 0)
        if len(present) == 0:
            return np.full(len(self._levels), np.nan)
        weight = image_weights[self._image]
        seen = np.concatenate([[0.0], np.cumsum(weight)])
        return np.array([self._level(*level, weight, seen, objects, present) for level in self._levels])

    def _level(
        self,
        hit: np.ndarray,
        label: np.ndarray,
        skipped: np.ndarray,
        skipped_before: np.ndarray,
        skipped_before_class: np.ndarray,
        weight: np.ndarray,
        seen: np.ndarray,
        objects: np.ndarray,
        present: np.ndarray,
    ) -> float:
        lost = np.concatenate([[0.0], np.cumsum(weight[skipped])])
        counted = seen[hit + 1] - lost[skipped_before]
        counted -= (seen[self._class_start] - lost[skipped_before_class])[label]
        hits = np.concatenate([[0.0], np.cumsum(weight[hit])])
        found = hits[1:] - hits[np.searchsorted(label, np.arange(self._num_classes))][label]
        used = weight[hit] > 0
        label, found, counted = label[used], found[used], counted[used]
        # How many of the recall levels each hit reaches: whole numbers, so that a tie is decided as in COCO's code.
        reached = np.searchsorted(RECALLS, found / objects[label], side="right")
        # The envelope of all classes in one pass: an offset keeps a class from seeing those after it.
        apart = 2.0 * (self._num_classes - label)
        precision = np.maximum.accumulate((found / counted + apart)[::-1])[::-1] - apart
        stride = len(RECALLS) + 1
        wanted = (present[:, None] * stride + np.arange(1, stride)).ravel()
        place = np.searchsorted(label * stride + reached, wanted)
        # Recalls a class does not reach have precision 0: the place found is another class's, or the end.
        owner = np.append(label, -1)[place]
        at = np.append(precision, 0.0)[place]
        return float(np.where(owner == np.repeat(present, len(RECALLS)), at, 0.0).mean())


def image_draws(images: np.ndarray, num_images: int, replicates: int, seed: int) -> Iterator[np.ndarray]:
    """Bootstrap weights: for each replicate, how often each of the I images was drawn, (I,) float64.

    As many images as `images` (n,) has are drawn from them with replacement (Efron, 1979).
    """
    generator = np.random.default_rng(seed)
    for _ in range(replicates):
        drawn = images[generator.integers(0, len(images), len(images))]
        yield np.bincount(drawn, minlength=num_images).astype(np.float64)
