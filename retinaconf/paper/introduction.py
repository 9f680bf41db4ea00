"""Table 1 of the paper's introduction (arXiv 2011.10465), as published.

Counts of boxes in ten COCO images for a trained RetinaNet; what they mean is in `paper_statistics.py`.

Erratum: the text says that the share of iou>0.5 "drops by 31.5% and 39.84% in Image1 and Image6". The table's own
numbers give 31.50 for Image2; Image1's is 11.34.
"""

from __future__ import annotations

import numpy as np

from retinaconf.diagnosis.measures.paper_statistics import Counts

POSITIVE_ANCHORS = np.array([331, 320, 170, 198, 84, 77, 131, 210, 310, 110])  # iou>0.5 with an object

BEFORE_NMS = Counts(
    score=np.array(
        [
            [7213, 2543, 3105, 3539, 634, 364, 1700, 13480, 5422, 1067],  # cls>0.05
            [110, 79, 140, 23, 30, 83, 35, 29, 363, 135],  # cls>0.5
            [71, 38, 84, 14, 15, 75, 28, 12, 264, 107],
            [36, 18, 47, 7, 0, 55, 21, 8, 172, 82],
            [16, 4, 13, 1, 0, 38, 10, 0, 63, 57],
            [3, 1, 6, 0, 0, 26, 1, 0, 10, 21],  # cls>0.9
        ]
    ).T,
    iou=np.array(
        [
            [1087, 1116, 856, 507, 187, 249, 336, 549, 2004, 487],  # iou>0.5
            [912, 963, 656, 384, 136, 228, 267, 340, 1629, 449],
            [650, 714, 423, 271, 82, 191, 185, 212, 1197, 372],
            [307, 473, 238, 167, 52, 152, 98, 111, 816, 208],
            [105, 136, 23, 49, 14, 77, 17, 28, 324, 68],  # iou>0.9
        ]
    ).T,
)

AFTER_NMS = Counts(
    score=np.array(
        [
            [429, 113, 66, 188, 35, 14, 76, 836, 224, 44],
            [5, 5, 4, 1, 1, 2, 1, 2, 13, 5],
            [5, 3, 4, 1, 1, 2, 1, 1, 12, 5],
            [3, 2, 3, 1, 0, 2, 1, 1, 10, 5],
            [2, 2, 3, 1, 0, 2, 1, 0, 6, 5],
            [1, 1, 3, 0, 0, 1, 1, 0, 1, 3],
        ]
    ).T,
    iou=np.array(
        [
            [16, 14, 6, 10, 3, 4, 10, 17, 20, 8],
            [13, 10, 6, 6, 2, 3, 4, 8, 16, 8],
            [11, 10, 6, 4, 0, 2, 4, 4, 15, 6],
            [5, 10, 5, 3, 0, 2, 2, 2, 14, 4],
            [4, 4, 5, 1, 0, 1, 0, 0, 9, 2],
        ]
    ).T,
)
