"""What the branch says where, against loops over boxes and scipy's correlation."""

from __future__ import annotations

import shutil
from collections import defaultdict
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import spearmanr
from torchvision.ops import batched_nms, box_iou

from retinaconf.data.layouts import load_split
from retinaconf.evaluation.coco import CocoEvaluator
from retinaconf.inference.detector import load
from retinaconf.paper.items import CONF
from retinaconf.paper.quality_statistics import CLASS_SCORE, IOU_EDGES, by_use, class_ranked, qualities
from retinaconf.paper.runs import Experiments


def test_means_by_iou_and_the_order_among_the_boxes_of_an_object(
    trained: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    run = Path(shutil.copytree(trained.run, tmp_path / "runs" / "mine"))
    experiments = Experiments(tmp_path, trained.data, trained.config, device="cpu")
    found = qualities(experiments, CONF, 0)

    truth = experiments.ground_truth
    detector = load(run, "cpu")
    config = detector.inference_config(alpha=0.0, score_threshold=CLASS_SCORE)
    (table,) = detector.detect(truth, config, suppress=False)
    bins: dict[int, list[tuple[float, float]]] = defaultdict(list)
    objects: dict[tuple[int, int], list[tuple[float, float, float]]] = defaultdict(list)
    for image, box, score, quality in zip(table.image_index, table.boxes, table.class_scores, table.quality):
        targets = truth.boxes[(truth.image_index == image) & ~truth.crowd]
        overlaps = box_iou(torch.from_numpy(box)[None].double(), torch.from_numpy(targets))[0]
        best = float(overlaps.max()) if len(overlaps) else 0.0
        place = next(n for n, edge in enumerate(IOU_EDGES[1:]) if best < edge or edge == 1)
        bins[place].append((score, quality))
        if best >= 0.5:
            objects[image, int(overlaps.argmax())].append((best, score, quality))

    assert found["boxes"] == len(table.boxes) > 100
    assert found["count"] == [len(bins[n]) for n in range(len(IOU_EDGES) - 1)]
    filled = [n for n, count in enumerate(found["count"]) if count]
    assert len(filled) >= 5
    for column, name in enumerate(("class_score", "quality")):
        means = [np.mean([row[column] for row in bins[n]]) for n in filled]
        assert [found[name][n] for n in filled] == pytest.approx(means, abs=1e-6)
        ranks = [
            spearmanr([row[0] for row in rows], [row[1 + column] for row in rows]).statistic
            for rows in objects.values()
            if len({row[0] for row in rows}) > 1
        ]
        assert found[f"{name}_rank"] == pytest.approx(np.mean(ranks), abs=1e-6)

    (kept,) = (tmp_path / "measured").glob("*.jsonl")
    kept.write_text(kept.read_text().replace('"boxes":', '"boxes":1'))
    assert qualities(experiments, CONF, 0)["boxes"] != found["boxes"]  # kept, not measured again


def test_a_branch_that_nothing_asks(trained: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """No box reaches the class score: counts of 0, means unknown."""
    shutil.copytree(trained.run, tmp_path / "runs" / "mine")
    experiments = Experiments(tmp_path, trained.data, trained.config, device="cpu")
    monkeypatch.setattr("retinaconf.paper.quality_statistics.CLASS_SCORE", 0.9999)
    found = qualities(experiments, CONF, 0)
    assert found["boxes"] == sum(found["count"]) == 0
    assert set(found["quality"]) == {None}
    assert found["quality_rank"] is None


def test_the_uses_of_the_score_are_those_of_torchvisions_nms_and_cocos_ap(trained: Any):
    detector, truth = load(trained.run, "cpu"), load_split(trained.data, "val")
    boxes = class_ranked(detector, truth)
    assert boxes.quality is not None
    found = by_use(boxes, truth)

    def average_precision(suppress_by: np.ndarray, rank_by: np.ndarray) -> float:
        kept: list[int] = []
        for image in range(len(truth)):
            rows = np.flatnonzero(boxes.image_index == image)
            columns = (boxes.boxes[rows], suppress_by[rows], boxes.labels[rows])
            stay = rows[batched_nms(*map(torch.from_numpy, columns), 0.5).numpy()]
            kept += sorted(stay, key=lambda row: -rank_by[row])[:100]
        return CocoEvaluator(truth)(replace(boxes, scores=rank_by)[np.array(kept)]).overall["AP"]

    plain = boxes.scores
    joint = boxes.quality**0.6 * plain**0.4
    at = found["alphas"].index(0.6)
    assert found["AP"] == pytest.approx(average_precision(plain, plain))
    for use, scores in (("both", (joint, joint)), ("nms", (joint, plain)), ("ranking", (plain, joint))):
        assert found["quality"][use][at] == pytest.approx(average_precision(*scores) - found["AP"])
    assert found["perfect"]["both"][at] > max(found["quality"]["both"])
