"""The report's sections as HTML, from the numbers of `document.to_json`; tables and figures have files of their own.

A `Named` is a detector's name with its numbers; every function takes one or two of them and sets two side by side.
All text is escaped here.
"""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Any

from retinaconf.diagnosis.report.glossary import GLOSSARY
from retinaconf.diagnosis.report.tables import (
    Named,
    count_text,
    number_text,
    percent_text,
    points_text,
    side_by_side,
)


def subject(reports: Sequence[Named]) -> str:
    """What was looked at, in one plain line (not escaped)."""
    data = reports[0][1]["data"]
    boxes = " and ".join(
        f"{count_text(numbers['data']['num_candidates'])} candidates of {name}"
        if numbers["data"]["num_candidates"] is not None
        else f"{count_text(numbers['data']['num_detections'])} detections of {name}"
        for name, numbers in reports
    )
    where = Path(data["ground_truth"]).name
    return f"{boxes}, on {count_text(data['objects'])} objects in {count_text(data['images'])} images ({where})."


def verdict(reports: Sequence[Named]) -> str:
    """The numbers that matter most, then the findings in words."""
    columns = []
    for name, numbers in reports:
        heading = f"<h3>{escape(name)}</h3>" if len(reports) > 1 else ""
        tiles = "".join(
            f'<p class="tile"><strong>{escape(value)}</strong><span>{escape(meaning)}</span></p>'
            for value, meaning in _tiles(numbers)
        )
        sentences = "".join(f"<li>{escape(sentence)}</li>" for sentence in numbers["summary"])
        notes = "".join(f"<li>{escape(note)}</li>" for note in numbers["data"]["notes"])
        advice = "".join(f"<li>{escape(line)}</li>" for line in numbers["advice"])
        level = "h4" if heading else "h2"
        columns.append(
            f'<div>{heading}<div class="tiles">{tiles}</div><ul class="verdict">{sentences}</ul>'
            f'<ul class="notes muted">{notes}</ul><{level}>What to do</{level}><ul class="advice">{advice}</ul></div>'
        )
    return side_by_side(columns)


def comparison(sentences: Sequence[str]) -> str:
    """What of two detectors must not be compared."""
    items = "".join(f"<li>{escape(sentence)}</li>" for sentence in sentences)
    return f'<ul class="notes muted">{items}</ul>' if items else ""


def _tiles(numbers: dict[str, Any]) -> list[tuple[str, str]]:
    """(value, meaning) of the four numbers shown large."""
    within = (numbers["correlation"]["before_nms"] or numbers["correlation"]["after_nms"])["within_object"]
    ranked = {step["name"]: step for step in numbers["oracles"]}["ranked_by_iou"]
    tiles = [
        (
            percent_text(within["concordance"]),
            "of two boxes on one object, how often the better-placed one has the higher score (50 % is chance; mean of "
            f"{count_text(within['objects'])} objects with two or more)",
        ),
        (
            "–" if ranked["gain"] is None else f"{100 * ranked['gain']:+.1f} AP",
            f"if each object's boxes were ranked by how well they fit, all else as is{_interval(ranked['interval'])}",
        ),
        (points_text(numbers["metrics"]["AP"]), "AP as it is: COCO's metric, from 0 to 100"),
    ]
    if numbers["casualties"] is not None:
        overall = numbers["casualties"]["overall"]
        lost = (
            number_text(overall["mean_lost_iou"]),
            f"IoU lost because NMS kept a worse box: the mean of the {count_text(overall['found'])} objects that a "
            f"candidate overlaps, of which {count_text(overall['lost_at_75'])} fall below IoU 0.75 by this alone",
        )
        tiles.insert(1, lost)
    else:
        tiles.insert(
            1, (number_text(numbers["calibration"]["laece"]), "distance between score and IoU (LaECE; 0 is best)")
        )
    return tiles


def _interval(bounds: Sequence[float | None]) -> str:
    low, high = bounds
    return "" if low is None or high is None else f" (95 % interval {100 * low:+.1f} to {100 * high:+.1f})"


def explorer_notes(reports: Sequence[Named], shown: int, readable: int) -> str:
    """What the explorer lacks: candidates before NMS, or the pictures of some of the `shown` images."""
    notes = []
    if any(numbers["data"]["num_candidates"] is None for _, numbers in reports):
        notes.append(
            "<strong>These are detections: what an NMS threw away is not in the file.</strong> Lower the NMS IoU to "
            "suppress more of them. If your detector has an NMS, give the candidates before it to see what was lost."
        )
    if readable < shown:
        missing = (
            "No picture is shown"
            if readable == 0
            else f"{count_text(shown - readable)} of {count_text(shown)} pictures are missing"
        )
        notes.append(
            f"<strong>{missing}</strong>: their files were not found or cannot be read. Boxes are drawn on an empty "
            "ground. Name the folder of the pictures with --images."
        )
    return " ".join(notes)


def glossary() -> str:
    """What the report's words mean."""
    entries = "".join(f"<dt>{escape(word)}</dt><dd>{escape(meaning)}</dd>" for word, meaning in GLOSSARY.items())
    return f"<dl>{entries}</dl>"
