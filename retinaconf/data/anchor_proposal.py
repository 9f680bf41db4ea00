"""Anchors that fit the objects of a data set better: ratios and scales added one by one, while they are worth it."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from retinaconf.cell_anchors import CellAnchors
from retinaconf.data.anchor_iou import best_anchor_iou

RATIOS = (0.1, 0.125, 0.2, 0.25, 0.33, 0.5, 1.0, 2.0, 3.0, 4.0, 5.0, 8.0, 10.0)
SCALES = (1.0, 2.0, 3.0, 8.0)
# Share of the boxes that each anchor added to a cell must newly fit: every one makes head, matching and loss dearer.
WORTH = 0.01
_SAMPLE = 20_000  # boxes that are looked at, drawn at random


def propose_anchors(boxes: np.ndarray, canvases: np.ndarray, anchors: CellAnchors) -> CellAnchors | None:
    """`anchors` with ratios and scales added, the one that fits most boxes first; None if none is worth it.

    A box is fitted if an anchor overlaps it by IoU 0.5. `boxes` and `canvases` are those of `best_anchor_iou`.
    """
    if len(boxes) > _SAMPLE:
        drawn = np.random.default_rng(0).choice(len(boxes), _SAMPLE, replace=False)
        boxes, canvases = boxes[drawn], canvases[drawn]
    enough = WORTH * len(boxes)
    proposal = anchors
    unfit = best_anchor_iou(boxes, canvases, anchors) < 0.5
    while True:
        # What each new ratio adds to a cell, at all scales, and each new scale, at all ratios.
        added = [replace(proposal, ratios=(ratio,)) for ratio in RATIOS if ratio not in proposal.ratios]
        added += [replace(proposal, scales=(scale,)) for scale in SCALES if scale not in proposal.scales]
        overlaps = [best_anchor_iou(boxes[unfit], canvases[unfit], new) for new in added]
        # Of values that fit equally many boxes, the one that fits them best.
        worth = [((iou >= 0.5).sum() / new.count, iou.sum()) for new, iou in zip(added, overlaps, strict=True)]
        if not unfit.any() or not added or max(worth)[0] < enough:
            return None if proposal == anchors else proposal
        best = worth.index(max(worth))
        proposal = replace(
            proposal,
            ratios=tuple(sorted({*proposal.ratios, *added[best].ratios})),
            scales=tuple(sorted({*proposal.scales, *added[best].scales})),
        )
        unfit[unfit] = overlaps[best] < 0.5
