"""`retinaconf calibrate`: a score that is the IoU to expect, for anyone's detector."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from retinaconf.errors import UsageError
from retinaconf.files import write_json
from retinaconf.outputs import check_outputs

_ROWS = {
    "pooled_error": "LaECE_0, all classes together",
    "laece_0": "LaECE_0",
    "laace_0": "LaACE_0",
    "d_ece": "D-ECE",
    "mean_olrp": "moLRP (one map leaves it as it is)",
}


def calibrate(
    detections: Path,
    out: Path,
    ground_truth: Path | None = None,
    data: Path | None = None,
    split: str | None = None,
    apply: Path | None = None,
    json: Path | None = None,
) -> None:
    """Turn scores into the IoU to expect: fit a map to detections of any detector, or apply one.

    Fit: --detections DT --ground-truth GT --out MAP. Apply: --apply MAP --detections DT2 --out DT3.

    Args:
        detections: detections after NMS, COCO results; to fit a map, also .npz.
        out: the file of the map; with --apply, the file of the calibrated detections, COCO results.
        ground_truth: COCO ground truth of the detections, to fit a map.
        data: a data set's folder, instead of --ground-truth.
        split: split of the data set; val where it is not given.
        apply: the map to apply.
        json: when a map is fitted, also write the calibration before and after to this file.
    """
    from retinaconf.evaluation.score_map_file import calibrate_file, read_score_map, write_score_map
    from retinaconf.progress import terminal_progress

    check_outputs([out, json], [detections, ground_truth, data, apply])
    for_fits = {"--ground-truth": ground_truth, "--data": data, "--split": split, "--json": json}
    if apply is not None:
        for option, value in for_fits.items():
            if value is not None:
                raise UsageError(f"calibrate {option}: it is for fitting a map, and --apply applies one; leave one out")
        score_map = read_score_map(apply)
        with terminal_progress() as progress:
            count = calibrate_file(score_map, detections, out, progress)
        print(f"{out}: {count:,} detections; the raw scores are under 'raw_score'")
        return
    if (ground_truth is None) == (data is None):
        raise UsageError("calibrate: give either --ground-truth GT or --data ROOT to fit a map, or --apply MAP")
    if split is not None and data is None:
        raise UsageError("calibrate --split: it is for --data; leave it out")
    report, score_map = fit_files(detections, ground_truth, data, split or "val")
    write_score_map(out, score_map)
    print_report(report)
    print(f"map: {out}")
    if json is not None:
        write_json(json, report)


def fit_files(
    detections: Path, ground_truth: Path | None, data: Path | None = None, split: str = "val"
) -> tuple[dict[str, Any], Any]:
    """The report that `retinaconf calibrate --json` writes, and the map, a `ScoreMap`.

    Keys: `detections`, `ground_truth` (the file or folder), `images`, `objects`, and those of `calibration_report`.

    Raises:
        InputError: a file is missing, malformed or of another split, or there is nothing to fit.
    """
    from retinaconf.data.ground_truth import read_coco
    from retinaconf.data.layouts import load_split
    from retinaconf.detections import read_detections
    from retinaconf.evaluation.score_map import calibration_report, fit, measure_unseen
    from retinaconf.progress import terminal_progress

    truth = read_coco(ground_truth) if ground_truth is not None else load_split(data or Path(), split)
    with terminal_progress() as progress:
        found = read_detections(detections, truth, progress)
    score_map = fit(found, truth)
    report = {
        "detections": str(detections),
        "ground_truth": truth.source,
        "images": len(truth),
        "objects": int((~truth.crowd).sum()),
        **calibration_report(score_map, measure_unseen(found, truth)),
    }
    return report, score_map


def print_report(report: dict[str, Any]) -> None:
    """The report as lines and a table."""
    print(f"fitted to {report['objects']:,} objects in {report['images']:,} images of {report['ground_truth']}")
    print_calibration(report)


def print_calibration(report: dict[str, Any]) -> None:
    """What `calibration_report` says."""
    from rich.box import SIMPLE
    from rich.console import Console
    from rich.table import Table

    console = Console()

    def say(line: str) -> None:
        console.print(line, markup=False, highlight=False, soft_wrap=True)

    own, common = report["own_maps"], report["common_map"]
    if own:
        say(f"a map of its own: {', '.join(own)}")
    if common:
        say(f"the common map: {len(common)} classes with fewer than {report['own_map_from']} objects or no detections")
    if report["before"] is None:
        say("not measured on images that the map has not seen: half of the images have no detections that count")
        return
    low, high = report["pooled_error_change"]["interval"]
    say("on images that the map has not seen (each half of the images, by a map of the other half):")
    table = Table("", "before", "after", box=SIMPLE)
    for key, name in _ROWS.items():
        table.add_row(name, *(f"{report[when][key]:.4f}" for when in ("before", "after")))
    console.print(table)
    say(f"LaECE_0 of all classes together changes by {low:+.4f} to {high:+.4f} (95% interval over images)")
