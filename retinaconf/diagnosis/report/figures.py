"""The diagnosis as figures, PNG and SVG. The only module of the diagnosis that needs matplotlib."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from retinaconf.diagnosis.measures.oracles import DESCRIPTIONS
from retinaconf.diagnosis.measures.paper_statistics import IOU_THRESHOLDS, SCORE_THRESHOLDS
from retinaconf.errors import InputError, reason
from retinaconf.evaluation.sizes import SIZES, object_size
from retinaconf.files import write_aside
from retinaconf.outputs import check_outputs

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from retinaconf.diagnosis.measures.diagnose import Diagnosis, Stage

# Okabe and Ito's colours, told apart with any colour vision; markers and dashes repeat the difference.
BLUE, ORANGE, GREEN, PURPLE, GREY = "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#666666"
STYLE: dict[Any, Any] = {
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 10,
    "axes.titlelocation": "left",
    "legend.frameon": False,
    "svg.hashsalt": "retinaconf",  # the same figure, the same file
}
SCATTER_POINTS = 5000  # of an image; more only make the file larger


def save_figures(diagnosis: Diagnosis, folder: Path) -> list[Path]:
    """Write every figure for which there is data and return the files; see `Diagnosis.save_figures`."""
    import matplotlib as mpl
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figures: dict[str, Callable[[Diagnosis, Figure], None]] = {
        "density": density,
        "figure1": figure1,
        "figure2": figure2,
        "oracles": oracles,
        "reliability": reliability,
    }
    if diagnosis.casualties is not None:
        figures["casualties"] = casualties
    if diagnosis.quality is not None:
        figures["alpha"] = alpha
    if diagnosis.coverage is not None:
        figures["coverage"] = coverage
    written = [folder / f"{name}.{suffix}" for name in figures for suffix in ("png", "svg")]
    check_outputs(written, diagnosis.inputs())
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{folder}: figures cannot be written ({reason(error)}); choose another place") from None
    with mpl.rc_context(STYLE):
        for name, draw in figures.items():
            figure = Figure(layout="constrained")
            FigureCanvasAgg(figure)  # no window, whatever the user's backend
            draw(diagnosis, figure)
            for suffix in ("png", "svg"):
                metadata = {"Date": None} if suffix == "svg" else None
                save = partial(figure.savefig, format=suffix, dpi=200, metadata=metadata)
                write_aside(folder / f"{name}.{suffix}", save)
    return written


def _stages(diagnosis: Diagnosis) -> list[tuple[str, Stage]]:
    after = ("after NMS", diagnosis.after)
    return [after] if diagnosis.before is None else [("before NMS", diagnosis.before), after]


def density(diagnosis: Diagnosis, figure: Figure) -> None:
    """The joint density of score and IoU, one panel a stage."""
    from matplotlib.colors import LogNorm

    stages = _stages(diagnosis)
    figure.set_size_inches(3.9 * len(stages) + 0.4, 3.6)
    axes = figure.subplots(1, len(stages), squeeze=False)[0]
    for axis, (name, stage) in zip(axes, stages):
        counts = stage.alignment.density
        shown = np.ma.masked_equal(counts, 0)
        norm = LogNorm(1, max(int(counts.max(initial=0)), 2))
        mesh = axis.pcolormesh(*[stage.alignment.density_edges] * 2, shown, norm=norm, cmap="viridis", rasterized=True)
        figure.colorbar(mesh, ax=axis, label="boxes")
        rho = stage.alignment.on_objects.spearman[0]
        axis.set_title(f"{name}" + (f": ρ = {rho:.2f} at IoU ≥ {diagnosis.object_iou:g}" if np.isfinite(rho) else ""))
        _unit_square(axis)


def _unit_square(axis: Axes) -> None:
    axis.set(xlim=(0, 1), ylim=(0, 1), xlabel="IoU with the ground truth", ylabel="score", aspect="equal")


def figure1(diagnosis: Diagnosis, figure: Figure) -> None:
    """The paper's Figure 1: score against IoU, an image a column, before NMS above, after it below."""
    stages = _stages(diagnosis)
    images = busiest_images(diagnosis, 3)
    figure.set_size_inches(2.6 * max(len(images), 1), 2.7 * len(stages))
    axes = figure.subplots(len(stages), max(len(images), 1), squeeze=False)
    for row, (name, stage) in zip(axes, stages):
        offsets = stage.boxes.offsets(len(diagnosis.ground_truth))
        for axis, image in zip(row, images):
            rows = np.arange(offsets[image], offsets[image + 1])
            rows = rows[stage.boxes.scores[rows] > SCORE_THRESHOLDS[0]][:SCATTER_POINTS]
            axis.scatter(stage.overlaps.same_iou[rows], stage.boxes.scores[rows], s=4, color=BLUE, alpha=0.5, lw=0)
            axis.axhline(0.5, color=GREY, lw=0.6, ls=":")
            axis.axvline(0.5, color=GREY, lw=0.6, ls=":")
            axis.set_title(f"image {diagnosis.ground_truth.image_ids[image]}, {name}", fontsize=8)
            _unit_square(axis)


