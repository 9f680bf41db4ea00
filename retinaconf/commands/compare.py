"""`retinaconf compare`: which of two detectors is better, and how sure that is."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from tyro.conf import Positional

from retinaconf.commands.options import Device, LayoutKey
from retinaconf.files import write_json
from retinaconf.outputs import check_outputs

if TYPE_CHECKING:
    from retinaconf.diagnosis.measures.comparison import Comparison


def compare(
    runs: Positional[tuple[Path, ...]] = (),
    /,
    data: Path | None = None,
    split: str = "val",
    detections: tuple[Path, ...] = (),
    ground_truth: Path | None = None,
    against: tuple[Path, ...] = (),
    images: Path | None = None,
    json: Path | None = None,
    report: Path | None = None,
    layout: LayoutKey | None = None,
    val_fraction: float | None = None,
    device: Device = "auto",
) -> None:
    """Say which of two detectors is better, with a confidence interval over images and trainings.

    Compare two runs on a data set (A B --data ROOT), or any two detectors from files (--detections A B --ground-truth
    GT).

    Args:
        runs: two run folders, A and B; with --against, those of A only.
        data: the data set's folder; it may also hold the ground truth of files.
        split: split of the data set.
        detections: COCO results or .npz of A and B after NMS, in place of runs; with --against, of A only.
        ground_truth: for files, the COCO ground truth of the same images.
        against: several trainings of B, as many runs or files as of A, paired in their order.
        images: folder of the images that --ground-truth lists, for the report's pictures.
        json: write every number to this file.
        report: write the HTML report of `diagnose` on both detectors to this file, on the first training of each.
        layout: of the data set's folder. Without it, the folder's content decides.
        val_fraction: share of the images that is val, if neither data set nor run says which. Without it, the run's.
        device: where to compute, for runs.
    """
    from retinaconf import api
    from retinaconf.diagnosis.report.comparison import to_json

    check_outputs([json, report], [*runs, *detections, *against, data, ground_truth, images])
    found = api.compare(
        *runs,
        data=data,
        split=split,
        detections=detections,
        ground_truth=ground_truth,
        against=against,
        images=images,
        report=report,
        layout=layout,
        val_fraction=val_fraction,
        device=device,
    )
    _print(found)
    if json is not None:
        write_json(json, to_json(found))
    if report is not None:
        print(f"report: {report}")


def _print(comparison: Comparison) -> None:
    """The sentence, and the numbers as tables."""
    from rich.box import SIMPLE
    from rich.console import Console
    from rich.table import Table

    from retinaconf.diagnosis.report.comparison import class_rows, interval, notes, points, rows, sentence

    console = Console(width=max(Console().width, 104))
    lines = [sentence(comparison)]
    for side, detectors in (("A", comparison.a), ("B", comparison.b)):
        lines.append(f"{side}: {', '.join(each.name for each in detectors)}")
    print("\n".join(lines))
    for title, values in (("all numbers in hundredths", rows(comparison)), ("AP by class", class_rows(comparison))):
        table = Table("", title=title, box=SIMPLE)
        for name in ("A", "B", "B - A", "95% interval"):
            table.add_column(name, justify="right")
        for label, one, other, found in values:
            table.add_row(label, points(one), points(other), points(found.mean, signed=True), interval(found))
        console.print(table)
    for note in notes(comparison):
        print(f"note: {note}")
