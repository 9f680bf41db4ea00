"""`retinaconf evaluate`: COCO's numbers of a run on a split."""

from __future__ import annotations

from pathlib import Path

from tyro.conf import Positional

from retinaconf.commands.options import Device, LayoutKey
from retinaconf.files import write_json
from retinaconf.outputs import check_outputs


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
    from retinaconf.inference.evaluate import evaluate_run, print_report

    report = evaluate_run(run, data, split, alpha, sweep, layout, device, detections, val_fraction)
    print_report(report)
    if json is not None:
        write_json(json, report)
