"""An item's document as a page to read: the table, the verdicts, and what cannot be said."""

from __future__ import annotations

import statistics
from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import numpy as np

from retinaconf.diagnosis.measures import task_alignment
from retinaconf.diagnosis.measures.paper_statistics import IOU_THRESHOLDS, SCORE_THRESHOLDS, proportion_drop
from retinaconf.evaluation.coco import METRICS
from retinaconf.paper import introduction

USES = {"both": "both", "nms": "NMS alone", "ranking": "ranking alone"}
SCALES = {"concordance": (100, 1), "lost_iou": (1, 3), "oracle_gain": (100, 1), "laece_0": (100, 1)}  # and digits
SHOWN = ("AP", "AP50", "AP75", "AP_S", "AP_M", "AP_L", "AR")  # the JSON has all ten


def to_markdown(document: dict[str, Any]) -> str:
    """The page of an item's document (`engine.run_paper`)."""
    lines = [f"# {document['title']}", "", *_about(document), ""]
    if document["rows"]:
        lines += [*_rows(document), ""]
    if "statistics" in document:
        lines += [*_statistics(document["statistics"]), ""]
    if "qualities" in document:
        lines += [*_qualities(document["qualities"]), "", *_uses(document["qualities"]), ""]
    if "steps" in document:
        lines += [*_steps(document), "", *_changes(document), ""]
    if document["claims"]:
        lines += [*_claims(document), ""]
    if document["kind"] not in ("rows", "statistics"):
        lines += [f"![{document['title']}]({document['item']}.png)", ""]
    elif document["rows"]:
        lines += [f"![AP of each row]({document['item']}.png)", ""]
    return "\n".join(lines)


def _about(document: dict[str, Any]) -> Iterator[str]:
    if document["kind"] in ("figure4", "figure5"):
        yield "A property of the formula; no detector is needed."
        return
    seeds = document["seeds"]
    named = f"seed {seeds[0]}" if len(seeds) == 1 else f"seeds {seeds[0]} to {seeds[-1]}"
    yield f"{document['data']}. Evaluated on `{document['split']}`; {named}; recipes {document['recipe_base']}."
    if document["settings"]:
        told = [f"`{name}` {_setting(value)}" for name, value in document["settings"].items()]
        yield f"\nOtherwise than the recipe: {', '.join(told)}."
    if document["max_steps"] is not None:
        yield f"\n**Every training was stopped after {document['max_steps']} steps: these numbers mean nothing.**"
    if document["rows"] and len(seeds) == 1:
        yield (
            "\nOne seed: the intervals are of the images alone. Whether another training would give the same order "
            "cannot be said, so nothing is decided; give `--seeds 3` or more."
        )


def _setting(value: Any) -> str:
    return " ".join(map(str, value)) if isinstance(value, list) else str(value)


def _rows(document: dict[str, Any]) -> Iterator[str]:
    has_published = any(row["published"] for row in document["rows"])
    where = "published" if document["is_coco"] else "published, of COCO: other data"
    columns = [*SHOWN, *([f"AP, {where}"] if has_published else [])]
    yield "| | " + " | ".join(columns) + " |"
    yield "|---|" + "---|" * len(columns)
    for row in document["rows"]:
        cells = [_percent(row["mean"][metric]) for metric in SHOWN]
        by_seed = [metrics["AP"] for metrics in row["seeds"] if metrics["AP"] is not None]
        if len(by_seed) > 1:
            cells[0] += f" ± {100 * statistics.stdev(by_seed):.1f}"
        if has_published:
            cells.append(_percent(row["published"]["AP"] if row["published"] else None))
        yield f"| {row['name']} | " + " | ".join(cells) + " |"
    yield ""
    yield "Percent; the mean over seeds, ± the standard deviation over them. The JSON has every seed."
    if document["is_coco"] and any(len(row["published"] or ()) > 1 for row in document["rows"]):  # more than AP
        yield ""
        yield "| published | " + " | ".join(METRICS) + " |"
        yield "|---|" + "---|" * len(METRICS)
        for row in document["rows"]:
            if row["published"]:
                cells = [_percent(row["published"].get(metric)) for metric in METRICS]
                yield f"| {row['name']} | " + " | ".join(cells) + " |"


