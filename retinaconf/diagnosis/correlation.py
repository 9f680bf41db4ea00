"""Does the score rank well-placed boxes first?  Spearman's rho, Kendall's tau-b, and the joint density.

All in O(n log n), and for many groups of boxes (classes, sizes, objects) in one pass.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class RankCorrelation:
    """For each of M groups; NaN where a group has no two different scores or no two different IoUs."""

    spearman: np.ndarray  # (M,) in [-1, 1]
    kendall: np.ndarray  # (M,) in [-1, 1], tau-b
    concordance: np.ndarray  # (M,) in [0, 1]: of the pairs that differ in both, the share ordered alike
    count: np.ndarray  # (M,) int64: boxes of the group


def rank_correlation(
    scores: np.ndarray, iou: np.ndarray, group: np.ndarray | None = None, num_groups: int = 1
) -> RankCorrelation:
    """Rank correlation of score and IoU within each group.

    Spearman's rho is Pearson's correlation of the ranks, ties at their mean rank (Spearman, 1904). Kendall's tau-b is
    (C - D) / sqrt((P - T_s)(P - T_i)) for C concordant and D discordant of P pairs, T_s tied in score, T_i tied in IoU
    (Kendall, 1945).

    Args:
        scores: (n,) float.
        iou: (n,) float.
        group: (n,) int in [0, num_groups), or None where all are one group.
        num_groups: M.
    """
    if group is None:
        group = np.zeros(len(scores), dtype=np.int64)
    count = np.bincount(group, minlength=num_groups)

    score_rank, tied_score = _ranks(scores, group, num_groups)
    iou_rank, tied_iou = _ranks(iou, group, num_groups)
    mean_rank = (count - 1)[group] / 2
    a, b = score_rank - mean_rank, iou_rank - mean_rank

    def per_group(values: np.ndarray) -> np.ndarray:
        return np.bincount(group, weights=values, minlength=num_groups)

    spearman = _ratio(per_group(a * b), np.sqrt(per_group(a * a) * per_group(b * b)))

    order = np.lexsort((iou, scores, group))
    by_iou = np.lexsort((np.arange(len(order)), iou[order], group[order]))  # ties in IoU stay: no inversion
    place = np.empty(len(order), dtype=np.int64)
    place[by_iou] = np.arange(len(order))
    discordant = np.bincount(group[order], weights=_inversions(place), minlength=num_groups)
    new_run = _changes(group[order], scores[order], iou[order])
    tied_both = _tied_pairs(new_run, group[order], num_groups)

    pairs = count * (count - 1) / 2
    strict = pairs - tied_score - tied_iou + tied_both
    concordant = strict - discordant
    kendall = _ratio(concordant - discordant, np.sqrt((pairs - tied_score) * (pairs - tied_iou)))
    return RankCorrelation(np.clip(spearman, -1, 1), np.clip(kendall, -1, 1), _ratio(concordant, strict), count)


def _ratio(top: np.ndarray, bottom: np.ndarray) -> np.ndarray:
    return np.divide(top, bottom, out=np.full(len(bottom), np.nan), where=bottom > 0)


def _changes(*sorted_columns: np.ndarray) -> np.ndarray:
    """(n,) bool: a row that differs from the one before it in any column."""
    new = np.zeros(len(sorted_columns[0]), dtype=bool)
    new[:1] = True
    for column in sorted_columns:
        new[1:] |= column[1:] != column[:-1]
    return new


def _tied_pairs(new_run: np.ndarray, group: np.ndarray, num_groups: int) -> np.ndarray:
    """(M,) float64: pairs within the runs that `new_run` starts, by group."""
    starts = np.flatnonzero(new_run)
    length = np.diff(starts, append=len(new_run)).astype(np.float64)
    return np.bincount(group[starts], weights=length * (length - 1) / 2, minlength=num_groups)


def _ranks(values: np.ndarray, group: np.ndarray, num_groups: int) -> tuple[np.ndarray, np.ndarray]:
    """Rank within the group from 0, ties at their mean, (n,); pairs of the group tied in value, (M,)."""
    order = np.lexsort((values, group))
    new_run = _changes(group[order], values[order])
    starts = np.flatnonzero(new_run)
    lengths = np.diff(starts, append=len(values))
    first_of_group = np.searchsorted(group[order], np.arange(num_groups))
    rank = np.empty(len(values))
    rank[order] = np.repeat(starts + (lengths - 1) / 2, lengths) - first_of_group[group[order]]
    return rank, _tied_pairs(new_run, group[order], num_groups)


def _inversions(permutation: np.ndarray) -> np.ndarray:
    """(n,) int64: for each element of a permutation of 0..n-1, how many before it are larger.

    Sorts by one bit after the other, from the highest: two elements first differ at one bit, and are inverted if the
    one with bit 1 comes first. Elements with equal higher bits are a block whose place is known, so that a level costs
    a few passes over the array.
    """
    n = len(permutation)
    values = permutation.astype(np.int64)
    total = np.zeros(n, dtype=np.int64)  # by value
    position = np.arange(n)
    for bit in range(max(n - 1, 0).bit_length() - 1, -1, -1):
        ones = (values >> bit) & 1
        before = np.concatenate([[0], np.cumsum(ones)])
        block = (position >> (bit + 1)) << (bit + 1)
        ones_before = before[:-1] - before[block]
        is_zero = ones == 0
        total[values[is_zero]] += ones_before[is_zero]
        target = np.where(is_zero, position - ones_before, block + (1 << bit) + ones_before)
        moved = np.empty_like(values)
        moved[target] = values
        values = moved
    return total[permutation]


def joint_density(scores: np.ndarray, iou: np.ndarray, bins: int = 50) -> tuple[np.ndarray, np.ndarray]:
    """Counts of (score, IoU) on an even grid over [0, 1] x [0, 1]: (bins, bins) int64 and the (bins + 1,) edges.

    Rows are score, columns IoU; a value on an edge belongs to the upper cell, 1.0 to the last.
    """
    edges = np.linspace(0, 1, bins + 1)
    cell = [np.minimum((values * bins).astype(np.int64), bins - 1) for values in (scores, iou)]
    return np.bincount(cell[0] * bins + cell[1], minlength=bins * bins).reshape(bins, bins), edges
