"""`retinaconf calibrate`: a score that is the IoU to expect, for anyone's detector."""

from __future__ import annotations

from collections.abc import Sequence
from json import dumps
from pathlib import Path
from typing import TYPE_CHECKING, Any

from retinaconf.errors import UsageError
from retinaconf.files import write_aside, write_json
from retinaconf.outputs import check_outputs

if TYPE_CHECKING:
    from retinaconf.data.ground_truth import GroundTruth

_ROWS = {
    "pooled_error": "LaECE_0, all classes together",
    "laece_0": "LaECE_0",
    "laace_0": "LaACE_0",
    "d_ece": "D-ECE",
    "mean_olrp": "moLRP (one map leaves it as it is)",
}


def calibrate(
    out: Path,
    detections: Path | None = None,
    ground_truth: Path | None = None,
    data: Path | None = None,
    split: str | None = None,
    apply: Path | None = None,
    merge: tuple[Path, ...] = (),
    json: Path | None = None,
) -> None:
    """Turn scores into the IoU to expect: fit a map, apply it, or merge detectors.

    Fit: --detections DT --ground-truth GT --out MAP. Apply: --apply MAP --detections DT2 --out DT3. Merge: --merge DT3
    DT4 --out DT5.

    Args:
        out: the file of the map; with --apply, of the calibrated detections; with --merge, of the merged ones.
        detections: detections after NMS, COCO results; to fit a map, also .npz.
        ground_truth: COCO ground truth of the detections, to fit a map or to measure what merging gains.
        data: a data set's folder, instead of --ground-truth.
        split: split of the data set; val if it is not given.
        apply: the map to apply.
        merge: calibrated detections of several detectors on the same images, merged by NMS and score voting.
        json: also write the report to this file.
    """
    check_outputs([out, json], [detections, ground_truth, data, apply, *merge])
    mode = "--merge" if merge else "--apply" if apply is not None else "to fit a map"
    given = {
        "--detections": detections,
        "--apply": apply,
        "--ground-truth": ground_truth,
        "--data": data,
        "--split": split,
        "--json": json,
    }
    not_for = {"--merge": ("--detections", "--apply"), "--apply": ("--ground-truth", "--data", "--split", "--json")}
    for option in not_for.get(mode, ()):
        if given[option] is not None:
            raise UsageError(f"calibrate {option}: it does not go with {mode}; leave one out")
    if split is not None and data is None:
        raise UsageError("calibrate --split: it is for --data; leave it out")
    if merge:
        merge_files(merge, out, ground_truth, data, split or "val", json)
    elif detections is None:
        raise UsageError("calibrate: give --detections DT, or --merge DT DT with detections of several detectors")
    elif apply is not None:
        _apply(apply, detections, out)
    elif (ground_truth is None) == (data is None):
        raise UsageError("calibrate: give either --ground-truth GT or --data ROOT to fit a map, or --apply MAP")
    else:
        from retinaconf.evaluation.score_map_file import write_score_map

        report, score_map = fit_files(detections, ground_truth, data, split or "val")
        write_score_map(out, score_map)
        print_report(report)
        print(f"map: {out}")
        if json is not None:
            write_json(json, report)


def _apply(score_map: Path, detections: Path, out: Path) -> None:
    from retinaconf.evaluation.score_map_file import calibrate_file, read_score_map
    from retinaconf.progress import terminal_progress

    known = read_score_map(score_map)
    with terminal_progress() as progress:
        count = calibrate_file(known, detections, out, progress)
    print(f"{out}: {count:,} detections; the raw scores are under 'raw_score'")


def merge_files(
    files: Sequence[Path],
    out: Path,
    ground_truth: Path | None = None,
    data: Path | None = None,
    split: str = "val",
    json: Path | None = None,
) -> None:
    """Write the merged detections of COCO results, and say what that gains if there is ground truth.

    `json` gets `AP` (by file), `best` (the file with the highest), `merged_AP`, `gain` (over the best) and its 95%
    `interval`.

    Raises:
        UsageError: there is one file, or no ground truth for `json`.
        InputError: a file is missing, malformed or of another split.
    """
    from retinaconf.coco_results import read_records
    from retinaconf.detections import read_detections
    from retinaconf.diagnosis.measures.merge import images_of, measure_merge, merge
    from retinaconf.evaluation.score_map_file import RAW_SCORE
    from retinaconf.progress import terminal_progress

    if len(files) < 2:
        raise UsageError("calibrate --merge: give the detections of at least two detectors")
    if ground_truth is not None and data is not None:
        raise UsageError("calibrate --merge: give --ground-truth GT or --data ROOT, not both")
    is_measured = ground_truth is not None or data is not None
    if json is not None and not is_measured:
        raise UsageError("calibrate --merge --json: a gain needs ground truth; give --ground-truth GT or --data ROOT")
    truth = _truth(ground_truth, data, split) if is_measured else images_of(files)
    for file in files:
        for first in next(read_records(file), [])[:1]:
            if RAW_SCORE not in first:
                print(f"note: {file} has no '{RAW_SCORE}'; scores of detectors can be compared if all are calibrated")
    with terminal_progress() as progress:
        tables = [read_detections(file, truth, progress) for file in files]
        merged = merge(tables, progress)
        measured = measure_merge(tables, merged, truth, progress) if is_measured else None
    text = dumps(merged.to_coco(truth.image_ids)) + "\n"
    write_aside(out, lambda aside: aside.write_text(text))
    if measured is not None:
        for file, value in zip(files, measured.AP):
            print(f"{file}: AP {100 * value:.1f}")
        gain, (low, high) = measured.gain, measured.gain.interval
        print(
            f"merged: AP {100 * gain.after:.1f}, {100 * gain.points:+.1f} points over the best of them, 95% interval "
            f"{100 * low:+.1f} to {100 * high:+.1f}"
        )
        if json is not None:
            report = {"AP": dict(zip(map(str, files), measured.AP)), "best": str(files[measured.best])}
            write_json(json, report | {"merged_AP": gain.after, "gain": gain.points, "interval": gain.interval})
    print(f"{out}: {len(merged):,} detections of {sum(map(len, tables)):,}")


def _truth(ground_truth: Path | None, data: Path | None, split: str) -> GroundTruth:
    from retinaconf.data.ground_truth import read_coco
    from retinaconf.data.layouts import load_split

    return read_coco(ground_truth) if ground_truth is not None else load_split(data or Path(), split)


def fit_files(
    detections: Path, ground_truth: Path | None, data: Path | None = None, split: str = "val"
) -> tuple[dict[str, Any], Any]:
    """The report that `retinaconf calibrate --json` writes, and the map, a `ScoreMap`.

    Keys: `detections`, `ground_truth` (the file or folder), `images`, `objects`, and those of `calibration_report`.

    Raises:
        InputError: a file is missing, malformed or of another split, or there is nothing to fit.
    """
    from retinaconf.detections import read_detections
    from retinaconf.evaluation.score_map import calibration_report, fit, measure_unseen
    from retinaconf.progress import terminal_progress

    truth = _truth(ground_truth, data, split)
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
