"""`retinaconf evaluate`: COCO's numbers of a run on a split."""

from __future__ import annotations

from dataclasses import asdict
from json import dumps
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.box import SIMPLE
from rich.console import Console
from rich.progress import Progress
from rich.table import Table
from tyro.conf import Positional

from retinaconf.commands.options import Device, LayoutKey
from retinaconf.errors import InputError
from retinaconf.files import finite, write_aside, write_json
from retinaconf.outputs import check_outputs

if TYPE_CHECKING:
    from retinaconf.evaluation.coco import Metrics

RECORDS_SHOWN = 10  # of those left out; the JSON has all


def evaluate(
    run: Positional[Path],
    /,
    data: Path,
    split: str = "val",
    alpha: float | None = None,
    sweep: bool = False,
    json: Path | None = None,
    detections: Path | None = None,
    layout: LayoutKey | None = None,
    val_fraction: float | None = None,
    device: Device = "auto",
) -> None:
    """COCO's ten numbers of a run on a split, overall and by class.

    Args:
        run: the run folder.
        data: the data set's folder.
        split: train, val or test.
        alpha: exponent of the quality in the joint score, instead of the run's own.
        sweep: every alpha from 0.0 to 0.9 and every joint method, from one pass of the network.
        json: also write the numbers to this file.
        detections: also write the detections to this file, as COCO results with the data set's image ids.
        layout: of the data set's folder; without it, found by looking.
        val_fraction: share of images that is val where neither data set nor run says which; by default the run's.
        device: where to compute.
    """
    check_outputs([json, detections], [run, data, data / f"{split}.json"])
    report = evaluate_run(run, data, split, alpha, sweep, layout, device, detections, val_fraction)
    print_report(report)
    if json is not None:
        write_json(json, report)


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
    from retinaconf.data.layouts import describe
    from retinaconf.data.splits import read_split
    from retinaconf.evaluation.coco import CocoEvaluator
    from retinaconf.inference.detector import load
    from retinaconf.inference.joint_score import joint_score, sweep
    from retinaconf.run_folder import val_list

    check_outputs([detections], [run, root, root / f"{split}.json"])
    if detections is not None and not detections.parent.is_dir():  # known before the hours that a pass may take
        raise InputError(f"{detections}: cannot be written, there is no folder {detections.parent}; make it first")
    detector = load(run, device)
    config = detector.inference_config(**({} if alpha is None else {"alpha": alpha}))
    data = detector.config.data
    ground_truth = read_split(root, split, data, layout, val_fraction, val_list(run), like=detector, whose=run)

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
        results = dumps(tables[0].to_coco(ground_truth.image_ids))
        write_aside(detections, lambda aside: aside.write_text(results + "\n"))
    evaluator = CocoEvaluator(ground_truth)
    metrics = {joint: evaluator(table) for joint, table in zip(joints, tables)}

    report: dict[str, Any] = {"run": str(run), "data": str(root), "split": split}
    found = describe(root, ground_truth, layout)
    if ground_truth.val_split is not None:
        found += ground_truth.val_split.unknown_to(run)
    report |= {"found": found, "images": len(ground_truth)}
    report["left_out"] = asdict(ground_truth.left_out)
    report |= {"joint": configured.name, **_as_json(metrics[configured])}
    if with_sweep:
        report["sweep"] = [{"joint": joint.name, "alpha": joint.alpha, **_as_json(metrics[joint])} for joint in sweep()]
    return report


def print_report(report: dict[str, Any]) -> None:
    """The report as tables."""
    from retinaconf.data.ground_truth import LeftOut

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


def _as_json(metrics: Metrics) -> dict[str, Any]:
    return {"metrics": finite(metrics.overall), "per_class": finite(metrics.per_class)}


def _table(title: str, first: str, rows: list[tuple[str, dict[str, float | None]]]) -> Table:
    from retinaconf.evaluation.coco import METRICS

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
