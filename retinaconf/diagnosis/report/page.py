"""One self-contained HTML file that shows where a detector's score and localization disagree.

It opens offline and asks no server for anything: pictures, numbers, style and program are inside, and its content
security policy forbids the rest.
"""

from __future__ import annotations

import base64
import hashlib
import json
import math
from collections.abc import Sequence
from html import escape
from pathlib import Path
from string import Template
from typing import TYPE_CHECKING, Any

import numpy as np

from retinaconf.detections import Detections
from retinaconf.diagnosis.measures.casualties import nms_casualties
from retinaconf.diagnosis.measures.nms import nms
from retinaconf.diagnosis.report import sections, tables
from retinaconf.diagnosis.report.comparability import incomparable
from retinaconf.diagnosis.report.document import to_json
from retinaconf.diagnosis.report.explorer_data import explorer_data
from retinaconf.diagnosis.report.figures import figures
from retinaconf.diagnosis.report.worst_objects import MOST, worst_objects
from retinaconf.errors import InputError, reason
from retinaconf.files import write_aside
from retinaconf.outputs import check_outputs
from retinaconf.pages import asset

if TYPE_CHECKING:
    from retinaconf.diagnosis.measures.diagnose import Diagnosis

SCRIPTS = ("columns", "nms", "alignment", "picture", "scatter", "panel", "controls", "explorer", "page")
MAX_IMAGES = 50
STEP = 0.005  # of the score threshold's slider


def write_report(
    path: Path, diagnoses: Sequence[Diagnosis], names: Sequence[str] | None = None, max_images: int = MAX_IMAGES
) -> None:
    """Write the report of one detector, or of two side by side on the same ground truth.

    Args:
        path: the HTML file; it is written aside and renamed, so that a broken run leaves no half report.
        diagnoses: one or two.
        names: what to call the detectors; default the names of their files.
        max_images: how many images the explorer offers, those with the worst losses first.

    Raises:
        InputError: the file cannot be written or is one that was read, or the two detectors' ground truth differs.
        ValueError: not one or two diagnoses.
    """
    if len(diagnoses) not in (1, 2):
        raise ValueError(f"a report shows one detector or two, not {len(diagnoses)}")
    check_outputs([path], (file for diagnosis in diagnoses for file in diagnosis.inputs()))
    truth = diagnoses[0].ground_truth
    for other in diagnoses[1:]:
        same = np.array_equal(truth.image_ids, other.ground_truth.image_ids)
        if not same or truth.classes != other.ground_truth.classes:
            raise InputError(
                f"{other.ground_truth.source}: not the images and classes of {truth.source}; two detectors can only be "
                "compared on the same ground truth"
            )
    names = _names(diagnoses) if names is None else names
    text = _page(diagnoses, names, max_images)

    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{path}: cannot be written ({reason(error)}); choose another place") from None
    write_aside(path, lambda aside: aside.write_text(text, encoding="utf-8", newline="\n"))


def _page(diagnoses: Sequence[Diagnosis], names: Sequence[str], max_images: int) -> str:
    results = [to_json(diagnosis) for diagnosis in diagnoses]
    threshold, which = opening_threshold(diagnoses)
    lost, meaning = "lost", "mean IoU lost of the objects found"
    if all(diagnosis.before is None for diagnosis in diagnoses):
        lost, meaning = "short", "mean IoU by which an object's best-scored box falls short of its best-placed one"
    losses = np.max([image_losses(diagnosis, threshold) for diagnosis in diagnoses], axis=0)
    images = _offered(diagnoses, losses, max_images)
    shown = [_shown(diagnosis) for diagnosis in diagnoses]
    data = explorer_data(
        diagnoses[0].ground_truth,
        shown,
        [diagnosis.own_score for diagnosis in diagnoses],
        names,
        images,
        [f"{losses[i]:.2f} IoU {lost}" for i in images],
        {
            "alpha": None,  # each detector's own score
            # Detections are what an NMS left: at 1 they stay as they are.
            "nms_iou": 1.0 if diagnoses[0].before is None else diagnoses[0].post_processing.nms_iou,
            "score_threshold": threshold,
            "max_detections": diagnoses[0].post_processing.max_detections,
            "object_iou": diagnoses[0].object_iou,
        },
    )
    readable = sum(image["jpeg"] is not None for image in data["images"])
    script = '(() => {\n"use strict";\n' + "\n".join(asset(f"{name}.js") for name in SCRIPTS) + "})();\n"
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    named = list(zip(names, results))
    return Template(asset("report.html")).substitute(
        script_hash=f"sha256-{digest}",
        style=asset("page.css") + asset("report.css") + asset("figures.css"),
        title=escape(" and ".join(names)),
        subject=escape(sections.subject(named)),
        verdict=sections.verdict(named),
        comparison=sections.comparison(incomparable(*diagnoses) if len(diagnoses) == 2 else []),
        explorer_notes=sections.explorer_notes(named, len(images), readable),
        threshold=f"{threshold:g}, {which}",
        step=STEP,
        loss=meaning,
        shown_images=len(images),
        all_images=len(diagnoses[0].ground_truth),
        worst=worst_objects(diagnoses, names, images),
        figures=figures(named),
        tables=tables.tables(named),
        glossary=sections.glossary(),
        data=inline_json(data),
        script=script,
    )