def busiest_images(diagnosis: Diagnosis, count: int) -> np.ndarray:
    """Rows of the images with most predictions above 0.05, the most first, among those with objects."""
    first = _stages(diagnosis)[0][1]
    predictions = first.counts["same_class"].score[:, 0].copy()
    truth = diagnosis.ground_truth
    predictions[np.bincount(truth.image_index[~truth.crowd], minlength=len(truth)) == 0] = 0
    order = np.argsort(-predictions, kind="stable")[:count]
    return order[predictions[order] > 0]


def figure2(diagnosis: Diagnosis, figure: Figure) -> None:
    """The paper's Figure 2: which proportion of the predictions exceeds each threshold, all images together."""
    figure.set_size_inches(5.2, 3.4)
    axis = figure.subplots()
    for (name, stage), colour in zip(_stages(diagnosis)[::-1], (ORANGE, BLUE)):
        score, iou = stage.counts["same_class"].total().proportions()
        axis.plot(SCORE_THRESHOLDS[1:], score[0, 1:], "o-", color=colour, label=f"score > t, {name}")
        axis.plot(IOU_THRESHOLDS, iou[0], "s--", color=colour, label=f"IoU > t, {name}")
    axis.set(xlabel="threshold t", ylabel="share of predictions", xticks=IOU_THRESHOLDS)
    axis.set_ylim(bottom=0)
    axis.legend()


def oracles(diagnosis: Diagnosis, figure: Figure) -> None:
    """The oracle ladder: AP, and what each correction adds."""
    figure.set_size_inches(7, 3.2)
    axis = figure.subplots()
    rungs = diagnosis.oracles
    place = np.arange(len(rungs))[::-1]
    values = 100 * np.nan_to_num([rung.AP for rung in rungs])
    axis.barh(place, values, color=[GREY] + [BLUE] * (len(rungs) - 1), height=0.65)
    axis.axvline(values[0], color=GREY, lw=0.8, ls="--")
    for y, value in zip(place, values):
        gain = f" ({value - values[0]:+.1f})" if y != place[0] else ""
        axis.text(value + 0.5, y, f"{value:.1f}{gain}", va="center", fontsize=8)
    labels = [_wrap(DESCRIPTIONS[rung.name]) for rung in rungs]
    axis.set_yticks(place, labels, fontsize=7.5)
    axis.set(xlim=(0, max(values.max() * 1.25, 1)), xlabel="AP")


def _wrap(text: str) -> str:
    import textwrap

    return "\n".join(textwrap.wrap(text, 44))


def casualties(diagnosis: Diagnosis, figure: Figure) -> None:
    """The best candidate of each object against the best one kept, and the IoU lost by size."""
    lost = diagnosis.casualties
    assert lost is not None
    truth = diagnosis.ground_truth
    found = ~truth.crowd & (lost.best_candidate >= 0)
    figure.set_size_inches(7.6, 3.5)
    left, right = figure.subplots(1, 2)
    for chosen, colour, marker, opacity, name in (
        (found & ~lost.neighbour, BLUE, "o", 0.3, "own box ranked higher"),
        (found & lost.neighbour, ORANGE, "^", 1, "lost to a neighbour's box"),
    ):
        points = lost.best_iou[chosen], lost.kept_iou[chosen]
        left.scatter(*points, s=7, color=colour, marker=marker, alpha=opacity, lw=0, label=name, rasterized=True)
    left.plot([0, 1], [0, 1], color=GREY, lw=0.8, ls=":")
    left.set(xlim=(0, 1), ylim=(0, 1), xlabel="IoU of the best candidate", ylabel="IoU of the best one kept")
    left.set_aspect("equal")
    left.legend(loc="upper left", markerscale=2, fontsize=8)
    size = object_size(truth.areas)
    edges = np.concatenate([[0], np.linspace(0.01, 0.5, 50)])
    for index, (name, colour, dash) in enumerate(zip(SIZES, (ORANGE, GREEN, BLUE), ("-", "--", ":"))):
        values = np.sort(lost.lost[found & (size == index)])
        if len(values):
            share = 1 - np.searchsorted(values, edges, side="right") / len(values)
            right.plot(edges, share, dash, color=colour, label=f"{name} ({len(values):,})")
    right.set(xlabel="IoU lost to NMS", ylabel="share of objects that lose more", xlim=(0, 0.5))
    right.set_ylim(bottom=0)
    if found.any():
        right.legend()


