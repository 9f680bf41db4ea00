"""How a detector makes its score of a class score and a quality, recognised from its records.

The diagnosis ranks boxes by the score as it is, whatever its formula is. The formula is for the words of a report, for
a correction that replaces the quality alone, and for what a slider of alpha starts from.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

import numpy as np

from retinaconf.detections import Detections

Rule = Literal["single", "class", "product", "root", "power", "other"]
ROUNDING = 0.001  # files round scores to three digits, and networks compute in half precision
ALPHA_DIGITS = 3
BOXES_AT_ONCE = 1 << 16  # what fits a CPU's cache


@dataclass(frozen=True)
class OwnScore:
    """The rule that all records of a detector keep.

    ========= ================================================= ======================
    rule      score                                             alpha
    ========= ================================================= ======================
    `single`  there is no quality, so nothing is joined         None
    `class`   the class score; also where none is given beside  0
    `product` class score x quality                             0.5: the same order
    `root`    its square root                                   0.5
    `power`   quality^alpha * class score^(1 - alpha)           that constant, in (0, 1]
    `other`   none of these in every record                     None
    ========= ================================================= ======================
    """

    rule: Rule
    alpha: float | None  # of quality^alpha * class^(1 - alpha) that orders boxes as the score does

    @property
    def formula(self) -> str:
        """The rule in words that follow "the score is"."""
        return {
            "single": "the only one given",
            "class": "the class score",
            "product": "class score × quality",
            "root": "the square root of class score × quality",
            "power": "the quality" if self.alpha == 1 else f"quality^{self.alpha} × class score^(1 - {self.alpha})",
            "other": "none of the known combinations of class score and quality",
        }[self.rule]

    def has_alpha(self, alpha: float) -> bool:
        """Whether the score is quality^alpha * class^(1 - alpha) itself, not only in the same order."""
        return self.alpha == alpha and self.rule != "product"

    def joined(self, class_scores: np.ndarray, quality: np.ndarray) -> np.ndarray | None:
        """(D,) the score of other class scores (D,) or qualities (D,) by the same rule; None where it is not known."""
        if self.alpha is None:
            return None
        joint = quality**self.alpha * class_scores ** (1 - self.alpha)
        return joint**2 if self.rule == "product" else joint


def own_score(boxes: Detections) -> OwnScore:
    """The rule by which the scores of D boxes come from their class scores and qualities.

    A record keeps a rule if it does for some values within 0.001 of the given ones. One record that does not is enough
    for `other`: some scores depend on more than these two, such as that of an anchor's other classes.
    """
    if boxes.quality is None:
        return OwnScore("single", None)
    if boxes.class_scores is None:
        return OwnScore("class", 0.0)
    columns = (boxes.scores, boxes.class_scores, boxes.quality)
    starts = range(0, len(boxes), BOXES_AT_ONCE)
    portions = [tuple(column[start : start + BOXES_AT_ONCE] for column in columns) for start in starts]
    known: list[OwnScore] = [OwnScore("class", 0.0), OwnScore("product", 0.5), OwnScore("root", 0.5)]
    alpha = _alpha(portions)
    if 0 < alpha <= 1:
        known.append(OwnScore("power", alpha))
    kept = (rule for rule in known if all(_keeps(rule, *portion) for portion in portions))
    return next(kept, OwnScore("other", None))


def _keeps(rule: OwnScore, scores: np.ndarray, class_scores: np.ndarray, quality: np.ndarray) -> bool:
    """Whether the scores follow from class scores and qualities within ROUNDING of the given ones."""
    least = rule.joined(np.maximum(class_scores - ROUNDING, 0), np.maximum(quality - ROUNDING, 0))
    most = rule.joined(np.minimum(class_scores + ROUNDING, 1), np.minimum(quality + ROUNDING, 1))
    assert least is not None  # each grows with both columns
    assert most is not None
    return bool(((scores >= least - ROUNDING) & (scores <= most + ROUNDING)).all())


def _alpha(portions: Iterable[tuple[np.ndarray, ...]]) -> float:
    """The alpha of quality^alpha * class^(1 - alpha) that fits best by least squares of logarithms; NaN without any.

    log(score / class) = alpha * log(quality / class); a record counts by its smallest value, since rounding moves the
    logarithm of a small one most.
    """
    product = total = 0.0
    for columns in portions:  # score, class score, quality
        least = np.minimum.reduce(columns)
        rows = least > 0
        scores, class_scores, quality, least = (column[rows] for column in (*columns, least))
        lever = least * np.log(quality / class_scores)
        product += float((least * np.log(scores / class_scores)) @ lever)
        total += float(lever @ lever)
    return round(product / total, ALPHA_DIGITS) if total > 0 else float("nan")