def opening_threshold(diagnoses: Sequence[Diagnosis]) -> tuple[float, str]:
    """The score threshold that the explorer opens at, and which one that is in words.

    A step below the best of the median class (the lowest LRP error), so that boxes at it take part; of two detectors
    the lower. The diagnosis's own where no class has one, or where that is higher.
    """
    given = diagnoses[0].post_processing.score_threshold
    by_class = [diagnosis.calibration.lrp.threshold for diagnosis in diagnoses]
    best = min((float(np.nanmedian(each)) for each in by_class if np.isfinite(each).any()), default=0.0)
    below = round(STEP * math.floor(best / STEP - 1e-3), 3)
    if below <= given:
        return given, "the diagnosis's"
    lower = ", of the two detectors the lower" if len(diagnoses) > 1 else ""
    return below, f"just below the best threshold of the median class{lower}"


def image_losses(diagnosis: Diagnosis, score_threshold: float) -> np.ndarray:
    """(I,) float64: the mean IoU that an image's objects lose because of which box the score puts first.

    The mean is over the objects that a box above `score_threshold` finds, with IoU >= `object_iou`; 0 without any. With
    candidates: what NMS lost. With detections only: how much better than the highest-scored box of an object the
    best-placed one is.
    """
    truth, stage = diagnosis.ground_truth, diagnosis.before or diagnosis.after
    scores = stage.boxes.scores.astype(np.float32).astype(np.float64)  # as the page has them
    rows = np.flatnonzero(scores > score_threshold)
    boxes, same_object = stage.boxes[rows], stage.overlaps.same_object[rows]
    if diagnosis.before is not None:
        columns = (boxes.image_index, boxes.labels, boxes.boxes, boxes.scores)
        suppressor = nms(*columns, diagnosis.post_processing.nms_iou)
        casualties = nms_casualties(boxes, suppressor, same_object, truth)
        best, lost = casualties.best_iou, casualties.lost
    else:
        same_iou = stage.overlaps.same_iou[rows]
        own = np.flatnonzero(same_iou >= diagnosis.object_iou)
        order = own[np.argsort(boxes.scores[own], kind="stable")]  # of one object the best comes last
        best, first = np.zeros(len(truth.boxes)), np.zeros(len(truth.boxes))
        np.maximum.at(best, same_object[order], same_iou[order])
        first[same_object[order]] = same_iou[order]
        lost = best - first
    found = best >= diagnosis.object_iou
    total, count = (
        np.bincount(truth.image_index[found], weights=weights, minlength=len(truth)) for weights in (lost[found], None)
    )
    return total / np.maximum(count, 1)


def _offered(diagnoses: Sequence[Diagnosis], losses: np.ndarray, most: int) -> np.ndarray:
    """At most so many images, the largest losses first: those with the worst objects, then those that lose most."""
    index = diagnoses[0].ground_truth.image_index
    of_worst = np.zeros(len(losses), dtype=bool)
    for diagnosis in diagnoses:
        if diagnosis.casualties is not None:
            of_worst[index[diagnosis.casualties.worst(MOST)]] = True
    offered = np.sort(np.lexsort((-losses, ~of_worst))[:most])
    return offered[np.argsort(-losses[offered], kind="stable")]


def inline_json(value: Any) -> str:
    """JSON that cannot end the script element it stands in, whatever a file or class is called."""
    return json.dumps(value, allow_nan=False, separators=(",", ":")).replace("<", "\\u003c")


def _shown(diagnosis: Diagnosis) -> Detections:
    """What the explorer works on: the candidates, or the detections where there are none."""
    return (diagnosis.before or diagnosis.after).boxes


def _names(diagnoses: Sequence[Diagnosis]) -> list[str]:
    names = [Path(_shown(diagnosis).source).name for diagnosis in diagnoses]
    return names if len(set(names)) == len(names) else [_shown(diagnosis).source for diagnosis in diagnoses]
