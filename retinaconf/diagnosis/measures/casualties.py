"""NMS casualties: the best-placed candidate of each object against the best-placed one that NMS kept."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from retinaconf.data.ground_truth import GroundTruth
from retinaconf.detections import Detections
from retinaconf.evaluation.overlaps import class_pairs, iou
from retinaconf.progress import ProgressCallback, silent
from retinaconf.threads import in_threads

_Best = tuple[np.ndarray, np.ndarray, np.ndarray]  # (n,) box, target and overlap, each target once


@dataclass(frozen=True)
class Casualties:
    """For each of the B ground-truth boxes; crowd regions and objects without a candidate have -1 and IoU 0.

    `lost` is best_iou - kept_iou. An object falls below t by NMS alone if best_iou >= t > kept_iou. The cause is a
    neighbour where the box that removed the best candidate fits another object of the class better (a crowded scene,
    which a better score does not mend); else the object's own worse-placed candidate was ranked higher: misalignment.
    """

    best_iou: np.ndarray  # (B,) float64: over the candidates of the object's class
    best_candidate: np.ndarray  # (B,) int64: its row, the first of equals
    kept_iou: np.ndarray  # (B,) float64: over those that NMS kept
    kept_candidate: np.ndarray  # (B,) int64
    neighbour: np.ndarray  # (B,) bool: the best candidate was removed by a neighbour's box

    @property
    def lost(self) -> np.ndarray:
        """(B,) float64: the IoU that NMS costs each object."""
        return self.best_iou - self.kept_iou

    def fallen(self, threshold: float) -> np.ndarray:
        """(B,) bool: the object had a candidate with IoU >= threshold, and NMS kept none."""
        return (self.best_iou >= threshold) & (self.kept_iou < threshold)

    def of(self, chosen: np.ndarray) -> dict[str, float | int]:
        """Counts and means over the objects that the mask (B,) chooses; a mean over none is NaN.

        `found` have a candidate that overlaps them at all; means are over those.
        """
        found = chosen & (self.best_candidate >= 0)

        def mean(values: np.ndarray) -> float:
            return float(values[found].mean()) if found.any() else float("nan")

        counts: dict[str, float | int] = {"objects": int(chosen.sum()), "found": int(found.sum())}
        counts |= {
            "mean_best_iou": mean(self.best_iou),
            "mean_kept_iou": mean(self.kept_iou),
            "mean_lost_iou": mean(self.lost),
        }
        for threshold in (0.5, 0.75):
            fallen = chosen & self.fallen(threshold)
            counts[f"lost_at_{threshold * 100:.0f}"] = int(fallen.sum())
            counts[f"lost_at_{threshold * 100:.0f}_to_neighbour"] = int((fallen & self.neighbour).sum())
        return counts

    def worst(self, count: int) -> np.ndarray:
        """Rows of the objects that lost most IoU, the largest loss first, none without loss."""
        order = np.argsort(-self.lost, kind="stable")[:count]
        return order[self.lost[order] > 0]


def nms_casualties(
    candidates: Detections,
    suppressor: np.ndarray,
    same_object: np.ndarray,
    ground_truth: GroundTruth,
    progress: ProgressCallback = silent,
) -> Casualties:
    """Compare what NMS was given with what it kept.

    Args:
        candidates: D boxes before NMS.
        suppressor: (D,) from `nms`.
        same_object: (D,) from `best_overlaps`: which object each candidate fits best.
        ground_truth: B boxes.
    """
    count = len(ground_truth.boxes)
    best_iou, kept_iou = np.zeros(count), np.zeros(count)
    best, kept = np.full(count, -1, dtype=np.int64), np.full(count, -1, dtype=np.int64)

    def look(portion: tuple[np.ndarray, np.ndarray]) -> tuple[int, _Best, _Best]:
        box, target = portion
        real = ~ground_truth.crowd[target]
        box, target = box[real], target[real]
        overlap = iou(candidates.boxes.take(box, axis=0), ground_truth.boxes.take(target, axis=0))
        left = suppressor[box] < 0
        done = int(portion[0][-1]) + 1
        return done, _best_of(box, target, overlap), _best_of(box[left], target[left], overlap[left])

    portions = (portion for portion in class_pairs(candidates, ground_truth) if len(portion[0]))
    for done, of_all, of_kept in in_threads(look, portions):
        _raise(best_iou, best, *of_all)
        _raise(kept_iou, kept, *of_kept)
        progress("NMS casualties", done, len(candidates))

    remover = np.where(best >= 0, np.append(suppressor, -1)[best], -1)
    fits = np.append(same_object, -1)[remover]
    neighbour = (remover >= 0) & (fits >= 0) & (fits != np.arange(count))
    return Casualties(best_iou, best, kept_iou, kept, neighbour)


def _best_of(box: np.ndarray, target: np.ndarray, overlap: np.ndarray) -> _Best:
    """Each target's largest overlap, with the first box of equals."""
    order = np.lexsort((box, -overlap, target))
    first = order[np.flatnonzero(np.diff(target[order], prepend=-1))]
    return box[first], target[first], overlap[first]


def _raise(best_iou: np.ndarray, best: np.ndarray, box: np.ndarray, target: np.ndarray, overlap: np.ndarray) -> None:
    """Let each target, which is there once, have the larger of what it has and its overlap here."""
    better = overlap > best_iou[target]
    best_iou[target[better]] = overlap[better]
    best[target[better]] = box[better]
