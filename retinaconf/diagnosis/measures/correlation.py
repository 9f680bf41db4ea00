"""Does the score rank well-placed boxes first?  Spearman's rho, Kendall's tau-b, and the joint density.

All in O(n log n), and for many groups of boxes (classes, sizes, objects) in one pass.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

VALUES_AT_ONCE = 1 << 15  # what fits a CPU's cache


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
    pairs = count * (count - 1) / 2
    score = _Ranks(scores, group, count)
    place = _Ranks(iou, group, count)

    # By group, then score, then IoU: one whole number holds all three.
    both = score.dense * np.int64(len(place.run_starts))
    both += place.dense
    both.sort()
    group_starts = np.cumsum(count) - count
    tied_both = _tied_pairs(np.flatnonzero(_changes(both)), group_starts, len(both))
    both %= max(len(place.run_starts), 1)  # in place, as all here: it may be millions of boxes
    discordant = _inversions(both.astype(np.int32), place.run_starts, group_starts)
    strict = pairs - score.tied - place.tied + tied_both
    concordant = strict - discordant
    kendall = _ratio(concordant - discordant, np.sqrt((pairs - score.tied) * (pairs - place.tied)))
    return RankCorrelation(
        _spearman(score, place, group, count), np.clip(kendall, -1, 1), _ratio(concordant, strict), count
    )


def spearman(scores: np.ndarray, iou: np.ndarray, group: np.ndarray, num_groups: int) -> np.ndarray:
    """(M,) Spearman's rho of each group, alone: `rank_correlation` without the rest."""
    count = np.bincount(group, minlength=num_groups)
    return _spearman(_Ranks(scores, group, count), _Ranks(iou, group, count), group, count)


def _spearman(score: _Ranks, place: _Ranks, group: np.ndarray, count: np.ndarray) -> np.ndarray:
    ranks, score_squares = score.centred()
    product = ranks.take(score.dense)
    ranks, place_squares = place.centred()
    product *= ranks.take(place.dense)
    both = np.bincount(group, weights=product, minlength=len(count))
    return np.clip(_ratio(both, np.sqrt(score_squares * place_squares)), -1, 1)


class _Ranks:
    """Ranks of n values within their groups."""

    def __init__(self, values: np.ndarray, group: np.ndarray, count: np.ndarray):
        self._count, self._group_starts = count, np.cumsum(count) - count
        order = np.argsort(values)
        if len(count) > 1:
            narrow = group.astype(np.min_scalar_type(len(count)))  # NumPy sorts 16 bits by radix
            order = order.take(np.argsort(narrow.take(order), kind="stable"))
        new_run = _changes(values.take(order))
        new_run[self._group_starts[count > 0]] = True
        self.dense = np.empty(len(values), dtype=np.int32)  # (n,) the run of each, which ascends with group and value
        self.dense[order] = np.cumsum(new_run, dtype=np.int32) - np.int32(1)
        del order  # as large as the values
        self.run_starts = np.flatnonzero(new_run)  # (R,) of equal values, in the order of group and value
        self.tied = _tied_pairs(self.run_starts, self._group_starts, len(values))  # (M,) pairs equal in value

    def centred(self) -> tuple[np.ndarray, np.ndarray]:
        """(R,) the mean rank of each run less that of its group, and (M,) the sum of its square over the values."""
        lengths, group = _runs(self.run_starts, self._group_starts, len(self.dense))
        ranks = self.run_starts + (lengths - 1) / 2
        ranks -= (self._group_starts + (self._count - 1) / 2)[group]
        return ranks, np.bincount(group, lengths * ranks**2, len(self._count))


def _ratio(top: np.ndarray, bottom: np.ndarray) -> np.ndarray:
    return np.divide(top, bottom, out=np.full(len(bottom), np.nan), where=bottom > 0)


def _changes(sorted_values: np.ndarray) -> np.ndarray:
    """(n,) bool: a value that differs from the one before it."""
    new = np.ones(len(sorted_values), dtype=bool)
    new[1:] = sorted_values[1:] != sorted_values[:-1]
    return new


