"""`training.html`: a run as one page that opens offline, drawn again after every epoch.

It is made from the run's `metrics.jsonl` and `metrics.csv`, and from the boxes of the last two validations.
"""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from pathlib import Path
from string import Template

from retinaconf.config import Config
from retinaconf.data.ground_truth import GroundTruth
from retinaconf.files import write_aside
from retinaconf.pages import asset, svg
from retinaconf.run_folder import METRICS_LOG, PAGE, read_metrics
from retinaconf.training.epochs import Epoch
from retinaconf.training.worst_pictures import Shown, gallery

POINTS = 200  # of a curve
ENDED = "The run has ended."
IN_PROGRESS = "The run is in progress. This page is drawn again after every epoch, and reloads itself every minute."
RELOAD = '<meta http-equiv="refresh" content="60">'  # while the run is in progress
STYLES = ("series-1", "series-2", "series-3", "series-4", "series-5", "series-6")


def write_page(
    run: Path,
    config: Config,
    epochs: Sequence[Epoch],
    val_set: GroundTruth | None,
    shown: Sequence[Shown],
    ended: bool,
) -> None:
    """Write the page of a run. `shown` is the last validation, behind the one before it; empty where there is none.

    Raises:
        InputError: the file cannot be written.
    """
    last = epochs[-1]
    text = Template(asset("training.html")).substitute(
        reload="" if ended else RELOAD,
        style=asset("page.css") + asset("figures.css"),
        title=escape(run.resolve().name),
        heading=_heading(last, config.schedule.epochs),
        state=ENDED if ended else IN_PROGRESS,
        subject=escape(f"{run}: {config.model.backbone}, {config.schedule.epochs} epochs planned"),
        tiles=_tiles(epochs),
        figures=_figures(run, epochs),
        classes=_classes([one for one in epochs if one.per_class]),
        pictures=gallery(shown, val_set) if shown and val_set is not None else "<p>There was no validation yet.</p>",
        epoch=f"{last.epoch:g}",
    )
    write_aside(run / PAGE, lambda aside: aside.write_text(text, encoding="utf-8", newline="\n"))


def _heading(last: Epoch, planned: int) -> str:
    ap = last.metrics.get("AP")
    what = "Loss" if ap is None else "AP"
    value = last.losses.get("loss") if ap is None else ap
    return f"{what} {_number(value)} after {last.epoch:g} of {planned} epochs"


def _tiles(epochs: Sequence[Epoch]) -> str:
    last, tiles = epochs[-1], []
    for name in ("AP", "AP50", "AP75"):
        known = [(one.metrics[name], one.epoch) for one in epochs if one.metrics.get(name) is not None]
        if known:
            best, epoch = max(known, key=lambda pair: (pair[0], pair[1]))  # of equals the last
            tiles.append((_number(last.metrics.get(name)), f"{name}; best {_number(best)} in epoch {epoch:g}"))
    if last.losses.get("loss") is not None:
        tiles.append((_number(last.losses["loss"]), "loss, mean of the epoch"))
    if last.speed is not None:
        tiles.append((f"{last.speed:.3g}", "images a second in training"))
    return "".join(f'<div class="tile"><strong>{value}</strong><span>{words}</span></div>' for value, words in tiles)


def _figures(run: Path, epochs: Sequence[Epoch]) -> str:
    lines = [record for record in read_metrics(run / METRICS_LOG) if record["kind"] == "train"]
    parts = [name for name in epochs[-1].losses if name != "loss"]
    losses = [("total", [(one["epoch"], one.get("loss")) for one in lines])]
    losses += [(name, [(one["epoch"], one.get(name)) for one in lines]) for name in parts if len(parts) > 1]
    quality = [
        (name, [(one.epoch, one.metrics.get(name)) for one in epochs if one.metrics]) for name in ("AP", "AP50", "AP75")
    ]
    drawn = [
        ("Losses", "The total and its parts as they are weighted, means over some steps.", losses),
        ("AP", "On the validation images, by the weights after each epoch.", quality),
        ("Learning rate", "Of each step.", [("", [(one["epoch"], one["lr"]) for one in lines])]),
        (
            "Images a second",
            "Training alone, a mean for each epoch.",
            [("", [(one.epoch, one.speed) for one in epochs])],
        ),
    ]
    figures = []
    for title, words, series in drawn:
        known = [(name, css, _thinned(points)) for (name, points), css in zip(series, STYLES)]
        if any(points for _, _, points in known):
            drawing = svg.courses(known, "epoch", title)
            figures.append(f"<figure><h3>{title}</h3>{drawing}<figcaption>{words}</figcaption></figure>")
    return "".join(figures)


def _thinned(points: Sequence[tuple[float, float | None]]) -> list[svg.Point]:
    """At most `POINTS`, each the mean of its neighbours; without those that are not known."""
    known = [(x, y) for x, y in points if y is not None]
    size = -(-len(known) // POINTS) or 1
    chunks = [known[n : n + size] for n in range(0, len(known), size)]
    return [(sum(x for x, _ in chunk) / len(chunk), sum(y for _, y in chunk) / len(chunk)) for chunk in chunks]


def _classes(epochs: Sequence[Epoch]) -> str:
    """AP by class, the lowest first, with its course, each on its own scale."""
    if not epochs:
        return "<p>There was no validation yet.</p>"
    now, before = epochs[-1].per_class, epochs[-2].per_class if len(epochs) > 1 else {}
    rows = []
    for name in sorted(now, key=lambda name: (now[name] is None, now[name] or 0.0, name)):
        course = [(one.epoch, one.per_class.get(name)) for one in epochs]
        known = [(value, epoch) for epoch, value in course if value is not None]
        value, earlier = now[name], before.get(name)
        change = "" if value is None or earlier is None else f"{value - earlier:+.3f}"
        best = max(known, default=None)
        words = "" if best is None else f"{best[0]:.3f} (epoch {best[1]:g})"
        line = svg.sparkline(_thinned(course), epochs[0].epoch, epochs[-1].epoch, 0.0 if best is None else best[0])
        rows.append(
            f'<tr><th scope="row">{escape(name)}</th><td>{_number(value)}</td><td>{change}</td><td>{words}</td>'
            f"<td>{line}</td></tr>"
        )
    head = "".join(f'<th scope="col">{name}</th>' for name in ("Class", "AP", "Change", "Best", "Curve"))
    table = f"<table><thead><tr>{head}</tr></thead><tbody>{''.join(rows)}</tbody></table>"
    return f'<div class="scroll" tabindex="0">{table}</div>'


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"
