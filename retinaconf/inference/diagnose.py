"""A run against a split: its candidates before NMS, made on the spot, into the diagnosis."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.progress import Progress

from retinaconf.data.images import check_images
from retinaconf.data.transforms import canvas, resized
from retinaconf.diagnosis.candidates import Candidates
from retinaconf.diagnosis.coverage import anchor_coverage
from retinaconf.diagnosis.diagnose import Diagnosis, diagnose
from retinaconf.diagnosis.post_processing import PostProcessing
from retinaconf.inference.dataset import DetectionTable
from retinaconf.inference.detector import load
from retinaconf.inference.evaluate import split_for


def diagnose_run(
    run: Path,
    root: Path,
    split: str = "val",
    alpha: float | None = None,
    images: int = 5000,
    layout: str | None = None,
    device: str = "auto",
    val_fraction: float | None = None,
) -> Diagnosis:
    """Diagnose a run on a split of `root`, or on `images` of its images, drawn at random where it has more.

    Memory holds all candidates of those images, some 400 kB an image; the images themselves stream by.

    Raises:
        InputError: no such run or split, bad data, other categories than the run's, or a wrong `alpha`.
    """
    detector = load(run, device)
    config = detector.inference_config(**({} if alpha is None else {"alpha": alpha}))
    ground_truth = split_for(detector, run, root, split, layout, val_fraction)
    if len(ground_truth) > images:
        chosen = np.random.default_rng(0).choice(len(ground_truth), images, replace=False)
        ground_truth = replace(ground_truth.subset(np.sort(chosen)), dropped=())  # which is about all images
    ground_truth = check_images(ground_truth, detector.config.data.skip_bad, detector.config.data.max_skipped)

    with Progress(console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("candidates", total=len(ground_truth))
        (table,) = detector.detect(ground_truth, config, suppress=False, done=lambda n: bar.advance(task, n))
    candidates = as_candidates(table, str(run))
    data = detector.config.data
    sizes = ground_truth.image_sizes
    inputs = [resized((int(h), int(w)), data.short_side, data.long_side, resize=data.resize) for h, w in sizes]
    coverage = anchor_coverage(
        ground_truth,
        scale=np.array(inputs)[:, ::-1] / sizes[:, ::-1],
        padded_size=np.array([canvas([size]) for size in inputs]),
        cell_anchors=detector.config.model.cell_anchors,
    )
    process = PostProcessing(config.score_threshold, config.nms_iou, config.detections)
    return diagnose(ground_truth, candidates=candidates, post_processing=process, coverage=coverage)


def as_candidates(table: DetectionTable, source: str) -> Candidates:
    """A detector's boxes as the diagnosis takes them; `source` is what messages name."""
    return Candidates(
        table.image_index,
        table.labels,
        table.boxes.astype(np.float64),
        table.scores.astype(np.float64),
        table.class_scores.astype(np.float64),
        None if table.quality is None else table.quality.astype(np.float64),
        source=source,
    )