def _claims(document: dict[str, Any]) -> Iterator[str]:
    yield "| claim | difference of AP | 95% interval | verdict | seeds to decide |"
    yield "|---|---|---|---|---|"
    for claim in document["claims"]:
        yield f"| **{claim['claim']}** | | | **{claim['verdict']}** | |"
        for part in claim["parts"]:
            low, high = part["interval"]
            interval = "-" if low is None else f"{100 * low:+.2f} to {100 * high:+.2f}"
            difference = "-" if part["difference"] is None else f"{100 * part['difference']:+.2f}"
            needed = part["seeds_needed"]
            needed = "" if needed is None else f"about {needed:,}" if isinstance(needed, int) else needed
            text = part["text"].replace("|", "\\|")
            yield f"| {text} | {difference} | {interval} | {part['verdict']} | {needed} |"
    yield ""
    yield (
        "Differences in points of AP, paired over seeds and images: a bootstrap over the images, together with "
        "Student's t over the seeds."
    )


def _statistics(found: dict[str, Any]) -> Iterator[str]:
    shown = len(found["shown"])
    yield f"{shown} images at random, and the mean of all {found['images']:,}. IoU with an object of the box's class;"
    yield "`any class` beside it. The last column is the mean of the paper's ten COCO images."
    yield ""
    yield "| stage | condition | " + " | ".join(map(str, found["shown"])) + " | mean of all | published, mean of ten |"
    yield "|---|---|" + "---|" * (len(found["shown"]) + 2)
    positives = [*found["positives"], "", f"{introduction.POSITIVE_ANCHORS.mean():.1f}"]
    yield "| Positive_NUM | iou>0.5 | " + " | ".join(map(str, positives)) + " |"
    for stage, theirs in (("before", introduction.BEFORE_NMS), ("after", introduction.AFTER_NMS)):
        for name, key, thresholds in (
            ("cls", "score", SCORE_THRESHOLDS),
            ("iou", "iou", IOU_THRESHOLDS),
            ("iou (any class)", "any_iou", IOU_THRESHOLDS),
        ):
            for index, threshold in enumerate(thresholds):
                cells = [str(value) for value in found[stage]["shown"][key][index]]
                target = "" if key == "any_iou" else f"{getattr(theirs, key)[:, index].mean():.1f}"
                cells += [f"{found[stage]['mean'][key][index]:.1f}", target]
                yield f"| {stage} NMS | {name}>{threshold:g} | " + " | ".join(cells) + " |"
    score, iou = proportion_drop(introduction.BEFORE_NMS, introduction.AFTER_NMS)
    yield ""
    yield "What NMS takes from the share of such boxes, in points, on average over images (the introduction's reading):"
    yield ""
    yield "| | ours | published |"
    yield "|---|---|---|"
    for name, key, index, drop in (("cls>0.5", "score", 1, score), ("iou>0.5", "iou", 0, iou)):
        ours = found["drop"][key]
        drop_here = "-" if ours is None else f"{100 * ours[index]:.2f}"
        yield f"| {name} | {drop_here} | {100 * np.nanmean(drop[:, index]):.2f} |"


def _qualities(found: dict[str, dict[str, Any]]) -> Iterator[str]:
    first = next(iter(found.values()))
    edges = first["edges"]
    yield (
        "What the branch says where: means over the boxes before NMS with a class score above 0.05, by their IoU with "
        f"the object of any class that they fit best ({first['images']:,} images, the first seed). Equation (9) trains "
        "the branch on positive anchors alone. The last column is what NMS needs: the rank correlation with the IoU "
        "among the boxes of one object, from IoU 0.5 on; the mean over objects."
    )
    yield ""
    names = [f"{low:g} to {high:g}" for low, high in pairwise(edges)]
    yield "| loss | | " + " | ".join(names) + " | rank correlation |"
    yield "|---|---|" + "---|" * (len(names) + 1)
    for loss, measured in found.items():
        yield f"| {loss} | boxes | " + " | ".join(f"{count:,}" for count in measured["count"]) + " | |"
        for name, key in (("class score", "class_score"), ("quality", "quality")):
            cells = ["-" if mean is None else f"{mean:.2f}" for mean in measured[key]]
            rank = measured[f"{key}_rank"]
            yield f"| {loss} | {name} | " + " | ".join(cells) + f" | {'-' if rank is None else f'{rank:.2f}'} |"


