"""`retinaconf check`: what is wrong with a data set."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.markup import escape
from rich.padding import Padding
from rich.table import Table

from retinaconf.commands.options import LayoutKey
from retinaconf.errors import InputError, UsageError
from retinaconf.files import write_json
from retinaconf.outputs import check_outputs

if TYPE_CHECKING:
    from retinaconf.data.findings import Finding, Report

_COLOR = {"error": "red", "warning": "yellow", "note": "dim"}
_SHOWN_CLASSES = 20
_SHOWN_RECORDS = 3


def check(
    data: Path,
    json: Path | None = None,
    recipe: str = "aligned-lite0",
    short_side: int | None = None,
    long_side: int | None = None,
    layout: LayoutKey | None = None,
    val_fraction: float | None = None,
) -> None:
    """List problems in a data set, file by file, before you train on it.

    Args:
        data: the data set's folder.
        json: also write the findings to this file.
        recipe: the training that is planned: objects are compared with its anchors, at its input size.
        short_side: another short side than the recipe's.
        long_side: another long side than the recipe's.
        layout: of the data set's folder. Without it, the folder's content decides.
        val_fraction: share of the images that is val, if the data set does not say which are, instead of the recipe's.
    """
    check_outputs([json], [data])
    from retinaconf.data.check import check as check_data
    from retinaconf.recipes import RECIPES

    if recipe not in RECIPES:
        raise UsageError(f"no recipe {recipe!r}; there are {', '.join(RECIPES)}")
    changes: dict[str, Any] = {"data.short_side": short_side, "data.long_side": long_side}
    changes |= {"data.layout": layout, "data.val_fraction": val_fraction}
    config = RECIPES[recipe].changed(**{name: value for name, value in changes.items() if value is not None})
    report = check_data(data, config)
    print_report(report, Console())
    if json is not None:
        write_json(json, report.to_json())
    if report.failed:
        raise InputError(f"{data}: training on this is impossible; the findings marked as errors say why")


def print_report(report: Report, console: Console) -> None:
    """The report as tables."""
    for line in report.found.values() or [f"{report.layout} layout in {report.root}"]:
        console.print(escape(line), highlight=False, soft_wrap=True)
    if report.splits:
        console.print(_numbers(report))
        console.print(_classes(report))
    for finding in report.findings:
        _print_finding(finding, report.root, console)
    count = {severity: sum(f.severity == severity for f in report.findings) for severity in _COLOR}
    verdict = "[red]training would stop[/]" if report.failed else "[green]ready to train[/]"
    console.print(f"{verdict}: {count['error']} errors, {count['warning']} warnings, {count['note']} notes")


def _numbers(report: Report) -> Table:
    table = Table(title=f"box sizes in pixels at input size {report.short_side} x {report.long_side} (--recipe)")
    for column in ("", *report.splits):
        table.add_column(column, justify="right" if column else "left")
    statistics = report.splits.values()
    table.add_row("images", *(f"{one.images:,}" for one in statistics))
    table.add_row("  left out", *(f"{one.images_left_out:,}" for one in statistics))
    table.add_row("  without boxes", *(f"{one.images_without_boxes:,}" for one in statistics))
    table.add_row("boxes", *(f"{one.boxes:,}" for one in statistics))
    table.add_row("  left out", *(f"{one.annotations_left_out:,}" for one in statistics))
    table.add_row("crowd regions", *(f"{one.crowd_regions:,}" for one in statistics), end_section=True)
    for interval in next(iter(statistics)).box_sizes:
        table.add_row(interval, *(_share(one.box_sizes[interval], one.boxes) for one in statistics))
    table.add_section()
    unfit = [(one.best_anchor_below_half, one.boxes) for one in statistics]
    if all(count is not None for count, _ in unfit):
        table.add_row("no anchor fits (IoU < 0.5)", *(_share(count or 0, boxes) for count, boxes in unfit))
    if report.proposal is not None:
        shares = [_share(o.below_half_with_proposal or 0, o.boxes) for o in statistics]
        table.add_row("  with the anchors proposed", *shares)
    return table


def _classes(report: Report) -> Table:
    first = next(iter(report.splits.values()))
    names = sorted(first.class_boxes, key=lambda name: -first.class_boxes[name])
    shown = names
    if len(names) > _SHOWN_CLASSES:
        shown = [*names[: _SHOWN_CLASSES // 2], *names[-_SHOWN_CLASSES // 2 :]]
    left_out = len(names) - len(shown)
    table = Table(title="boxes by class" + (f" ({left_out} in the middle not shown)" if left_out else ""))
    for column in ("", *report.splits):
        table.add_column(column, justify="right" if column else "left")
    for name in shown:
        table.add_row(escape(name), *(f"{one.class_boxes.get(name, 0):,}" for one in report.splits.values()))
    return table


def _print_finding(finding: Finding, root: str, console: Console) -> None:
    title = f"[{_COLOR[finding.severity]}]{finding.severity}[/] [bold]{finding.kind}[/] in {finding.split}"
    console.print(f"{title}: {len(finding.records):,}", highlight=False)
    for record in finding.records[:_SHOWN_RECORDS]:
        short = record.replace(f"{root}/", "")
        console.print(Padding(escape(short), (0, 0, 0, 4), expand=False), highlight=False)
    if len(finding.records) > _SHOWN_RECORDS:
        console.print(f"    ... and {len(finding.records) - _SHOWN_RECORDS:,} more; --json lists all")
    console.print(Padding(f"[italic]{escape(finding.remedy)}[/]", (0, 0, 0, 2), expand=False), highlight=False)


def _share(part: int, whole: int) -> str:
    return f"{part:,} ({part / whole:.1%})" if whole else "0"
