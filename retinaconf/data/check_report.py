"""What a check of a data set found: as a table for people, as JSON for programs."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.padding import Padding
from rich.table import Table

from retinaconf.data.findings import Finding

_COLOR = {"error": "red", "warning": "yellow", "note": "dim"}
_SHOWN_CLASSES = 20
_SHOWN_RECORDS = 3


@dataclass(frozen=True)
class SplitStatistics:
    """Numbers of one split, after everything that cannot be used is left out. Boxes exclude crowd regions."""

    images: int
    images_left_out: int  # those that cannot be used
    images_without_boxes: int
    boxes: int
    annotations_left_out: int  # those that cannot be used, without those of such images
    crowd_regions: int
    class_boxes: dict[str, int]  # by class
    class_images: dict[str, int]  # images with the class, by class
    box_sizes: dict[str, int]  # boxes by the square root of their area, in pixels of the network's input
    best_anchor_below_half: int  # objects that no anchor fits by IoU 0.5: only the low-quality rule matches them
    no_anchor: int  # objects that overlap no anchor
    below_half_with_proposal: int | None  # objects that none of the anchors proposed fits either, where there are any


@dataclass(frozen=True)
class Report:
    """Everything a check found."""

    root: str
    layout: str
    found: dict[str, str]  # by split, what was taken for it, in words
    short_side: int  # of the network's input, in pixels
    long_side: int
    splits: dict[str, SplitStatistics]
    proposal: dict[str, Any] | None  # settings for anchors that fit more objects of the first split, by name
    findings: tuple[Finding, ...]  # errors first

    @property
    def failed(self) -> bool:
        """Whether training would stop."""
        return any(finding.severity == "error" for finding in self.findings)

    def to_json(self) -> dict[str, Any]:
        """The report as a dictionary that JSON can hold, with every record."""
        findings = [{**asdict(finding), "count": len(finding.records)} for finding in self.findings]
        return {**asdict(self), "failed": self.failed, "findings": findings}

    def print(self, console: Console | None = None) -> None:
        """The report as tables."""
        console = console or Console()
        for line in self.found.values() or [f"{self.layout} layout in {self.root}"]:
            console.print(escape(line), highlight=False, soft_wrap=True)
        if self.splits:
            console.print(self._numbers())
            console.print(self._classes())
        for finding in self.findings:
            self._print_finding(finding, console)
        count = {severity: sum(f.severity == severity for f in self.findings) for severity in _COLOR}
        verdict = "[red]training would stop[/]" if self.failed else "[green]ready to train[/]"
        console.print(f"{verdict}: {count['error']} errors, {count['warning']} warnings, {count['note']} notes")

    def _numbers(self) -> Table:
        table = Table(title=f"box sizes in pixels at input size {self.short_side} x {self.long_side} (--recipe)")
        for column in ("", *self.splits):
            table.add_column(column, justify="right" if column else "left")
        statistics = self.splits.values()
        table.add_row("images", *(f"{one.images:,}" for one in statistics))
        table.add_row("  left out", *(f"{one.images_left_out:,}" for one in statistics))
        table.add_row("  without boxes", *(f"{one.images_without_boxes:,}" for one in statistics))
        table.add_row("boxes", *(f"{one.boxes:,}" for one in statistics))
        table.add_row("  left out", *(f"{one.annotations_left_out:,}" for one in statistics))
        table.add_row("crowd regions", *(f"{one.crowd_regions:,}" for one in statistics), end_section=True)
        for interval in next(iter(statistics)).box_sizes:
            table.add_row(interval, *(_share(one.box_sizes[interval], one.boxes) for one in statistics))
        table.add_section()
        table.add_row("no anchor fits (IoU < 0.5)", *(_share(o.best_anchor_below_half, o.boxes) for o in statistics))
        if self.proposal is not None:
            shares = [_share(o.below_half_with_proposal or 0, o.boxes) for o in statistics]
            table.add_row("  with the anchors proposed", *shares)
        return table

    def _classes(self) -> Table:
        first = next(iter(self.splits.values()))
        names = sorted(first.class_boxes, key=lambda name: -first.class_boxes[name])
        shown = names
        if len(names) > _SHOWN_CLASSES:
            shown = [*names[: _SHOWN_CLASSES // 2], *names[-_SHOWN_CLASSES // 2 :]]
        left_out = len(names) - len(shown)
        table = Table(title="boxes by class" + (f" ({left_out} in the middle not shown)" if left_out else ""))
        for column in ("", *self.splits):
            table.add_column(column, justify="right" if column else "left")
        for name in shown:
            table.add_row(escape(name), *(f"{one.class_boxes.get(name, 0):,}" for one in self.splits.values()))
        return table

    def _print_finding(self, finding: Finding, console: Console) -> None:
        title = f"[{_COLOR[finding.severity]}]{finding.severity}[/] [bold]{finding.kind}[/] in {finding.split}"
        console.print(f"{title}: {len(finding.records):,}", highlight=False)
        for record in finding.records[:_SHOWN_RECORDS]:
            short = record.replace(f"{self.root}/", "")
            console.print(Padding(escape(short), (0, 0, 0, 4), expand=False), highlight=False)
        if len(finding.records) > _SHOWN_RECORDS:
            console.print(f"    ... and {len(finding.records) - _SHOWN_RECORDS:,} more; --json lists all")
        console.print(Padding(f"[italic]{escape(finding.remedy)}[/]", (0, 0, 0, 2), expand=False), highlight=False)


def _share(part: int, whole: int) -> str:
    return f"{part:,} ({part / whole:.1%})" if whole else "0"
