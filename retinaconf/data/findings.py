"""The faults that a check of a data set finds, and what to do about each kind."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

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
            self._records.setdefault((severity, kind, split), []).append(record)
            self._remedies[severity, kind, split] = remedy or REMEDIES[kind]

    def listed(self) -> tuple[Finding, ...]:
        """Errors first, then warnings, otherwise as they were found."""
        keys = sorted(self._records, key=lambda key: SEVERITIES.index(key[0]))
        return tuple(Finding(*key, tuple(self._records[key]), self._remedies[key]) for key in keys)
