"""The rows of ids against a dictionary's."""

from __future__ import annotations

import numpy as np

from retinaconf.data.coco_records import index_of


def test_ids_are_found_where_they_stand() -> None:
    rng = np.random.default_rng(0)
    known = rng.permutation(np.array([*range(0, 40, 3), -7, 2**53, 2**63 - 1]))
    place = {int(value): row for row, value in enumerate(known)}
    unknown = [1, -2, 2**62, -(2**63)]
    for ids in (
        rng.choice([*known, *unknown], 500),
        np.repeat(rng.choice([*known, *unknown], 60), rng.integers(1, 9, 60)),  # an image's records in a row
        np.array([2**63 + 5, 0, 2**63 + 5, 3], dtype=np.uint64),  # wraps to a negative number if it is cast
        np.zeros(0, dtype=np.int64),
    ):
        assert index_of(ids, known).tolist() == [place.get(int(value), -1) for value in ids]
        assert index_of(ids, known[:0]).tolist() == [-1] * len(ids)
