"""A run against a split: COCO's numbers, for one joint score or for all of them."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.box import SIMPLE
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from retinaconf.data.ground_truth import GroundTruth, LeftOut
from retinaconf.data.images import check_images, see_share_left_out
from retinaconf.data.layouts import describe, load_split
from retinaconf.errors import InputError
from retinaconf.evaluation.coco import METRICS, CocoEvaluator, Metrics
from retinaconf.files import write_aside
from retinaconf.inference.detector import Detector, load
from retinaconf.inference.joint_score import joint_score, sweep
from retinaconf.outputs import check_outputs
from retinaconf.run_folder import val_list

RECORDS_SHOWN = 10  # of those left out; the JSON has all


def evaluate_run(
    run: Path,
    root: Path,
    split: str,
    alpha: float | None = None,
    with_sweep: bool = False,
    layout: str | None = None,
    device: str = "auto",
    detections: Path | None = None,
    val_fraction: float | None = None,
) -> dict[str, Any]:
    """The report that `retinaconf evaluate --json` writes.

    Keys: `run`, `data`, `split`, `found` (in words, what was taken for the split), `images`, `left_out` (what of it
    cannot be used, as `LeftOut`), `joint` (the joint score's name), `metrics` (the ten numbers, fractions, null where
    nothing decides one), `per_class` (AP by class), and with a sweep `sweep`: a list of `joint`, `alpha` (null for
    other methods), `metrics` and `per_class`, all from one pass of the network.

    With `detections` that file gets the detections that `metrics` is about, as COCO results with the image and category
    ids of the data set, `class_score` and, of detectors that have one, `quality`.

    Raises:
        InputError: no such run or split, bad data, other categories than the run's, an `alpha` that does not fit, or
            `detections` cannot be written or is one of the files that are read.
    """
    check_outputs([detections], [run, root, root / f"{split}.json"])
    if detections is not None and not detections.parent.is_dir():  # known before the hours that a pass may take
        raise InputError(f"{detections}: cannot be written, there is no folder {detections.parent}; make it first")
    detector = load(run, device)
    config = detector.inference_config(**({} if alpha is None else {"alpha": alpha}))
    ground_truth = split_for(detector, run, root, split, layout, val_fraction)
    ground_truth = check_images(ground_truth, detector.config.data.skip_bad, detector.config.data.max_skipped)

    configured = joint_score(config)
    joints = [configured]
    if with_sweep:
        if detector.config.model.quality == "none":
            raise InputError(f"{run}: has no quality branch, so there is nothing to sweep; evaluate it without --sweep")
        joints += [joint for joint in sweep() if joint != configured]
    with Progress(transient=True) as bar:
        task = bar.add_task("images", total=len(ground_truth))
        tables = detector.detect(ground_truth, config, joints, done=lambda n: bar.advance(task, n))
    if detections is not None:
        results = json.dumps(tables[0].to_coco(ground_truth))
        write_aside(detections, lambda aside: aside.write_text(results + "\n"))
    evaluator = CocoEvaluator(ground_truth)
    metrics = {
        joint: evaluator(table.image_index, table.boxes, table.scores, table.labels)
        for joint, table in zip(joints, tables)
    }

    report: dict[str, Any] = {"run": str(run), "data": str(root), "split": split}
    found = describe(root, ground_truth, layout)
    if ground_truth.val_split is not None and ground_truth.val_split.kept_in is None:
        found += f"; {run} keeps no list of those that it was trained on"
    report |= {"found": found, "images": len(ground_truth)}
    report["left_out"] = asdict(ground_truth.left_out)
    report |= {"joint": configured.name, **_as_json(metrics[configured])}
    if with_sweep:
        report["sweep"] = [{"joint": joint.name, "alpha": joint.alpha, **_as_json(metrics[joint])} for joint in sweep()]
    return report


def print_report(report: dict[str, Any]) -> None:
    """The report as tables."""
    console = Console(width=max(Console().width, 104))  # the ten numbers need it, where there is no terminal too
    console.print(report["found"], markup=False, highlight=False, soft_wrap=True)
    left_out = LeftOut(**report["left_out"])
    for record in left_out.records[:RECORDS_SHOWN]:
        console.print(f"{record}; dropped", markup=False, highlight=False, soft_wrap=True)
    if len(left_out.records) > RECORDS_SHOWN:
        console.print(f"... and {len(left_out.records) - RECORDS_SHOWN:,} more; --json lists all")
    title = f"{report['split']}, {report['images']} images" + (str(left_out) and f"; {left_out}")
    rows = [(report["joint"], report["metrics"])]
    console.print(_table(title, "joint score", rows))
    classes = Table("class", "AP", title="AP by class", box=SIMPLE)
    for name, value in report["per_class"].items():
        classes.add_row(name, _cell(value))
    console.print(classes)
    if "sweep" in report:
        rows = [(row["joint"], row["metrics"]) for row in report["sweep"]]
        console.print(_table("joint scores, from one pass of the network", "joint score", rows))


def split_for(
    detector: Detector, run: Path, root: Path, split: str, layout: str | None, val_fraction: float | None
) -> GroundTruth:
    """A split of a data set for a run, its images not checked yet.

    Where the data set does not name its splits, `val` has the images that the run keeps; of other data, or where the
    run keeps none, those that are drawn as the share `val_fraction`, by default the run's own.

    Raises:
        InputError: no such split, bad data or too many left out, other categories than the run's, or a `val_fraction`
            beside a list.
    """
    data, kept = detector.config.data, val_list(run)
    fraction = data.val_fraction if val_fraction is None else val_fraction
    truth = load_split(root, split, data.skip_bad, layout, val_fraction=fraction, val_list=kept)
    if val_fraction is not None and truth.val_split is not None and truth.val_split.kept_in is not None:
        raise InputError(f"--val-fraction {val_fraction:g}: {kept} says which images are val; leave the option out")
    same_categories(detector, run, truth)
    see_share_left_out(truth, data.max_skipped)
    return truth


def same_categories(detector: Detector, run: Path, ground_truth: GroundTruth) -> None:
    """See that a split has the categories that the run was trained on.

    Raises:
        InputError: it has others.
    """
    if (ground_truth.category_ids, ground_truth.classes) != (detector.category_ids, detector.classes):
        raise InputError(
            f"{ground_truth.source}: its {len(ground_truth.classes)} categories are not the {len(detector.classes)} "
            f"that {run} was trained on ({', '.join(detector.classes[:3])}, ...); take data with the same categories"
        )


def _as_json(metrics: Metrics) -> dict[str, Any]:
    """NaN as null, which JSON has."""

    def known(values: dict[str, float]) -> dict[str, float | None]:
        return {name: value if value == value else None for name, value in values.items()}

    return {"metrics": known(metrics.overall), "per_class": known(metrics.per_class)}


def _table(title: str, first: str, rows: list[tuple[str, dict[str, float | None]]]) -> Table:
    table = Table(first, title=title, box=SIMPLE)
    for name in METRICS:
        table.add_column(name, justify="right")
    best = max((metrics["AP"] or 0 for _, metrics in rows), default=0)
    for name, metrics in rows:
        table.add_row(
            name,
            *(_cell(metrics[key]) for key in METRICS),
            style="bold" if len(rows) > 1 and metrics["AP"] == best else "",
        )
    return table


def _cell(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"
