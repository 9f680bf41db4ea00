"""Which images of `train` are held out as `val` where a data set has no such split."""

from __future__ import annotations

import zlib
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from retinaconf.files import read_text


@dataclass(frozen=True)
class ValSplit:
    """A `val` that the data set does not have; `str()` says where it is from."""

    names: tuple[str, ...]  # of its images, without suffix
    images: int  # of which they were taken
    kept_in: Path | None  # the file of a run that lists it; None: it was drawn

    def __str__(self) -> str:
        source = f"as {self.kept_in} lists" if self.kept_in else "drawn in balance of the classes"
        return f"no split 'val' there: {len(self.names):,} of the {self.images:,} images are val, {source}"

    def unknown_to(self, run: Path) -> str:
        """What is to be said where the images were drawn, and not kept by `run`; else nothing."""
        return "" if self.kept_in else f"; {run} keeps no list of them, and may have been trained on them"


def name_of(file_name: str) -> str:
    """What a list of images calls an image file."""
    return Path(file_name).with_suffix("").as_posix()


def read_list(listing: Path, names: Collection[str]) -> tuple[list[str], list[str]]:
    """Those of `names` that the lines of a list of images are, and those lines that are none of them."""
    found: list[str] = []
    missing: list[str] = []
    for line in read_text(listing, "surrogateescape").splitlines():
        name = next((name for name in (line, name_of(line)) if name in names), None)
        if line:
            (missing if name is None else found).append(name or line)
    return list(dict.fromkeys(found)), missing


def draw_val(objects: Mapping[str, Sequence[str]], fraction: float) -> list[str]:
    """Names of the images that become `val`, sorted; the same for the same images in any order.

    Every class that is in two images or more gets boxes in `val`, unless that would leave some class without an image
    to learn from. These aside, `val` gets `fraction` of the images, and of each class's boxes as nearly that share as
    one pass over the images allows.

    Args:
        objects: by an image's name, the class of each of its boxes.
        fraction: share of the images, between 0 and 1.
    """
    boxes = {name: Counter(labels) for name, labels in objects.items()}
    total = Counter(label for labels in objects.values() for label in labels)
    train: dict[str, set[str]] = {label: set() for label in total}  # images by class, less those of `val`
    for name, counts in boxes.items():
        for label in counts:
            train[label].add(name)
    # Images of rare classes come first, as these leave the least choice, then those with most boxes, as the smaller
    # sums even out what the larger ones leave. The hash spreads neighbours, which may be frames of one film.
    rarest = {name: min((len(train[label]) for label in counts), default=len(boxes)) for name, counts in boxes.items()}
    spread = {name: zlib.crc32(name.encode("utf-8", "surrogateescape")) for name in boxes}
    order = sorted(boxes, key=lambda name: (rarest[name], -boxes[name].total(), spread[name], name))
    place = {name: position for position, name in enumerate(order)}

    val: set[str] = set()
    in_val: Counter[str] = Counter()  # boxes by class
    free = set(boxes).difference(*(names for names in train.values() if len(names) == 1))  # may still become `val`

    def take(name: str) -> None:
        val.add(name)
        free.remove(name)
        in_val.update(boxes[name])
        for label in boxes[name]:
            train[label].remove(name)
            if len(train[label]) == 1:
                free.difference_update(train[label])

    def excess(name: str, of: Mapping[str, int]) -> float:
        """What the image adds to the squares of what `val` has of each class beyond its share of the boxes `of`."""
        return sum(n * (in_val[one] + n / 2 - fraction * of[one]) / total[one] for one, n in boxes[name].items())

    missing = {label for label, names in train.items() if len(names) > 1}
    while missing:
        label = min(missing, key=lambda label: (len(train[label] & free), label))
        if choice := train[label] & free:
            take(min(choice, key=lambda name: (excess(name, total), place[name])))
        missing = {one for one in missing if not in_val[one] and one != label}

    wanted = min(max(round(fraction * len(boxes)), 1), len(boxes) - 1)
    seen = Counter(label for name in val for label in boxes[name].elements())
    for decided, name in enumerate((name for name in order if name not in val), start=len(val) + 1):
        seen.update(boxes[name])
        too_many = excess(name, seen) + (len(val) + 1 / 2 - fraction * decided) / len(boxes)
        must = wanted - len(val) > len(boxes) - decided
        if name in free and len(val) < wanted and (must or too_many < 0):
            take(name)
    return sorted(val)
