"""The paper's statistics: its own numbers from its own table, and counts by hand."""

from __future__ import annotations

import numpy as np
import pytest

from retinaconf.diagnosis.measures.paper_statistics import count_predictions, proportion_drop
from retinaconf.paper.introduction import AFTER_NMS, BEFORE_NMS, POSITIVE_ANCHORS


def test_the_published_percentages_follow_from_the_published_table() -> None:
    score, iou = (100 * drop for drop in proportion_drop(BEFORE_NMS, AFTER_NMS))
    above_half = iou[:, 0]
    assert round(above_half[1], 2) == 31.50  # Image2; the text says Image1
    assert round(above_half[0], 2) == 11.34
    assert round(above_half[5], 2) == 39.84
    assert round(above_half.mean(), 2) == 19.52
    assert [round(-score[image, 1], 2) for image in (1, 2, 7)] == [1.32, 1.55, 0.02]
    assert round(score[:, 1].mean(), 2) == 1.09
    assert (np.delete(score[:, 1], [1, 2, 7]) > 0).all()  # it drops in all other images


def test_the_published_table_is_whole() -> None:
    assert POSITIVE_ANCHORS.shape == (10,)
    for counts in (BEFORE_NMS, AFTER_NMS):
        assert counts.score.shape == (10, 6)
        assert counts.iou.shape == (10, 5)
        assert (np.diff(counts.score, axis=1) <= 0).all()  # a higher threshold never counts more
        assert (np.diff(counts.iou, axis=1) <= 0).all()
    assert (BEFORE_NMS.score >= AFTER_NMS.score).all()
    # "prediction boxes with iou>0.5 are more than predefined positive anchors in all images"
    assert (BEFORE_NMS.iou[:, 0] > POSITIVE_ANCHORS).all()


def test_counts_by_hand() -> None:
    image = np.array([0, 0, 0, 0, 2])
    scores = np.array([0.05, 0.06, 0.5, 0.95, 0.7])
    iou = np.array([1.0, 0.9, 0.51, 0.0, 0.5])
    counts = count_predictions(image, scores, iou, 3)
    # Thresholds are strict; what does not exceed 0.05 is no prediction, however well it fits.
    assert counts.score.tolist() == [[3, 1, 1, 1, 1, 1], [0] * 6, [1, 1, 1, 0, 0, 0]]
    assert counts.iou.tolist() == [[2, 1, 1, 1, 0], [0] * 5, [0] * 5]
    score, iou_share = counts.proportions()
    assert score[0].tolist() == [1, 1 / 3, 1 / 3, 1 / 3, 1 / 3, 1 / 3]
    assert iou_share[0, 0] == pytest.approx(2 / 3)
    assert np.isnan(score[1]).all()  # no prediction, no proportion
    assert counts.total().score.tolist() == [[4, 2, 2, 1, 1, 1]]
