"""What `retinaconf tune` keeps in a run: how boxes rank, a map to the IoU to expect, and thresholds by class."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from retinaconf.errors import InputError, quoted
from retinaconf.evaluation.score_map import ScoreMap
from retinaconf.evaluation.score_map_file import curves_of, score_map_of
from retinaconf.evaluation.thresholds import Thresholds

VERSION = 1


@dataclass(frozen=True)
class Tuning:
    """Chosen on the validation images of the weights that it is kept with."""

    joint: str  # `inference.joint`
    alpha: float  # `inference.alpha`
    soft_nms: bool  # `inference.soft_nms` and its `nms_iou`, given to a run that lacks it
    score_map: ScoreMap  # from scores by these three to `confidence`
    thresholds: Thresholds  # of scores by these three

    def values(self) -> dict[str, Any]:
        """Plain values for a file, which `tuning_of` reads."""
        return {
            "version": VERSION,
            "joint": self.joint,
            "alpha": self.alpha,
            "soft_nms": self.soft_nms,
            "score_map": curves_of(self.score_map),
            "thresholds": asdict(self.thresholds),
        }


def tuning_of(values: dict[str, Any]) -> Tuning:
    """What `Tuning.values` gave.

    Raises:
        InputError: it is damaged or of a later version.
    """
    try:
        if values["version"] != VERSION:
            version = quoted(values["version"])
            raise InputError(f"tuned by a later retinaconf (version {version}); run `retinaconf tune` again")
        kept = values["thresholds"]
        by_id = {
            name: {int(id_): float(value) for id_, value in kept[name].items()} for name in ("by_class", "unreached")
        }
        thresholds = Thresholds(str(kept["goal"]), float(kept["common"]), **by_id)
        soft_nms = bool(values.get("soft_nms", False))  # of 0.2.0, which had none
        score_map = score_map_of(values["score_map"])
        return Tuning(str(values["joint"]), float(values["alpha"]), soft_nms, score_map, thresholds)
    except (KeyError, TypeError, ValueError, OverflowError, AttributeError):
        raise InputError("what `retinaconf tune` has kept in it is damaged; run `retinaconf tune` again") from None
