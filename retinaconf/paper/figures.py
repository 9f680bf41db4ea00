"""The items as figures."""

from __future__ import annotations

from pathlib import Path
from textwrap import fill
from typing import TYPE_CHECKING, Any

import numpy as np

from retinaconf.diagnosis.measures.paper_statistics import IOU_THRESHOLDS, SCORE_THRESHOLDS
from retinaconf.files import write_aside
from retinaconf.paper import introduction

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe and Ito's colours, told apart with any colour vision; markers and dashes repeat the difference.
BLUE, ORANGE, GREEN, PURPLE, GREY = "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#666666"
STYLE: dict[Any, Any] = {
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 10,
    "axes.titlelocation": "left",
    "legend.frameon": False,
}


def save_figure(document: dict[str, Any], path: Path) -> None:
    """Draw the document of an item (`engine.run_paper`) into a PNG.

    Raises:
        InputError: the file cannot be written.
    """
    import matplotlib as mpl
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    draw = {
        "rows": rows,
        "alpha": alpha,
        "statistics": figure2,
        "figure1": figure1,
        "figure2": figure2,
        "figure4": figure4,
        "figure5": figure5,
        "open-question": open_question,
        "ladder": ladder,
    }[document["kind"]]
    with mpl.rc_context(STYLE):
        figure = Figure(layout="constrained")
        FigureCanvasAgg(figure)
        draw(document, figure)
        write_aside(path, lambda aside: figure.savefig(aside, dpi=200, format="png"))


def rows(document: dict[str, Any], figure: Figure) -> None:
    """AP of every row, a dot a seed; and every difference of the claims with its interval."""
    table = document["rows"]
    parts = [part for claim in document["claims"] for part in claim["parts"]]
    longest = max(len(table), len(parts))
    figure.set_size_inches(10.5, 1.3 + 0.38 * longest)
    left, right = figure.subplots(1, 2)
    place = np.arange(len(table))[::-1]
    for y, row in zip(place, table):
        seeds = [100 * metrics["AP"] for metrics in row["seeds"] if metrics["AP"] is not None]
        left.plot(seeds, [y] * len(seeds), "o", ms=4, color=BLUE, alpha=0.45, mew=0)
        if row["mean"]["AP"] is not None:
            left.plot(100 * row["mean"]["AP"], y, "|", ms=13, mew=2, color=BLUE)
        if document["is_coco"] and row["published"]:
            left.plot(100 * row["published"]["AP"], y, "D", ms=5, mfc="none", color=ORANGE)
    left.plot([], [], "o", color=BLUE, alpha=0.45, mew=0, label="a seed")
    left.plot([], [], "|", ms=13, mew=2, color=BLUE, label="mean")
    if document["is_coco"]:
        left.plot([], [], "D", ms=5, mfc="none", color=ORANGE, label="published")
    left.set_yticks(place, [fill(row["name"], 30) for row in table], fontsize=8)
    left.set(xlabel="AP", ylim=(-0.7, len(table) - 0.3))
    left.legend(ncols=3, loc="lower right", bbox_to_anchor=(1, 1), fontsize=8, borderaxespad=0.1)
    _intervals(right, parts)


