"""The diagnosis as figures, from the numbers of `document.to_json`: in the page, and as SVG files of their own."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from functools import partial
from html import escape
from pathlib import Path
from typing import Any

import numpy as np

from retinaconf.diagnosis.measures.diagnose import Diagnosis
from retinaconf.diagnosis.report.document import to_json
from retinaconf.diagnosis.report.tables import GROUPS, Named, percent_text, points_text
from retinaconf.errors import InputError, reason
from retinaconf.files import write_aside
from retinaconf.outputs import check_outputs
from retinaconf.pages import asset, svg

ORACLES = {  # what is said of a step of the ladder beside its bar
    "as_is": "As it is",
    "ranked_by_iou": "Each object's boxes ranked by their IoU",
    "quality_is_iou": "The score joined with the true IoU",
    "score_is_iou": "The score is the IoU",
    "class_right": "The right class for every box on an object",
    "no_duplicates": "No duplicates",
    "score_is_iou_no_duplicates": "The score is the IoU, no duplicates",
}
TITLE_HEIGHT = 28


def save_figures(diagnosis: Diagnosis, folder: Path) -> list[Path]:
    """Write each figure for which there is data as an SVG file, in the page's light colours, and return the files.

    Raises:
        InputError: the folder cannot be made, or a figure would replace one of the diagnosis's inputs.
    """
    numbers = to_json(diagnosis)
    drawn = {
        folder / f"{name}.svg": _alone(title, drawing)
        for name, (title, _, draw) in FIGURES.items()
        if (drawing := draw(numbers))
    }
    check_outputs(drawn, diagnosis.inputs())
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{folder}: figures cannot be written ({reason(error)}); choose another place") from None
    for path, text in drawn.items():
        write_aside(path, partial(Path.write_text, data=text, encoding="utf-8", newline="\n"))
    return list(drawn)


def _alone(title: str, drawing: str) -> str:
    """A figure of the page as a file of its own: below its title, in colours that need no page and no browser."""
    light = dict(re.findall(r"--([\w-]+): light-dark\(([^,]+),", asset("page.css")))
    style = re.sub(r"var\(--([\w-]+)\)", lambda name: light[name[1]], asset("figures.css"))

    def opened(tag: re.Match[str]) -> str:
        width, height = tag[1], int(tag[2]) + TITLE_HEIGHT
        return (
            f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" '
            f'viewBox="0 {-TITLE_HEIGHT} {width} {height}"{tag[3]}><style>{style}</style>'
            f'<rect y="{-TITLE_HEIGHT}" width="100%" height="100%" fill="{light["surface"]}"/>'
            f'<text class="value" y="{16 - TITLE_HEIGHT}">{escape(title)}</text>'
        )

    return re.sub(r'^<svg viewBox="0 0 (\d+) (\d+)"([^>]*)>', opened, drawing)


def figures(reports: Sequence[Named]) -> str:
    """Every figure as HTML with what it shows and how to read it; two detectors' figures in pairs."""
    shown = []
    for title, reading, draw in FIGURES.values():
        for name, numbers in reports:
            drawing = draw(numbers)
            if drawing:
                heading = f"{title}: {name}" if len(reports) > 1 else title
                caption = f"<figcaption><strong>{escape(heading)}</strong>{escape(reading)}</figcaption>"
                shown.append(f"<figure>{drawing}{caption}</figure>")
    return f'<div class="plots">{"".join(shown)}</div>'


def _density(counts: list[list[int]] | None) -> str:
    return "" if counts is None else svg.density(np.array(counts))


def _casualties(numbers: dict[str, Any]) -> str:
    losses = numbers["casualties"]
    if losses is None:
        return ""
    return svg.dumbbells([(size, losses[size]["mean_kept_iou"], losses[size]["mean_best_iou"]) for size in GROUPS])


def _oracle(step: dict[str, Any]) -> tuple[str, float | None, str]:
    gain = "" if step["name"] == "as_is" or step["gain"] is None else f" ({100 * step['gain']:+.1f})"
    return ORACLES.get(step["name"], step["description"]), step["AP"], points_text(step["AP"]) + gain


def _reliability(numbers: dict[str, Any]) -> str:
    bins = numbers["calibration"]["reliability"]
    return svg.reliability(bins["mean_score"], bins["mean_iou"], bins["count"])


def _alpha(numbers: dict[str, Any]) -> str:
    quality = numbers["quality"]
    if not quality:
        return ""
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


def _coverage(numbers: dict[str, Any]) -> str:
    if numbers["coverage"] is None:
        return ""
    rows = []
    for group in GROUPS:
        found = numbers["coverage"][group]
        share = found["over_threshold"] / found["objects"] if found["objects"] else None
        rows.append((f"{group}: {found['never_positive']:,} of {found['objects']:,} never", share, percent_text(share)))
    return svg.bars(rows)


# By the name of its file: its title, how to read it, and its drawing; none where there is no data for it.
FIGURES: dict[str, tuple[str, str, Callable[[dict[str, Any]], str]]] = {
    "density-before-nms": (
        "Score against IoU before NMS",
        "Where the boxes are; a stronger colour is more. An aligned detector fills the diagonal from lower left to "
        "upper right.",
        lambda numbers: _density(numbers["density"]["before_nms"]),
    ),
    "density-after-nms": (
        "Score against IoU after NMS",
        "The boxes that are left. What was on the right before and is not here was well placed, and suppressed.",
        lambda numbers: _density(numbers["density"]["after_nms"]),
    ),
    "casualties": (
        "IoU kept (disc) and IoU there was (triangle)",
        "Means over the objects that a candidate of their class overlaps, by size. The line between the two is "
        "what NMS lost.",
        _casualties,
    ),
    "oracles": (
        "The oracle ladder: AP if one thing were perfect",
        "Everything else stays as it is, so each bar is the most that mending this one thing can give.",
        lambda numbers: svg.bars([_oracle(step) for step in numbers["oracles"]]),
    ),
    "reliability": (
        "Does a score of 0.8 mean an IoU of 0.8?",
        "Mean IoU of the detections in each range of scores; on the dashed line the score can be taken at its "
        "word. A larger disc stands for more detections.",
        _reliability,
    ),
    "alpha": (
        "AP over alpha",
        "The ranking by quality^alpha × class score^(1 − alpha), all images. 0 is the class score alone. The large "
        "disc is the alpha that is best on half of the images. Compare with the AP as it is.",
        _alpha,
    ),
    "figure2": (
        "What NMS does to the share of well-placed boxes",
        "Boxes with IoU above t, as a share of those with score above 0.05. Figure 2 of arXiv 2011.10465: a line "
        "that falls from solid (before) to dashed (after) lost well-placed boxes.",
        _proportions,
    ),
    "coverage": (
        "Objects with an anchor of IoU 0.5 or more",
        "The share by size. Training gives another object its best anchor alone, or never a positive one: so many are "
        "counted beside the size.",
        _coverage,
    ),
}
