"""The score that ranks boxes: the class score and the predicted quality, joined (section 3.3, Table 4)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from retinaconf.config import InferenceConfig

WITH_ALPHA = ("product", "proportional")  # of `inference.joint`


@dataclass(frozen=True)
class JointScore:
    """quality^a * class^b, and 0 where the quality is not above `min_quality`.

    ========================= ================ =======================
    Table 4                   (a, b)
    ========================= ================ =======================
    cls                       (0, 1)           RetinaNet's own
    cls * obj                 (1, 1)           the plain product
    product(alpha)            (alpha, 1-alpha) equation (11); eq. (1) at alpha = 0.5
    ... (obj > 0.5)           the same         with min_quality = 0.5
    ========================= ================ =======================

    (0, 1) gives the class score bit by bit. At `alpha = 0` eq. (11) is that, too.

    The quality is one for all classes of an anchor. So a box that fits an object of one class well lends its quality to
    its small scores of other classes too, and at a large alpha these outrank the objects of a rare class. With
    `proportional` the joint score is that of the anchor's best class alone, and the other classes keep their proportion
    to it: class * (quality / best class)^alpha.

    The paper's released code leaves the quality out on levels that have no more anchors than are decoded, which favours
    their boxes; `large_levels_only` does the same.
    """

    name: str
    quality_exponent: float
    class_exponent: float
    min_quality: float = 0.0
    large_levels_only: bool = False
    proportional: bool = False

    @property
    def alpha(self) -> float | None:
        """Alpha of equation (11), None for another joint score or one that filters by quality."""
        plain = self.quality_exponent + self.class_exponent == 1 and self.min_quality == 0
        plain = plain and not self.large_levels_only and not self.proportional
        return self.quality_exponent if plain else None

    def __call__(self, class_scores: Tensor, quality: Tensor | None) -> Tensor:
        """Joint scores of scores and qualities in [0, 1] that broadcast; without a quality, the class scores."""
        if quality is None:
            return class_scores
        joint = quality**self.quality_exponent * class_scores**self.class_exponent
        return torch.where(quality > self.min_quality, joint, 0) if self.min_quality > 0 else joint

    def of_classes(self, class_scores: Tensor, quality: Tensor | None) -> Tensor:
        """Joint scores (..., K) of all classes of anchors: class scores (..., K), quality (...)."""
        if quality is None or not self.proportional:
            return self(class_scores, None if quality is None else quality[..., None])
        best = class_scores.amax(-1, keepdim=True).clamp(min=torch.finfo(class_scores.dtype).tiny)
        return class_scores * (self(best, quality[..., None]) / best)


def product(alpha: float, min_quality: float = 0.0) -> JointScore:
    """Equation (11): quality^alpha * class^(1 - alpha)."""
    return JointScore(_named(f"product({alpha:g})", min_quality), alpha, 1 - alpha, min_quality)


def proportional(alpha: float, min_quality: float = 0.0) -> JointScore:
    """Equation (11) for the best class of an anchor; its other classes keep their proportion to it."""
    name = _named(f"proportional({alpha:g})", min_quality)
    return JointScore(name, alpha, 1 - alpha, min_quality, proportional=True)


# By `inference.joint`: the joint score for an alpha, which the last two do not have, and a least quality.
JOINT_SCORES: dict[str, Callable[[float, float], JointScore]] = {
    "product": product,
    "proportional": proportional,
    "cls": lambda alpha, min_quality: JointScore(_named("cls", min_quality), 0.0, 1.0, min_quality),
    "cls*obj": lambda alpha, min_quality: JointScore(_named("cls*obj", min_quality), 1.0, 1.0, min_quality),
}


def joint_score(config: InferenceConfig) -> JointScore:
    """The joint score that a configuration asks for."""
    return JOINT_SCORES[config.joint](config.alpha, config.min_quality)


def released(alpha: float) -> JointScore:
    """Equation (11) as the paper's released code has it: without the quality on small levels."""
    return JointScore(f"product({alpha:g}), large levels only", alpha, 1 - alpha, large_levels_only=True)


def sweep() -> list[JointScore]:
    """The rows of Tables 5 and 4, alpha from 0.0 to 0.9 and the other joint methods; and the proportional ones."""
    return [product(round(0.1 * tenth, 1)) for tenth in range(10)] + [
        JointScore("cls(obj>0.5)", 0.0, 1.0, 0.5),
        JointScore("cls*obj", 1.0, 1.0),
        JointScore("cls*obj(obj>0.5)", 1.0, 1.0, 0.5),
        product(0.4, 0.5),
        *(proportional(alpha) for alpha in (0.2, 0.4, 0.6, 0.8)),
    ]


def _named(name: str, min_quality: float) -> str:
    return f"{name}(obj>{min_quality:g})" if min_quality > 0 else name