def alpha(diagnosis: Diagnosis, figure: Figure) -> None:
    """AP at every alpha of the joint score."""
    sweep = diagnosis.quality
    assert sweep is not None
    figure.set_size_inches(5.2, 3.4)
    axis = figure.subplots()
    for name, values, colour, style in (
        ("AP50", sweep.AP50, GREEN, "^:"),
        ("AP", sweep.AP, BLUE, "o-"),
        ("AP75", sweep.AP75, ORANGE, "s--"),
    ):
        axis.plot(sweep.alphas, 100 * values, style, color=colour, label=name)
    axis.axvline(sweep.best_alpha, color=GREY, lw=0.8, ls=":")
    axis.set(xlabel="α: score = quality^α · class score^(1 − α)", ylabel="AP, all images")
    axis.set_ylim(bottom=0)
    axis.legend()


def reliability(diagnosis: Diagnosis, figure: Figure) -> None:
    """What a score means: mean IoU and precision of the detections that have it."""
    bins = diagnosis.calibration.reliability
    figure.set_size_inches(4.6, 4.4)
    axis, below = figure.subplots(2, 1, sharex=True, height_ratios=(4, 1))
    centre = (bins.edges[1:] + bins.edges[:-1]) / 2
    axis.bar(centre, bins.mean_iou, width=np.diff(bins.edges) * 0.9, color=BLUE, alpha=0.85, label="mean IoU")
    axis.plot(bins.mean_score, bins.precision, "s", ms=3.5, color=ORANGE, label="share matched, IoU > 0")
    axis.plot([0, 1], [0, 1], color=GREY, lw=0.8, ls=":", label="perfect")
    axis.set(ylim=(0, 1), xlim=(0, 1), ylabel="of the detections in the bin")
    axis.set_title(f"LaECE₀ {diagnosis.calibration.mean_laece_0:.3f}, D-ECE {diagnosis.calibration.d_ece:.3f}")
    axis.legend(loc="upper left", fontsize=8)
    below.bar(centre, bins.count, width=np.diff(bins.edges) * 0.9, color=GREY)
    below.set(xlabel="score", ylabel="detections")
    below.locator_params(axis="y", nbins=2)


def coverage(diagnosis: Diagnosis, figure: Figure) -> None:
    """Which objects get positive anchors, by size."""
    covered = diagnosis.coverage
    assert covered is not None
    truth = diagnosis.ground_truth
    size = object_size(truth.areas)
    figure.set_size_inches(5.2, 3)
    axis = figure.subplots()
    groups = [covered.of(~truth.crowd & (size == index)) for index in range(len(SIZES))]
    start = np.zeros(len(SIZES))
    for key, colour, hatch, label in (
        ("over_threshold", BLUE, "", "an anchor with IoU ≥ 0.5"),
        ("only_by_best_anchor", ORANGE, "//", "only its best anchor, below 0.5"),
        ("never_positive", GREY, "xx", "none"),
    ):
        share = np.array([group[key] / max(group["objects"], 1) for group in groups])
        axis.barh(np.arange(len(SIZES)), share, left=start, color=colour, hatch=hatch, edgecolor="white", label=label)
        start += share
    axis.set_yticks(np.arange(len(SIZES)), [f"{n} ({g['objects']:,})" for n, g in zip(SIZES, groups)])
    axis.set(xlabel="share of objects", xlim=(0, 1))
    axis.legend(loc="lower center", bbox_to_anchor=(0.5, 1), ncols=3, fontsize=7.5)
