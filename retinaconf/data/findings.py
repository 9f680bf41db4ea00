"""What a check of a data set finds: faults, with what to do about each kind, and numbers."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any, Literal

from retinaconf.errors import plain

Severity = Literal["error", "warning", "note"]
SEVERITIES: tuple[Severity, ...] = ("error", "warning", "note")

REMEDIES: dict[str, str] = {
    "missing-split": "training needs train, and val to measure itself",
    "unreadable-split": "mend or restore the file: without it there is nothing to train on",
    "no-boxes": "check that the annotations belong to these images",
    "missing-image": "restore the file or correct its name; or train with --data.skip-bad",
    "unreadable-image": "restore the file; or train with --data.skip-bad",
    "truncated-image": "copy the file anew from its source; or train with --data.skip-bad",
    "size-mismatch": "restore the image that was annotated, or correct its size; or train with --data.skip-bad",
    "bad-annotation": "mend the record; or train with --data.skip-bad",
    "degenerate-box": "mend or remove the box; training leaves it out",
    "outside-box": "check the annotation's coordinates; training cuts the box at the image's edge",
    "thin-box": "mend the box, or train at a larger --data.short-side: training leaves it out",
    "tiny-box": "remove such boxes, train at a larger --data.short-side, or cut the images into tiles",
    "duplicate-box": "remove all but one: a detector cannot find one object twice",
    "duplicate-image": "remove all but one: the copies count double, and may be annotated differently",
    "shared-image": "remove the image from one of the splits: results on it are too good to be true",
    "unused-class": "add images of it, or remove the category: it can be neither learnt nor measured",
    "rare-class": "add images of the class: its AP will be low, and will vary from run to run",
    "duplicate-class": "give each category a name of its own, or make them one",
    "different-classes": "give all splits the same categories, with the same ids",
    "unfit-anchors": "nothing that was tried fits many more: neither other anchors nor a larger input",
    "rotated-image": "nothing to do: they are turned upright, unless the boxes were drawn on the unturned pixels",
}


@dataclass(frozen=True)
class Finding:
    """One kind of fault in one split."""

    severity: Severity  # error: training stops; warning: training is worse; note: good to know
    kind: str  # a key of REMEDIES
    split: str
    records: tuple[str, ...]  # one line each: file, box, what is wrong with it
    remedy: str


class Findings:
    """What was found so far."""

    def __init__(self) -> None:
        self._records: dict[tuple[Severity, str, str], list[str]] = {}
        self._remedies: dict[tuple[Severity, str, str], str] = {}

    def add(self, severity: Severity, kind: str, split: str, records: Iterable[str], remedy: str = "") -> None:
        """Add records to a finding; nothing where there are none. `remedy` stands for the one of the kind."""
        for record in records:
            self._records.setdefault((severity, kind, split), []).append(plain(record))
            self._remedies[severity, kind, split] = remedy or REMEDIES[kind]

    def listed(self) -> tuple[Finding, ...]:
        """Errors first, then warnings, otherwise as they were found."""
        keys = sorted(self._records, key=lambda key: SEVERITIES.index(key[0]))
        return tuple(Finding(*key, tuple(self._records[key]), self._remedies[key]) for key in keys)


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
    best_anchor_below_half: int | None  # objects that no anchor fits by IoU 0.5, where anchors are matched by IoU
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
