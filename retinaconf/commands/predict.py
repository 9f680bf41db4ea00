"""`retinaconf predict`: annotated pictures and detections of images and videos."""

from __future__ import annotations

from pathlib import Path

from tyro.conf import Positional

from retinaconf.commands.options import Device
from retinaconf.errors import InputError


def predict(
    run: Positional[Path],
    images: Positional[tuple[str, ...]],
    /,
    out: Path,
    alpha: float | None = None,
    score_threshold: float | None = None,
    device: Device = "auto",
) -> None:
    """Draw boxes on images and videos, and write all detections to detections.json (COCO results).

    Files that cannot be read are skipped and listed at the end; the exit code is then 1.

    Args:
        run: the run folder.
        images: images, folders of images, videos, or patterns such as 'photos/**/*.jpg'.
        out: folder for the pictures and detections.json.
        alpha: exponent of the quality in the joint score, instead of the run's own.
        score_threshold: draw boxes with a joint score above this. The default is 0.3, or for a tuned run its own
            threshold of each class. detections.json holds all boxes.
        device: where to compute.
    """
    from retinaconf.inference.predict import predict_files

    done, skipped, shown = predict_files(run, images, out, alpha, score_threshold, device)
    print(f"{done:,} images: {out / 'detections.json'} and the pictures beside it; boxes in them: {shown}")
    for fault in skipped:
        print(f"skipped: {fault}")
    if skipped:
        raise InputError(f"files skipped because they cannot be read: {len(skipped):,}; the first: {skipped[0]}")
