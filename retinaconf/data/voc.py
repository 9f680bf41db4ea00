"""PASCAL VOC annotations: `Annotations/*.xml`, `JPEGImages/` or `images/`, `ImageSets/Main/{split}.txt`.

A box counts pixels from 1 and includes both ends (Everingham and Winn, The PASCAL VOC Development Kit; Detectron2 and
hotcoco read it so): `xmin 1, xmax W` is the whole width W. In pixel edges, which is what everything else here uses, it
runs from xmin - 1 to xmax. Some tools write VOC files with edges that start at 0; a 0 as xmin or ymin anywhere in the
folder tells, and then all its boxes are taken as they are.
"""

from __future__ import annotations

import html
import math
import re
import xml.etree.ElementTree as ET
from collections.abc import Collection
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

from retinaconf.data.folders import ANNOTATION_SUFFIXES, JUDGED, find_images, folders_in, see_inside, taken, the_only
from retinaconf.data.ground_truth import Fault, GroundTruth, ground_truth_from_coco
from retinaconf.errors import InputError, quoted, reason
from retinaconf.files import open_regular, read_text

LARGEST = 1 << 21  # bytes of an annotation, which usually has some thousands
USUAL_ANNOTATIONS, USUAL_IMAGES, USUAL_LISTS = "Annotations", ("JPEGImages", "images"), Path("ImageSets/Main")


@dataclass(frozen=True)
class _Object:
    name: str
    corners: tuple[float, float, float, float]  # xmin, ymin, xmax, ymax as in the file


@dataclass(frozen=True)
class _Annotation:
    """One XML file."""

    file_name: str
    size: tuple[int, int]  # height, width; 0 where the file does not say
    objects: list[_Object]
    faults: list[Fault]  # of objects that cannot be used


def voc_splits(root: Path) -> list[str]:
    """Splits of the data set; empty if the folder is not VOC.

    With `ImageSets/Main/` they are its files, less the lists of single classes (`cat_train.txt`). Without, all images
    are `train`.

    Raises:
        InputError: several folders hold annotations, or lists of images, and none has the usual name.
    """
    folder = _annotations(root)
    if folder is None:
        return []
    lists = _image_sets(root, folder)
    return _splits_in(lists) if lists is not None else ["train"]


def is_usual_voc(root: Path) -> bool:
    """Whether the folder has VOC's annotations under their usual name."""
    return any((root / USUAL_ANNOTATIONS).glob("*.xml"))


def read_voc(root: Path, split: str, skip_bad: bool = False) -> GroundTruth:
    """Read one split. Classes are the names that occur anywhere in the folder, sorted, with category ids from 1.

    Annotations, images and lists of images that are not in folders of the usual names are found by their content.

    Args:
        root: the folder that holds `Annotations`.
        split: one of `voc_splits(root)`.
        skip_bad: drop what cannot be used and list it in `dropped`; otherwise the first such record raises.

    Raises:
        InputError: an annotation is missing, is not XML, or holds a bad object; or what is not in a folder of the usual
            name is in several others.
    """
    folder = _annotations(root) or root / USUAL_ANNOTATIONS
    annotations: dict[str, _Annotation] = {}
    unreadable: dict[str, Fault] = {}
    files = sorted(folder.glob("*.xml"))
    for file in files:
        try:
            annotations[file.stem] = _parse(file)
        except _BadFileError as fault:
            if not skip_bad:
                raise InputError(f"{fault}; mend it, or leave such images out with --data.skip-bad") from None
            unreadable[file.stem] = Fault("bad-annotation", str(fault), image=True, classes=_names_in(file))

    every = [one for annotation in annotations.values() for one in annotation.objects]
    if not every:
        raise InputError(f"{folder}: no object in any of its {len(files)} files; a detector needs at least one class")
    # Also those of what cannot be used: the ids of the other classes must not depend on it.
    faults = [*unreadable.values(), *(fault for annotation in annotations.values() for fault in annotation.faults)]
    names = {one.name for one in every}.union(*(fault.classes for fault in faults))
    category_ids = {name: i for i, name in enumerate(sorted(names), start=1)}
    origin = 0 if any(min(one.corners[:2]) == 0 for one in every) else 1
    image_ids = {file.stem: i for i, file in enumerate(files, start=1)}  # the same whatever the split

    usual_images = [root / name for name in USUAL_IMAGES if (root / name).is_dir()] or [root / USUAL_IMAGES[0]]
    pictures = find_images(root, usual_images, [one.file_name for one in annotations.values()], any_suffix=True)
    on_disk = {path.stem: path.name for path in pictures.glob("*.*") if path.suffix not in ANNOTATION_SUFFIXES}
    images: list[dict[str, Any]] = []
    records: list[dict[str, Any]] = []
    lists = _image_sets(root, folder)
    source = folder if lists is None else lists / f"{split}.txt"
    stems, missing = (list(image_ids), []) if lists is None else _listed(source, folder, image_ids)
    if missing and not skip_bad:
        raise InputError(f"{missing[0]}; restore it, or leave such images out with --data.skip-bad")
    dropped = missing
    for stem in stems:
        if stem in unreadable:
            dropped.append(unreadable[stem])
            continue
        annotation = annotations[stem]
        if annotation.faults and not skip_bad:
            raise InputError(f"{annotation.faults[0]}; mend it, or drop such records with --data.skip-bad")
        dropped += annotation.faults
        height, width = annotation.size
        name = on_disk.get(stem, annotation.file_name)  # the field outlives a renaming of both files, as tools do it
        images.append({"id": image_ids[stem], "file_name": name, "height": height, "width": width})
        for one in annotation.objects:
            x0, y0, x1, y1 = one.corners[0] - origin, one.corners[1] - origin, *one.corners[2:]
            if x1 <= x0 or y1 <= y0:
                line = f"{folder / stem}.xml: {one.name} has width {x1 - x0:g}, height {y1 - y0:g}"
                dropped.append(Fault("degenerate-box", line))
            else:
                record = {"image_id": image_ids[stem], "category_id": category_ids[one.name]}
                records.append({**record, "bbox": [x0, y0, x1 - x0, y1 - y0]})
    document = {
        "images": images,
        "annotations": records,
        "categories": [{"id": i, "name": name} for name, i in category_ids.items()],
    }
    found = taken(
        root,
        annotations=(folder, [root / USUAL_ANNOTATIONS]),
        images=(pictures, usual_images),
        splits=(lists or root / USUAL_LISTS, [root / USUAL_LISTS]),
    )
    see_inside([root], pictures, [image["file_name"] for image in images], str(folder))
    ground_truth = ground_truth_from_coco(document, pictures, str(source))
    read = (*files, source) if lists is not None else tuple(files)
    return replace(ground_truth, dropped=tuple(dropped), taken=found, annotation_files=read)


