"""Which numbers of two detectors must not be compared, because they are about other boxes."""

from __future__ import annotations

import math

from retinaconf.diagnosis.measures.diagnose import Diagnosis
from retinaconf.diagnosis.report.summary import num_objects

ALIKE = 1.1  # the largest factor between two counts that are taken for equal


def incomparable(first: Diagnosis, second: Diagnosis) -> list[str]:
    """A sentence on each group of numbers that differ for another reason than the detectors; both of the same images.

    AP, the gains of the oracles, and the order within objects are comparable otherwise.
    """
    both = (first, second)
    found = []
    one, other = (
        f"NMS IoU {each.post_processing.nms_iou:g} and {each.post_processing.max_detections} detections an image"
        f"{', with Soft-NMS' if each.post_processing.soft_nms else ''}"
        f"{', with score voting' if each.post_processing.vote else ''}"
        for each in both
    )
    if one != other:
        found.append(f"Their detections were made with {one}; and with {other}: part of a difference comes from that.")
    if (first.before is None) != (second.before is None):
        found.append(
            "Candidates are known of one detector only: do not compare the order within objects, nor the gains of a "
            "better order."
        )
    else:
        ordered = [(each.before or each.after).alignment.within.boxes for each in both]
        found += other_order(*ordered)
    given = [_boxes_on_an_object(each) for each in both]
    if _differ(*given):
        found.append(
            f"Do not compare what NMS lost: it was given {given[0]:.1f} and {given[1]:.1f} boxes on an object, and "
            "among more boxes there is a better one to lose."
        )
    reported = [len(each.after.boxes) / max(len(each.ground_truth), 1) for each in both]
    return [*found, *other_calibration(*reported)]


def other_order(one: float, other: float) -> list[str]:
    """A sentence if the order within objects is that of other numbers of boxes an object; else nothing."""
    if not _differ(one, other):
        return []
    return [
        f"Do not compare the order within objects: it is that of {one:.1f} and of {other:.1f} boxes an object. Where a "
        "file was cut, write its candidates down to a lower score."
    ]


def other_calibration(one: float, other: float) -> list[str]:
    """A sentence if calibration is that of other numbers of detections an image; else nothing."""
    if not _differ(one, other):
        return []
    return [
        f"Do not compare calibration: it is that of {one:.1f} and of {other:.1f} detections an image, and most of "
        "those that only one of them has are low scores on nothing."
    ]


def _differ(one: float, other: float) -> bool:
    """Whether two counts do, and both are known."""
    return max(one, other) > ALIKE * min(one, other)  # false of NaN


def _boxes_on_an_object(diagnosis: Diagnosis) -> float:
    """How many boxes above the score threshold NMS got an object; NaN without candidates or objects."""
    objects = num_objects(diagnosis)
    if diagnosis.before is None or objects == 0:
        return math.nan
    return float((diagnosis.before.overlaps.same_iou >= diagnosis.object_iou).sum()) / objects
