"""Figures as inline SVG: plain shapes whose classes the page's style sheet colours, light or dark."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

import numpy as np

Point = tuple[float, float]
Value = float | None  # None: undefined

WIDTH, HEIGHT = 420, 320
LEFT, RIGHT, TOP, BOTTOM = 56, 14, 12, 40


def density(counts: np.ndarray) -> str:
    """Heat map of (score bin, IoU bin) counts, IoU to the right, score upwards; darker is more, on a log scale."""
    rows, columns = counts.shape
    shades = 8
    level = np.ceil(shades * np.log1p(counts) / max(np.log1p(counts.max(initial=0)), 1e-9)).astype(int)
    shapes = []
    for shade in range(1, shades + 1):
        cells = "".join(
            f"M{_x(j / columns):.1f} {_y((i + 1) / rows):.1f}h{_x(1 / columns) - _x(0):.1f}"
            f"v{_y(0) - _y(1 / rows):.1f}h{_x(0) - _x(1 / columns):.1f}z"
            for i, j in zip(*np.nonzero(level == shade))
        )
        if cells:
            shapes.append(f'<path class="heat" fill-opacity="{(shade / shades) ** 1.3:.2f}" d="{cells}"/>')
    return _svg("Score against IoU", _axes("IoU with its object", "score") + "".join(shapes))


def reliability(mean_score: Sequence[Value], mean_iou: Sequence[Value], count: Sequence[int]) -> str:
    """Mean IoU of the detections against their score, a bin a disc (larger: more detections); the diagonal is ideal."""
    most = max([*count, 1])
    points = [
        (score, iou, 2.5 + 6 * (n / most) ** 0.5)
        for score, iou, n in zip(mean_score, mean_iou, count)
        if score is not None and iou is not None and n
    ]
    ideal = f'<path class="ideal" d="M{_x(0)} {_y(0)}L{_x(1)} {_y(1)}"/>'
    line = polyline([(score, iou) for score, iou, _ in points], "kept-line")
    discs = "".join(
        f'<circle class="kept-fill" cx="{_x(score):.1f}" cy="{_y(iou):.1f}" r="{radius:.1f}"/>'
        for score, iou, radius in points
    )
    return _svg("Mean IoU against score", _axes("score", "mean IoU") + ideal + line + discs)


def curve(xs: Sequence[float], ys: Sequence[Value], x_name: str, y_name: str, marked: float | None = None) -> str:
    """A line of y over x in [0, 1] on a y axis fitted to it; `marked` is an x to emphasise."""
    known = [(x, y) for x, y in zip(xs, ys) if y is not None]
    low, high = _range([y for _, y in known], least=1e-3)
    points = [(x, (y - low) / (high - low)) for x, y in known]
    discs = "".join(
        f'<circle class="{"chosen-fill" if x == marked else "kept-fill"}" cx="{_x(x):.1f}" cy="{_y(y):.1f}" '
        f'r="{7 if x == marked else 4}"/>'
        for x, y in points
    )
    return _svg(f"{y_name} over {x_name}", _axes(x_name, y_name, (low, high)) + polyline(points, "kept-line") + discs)


def bars(rows: Sequence[tuple[str, Value, str]]) -> str:
    """Horizontal bars in [0, 1], each with its name above and a text at its end: (name, value, text)."""
    step, top = 44, 4
    shapes = []
    for k, (name, value, text) in enumerate(rows):
        y = top + k * step
        length = (WIDTH - 100) * (value or 0)
        css = "bar first" if k == 0 else "bar"
        shapes.append(
            f'<text class="label" x="0" y="{y + 13}">{escape(name)}</text>'
            f'<rect class="track" x="0" y="{y + 19}" width="{WIDTH - 100}" height="12" rx="2"/>'
            f'<rect class="{css}" x="0" y="{y + 19}" width="{length:.1f}" height="12" rx="2"/>'
            f'<text class="value" x="{WIDTH}" y="{y + 30}" text-anchor="end">{escape(text)}</text>'
        )
    return _svg("AP of each step", "".join(shapes), height=top + step * len(rows))


def dumbbells(rows: Sequence[tuple[str, Value, Value]]) -> str:
    """Kept against best IoU, a row a group: (name, kept, best). A disc is what was kept, a triangle what was best."""
    step, top = 46, 10
    known = [value for _, *pair in rows for value in pair if value is not None]
    low, high = _range(known, least=0.1)

    def at(value: float) -> float:
        return LEFT + 40 + (WIDTH - LEFT - 70) * (value - low) / (high - low)

    shapes = []
    for k, (name, kept, best) in enumerate(rows):
        y = top + 14 + k * step
        shapes.append(f'<text class="label" x="0" y="{y + 4}">{escape(name)}</text>')
        shapes.append(f'<path class="grid" d="M{at(low):.1f} {y}H{at(high):.1f}"/>')
        if kept is None or best is None:
            continue
        shapes.append(f'<path class="gap" d="M{at(kept):.1f} {y}H{at(best):.1f}"/>')
        shapes.append(f'<circle class="kept-fill" cx="{at(kept):.1f}" cy="{y}" r="6"/>')
        x = at(best)
        shapes.append(f'<path class="suppressed-fill" d="M{x:.1f} {y - 7}l7 12h-14z"/>')
        shapes.append(f'<text class="value" x="{at(kept) - 9:.1f}" y="{y + 4}" text-anchor="end">{kept:.3f}</text>')
        shapes.append(f'<text class="value" x="{x + 11:.1f}" y="{y + 4}">{best:.3f}</text>')
    return _svg("IoU kept and best IoU available", "".join(shapes), height=top + step * len(rows))


def lines(series: Sequence[tuple[str, str, Sequence[float], Sequence[Value]]], x_name: str, y_name: str) -> str:
    """Several lines in the unit square: (name, css class, xs, ys), each with its name at its last point."""
    shapes = []
    for name, css, xs, ys in series:
        points = [(x, y) for x, y in zip(xs, ys) if y is not None]
        if not points:
            continue
        shapes.append(polyline(points, css))
        x, y = points[0]
        shapes.append(f'<text class="label" x="{_x(x) + 4:.1f}" y="{_y(y) - 8:.1f}">{escape(name)}</text>')
    return _svg(f"{y_name} over {x_name}", _axes(x_name, y_name) + "".join(shapes))


def courses(series: Sequence[tuple[str, str, Sequence[Point]]], x_name: str, title: str) -> str:
    """Several lines from x = 0 and y = 0: (name, css class, points), each with its name at its last point.

    Names that would lie on each other are moved apart; a single line has a dot at its end in the place of a name.
    """
    series = [one for one in series if one[2]]
    named = any(name for name, _, _ in series)
    right, lowest = (WIDTH - 84 if named else WIDTH - RIGHT), HEIGHT - BOTTOM
    every = [point for _, _, points in series for point in points]
    x_most = max((x for x, _ in every), default=0.0) or 1.0
    y_low, y_most = min(0.0, *(y for _, y in every)), (max(y for _, y in every) or 1.0)

    def at(point: Point) -> Point:
        x, y = point
        return LEFT + x / x_most * (right - LEFT), lowest - (y - y_low) / (y_most - y_low) * (lowest - TOP)

    shapes = []
    for tick in ticks(y_low, y_most):
        y = at((0, tick))[1]
        shapes.append(f'<path class="grid" d="M{LEFT} {y:.1f}H{right}"/>')
        shapes.append(f'<text class="tick" x="{LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{tick:g}</text>')
    for tick in ticks(0.0, x_most):
        x = at((tick, 0))[0]
        shapes.append(f'<text class="tick" x="{x:.1f}" y="{lowest + 16}" text-anchor="middle">{tick:g}</text>')
    middle = (LEFT + right) / 2
    shapes.append(
        f'<text class="label" x="{middle:.1f}" y="{HEIGHT - 6}" text-anchor="middle">{escape(x_name)} →</text>'
    )
    ends = []
    for name, css, points in series:
        path = " L".join(f"{x:.1f} {y:.1f}" for x, y in map(at, points))
        x, y = at(points[-1])
        shapes.append(f'<path class="{css}" d="M{path}"/><circle class="end" cx="{x:.1f}" cy="{y:.1f}" r="3"/>')
        ends.append((y, x, name))
    free = float(TOP)
    for y, x, name in sorted(ends):
        free = max(y + 4, free)
        shapes.append(f'<text class="label" x="{x + 8:.1f}" y="{free:.1f}">{escape(name)}</text>')
        free += 14
    return _svg(f"{title} over {x_name}", "".join(shapes))


def sparkline(points: Sequence[Point], first: float, last: float, most: float) -> str:
    """A line of x from `first` to `last` and y from 0 to `most`, without axes."""
    if not points:
        return ""
    width, height, edge = 120, 26, 3
    at = [
        (
            edge + (x - first) / ((last - first) or 1) * (width - 2 * edge),
            height - edge - y / (most or 1) * (height - 2 * edge),
        )
        for x, y in points
    ]
    path = " L".join(f"{x:.1f} {y:.1f}" for x, y in at)
    dot = f'<circle class="kept-fill" cx="{at[-1][0]:.1f}" cy="{at[-1][1]:.1f}" r="2.5"/>'
    shapes = f'<path class="kept-line" d="M{path}"/>{dot}'
    return f'<svg class="spark" viewBox="0 0 {width} {height}" aria-hidden="true">{shapes}</svg>'


def ticks(low: float, high: float, most: int = 6) -> list[float]:
    """Round numbers from `low` to `high`, at most so many."""
    span = high - low
    size = 10.0 ** np.floor(np.log10(span / most))
    step = next(size * factor for factor in (1, 2, 5, 10, 20) if span / (size * factor) <= most - 1)
    first = int(np.ceil(low / step - 1e-9))
    return [float(f"{n * step:.6g}") for n in range(first, int(np.floor(high / step + 1e-9)) + 1)]


def polyline(points: Sequence[Point], css: str) -> str:
    """A line through points of the unit square."""
    if not points:
        return ""
    return f'<path class="{css}" d="M{" L".join(f"{_x(x):.1f} {_y(y):.1f}" for x, y in points)}"/>'


def _x(value: float) -> float:
    return LEFT + value * (WIDTH - LEFT - RIGHT)


def _y(value: float) -> float:
    return TOP + (1 - value) * (HEIGHT - TOP - BOTTOM)


def _range(values: Sequence[float], least: float) -> Point:
    """A span around the values with some air, at least `least` wide."""
    low, high = (min(values), max(values)) if values else (0.0, 1.0)
    air = max(0.12 * (high - low), (least - (high - low)) / 2, 1e-3)
    return low - air, high + air


def _axes(x_name: str, y_name: str, y_range: Point = (0.0, 1.0)) -> str:
    digits = int(np.clip(2 - np.log10(y_range[1] - y_range[0]), 0, 3))
    parts = []
    for tick in (0, 0.25, 0.5, 0.75, 1):
        value = y_range[0] + tick * (y_range[1] - y_range[0])
        text = f"{tick:g}" if y_range == (0.0, 1.0) else f"{value:.{digits}f}"
        parts.append(f'<path class="grid" d="M{_x(tick):.1f} {_y(0)}V{_y(1)}M{_x(0)} {_y(tick):.1f}H{_x(1)}"/>')
        parts.append(f'<text class="tick" x="{_x(tick):.1f}" y="{_y(0) + 16}" text-anchor="middle">{tick:g}</text>')
        parts.append(f'<text class="tick" x="{_x(0) - 6}" y="{_y(tick) + 4:.1f}" text-anchor="end">{text}</text>')
    parts.append(f'<text class="label" x="{_x(0.5)}" y="{HEIGHT - 6}" text-anchor="middle">{escape(x_name)} →</text>')
    turned = f'transform="translate(11 {_y(0.5)}) rotate(-90)"'
    parts.append(f'<text class="label" {turned} text-anchor="middle">{escape(y_name)} →</text>')
    return "".join(parts)


def _svg(title: str, shapes: str, height: int = HEIGHT) -> str:
    return f'<svg viewBox="0 0 {WIDTH} {height}" role="img" aria-label="{escape(title)}">{shapes}</svg>'
