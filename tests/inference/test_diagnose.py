"""What `diagnose` says of a run on its own data."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from retinaconf.data.layouts import load_split
from retinaconf.data.loader import evaluation_batches
from retinaconf.inference.detector import load
from retinaconf.inference.diagnose import diagnose_run
from retinaconf.model.anchors import anchor_boxes, level_shapes
from retinaconf.training.matching import match

LARGER = {"data.short_side": 160, "data.long_side": 224}  # so that many anchors fit an object


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"model.anchors": "torchvision", "data.resize": "torchvision"},
        {"model.anchor_ratios": (0.3, 1.0, 4.0), "model.anchor_scales": (2.0, 5.0)},
    ],
    ids=["default", "torchvision", "ratios and scales"],
)
def test_coverage_counts_the_anchors_that_training_matches(
    write_run: Callable[..., Path], make_data: Callable[..., Path], tmp_path: Path, changes: dict[str, Any]
):
    data, run = make_data(tmp_path / "data", train=1, val=12), write_run(tmp_path / "run", **(LARGER | changes))
    coverage = diagnose_run(run, data, device="cpu").coverage
    assert coverage is not None
    truth, detector = load_split(data, "val"), load(run, "cpu")
    counts = []
    for batch in evaluation_batches(truth, detector.config.data, 1):
        shapes = level_shapes(*batch.images.shape[2:])
        anchors = anchor_boxes(shapes, torch.device("cpu"), detector.config.model.cell_anchors)
        matches = match(anchors, batch.boxes, batch.labels)
        of_object = torch.bincount(matches.boxes[0, matches.labels[0] >= 0], minlength=batch.labels.shape[1])
        counts.append((int(batch.index[0]), of_object.tolist()))
    expected = [count for _, of_image in sorted(counts) for count in of_image]
    assert coverage.positives[~truth.crowd].tolist() == expected
    assert np.mean(expected) > 2