def _uses(found: dict[str, dict[str, Any]]) -> Iterator[str]:
    yield (
        "What the quality gives in each use of the score: points of AP more than by the class score alone, on these "
        "boxes. In NMS it decides which of the boxes that overlap stays; in the ranking, which detection comes first. "
        "The last row is an oracle's: the IoU itself in the quality's place, on the boxes of the first loss's detector."
    )
    yield ""
    alphas = next(iter(found.values()))["uses"]["alphas"]
    yield "| loss | AP | " + " | ".join(f"{use}, α = {a:g}" for use in USES.values() for a in alphas) + " |"
    yield "|---|---|" + "---|" * (len(USES) * len(alphas))
    rows = {loss: (measured["uses"], "quality") for loss, measured in found.items()}
    first = next(iter(found))
    rows["a perfect quality"] = (found[first]["uses"], "perfect")
    for name, (uses, quality) in rows.items():
        cells = [f"{100 * gain:+.1f}" for use in USES for gain in uses[quality][use]]
        yield f"| {name} | {100 * uses['AP']:.1f} | " + " | ".join(cells) + " |"


STEP_COLUMNS = {
    "order, %": "of two boxes of one object before NMS, how often the one that fits better has the higher score",
    "lost in NMS": "IoU of an object's best box before NMS less that of its best box after it",
    "oracle": "points of AP that ranking each object's boxes by their IoU would add",
    "LaECE_0, %": "calibration error of the detections",
    "PCC": "TOOD's correlation of the rankings by score and by IoU among an object's 50 best boxes",
    "IoU of 10": "TOOD's mean IoU of an object's 10 best boxes by score",
    "correct, redundant, error": "TOOD's count of boxes after NMS",
    "training": "images a second, without loading and the optimizer; in brackets, divided by RetinaNet's, which took "
    "turns with it (RetinaNet's own bracket shows the noise of that)",
    "inference": "the same from loaded images to detections",
}


def _steps(document: dict[str, Any]) -> Iterator[str]:
    yield "What each step changes:"
    yield ""
    yield from (f"- {name}: {meaning}" for name, meaning in STEP_COLUMNS.items())
    yield ""
    yield "| | " + " | ".join(STEP_COLUMNS) + " |"
    yield "|---|" + "---|" * len(STEP_COLUMNS)
    for name, step in document["steps"].items():
        cells = [_of_seeds(step["measures"][measure], *SCALES[measure]) for measure in SCALES]
        cells += _tood(step["task_alignment"])
        speeds = [step["speed"][what] for what in ("training", "inference")] if step["speed"] else []
        cells += [f"{speed['images_per_second']:.3g} ({speed['ratio']:.2f})" for speed in speeds] or ["", ""]
        yield f"| {name} | " + " | ".join(cells) + " |"
    for name, figures in task_alignment.PUBLISHED.items():
        yield f"| {name}, published, COCO | | | | | " + " | ".join(_tood(figures)) + " | | |"
    machines = dict.fromkeys(step["speed"]["machine"] for step in document["steps"].values() if step["speed"])
    yield ""
    if machines:
        yield f"Speed was measured on {' and on '.join(machines)}; other work on the machine slows it."
    if document["is_coco"]:
        yield "The published AP is that of short side 800. VFNet, which has no step here, has 41.6."


def _tood(figures: dict[str, Any]) -> list[str]:
    cells = ["-" if figures[key] is None else f"{figures[key]:.3f}" for key in ("pcc", "iou")]
    return [*cells, ", ".join(f"{figures[key]:,.0f}" for key in ("correct", "redundant", "error"))]


def _changes(document: dict[str, Any]) -> Iterator[str]:
    yield "Differences of the first three, paired like those of AP below, with 95% intervals."
    yield ""
    yield "| step | over | order, % | lost in NMS | oracle |"
    yield "|---|---|---|---|---|"
    for name, step in document["steps"].items():
        for other in step["measures"]["concordance"]["over"]:
            cells = []
            for measure, (scale, digits) in SCALES.items():
                if found := step["measures"][measure]["over"].get(other):
                    numbers = [found["difference"], *found["interval"]]
                    if None in numbers:
                        cells.append("-")
                    else:
                        told = [f"{scale * number:+.{digits}f}" for number in numbers]
                        cells.append(f"{told[0]} ({told[1]} to {told[2]})")
            yield f"| {name} | {other} | " + " | ".join(cells) + " |"


def _of_seeds(measure: dict[str, Any], scale: float, digits: int) -> str:
    if measure["mean"] is None:
        return "-"
    known = [scale * value for value in measure["seeds"] if value is not None]
    spread = f" ± {statistics.stdev(known):.{digits}f}" if len(known) > 1 else ""
    return f"{scale * measure['mean']:.{digits}f}{spread}"


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.1f}"
