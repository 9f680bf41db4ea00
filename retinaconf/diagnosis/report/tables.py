"""The numbers behind the report's figures as HTML tables, and how a number is written on the page."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from typing import Any

from retinaconf.diagnosis.measures.task_alignment import PUBLISHED
from retinaconf.evaluation.coco import SIZES

Named = tuple[str, dict[str, Any]]  # a detector's name with the numbers of its `document.to_json`
GROUPS = ("overall", *SIZES)


def tables(reports: Sequence[Named]) -> str:
    """The numbers behind the figures, each table folded away but the first."""
    parts = [
        ("What NMS lost, by size", ["", *_LOSSES.values()], _loss_rows),
        ("Rank correlation of score and IoU", ["", "Spearman", "Kendall", "boxes"], _correlation_rows),
        ("TOOD's figures of alignment", ["", "here", *(f"{name}, published" for name in PUBLISHED)], _task_rows),
        ("Calibration", ["measure"], _calibration_rows),
        ("The oracle ladder", ["what is right", "AP", "AP50", "AP75", "gain", "from", "to (95 %)"], _oracle_rows),
        ("AP at other IoUs of NMS", ["IoU of NMS", "AP, all images"], _nms_rows),
        ("The IoU that a score stands for", ["score", "IoU to expect"], _map_rows),
        ("By class", ["class", "AP", "optimal LRP", "threshold", "LaECE", "objects"], _class_rows),
    ]
    metrics = {name: [points_text(value) for value in numbers["metrics"].values()] for name, numbers in reports}
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
            shown.append(f"<details><summary>{escape(title)}</summary>{side_by_side(columns)}</details>")
    return "".join(shown)


_LOSSES = {
    "objects": "objects",
    "found": "overlapped by a candidate",
    "mean_best_iou": "best IoU",
    "mean_kept_iou": "kept IoU",
    "mean_lost_iou": "lost",
    "lost_at_50": "fell below 0.50",
    "lost_at_75": "fell below 0.75",
}


def _loss_rows(numbers: dict[str, Any]) -> dict[str, list[str]]:
    losses = numbers["casualties"]
    return {} if losses is None else {size: [number_text(losses[size][key]) for key in _LOSSES] for size in GROUPS}


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
            rows[f"{words}, {group}"] = [number_text(value[key]) for key in ("spearman", "kendall", "n")]
        within = correlation["within_object"]
        rows[f"{words}, within an object"] = [number_text(within[key]) for key in ("spearman", "kendall", "objects")]
    return rows


_TASK = {
    "pcc": "before NMS, correlation of the ranks of score and IoU, the best 50 of an object",
    "iou": "before NMS, mean IoU of the best 10 of an object",
    "correct": "after NMS, correct boxes (the first with IoU 0.5 or more of an object)",
    "redundant": "after NMS, redundant boxes (further ones with IoU 0.5 or more)",
    "error": "after NMS, error boxes (IoU above 0.1 and below 0.5)",
}


def _task_rows(numbers: dict[str, Any]) -> dict[str, list[str]]:
    columns = (numbers["task_alignment"], *PUBLISHED.values())
    return {words: [number_text(column[key]) for column in columns] for key, words in _TASK.items()}


def _oracle_rows(numbers: dict[str, Any]) -> dict[str, list[str]]:
    keys = ("AP", "AP50", "AP75", "gain")
    return {
        step["description"]: [
            *(points_text(step[key]) for key in keys),
            *(points_text(end) for end in step["interval"]),
        ]
        for step in numbers["oracles"]
    }


def _nms_rows(numbers: dict[str, Any]) -> dict[str, list[str]]:
    nms = numbers["remedies"]["nms"]
    return {f"{iou:g}": [points_text(value)] for iou, value in zip(nms["nms_ious"], nms["AP"])}


def _map_rows(numbers: dict[str, Any]) -> dict[str, list[str]]:
    known = numbers["remedies"]["recalibration"]
    return {} if known is None else {f"{s:.4f}": [number_text(iou)] for s, iou in zip(known["scores"], known["ious"])}


def _calibration_rows(numbers: dict[str, Any]) -> dict[str, list[str]]:
    names = {"laece": "LaECE", "laece_0": "LaECE0", "d_ece": "D-ECE", "mean_olrp": "mean optimal LRP"}
    if numbers["calibration"]["confidence_laece_0"] is not None:
        names["confidence_laece_0"] = "LaECE0 of the confidence"
    return {name: [number_text(numbers["calibration"].get(key))] for key, name in names.items()}


def _class_rows(numbers: dict[str, Any]) -> dict[str, list[str]]:
    rows = {}
    for name, value in numbers["calibration"]["per_class"].items():
        cells = [value.get(key) for key in ("olrp", "threshold", "laece", "objects")]
        rows[name] = [points_text(numbers["metrics_per_class"].get(name)), *map(number_text, cells)]
    return rows


def side_by_side(columns: Sequence[str]) -> str:
    """One column of HTML, or two."""
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


def number_text(value: float | int | None) -> str:
    """A fraction with three digits, or a count; a dash where there is none."""
    if value is None:
        return "–"
    return count_text(value) if isinstance(value, int) else f"{value:.3f}"


def points_text(value: float | None) -> str:
    """AP as it is spoken of: 0 to 100."""
    return "–" if value is None else f"{100 * value:.1f}"


def count_text(value: int) -> str:
    """'25,960'."""
    return f"{value:,}"


def percent_text(value: float | None) -> str:
    """'56 %'."""
    return "–" if value is None else f"{100 * value:.0f} %"