def ladder(document: dict[str, Any], figure: Figure) -> None:
    """AP of each step, a dot a seed; its difference to RetinaNet and to the step before; and what explains it.

    Of several RetinaNets the one that is most like the step is shown.
    """
    table, steps = document["rows"], document["steps"]
    figure.set_size_inches(13.5, 1.5 + 0.36 * len(table))
    axes = figure.subplots(1, 5, sharey=True, width_ratios=(1.2, 1.4, 1, 1, 1))
    place = dict(zip([row["name"] for row in table], range(len(table))[::-1]))
    shown = {row["name"]: [metrics["AP"] for metrics in row["seeds"]] for row in table}
    columns = [("AP", 100, shown)]
    for measure, title, scale in (
        ("concordance", "order of an object's boxes, %", 100),
        ("lost_iou", "IoU lost in NMS", 1),
        ("oracle_gain", "AP that ranking by IoU adds", 100),
    ):
        columns.append((title, scale, {name: step["measures"][measure]["seeds"] for name, step in steps.items()}))
    for axis, (title, scale, values) in zip([axes[0], *axes[2:]], columns):
        for name, seeds in values.items():
            known = [scale * value for value in seeds if value is not None]
            axis.plot(known, [place[name]] * len(known), "o", ms=4, color=BLUE, alpha=0.45, mew=0)
            if known:
                axis.plot(np.mean(known), place[name], "|", ms=11, mew=2, color=BLUE)
        axis.set_xlabel(title)
    if document["is_coco"]:
        for row in table:
            if row["published"]:
                axes[0].plot(100 * row["published"]["AP"], place[row["name"]], "D", ms=5, mfc="none", color=ORANGE)
        axes[0].plot([], [], "D", ms=5, mfc="none", color=ORANGE, label="published")
        axes[0].legend(loc="lower right", bbox_to_anchor=(1, 1), fontsize=8, borderaxespad=0.1)
    parts = {part["text"]: part for claim in document["claims"] for part in claim["parts"]}
    axes[1].axvline(0, color=GREY, lw=0.8, ls=":")
    before = {name: [step] for name, step in document["before"].items()}
    for what, rivals, colour, shift in (
        ("RetinaNet", document["controls"], BLUE, 0.14),
        ("the step before", before, ORANGE, -0.14),
    ):
        axes[1].plot([], [], "o-", ms=4, color=colour, label=f"over {what}")
        for name, others in rivals.items():
            found = [parts[text] for other in others if (text := f"{name} > {other}") in parts]
            _difference(axes[1], found[0] if found else None, place.get(name, 0) + shift, colour)
    axes[1].set_xlabel("difference of AP, 95% interval")
    axes[1].legend(ncols=2, loc="lower right", bbox_to_anchor=(1, 1), fontsize=8, borderaxespad=0.1)
    axes[0].set_yticks(list(place.values()), list(place), fontsize=8)
    axes[0].set_ylim(-0.7, len(table) - 0.3)


def _difference(axis: Axes, part: dict[str, Any] | None, y: float, colour: str) -> None:
    if part is not None and part["difference"] is not None and part["interval"][0] is not None:
        axis.plot([100 * end for end in part["interval"]], [y, y], color=colour, lw=2, solid_capstyle="butt")
        axis.plot(100 * part["difference"], y, "o", ms=4, color=colour)


COLOURS = {"holds": GREEN, "does not hold": ORANGE, "undecided": GREY}


def _intervals(axis: Axes, parts: list[dict[str, Any]]) -> None:
    axis.axvline(0, color=GREY, lw=0.8, ls=":")
    place = np.arange(len(parts))[::-1]
    for y, part in zip(place, parts):
        _difference(axis, part, y, COLOURS[part["verdict"]])
    for name, colour in COLOURS.items():
        axis.plot([], [], "o-", color=colour, label=name)
    axis.set_yticks(place, [fill(part["text"], 34) for part in parts], fontsize=8)
    axis.set(xlabel="difference of AP in points, 95% interval", ylim=(-0.7, max(len(parts), 1) - 0.3))
    axis.legend(ncols=3, loc="lower right", bbox_to_anchor=(1, 1), fontsize=8, borderaxespad=0.1)


def alpha(document: dict[str, Any], figure: Figure) -> None:
    """AP against alpha for each detector, a thin line a seed; beside it the published curves."""
    figure.set_size_inches(9, 3.6)
    ours, theirs = figure.subplots(1, 2)
    detectors = list(dict.fromkeys(row["detector"] for row in document["rows"]))
    for detector, colour, marker in zip(detectors, (ORANGE, BLUE), ("s", "o")):
        table = [row for row in document["rows"] if row["detector"] == detector]
        name = table[0]["name"].split(",")[0]
        alphas = [row["alpha"] for row in table]
        for seed in range(len(document["seeds"])):
            ours.plot(alphas, [_percent(row["seeds"][seed]["AP"]) for row in table], color=colour, lw=0.7, alpha=0.4)
        ours.plot(alphas, [_percent(row["mean"]["AP"]) for row in table], marker + "-", color=colour, label=name)
        known = [_percent(row["published"]["AP"]) for row in table]
        theirs.plot(alphas, known, marker + "-", color=colour, label=name)
    ours.set_title(f"{document['split']}, {document['images']:,} images, {len(document['seeds'])} seed(s)")
    theirs.set_title("published: COCO val2017, R50, 1x")
    for axis in (ours, theirs):
        axis.set(xlabel="α: score = quality^α · class score^(1 − α)", ylabel="AP")
        axis.legend()


