"""The validation pictures with the most objects missed: as they are now, and one validation before.

Of an image with n objects the n boxes with the highest scores count, so that no threshold has to be chosen. An object
is found if one of them has its class and an IoU of at least 0.5 with it (COCO's matching).
"""

from __future__ import annotations

import base64
from collections import Counter
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any, NamedTuple

import numpy as np
import torch

from retinaconf.data.ground_truth import GroundTruth
from retinaconf.detections import Detections
from retinaconf.errors import plain
from retinaconf.evaluation.matching import match_detections
from retinaconf.pages.pictures import corners, encode_jpeg, load_picture, rectangle, stroke

MOST = 6  # pictures
MAX_SIDE, MAX_BYTES = 560, 60_000  # of each as JPEG: together half a megabyte in the page
UNIT = 360  # a line one unit wide is about a pixel where a picture is that wide
COLUMNS = ("image_index", "labels", "boxes", "scores")


class Shown(NamedTuple):
    """What of a validation may be shown."""

    epoch: float
    boxes: Detections  # the best of each image, as many as it has objects

    def state(self) -> dict[str, Any]:
        """For `last.ckpt`: tensors and plain values."""
        columns = {name: torch.from_numpy(np.ascontiguousarray(getattr(self.boxes, name))) for name in COLUMNS}
        return {"epoch": self.epoch, **columns}


def from_state(state: Mapping[str, Any], val_set: GroundTruth) -> Shown:
    """What `Shown.state` has kept."""
    columns = {name: state[name].numpy() for name in COLUMNS}
    return Shown(state["epoch"], Detections(**columns, classes=val_set.classes, category_ids=val_set.category_ids))


def best_boxes(table: Detections, val_set: GroundTruth) -> Detections:
    """Of each image the boxes with the highest scores, as many as it has objects."""
    objects = np.bincount(val_set.image_index[~val_set.crowd], minlength=len(val_set))
    order = np.lexsort((-table.scores, table.image_index))
    images = table.image_index[order]
    rank = np.arange(len(images)) - np.searchsorted(images, images)
    return table[np.sort(order[rank < objects[images]])]


def outcome(boxes: Detections, val_set: GroundTruth) -> tuple[np.ndarray, np.ndarray]:
    """(D,) bool: the boxes that find an object; (B,) bool: the objects that no box finds."""
    matches = match_detections(boxes, val_set, np.array([0.5]))
    right, found = np.zeros(len(boxes), dtype=bool), np.zeros(len(val_set.boxes), dtype=bool)
    hits = matches.matched[:, 0] >= 0
    right[matches.row[hits]] = True
    found[matches.matched[hits, 0]] = True
    return right, matches.objects & ~found


def worst_images(missed: np.ndarray, val_set: GroundTruth) -> list[int]:
    """At most `MOST` images that miss objects, those that miss most first; of equals those with fewer objects."""
    count, objects = (
        np.bincount(val_set.image_index[rows], minlength=len(val_set)) for rows in (missed, ~val_set.crowd)
    )
    return [int(image) for image in np.lexsort((objects, -count))[:MOST] if count[image]]


def gallery(shown: Sequence[Shown], val_set: GroundTruth) -> str:
    """The pictures as HTML. `shown` is this validation, behind the one before it if there was one."""
    outcomes = [outcome(one.boxes, val_set) for one in shown]
    images = worst_images(outcomes[-1][1], val_set)
    if not images:
        return "<p>No object is missed.</p>"
    parts = []
    for image in images:
        picture = load_picture(val_set, image)
        height, width = (int(side) for side in val_set.image_sizes[image])
        views = []
        for n, (one, (right, missed)) in enumerate(zip(shown, outcomes)):
            href = f"picture-{image}"
            if picture is None:
                pixels = ""
            elif n == 0:
                jpeg = base64.b64encode(encode_jpeg(picture, MAX_SIDE, MAX_BYTES)).decode()
                pixels = f'<image id="{href}" width="{width}" height="{height}" href="data:image/jpeg;base64,{jpeg}"/>'
            else:
                pixels = f'<use href="#{href}"/>'
            rows = slice(*val_set.offsets[image : image + 2])
            lost = Counter(val_set.classes[label] for label in val_set.labels[rows][missed[rows]])
            total = int((~val_set.crowd[rows]).sum())
            words = f"epoch {one.epoch:g}: {lost.total()} of {total} missed"
            listed = ", ".join(f"{count} {name}" for name, count in lost.most_common())
            shapes = _shapes(one.boxes, right, missed, val_set, image, max(width, height) / UNIT)
            views.append(
                f'<figure><svg viewBox="0 0 {width} {height}" role="img" aria-label="{escape(words)}">{pixels}{shapes}'
                f"</svg><figcaption><strong>{escape(words)}</strong>{escape(listed)}</figcaption></figure>"
            )
        name = escape(plain(val_set.file_names[image]))
        parts.append(f'<article><h3>{name}</h3><div class="pair">{"".join(views)}</div></article>')
    return f'<div class="pairs">{"".join(parts)}</div>'


def _shapes(
    boxes: Detections, right: np.ndarray, missed: np.ndarray, val_set: GroundTruth, image: int, unit: float
) -> str:
    """The boxes and the missed objects of an image, each with its class, and its score, as a tooltip."""
    rows = np.arange(*np.searchsorted(boxes.image_index, [image, image + 1]))
    drawn = []
    for row in rows[np.argsort(right[rows], kind="stable")]:  # what is right on top
        css, dash = ("kept-line", None) if right[row] else ("suppressed-line", (6 * unit, 4 * unit))
        path = stroke(rectangle(boxes.boxes[row]), css, 1.6 * unit, dash)
        drawn.append((f"{val_set.classes[boxes.labels[row]]} {boxes.scores[row]:.2f}", path))
    for row in np.flatnonzero(missed[slice(*val_set.offsets[image : image + 2])]) + val_set.offsets[image]:
        path = stroke(corners(val_set.boxes[row]), "truth-line", 2.4 * unit)
        drawn.append((f"missed: {val_set.classes[val_set.labels[row]]}", path))
    return "".join(f"<g><title>{escape(words)}</title>{''.join(path)}</g>" for words, path in drawn)
