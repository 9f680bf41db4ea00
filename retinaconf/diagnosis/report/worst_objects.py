"""Pictures of the objects that NMS cost most: ground truth, the box it kept and the better one it suppressed."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from html import escape
from typing import TYPE_CHECKING

import numpy as np

from retinaconf.errors import plain
from retinaconf.pages.pictures import corners, encode_jpeg, load_picture, rectangle, stroke

if TYPE_CHECKING:
    from retinaconf.diagnosis.measures.diagnose import Diagnosis

MOST = 12  # of a detector
MARGIN = 0.15  # shown around the boxes, as a share of their extent
MAX_SIDE, MAX_BYTES = 320, 24_000


def worst_objects(diagnoses: Sequence[Diagnosis], names: Sequence[str], offered: np.ndarray) -> str:
    """The gallery as HTML, the worst loss first; objects of the images that the explorer has `offered` open there."""
    place = {int(image): position for position, image in enumerate(offered)}
    parts = []
    for diagnosis, name in zip(diagnoses, names):
        heading = f"<h3>{escape(name)}</h3>" if len(diagnoses) > 1 else ""
        if diagnosis.casualties is None:
            parts.append(
                f"{heading}<p>What an NMS lost can only be told from the candidates before it, and this file has "
                "detections.</p>"
            )
            continue
        objects = diagnosis.casualties.worst(MOST)
        if len(objects) == 0:
            parts.append(f"{heading}<p>NMS kept the best-placed candidate of every object.</p>")
            continue
        figures = "".join(_figure(diagnosis, int(row), place) for row in objects)
        parts.append(f'{heading}<div class="gallery">{figures}</div>')
    if not any("<figure>" in part for part in parts):
        return "".join(parts)
    key = (
        "<p class='lead'>The detector had a better-placed box for each of these objects, and NMS removed it for a box "
        "with a higher score. Corners: ground truth. Solid: the best-placed box of those kept. Dashed: the best-placed "
        "of all, removed. Choose one to see it in the explorer.</p>"
    )
    return key + "".join(parts)


def _figure(diagnosis: Diagnosis, row: int, place: dict[int, int]) -> str:
    truth, casualties = diagnosis.ground_truth, diagnosis.casualties
    assert casualties is not None
    assert diagnosis.before is not None
    candidates = diagnosis.before.boxes
    image = int(np.searchsorted(truth.offsets, row, side="right")) - 1
    kept, best = int(casualties.kept_candidate[row]), int(casualties.best_candidate[row])
    rivals = [] if kept < 0 else [kept]
    boxes = np.concatenate([truth.boxes[row : row + 1], candidates.boxes[[*rivals, best]]])
    left, top, right, bottom = _crop(boxes, truth.image_sizes[image])
    width, height = right - left, bottom - top

    picture = load_picture(truth, image)
    shapes = []
    if picture is not None:
        jpeg = base64.b64encode(encode_jpeg(picture.crop((left, top, right, bottom)), MAX_SIDE, MAX_BYTES)).decode()
        shapes.append(f'<image width="{width}" height="{height}" href="data:image/jpeg;base64,{jpeg}"/>')
    shown = boxes - [left, top, left, top]
    unit = max(width, height) / MAX_SIDE  # a line one unit wide is about a pixel on the page
    if rivals:
        shapes += stroke(rectangle(shown[1]), "kept-line", 2.2 * unit)
    shapes += stroke(rectangle(shown[-1]), "suppressed-line", 2.2 * unit, dash=(7 * unit, 5 * unit))
    shapes += stroke(corners(shown[0]), "truth-line", 3 * unit)

    name = truth.classes[truth.labels[row]]
    fate = f"kept IoU {casualties.kept_iou[row]:.2f}"
    if rivals:
        fate += f" (score {candidates.scores[kept]:.2f})"
    words = f"{fate}, removed IoU {casualties.best_iou[row]:.2f} (score {candidates.scores[best]:.2f})"
    assert diagnosis.suppressor is not None
    remover = int(diagnosis.suppressor[best])
    if remover != kept:
        whose = "a neighbour's box" if casualties.neighbour[row] else "another box"
        words += f", by {whose} (score {candidates.scores[remover]:.2f})"
    side = max(width, height)
    view = f"{(width - side) / 2} {(height - side) / 2} {side} {side}"  # square, the crop in its middle
    label = f'aria-label="{escape(name)}: {escape(words)}"'
    drawing = f'<svg viewBox="{view}" role="img" {label}>{"".join(shapes)}</svg>'
    if image in place:
        lower = candidates.scores[[*rivals, best]].min()  # the threshold must let both take part
        where = f'data-image="{place[image]}" data-object="{row - truth.offsets[image]}" data-score="{lower}"'
        drawing = f'<a class="open" href="#explorer" {where}>{drawing}</a>'
    return (
        f"<figure>{drawing}<figcaption><strong>{escape(name)}: {casualties.lost[row]:.2f} lost</strong>{escape(words)}"
        f"<br>{escape(plain(truth.file_names[image]))}</figcaption></figure>"
    )


def _crop(boxes: np.ndarray, image_size: np.ndarray) -> tuple[int, int, int, int]:
    """A square that holds all boxes with a margin, moved into the image or cut by it where it is too large.

    `image_size` is height, width, or zeros where it is not known.
    """
    low, high = boxes[:, :2].min(axis=0), boxes[:, 2:].max(axis=0)
    side = np.ceil((1 + 2 * MARGIN) * (high - low).max())
    low = np.floor((low + high - side) / 2)
    if image_size.all():
        size = image_size[::-1]
        low = np.maximum(np.minimum(low, size - side), 0)
        high = np.minimum(low + side, size)
    else:
        high = low + side
    high = np.maximum(high, low + 1)
    return int(low[0]), int(low[1]), int(high[0]), int(high[1])