def _percent(value: float | None) -> float:
    return float("nan") if value is None else 100 * value


def figure1(document: dict[str, Any], figure: Figure) -> None:
    """Score against IoU, an image a column, before NMS above, after it below."""
    images = document["statistics"]["points"]
    figure.set_size_inches(2.7 * max(len(images), 1), 5.4)
    axes = figure.subplots(2, max(len(images), 1), squeeze=False, sharex=True, sharey=True)
    for row, stage, size in zip(axes, ("before", "after"), (4, 10)):
        for axis, image in zip(row, images):
            points = np.array(image[stage]).reshape(-1, 2)
            axis.axhline(0.5, color=GREY, lw=0.6, ls=":")
            axis.axvline(0.5, color=GREY, lw=0.6, ls=":")
            axis.scatter(points[:, 0], points[:, 1], s=size, color=BLUE, alpha=0.5, lw=0)
            if not len(points):
                _say_none(axis)
            axis.set_title(f"image {image['image']}, {stage} NMS", fontsize=8)
            axis.set(xlim=(0, 1), ylim=(0, 1), aspect="equal")
        row[0].set_ylabel("classification score")
    for axis in axes[-1]:
        axis.set_xlabel("IoU with the ground truth")


def _say_none(axis: Axes) -> None:
    axis.text(0.5, 0.55, "no prediction above 0.05", transform=axis.transAxes, ha="center", color=GREY)


def figure2(document: dict[str, Any], figure: Figure) -> None:
    """Share of the predictions above each threshold, all images together; ours, and the paper's ten."""
    found = document["statistics"]
    figure.set_size_inches(8.4, 3.5)
    axes = figure.subplots(1, 2, sharex=True, sharey=True)
    stages = {"before": introduction.BEFORE_NMS, "after": introduction.AFTER_NMS}
    if not found["before"]["mean"]["score"][0]:
        _say_none(axes[0])
    for stage, colour in (("before", BLUE), ("after", ORANGE)):
        ours = {key: np.array(found[stage]["mean"][key]) for key in ("score", "iou")}
        theirs = {"score": stages[stage].score.mean(0), "iou": stages[stage].iou.mean(0)}
        for axis, means in zip(axes, (ours, theirs)):
            if not means["score"][0]:
                continue
            score, iou = means["score"][1:] / means["score"][0], means["iou"] / means["score"][0]
            axis.plot(SCORE_THRESHOLDS[1:], score, "o-", color=colour, label=f"cls > t, {stage} NMS")
            axis.plot(IOU_THRESHOLDS, iou, "s:", color=colour, label=f"IoU > t, {stage} NMS")
    axes[0].set_title(f"ours, {found['images']:,} images")
    axes[1].set_title("published: ten COCO images")
    for axis in axes:
        axis.set(xlabel="threshold t", xticks=IOU_THRESHOLDS)
    axes[0].set_ylabel("share of the predictions")
    axes[0].set_ylim(bottom=0)
    axes[1].legend()


def figure4(document: dict[str, Any], figure: Figure) -> None:
    """The product sqrt(IoU * cls), eq. (1), and what eq. (11) makes of it at alpha = 0.2."""
    figure.set_size_inches(8.4, 4)
    axes = figure.subplots(1, 2, sharey=True)
    grid = np.linspace(0, 1, 201)
    iou, cls = np.meshgrid(grid, grid)
    levels = np.linspace(0, 1, 11)
    for axis, exponent in zip(axes, (0.5, 0.2)):
        product = iou**exponent * cls ** (1 - exponent)
        filled = axis.contourf(iou, cls, product, levels, cmap="viridis")
        lines = axis.contour(iou, cls, product, levels[1:-1], colors="white", linewidths=0.5)
        axis.clabel(lines, fontsize=6.5, fmt="%.1f")
        axis.plot([0, 1], [0, 1], color="white", lw=0.8, ls=":")
        axis.set_title(f"IoU^{exponent:g} · cls^{1 - exponent:g}" + (", eq. (1)" if exponent == 0.5 else ""))
        axis.set(xlabel="IoU", aspect="equal")
    axes[0].set_ylabel("classification score")
    figure.colorbar(filled, ax=axes, label="joint score", shrink=0.9)