class _BadFileError(Exception):
    """An annotation file that cannot be used; the message names it."""


def _annotations(root: Path) -> Path | None:
    """The folder with VOC's annotations."""
    if is_usual_voc(root):
        return root / USUAL_ANNOTATIONS

    def holds(folder: Path) -> bool:
        return any(_is_annotation(file) for file in islice(sorted(folder.glob("*.xml")), JUDGED))

    return the_only(root, folders_in(root, 1), holds, "PASCAL VOC annotations", USUAL_ANNOTATIONS)


def _is_annotation(file: Path) -> bool:
    try:
        with open_regular(file) as stream:
            return next(ET.iterparse(stream, ("start",)))[1].tag == "annotation"
    except (ET.ParseError, OSError, ValueError, LookupError, StopIteration):
        return False


def _image_sets(root: Path, annotations: Path) -> Path | None:
    """The folder with the lists of images; None where there is none."""
    if _splits_in(root / USUAL_LISTS):
        return root / USUAL_LISTS
    stems = {file.stem for file in annotations.glob("*.xml")}

    def holds(folder: Path) -> bool:
        listing = folder / "train.txt"
        return listing.is_file() and bool(_listed(listing, annotations, stems)[0])

    return the_only(root, folders_in(root, 2), holds, "lists of the images of each split", str(USUAL_LISTS))


def _splits_in(lists: Path) -> list[str]:
    names = {file.stem for file in lists.glob("*.txt")}
    return sorted(name for name in names if not any(name.endswith(f"_{other}") for other in names))


def _listed(listing: Path, folder: Path, files: Collection[str]) -> tuple[list[str], list[Fault]]:
    """Those of `files` in `folder` that a list of images names, and faults for names without a file; without suffix."""
    stems, missing = [], []
    for number, line in enumerate(read_text(listing, "surrogateescape").splitlines(), start=1):
        words = line.split()
        if not words:
            continue
        # A name; in some sets followed by a flag, or with a suffix.
        stem = next((name for name in (line.strip(), words[0], Path(words[0]).stem) if name in files), words[0])
        if stem in files:
            stems.append(stem)
        else:
            fault = f"{listing}: line {number} names {stem}, and there is no {folder.name}/{stem}.xml"
            missing.append(Fault("bad-annotation", fault, image=True))
    return list(dict.fromkeys(stems)), missing


def _names_in(file: Path) -> frozenset[str]:
    """The names of objects in a file that is no whole XML, as far as they can be read."""
    try:
        text = read_text(file, "replace")[:LARGEST]
    except OSError:
        return frozenset()
    # No object within an object: thousands of these would take time in the square of their number.
    names = re.findall(r"<object>(?:(?!<object>).)*?<name>([^<]*)</name>", text, re.DOTALL)
    return frozenset(html.unescape(name).strip() for name in names if "\ufffd" not in name) - {""}


def _parse(file: Path) -> _Annotation:
    try:
        with open_regular(file) as stream:
            if file.stat().st_size > LARGEST:
                raise ValueError(f"larger than {LARGEST:,} bytes")
            tree = ET.parse(stream).getroot()
    except (ET.ParseError, OSError, ValueError, LookupError) as error:  # the last two: a wrong or unknown encoding
        raise _BadFileError(f"{file}: not a readable XML file ({reason(error)})") from None
    size = []
    for side in ("height", "width"):
        try:
            size.append(max(0, int(float(tree.findtext(f"size/{side}") or 0))))
        except (ValueError, OverflowError):
            raise _BadFileError(f"{file}: its size has {side} {quoted(tree.findtext(f'size/{side}'))}") from None
    objects, faults = [], []
    for position, element in enumerate(tree.iter("object"), start=1):
        name = (element.findtext("name") or "").strip()
        bounds = element.find("bndbox")  # not a path of tags: that is several times slower
        texts = ["" if bounds is None else bounds.findtext(corner) for corner in ("xmin", "ymin", "xmax", "ymax")]
        try:
            xmin, ymin, xmax, ymax = (float(text or "") for text in texts)
            if not name or not math.isfinite(xmin + ymin + xmax + ymax):
                raise ValueError
        except ValueError:
            box = ", ".join(map(str, texts))
            fault = f"{file}: object {position} has name {quoted(name)} and box {box}; it needs a name and four numbers"
            faults.append(Fault("bad-annotation", fault, classes=frozenset({name} - {""})))
            continue
        objects.append(_Object(name, (xmin, ymin, xmax, ymax)))
    return _Annotation((tree.findtext("filename") or f"{file.stem}.jpg").strip(), (size[0], size[1]), objects, faults)
