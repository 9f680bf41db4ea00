"""The report's sections as HTML, from the numbers of `Diagnosis.to_json`; its tables are in `tables.py`.

A `Named` is a detector's name with its numbers; every function takes one or two of them and sets two side by side.
All text is escaped here.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from html import escape
from pathlib import Path
from typing import Any

import numpy as np

from retinaconf.diagnosis.report import svg
from retinaconf.diagnosis.report.glossary import GLOSSARY
from retinaconf.diagnosis.report.tables import (
    GROUPS,
    Named,
    count_text,
    number_text,
    percent_text,
    points_text,
    side_by_side,
)

ORACLES = {  # what is said of a step of the ladder beside its bar
    "as_is": "As it is",
    "ranked_by_iou": "Each object's boxes ranked by their IoU",
    "quality_is_iou": "The score joined with the true IoU",
    "score_is_iou": "The score is the IoU",
    "class_right": "The right class for every box on an object",
    "no_duplicates": "No duplicates",
    "score_is_iou_no_duplicates": "The score is the IoU, no duplicates",
}


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


def figures(reports: Sequence[Named]) -> str:
    """Every figure with what it shows and how to read it; two detectors' figures in pairs."""
    drawings: list[tuple[str, str, Callable[[dict[str, Any]], str]]] = [
        (
            "Score against IoU before NMS",
            "Where the boxes are; a stronger colour is more. An aligned detector fills the diagonal from lower left to "
            "upper right.",
            lambda n: _density(n["density"]["before_nms"]),
        ),
        (
            "Score against IoU after NMS",
            "The boxes that are left. What was on the right before and is not here was well placed, and suppressed.",
            lambda n: _density(n["density"]["after_nms"]),
        ),
        (
            "IoU kept (disc) and IoU there was (triangle)",
            "Means over the objects that a candidate of their class overlaps, by size. The line between the two is "
            "what NMS lost.",
            _casualties_by_size,
        ),
        (
            "The oracle ladder: AP if one thing were perfect",
            "Everything else stays as it is, so each bar is the most that mending this one thing can give.",
            lambda n: svg.bars([_oracle(step) for step in n["oracles"]]),
        ),
        (
            "Does a score of 0.8 mean an IoU of 0.8?",
            "Mean IoU of the detections in each range of scores; on the dashed line the score can be taken at its "
            "word. A larger disc stands for more detections.",
            lambda n: svg.reliability(
                *(n["calibration"]["reliability"][k] for k in ("mean_score", "mean_iou", "count"))
            ),
        ),
        (
            "AP over alpha",
            "The ranking by quality^alpha × class score^(1 − alpha), all images. 0 is the class score alone. The large "
            "disc is the alpha that is best on half of the images. Compare with the AP as it is.",
            lambda n: "" if not n["quality"] else _alpha_curve(n["quality"]),
        ),
        (
            "What NMS does to the share of well-placed boxes",
            "Boxes with IoU above t, as a share of those with score above 0.05. Figure 2 of arXiv 2011.10465: a line "
            "that falls from solid (before) to dashed (after) lost well-placed boxes.",
            _proportions,
        ),
    ]
    shown = []
    for title, reading, draw in drawings:
        for name, numbers in reports:
            drawing = draw(numbers)
            if drawing:
                heading = f"{title}: {name}" if len(reports) > 1 else title
                caption = f"<figcaption><strong>{escape(heading)}</strong>{escape(reading)}</figcaption>"
                shown.append(f"<figure>{drawing}{caption}</figure>")
    return f'<div class="plots">{"".join(shown)}</div>'


def _density(counts: list[list[int]] | None) -> str:
    return "" if counts is None else svg.density(np.array(counts))


def _casualties_by_size(numbers: dict[str, Any]) -> str:
    losses = numbers["casualties"]
    if losses is None:
        return ""
    return svg.dumbbells([(size, losses[size]["mean_kept_iou"], losses[size]["mean_best_iou"]) for size in GROUPS])


def _oracle(step: dict[str, Any]) -> tuple[str, float | None, str]:
    gain = "" if step["name"] == "as_is" or step["gain"] is None else f" ({100 * step['gain']:+.1f})"
    return ORACLES.get(step["name"], step["description"]), step["AP"], points_text(step["AP"]) + gain


def _alpha_curve(quality: dict[str, Any]) -> str:
    points = [None if value is None else 100 * value for value in quality["AP"]]
    return svg.curve(quality["alphas"], points, "alpha", "AP", quality["best_alpha"])


def _proportions(numbers: dict[str, Any]) -> str:
    paper = numbers["paper"]
    series = [
        (words, css, paper["thresholds"]["iou"], paper["same_class"][when]["proportion"]["iou"])
        for when, words, css in (("before_nms", "before NMS", "kept-line"), ("after_nms", "after NMS", "series-2"))
        if paper["same_class"][when] is not None
    ]
    return svg.lines(series, "IoU above t", "share of boxes") if len(series) == 2 else ""


def glossary() -> str:
    """What the report's words mean."""
    entries = "".join(f"<dt>{escape(word)}</dt><dd>{escape(meaning)}</dd>" for word, meaning in GLOSSARY.items())
    return f"<dl>{entries}</dl>"
