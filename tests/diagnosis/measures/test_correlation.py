"""Rank correlations against SciPy's."""

from __future__ import annotations

import numpy as np
import pytest

from retinaconf.diagnosis.measures import correlation
from retinaconf.diagnosis.measures.correlation import joint_density, rank_correlation, spearman


@pytest.mark.parametrize("at_once", [1 << 15, 20, 1])
@pytest.mark.parametrize(
    ("count", "groups", "levels"), [(2, 1, 5), (60, 4, 4), (400, 9, 10**6), (400, 9, 12), (3000, 1, 30), (40, 300, 9)]
)
def test_equals_scipy(monkeypatch: pytest.MonkeyPatch, count: int, groups: int, levels: int, at_once: int) -> None:
    stats = pytest.importorskip("scipy.stats")
    monkeypatch.setattr(correlation, "VALUES_AT_ONCE", at_once)
    rng = np.random.default_rng(count + levels)
    scores = rng.integers(0, levels, count) / levels
    iou = np.round(0.5 * scores + rng.random(count), 2)
    group = rng.integers(0, groups, count)
    ranks = rank_correlation(scores, iou, group, groups)
    assert np.array_equal(spearman(scores, iou, group, groups), ranks.spearman, equal_nan=True)
    for index in range(groups):
        s, i = scores[group == index], iou[group == index]
        if len(np.unique(s)) < 2 or len(np.unique(i)) < 2:
            assert np.isnan(ranks.kendall[index])
            continue
        assert ranks.spearman[index] == pytest.approx(stats.spearmanr(s, i).statistic, abs=1e-12)
        assert ranks.kendall[index] == pytest.approx(stats.kendalltau(s, i, variant="b").statistic, abs=1e-12)
        signs = np.sign(s[:, None] - s) * np.sign(i[:, None] - i)
        assert ranks.concordance[index] == pytest.approx((signs > 0).sum() / (signs != 0).sum())
        assert ranks.count[index] == len(s)


def test_where_nothing_can_be_ranked_it_is_nan() -> None:
    ranks = rank_correlation(np.array([0.5, 0.5, 0.1]), np.array([0.1, 0.2, 0.3]), np.array([0, 0, 2]), 4)
    assert ranks.count.tolist() == [2, 0, 1, 0]
    for values in (ranks.spearman, ranks.kendall, ranks.concordance):
        assert np.isnan(values).all()
    assert np.isnan(rank_correlation(np.zeros(0), np.zeros(0)).kendall).all()


def test_kendall_by_hand() -> None:
    """Pairs: 3 concordant, 1 discordant, one tied in score, one tied in IoU: (3 - 1) / sqrt(5 * 5)."""
    ranks = rank_correlation(np.array([1, 2, 2, 4]), np.array([1, 3, 2, 2]))
    assert ranks.kendall[0] == pytest.approx(2 / 5)
    assert ranks.concordance[0] == pytest.approx(3 / 4)


def test_density_counts_every_box_once() -> None:
    counts, edges = joint_density(np.array([0, 0.02, 0.5, 1.0]), np.array([1.0, 0.999, 0.5, 0]))
    assert counts.sum() == 4
    assert counts[0, 49] == counts[1, 49] == counts[25, 25] == counts[49, 0] == 1
    assert len(edges) == 51