def _runs(run_starts: np.ndarray, group_starts: np.ndarray, size: int) -> tuple[np.ndarray, np.ndarray]:
    """The length of each run, float64, and the group that it lies in."""
    lengths = np.diff(run_starts, append=size).astype(np.float64)
    return lengths, np.searchsorted(group_starts, run_starts, side="right") - 1


def _tied_pairs(run_starts: np.ndarray, group_starts: np.ndarray, size: int) -> np.ndarray:
    """(M,) float64: pairs within the runs of equal values, by group; runs lie within groups."""
    lengths, group = _runs(run_starts, group_starts, size)
    return np.bincount(group, lengths * (lengths - 1) / 2, len(group_starts))


def _inversions(values: np.ndarray, run_starts: np.ndarray, group_starts: np.ndarray) -> np.ndarray:
    """(M,) int64: pairs of a group of which the earlier is larger.

    Parts the values into a smaller and a larger half, both in their order, until a part fits the cache. A smaller value
    is inverted with each larger one before it. Values ascend from group to group, so both are of the group of the
    middle.

    Args:
        values: (n,) dense ranks 0..R-1, which ascend from group to group.
        run_starts: (R,) where each rank starts when sorted.
        group_starts: (M,) where each group starts.
    """
    starts = np.append(run_starts, len(values))
    group_of_rank = np.searchsorted(group_starts, run_starts, side="right") - 1
    total = np.zeros(len(group_starts), dtype=np.int64)
    parts = [(values, 0, len(run_starts))] if len(values) else []  # with the ranks in each: the first, the last + 1
    while parts:
        part, low, high = parts.pop()
        if len(part) > VALUES_AT_ONCE and high - low > 1:
            middle = (low + high) // 2
            larger = part >= middle
            smaller = ~larger
            larger_before = np.cumsum(larger, dtype=np.int32)
            total[group_of_rank[middle]] += larger_before.sum(where=smaller, dtype=np.int64)
            parts += [(part[smaller], low, middle), (part[larger], middle, high)]
        else:
            here = starts[low : high + 1] - starts[low]
            inverted = _inverted(part.astype(np.int64) - low, here)
            np.add.at(total, group_of_rank[low:high], np.add.reduceat(inverted, here[:-1]))
    return total


def _inverted(values: np.ndarray, starts: np.ndarray) -> np.ndarray:
    """(n,) int64 whose sum over a group is its inversions.

    Sorts by one bit after the other, from the highest: two values first differ at one bit, and are inverted if the one
    with bit 1 comes first. Values with equal higher bits are a block whose place is known; groups stay where they are.

    Args:
        values: (n,) int64, 0..R-1.
        starts: (R + 1,) where each value starts when sorted, and n.
    """
    ranks = len(starts) - 1
    inverted = np.zeros(len(values), dtype=np.int64)
    before = np.zeros(len(values) + 1, dtype=np.int64)
    position = np.arange(len(values))
    for bit in range((ranks - 1).bit_length() - 1, -1, -1):
        ones = (values >> bit) & 1
        np.cumsum(ones, out=before[1:])
        block = (values >> (bit + 1)) << (bit + 1)
        ones_before = before[:-1] - before.take(starts.take(block))
        zeros = ones == 0
        inverted += ones_before * zeros
        ones_start = starts.take(np.minimum(block + (1 << bit), ranks))
        moved = np.empty_like(values)
        moved[np.where(zeros, position - ones_before, ones_start + ones_before)] = values
        values = moved
    return inverted


def joint_density(scores: np.ndarray, iou: np.ndarray, bins: int = 50) -> tuple[np.ndarray, np.ndarray]:
    """Counts of (score, IoU) on an even grid over [0, 1] x [0, 1]: (bins, bins) int64 and the (bins + 1,) edges.

    Rows are score, columns IoU; a value on an edge belongs to the upper cell, 1.0 to the last.
    """
    edges = np.linspace(0, 1, bins + 1)
    cell = [np.minimum((values * bins).astype(np.int64), bins - 1) for values in (scores, iou)]
    return np.bincount(cell[0] * bins + cell[1], minlength=bins * bins).reshape(bins, bins), edges
