"""The report's sections as HTML, from the numbers of `Diagnosis.to_json`.

A `Named` is a detector's name with its numbers; every function takes one or two of them and sets two side by side.
All text is escaped here.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from html import escape
from pathlib import Path
from typing import Any

import numpy as np

from retinaconf.diagnosis import svg
from retinaconf.diagnosis.glossary import GLOSSARY
from retinaconf.diagnosis.sizes import SIZES

Named = tuple[str, dict[str, Any]]
ORACLES = {  # what is said of a step of the ladder beside its bar
    "as_is": "As it is",
    "ranked_by_iou": "Each object's boxes ranked by their IoU",
    "quality_is_iou": "A perfect quality score",
    "score_is_iou": "The score is the IoU",
    "class_right": "Every class right",
    "no_duplicates": "No duplicates",
    "score_is_iou_no_duplicates": "The score is the IoU, no duplicates",
}
GROUPS = ("overall", *SIZES)


def subject(reports: Sequence[Named]) -> str:
    """What was looked at, in one plain line (not escaped)."""
    data = reports[0][1]["data"]
    boxes = " and ".join(
        f"{_count(numbers['data']['num_candidates'])} candidates of {name}"
        if numbers["data"]["num_candidates"] is not None
        else f"{_count(numbers['data']['num_detections'])} detections of {name}"
        for name, numbers in reports
    )
    where = Path(data["ground_truth"]).name
    return f"{boxes}, on {_count(data['objects'])} objects in {_count(data['images'])} images ({where})."


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
        columns.append(
            f'<div>{heading}<div class="tiles">{tiles}</div><ul class="verdict">{sentences}</ul>'
            f'<ul class="notes muted">{notes}</ul></div>'
        )
    return _side_by_side(columns)


def _tiles(numbers: dict[str, Any]) -> list[tuple[str, str]]:
    """(value, meaning) of the four numbers shown large."""
    before = numbers["correlation"]["before_nms"] or numbers["correlation"]["after_nms"]
    gain = {step["name"]: step["gain"] for step in numbers["oracles"]}.get("ranked_by_iou")
    tiles = [
        (
            _percent(before["within_object"]["concordance"]),
            "of two boxes on one object, how often the better-placed one has the higher score (50 % is chance)",
        ),
        (
            "–" if gain is None else f"{100 * gain:+.1f} AP",
            "if each object's boxes were ranked by how well they fit, all else as it is",
        ),
        (_points(numbers["metrics"]["AP"]), "AP as it is: COCO's metric, from 0 to 100"),
    ]
    if numbers["casualties"] is not None:
        overall = numbers["casualties"]["overall"]
        lost = (
            _number(overall["mean_lost_iou"]),
            f"IoU lost per object because NMS kept a worse box; {_count(overall['lost_at_75'])} of "
            f"{_count(overall['found'])} found objects fall below 0.75 for this alone",
        )
        tiles.insert(1, lost)
    else:
        tiles.insert(1, (_number(numbers["calibration"]["laece"]), "distance between score and IoU (LaECE; 0 is best)"))
    return tiles


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
            else f"{_count(shown - readable)} of {_count(shown)} pictures are missing"
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
            "Mean over found objects by size. The line between them is what NMS lost.",
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
            "The large disc is the best alpha, chosen on half of the images. 0 is the class score alone.",
            lambda n: "" if not n["quality"] else _alpha_curve(n["quality"]),
        ),
        (
            "What NMS does to the share of well-placed boxes",
            "Boxes with IoU above t, as a share of those with score above 0.05. Figure 2 of the paper: a line that "
            "falls from solid (before) to dashed (after) lost well-placed boxes.",
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
    return ORACLES.get(step["name"], step["description"]), step["AP"], _points(step["AP"]) + gain


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


def tables(reports: Sequence[Named]) -> str:
    """The numbers behind the figures, each table folded away but the first."""
    parts = [
        ("What NMS lost, by size", ["", *_LOSSES.values()], _loss_rows),
        ("Rank correlation of score and IoU", ["", "Spearman", "Kendall", "boxes"], _correlation_rows),
        ("Calibration", ["measure"], _calibration_rows),
        ("The oracle ladder", ["what is right", "AP", "AP50", "AP75", "gain"], _oracle_rows),
        ("By class", ["class", "AP", "optimal LRP", "threshold", "LaECE", "objects"], _class_rows),
    ]
    metrics = {name: [_points(value) for value in numbers["metrics"].values()] for name, numbers in reports}
    table = _table(["", *reports[0][1]["metrics"]], metrics)
    shown = [f'<details open><summary>COCO metrics</summary><div class="scroll">{table}</div></details>']
    for title, head, rows_of in parts:
        columns = []
        for name, numbers in reports:
            rows = rows_of(numbers)
            if rows:
                caption = f"<h3>{escape(name)}</h3>" if len(reports) > 1 else ""
                columns.append(f'<div>{caption}<div class="scroll">{_table(head, rows)}</div></div>')
        if columns:
            shown.append(f"<details><summary>{escape(title)}</summary>{_side_by_side(columns)}</details>")
    return "".join(shown)


_LOSSES = {
    "objects": "objects",
    "found": "found",
    "mean_best_iou": "best IoU",
    "mean_kept_iou": "kept IoU",
    "mean_lost_iou": "lost",
    "lost_at_50": "fell below 0.50",
    "lost_at_75": "fell below 0.75",
}


def _loss_rows(numbers: dict[str, Any]) -> dict[str, list[str]]:
    losses = numbers["casualties"]
    return {} if losses is None else {size: [_number(losses[size][key]) for key in _LOSSES] for size in GROUPS}


def _correlation_rows(numbers: dict[str, Any]) -> dict[str, list[str]]:
    rows = {}
    for when, words in (("before_nms", "before NMS"), ("after_nms", "after NMS")):
        correlation = numbers["correlation"][when]
        if correlation is None:
            continue
        groups = {"all boxes": correlation["all"], "boxes on objects": correlation["on_objects"]} | correlation[
            "per_size"
        ]
        for group, value in groups.items():
            rows[f"{words}, {group}"] = [_number(value[key]) for key in ("spearman", "kendall", "n")]
        within = correlation["within_object"]
        rows[f"{words}, within an object"] = [_number(within[key]) for key in ("spearman", "kendall", "objects")]
    return rows


def _oracle_rows(numbers: dict[str, Any]) -> dict[str, list[str]]:
    keys = ("AP", "AP50", "AP75", "gain")
    return {step["description"]: [_points(step[key]) for key in keys] for step in numbers["oracles"]}


def _calibration_rows(numbers: dict[str, Any]) -> dict[str, list[str]]:
    names = {"laece": "LaECE", "laece_0": "LaECE0", "d_ece": "D-ECE", "mean_olrp": "mean optimal LRP"}
    return {name: [_number(numbers["calibration"].get(key))] for key, name in names.items()}


def _class_rows(numbers: dict[str, Any]) -> dict[str, list[str]]:
    rows = {}
    for name, value in numbers["calibration"]["per_class"].items():
        cells = [value.get(key) for key in ("olrp", "threshold", "laece", "objects")]
        rows[name] = [_points(numbers["metrics_per_class"].get(name)), *map(_number, cells)]
    return rows


def glossary() -> str:
    """What the report's words mean."""
    entries = "".join(f"<dt>{escape(word)}</dt><dd>{escape(meaning)}</dd>" for word, meaning in GLOSSARY.items())
    return f"<dl>{entries}</dl>"


def _side_by_side(columns: Sequence[str]) -> str:
    return f'<div class="detectors{" two" if len(columns) > 1 else ""}">{"".join(columns)}</div>'


def _table(head: Sequence[str], rows: dict[str, list[str]]) -> str:
    width = max(len(cells) for cells in rows.values()) + 1
    names = [*head, *[""] * (width - len(head))]
    top = "".join(f'<th scope="col">{escape(name)}</th>' for name in names)
    body = "".join(
        f'<tr><th scope="row">{escape(name)}</th>{"".join(f"<td>{escape(cell)}</td>" for cell in cells)}</tr>'
        for name, cells in rows.items()
    )
    return f"<table><thead><tr>{top}</tr></thead><tbody>{body}</tbody></table>"


def _number(value: float | int | None) -> str:
    if value is None:
        return "–"
    return _count(value) if isinstance(value, int) else f"{value:.3f}"


def _points(value: float | None) -> str:
    """AP as it is spoken of: 0 to 100."""
    return "–" if value is None else f"{100 * value:.1f}"


def _count(value: int) -> str:
    return f"{value:,}"


def _percent(value: float | None) -> str:
    return "–" if value is None else f"{100 * value:.0f} %"