def figure5(document: dict[str, Any], figure: Figure) -> None:
    """The sigmoid h and its slope; and the gradient of L1, L2 and cross entropy, eqs. (6) to (8), for y = 0.9."""
    figure.set_size_inches(8, 3.3)
    left, right = figure.subplots(1, 2)
    z = np.linspace(-8, 8, 401)
    h = 1 / (1 + np.exp(-z))
    left.plot(z, h, color=BLUE, label="h(z)")
    left.plot(z, h * (1 - h), "--", color=ORANGE, label="h′(z) = h (1 − h)")
    left.set(xlabel="z = θx", ylim=(0, 1.02))
    left.legend(loc="upper left")
    target = 0.9
    for name, gradient, colour, dash in (
        ("cross entropy: h − y", h - target, BLUE, "-"),
        ("L1: sign(h − y) h (1 − h)", np.sign(h - target) * h * (1 - h), ORANGE, "--"),
        ("L2: (h − y) h (1 − h)", (h - target) * h * (1 - h), PURPLE, ":"),
    ):
        right.plot(h, gradient, dash, color=colour, label=name)
    right.axhline(0, color=GREY, lw=0.6)
    right.axvline(target, color=GREY, lw=0.6, ls=":")
    right.set(xlabel="prediction h, target y = 0.9", ylabel="gradient / x", xlim=(0, 1), ylim=(-1, 0.3))
    right.legend(fontsize=8, loc="lower right")


def open_question(document: dict[str, Any], figure: Figure) -> None:
    """AP against alpha of each loss, by both joint scores; and what its branch says of boxes by their IoU."""
    figure.set_size_inches(12.5, 4.3)
    product, proportional, right = figure.subplots(1, 3)
    table = {row["name"]: row for row in document["rows"]}
    for number, (name, found) in enumerate(document["qualities"].items()):
        style = {"color": f"C{number}", "marker": "osD^vP"[number % 6], "ms": 5, "label": name}
        for axis, joint in ((product, "product"), (proportional, "proportional")):
            # At alpha = 0 both are the class score.
            alphas = {0.0: table[f"{name}, product(0)"]}
            alphas |= {_alpha_of(row): row for row in table.values() if row["name"].startswith(f"{name}, {joint}(")}
            axis.plot(sorted(alphas), [_percent(alphas[a]["mean"]["AP"]) for a in sorted(alphas)], **style)
        edges = np.array(found["edges"])
        means = [np.nan if mean is None else mean for mean in found["quality"]]
        right.plot((edges[:-1] + edges[1:]) / 2, means, **style)
    for axis, title in (
        (product, "quality^α · class^(1 − α)"),
        (proportional, "the same for the best class, others in proportion"),
    ):
        for name, dash in (("RetinaNet", "--"), ("joint head", ":")):
            axis.axhline(_percent(table[name]["mean"]["AP"]), color=GREY, lw=1.2, ls=dash, label=name)
        axis.set_title(title, fontsize=9)
        axis.set(xlabel="α", ylabel="AP")
    right.plot([0, 1], [0, 1], color=GREY, lw=0.8, ls=":")
    right.set_title("what the branch says of boxes before NMS", fontsize=9)
    right.set(xlabel="IoU with the best object", ylabel="mean quality", xlim=(0, 1), ylim=(0, 1))
    proportional.sharey(product)
    # The curves may be anywhere in the axes.
    figure.legend(*product.get_legend_handles_labels(), loc="outside lower center", ncols=8, fontsize=8)


def _alpha_of(row: dict[str, Any]) -> float:
    """Of a joint score that is named by it: `proportional(0.6)`."""
    return float(row["joint"].partition("(")[2].rstrip(")"))
