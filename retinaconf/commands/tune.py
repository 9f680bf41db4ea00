"""`retinaconf tune`: what can be chosen without training, chosen on val and kept in the run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tyro.conf import Positional

from retinaconf.commands.options import Device, LayoutKey
from retinaconf.files import write_json
from retinaconf.outputs import check_outputs


def tune(
    run: Positional[Path],
    /,
    data: Path,
    precision: float | None = None,
    recall: float | None = None,
    json: Path | None = None,
    layout: LayoutKey | None = None,
    val_fraction: float | None = None,
    device: Device = "auto",
) -> None:
    """Choose alpha, Soft-NMS, a calibrated confidence and thresholds by class on val, and keep them in the run.

    Args:
        run: the run folder; `model.safetensors` in it is written again, with the same weights.
        data: the data set's folder. Everything is chosen on its split val.
        precision: give each class the lowest threshold that reaches this precision. Without it, the one of lowest LRP.
        recall: give each class the highest threshold that reaches this recall. Without it, the one of lowest LRP.
        json: also write the report to this file.
        layout: of the data set's folder. Without it, the folder's content decides.
        val_fraction: share of the images that is val, if neither data set nor run says which. Without it, the run's.
        device: where to compute.
    """
    from retinaconf.inference.tune import tune as choose

    check_outputs([json], [run, data, data / "val.json"])
    wish = {"precision": precision, "recall": recall}
    report = choose(run, data, **wish, layout=layout, val_fraction=val_fraction, device=device)
    print_report(report)
    if json is not None:
        write_json(json, report)


def print_report(report: dict[str, Any]) -> None:
    """The report as lines and tables."""
    from rich.box import SIMPLE
    from rich.console import Console
    from rich.table import Table

    from retinaconf.commands.calibrate import print_calibration
    from retinaconf.commands.evaluate import share_cells

    console = Console()

    def say(line: str) -> None:
        console.print(line, markup=False, highlight=False, soft_wrap=True)

    say(f"chosen on {report['objects']:,} objects in {report['images']:,} images of {report['data']}")
    say(_ranking_line(report["ranking"]))
    if report["soft_nms"] is not None:
        say(_soft_nms_line(report["soft_nms"]))
    print_calibration(report["calibration"])
    thresholds = report["thresholds"]
    goal, by_class = thresholds["goal"], thresholds["by_class"]
    say(f"thresholds for the {goal} of each class; precision and recall on images that did not choose it:")
    table = Table("", "threshold", "precision", "95%", "recall", "95%", box=SIMPLE)
    for name, row in by_class.items():
        threshold = thresholds["common"] if row["threshold"] is None else row["threshold"]
        table.add_row(name, f"{threshold:.3f}", *share_cells(row, "precision"), *share_cells(row, "recall"))
    console.print(table)
    if without := [name for name, row in by_class.items() if row["threshold"] is None]:
        say(f"the threshold of all classes together, because they lack objects or detections: {', '.join(without)}")
    for name, row in by_class.items():
        if row["best"] is not None:
            say(f"{name}: {goal} is not reached on val; the threshold taken gives {row['best']:.2f}")
    say(f"{report['run']}: `predict`, `evaluate`, `diagnose` and `export` use these choices")


def _ranking_line(ranking: dict[str, Any]) -> str:
    names = (ranking["own"], ranking["chosen"], ranking["best"])
    own, chosen, best = (name and f"{name['joint']}, alpha {name['alpha']:g}" for name in names)
    if best is None:
        return "no quality branch, so there is no alpha to choose"
    low, high = (100 * bound for bound in ranking["interval"])
    if low != low:
        return f"ranked by {chosen}, as before: too few images to choose"
    change = f"changes AP on the other by {100 * ranking['gain']:+.1f} points, 95% interval {low:+.1f} to {high:+.1f}"
    tried = f"the best of one half of the images, {best}, {change}"
    return f"ranked by {chosen}, " + (f"instead of {own}: {tried}" if low > 0 else f"as before: {tried}, no sure gain")


def _soft_nms_line(soft: dict[str, Any]) -> str:
    low, high = (100 * bound for bound in soft["interval"])
    change = f"changes AP by {100 * soft['gain']:+.1f} points, 95% interval {low:+.1f} to {high:+.1f}"
    if low != low:
        return "without Soft-NMS, as before: too few images to choose"
    return (
        f"with Soft-NMS, which {change}"
        if soft["chosen"]
        else f"without Soft-NMS, as before: it {change}, no sure gain"
    )
