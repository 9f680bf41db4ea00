"""Merging detectors: by hand, in any order of the images, and where it must gain."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from planted import candidates_at, random_set, spread_objects

from retinaconf.config import VOTE_SIGMA
from retinaconf.detections import Detections, read_detections
from retinaconf.diagnosis.measures.merge import images_of, measure_merge, merge
from retinaconf.evaluation.coco import CocoEvaluator


def test_by_hand() -> None:
    """Both find object 0, and the second with the lower score; each has a box of its own beside it.

    The boxes of object 0 overlap by 90 / 110: the better stays, moved towards the other by its share of the votes.
    """
    first, second = (
        np.array([[0.0, 0, 100, 100], [500, 0, 600, 100]]),
        np.array([[10.0, 0, 110, 100], [0, 500, 9, 600]]),
    )
    tables = [
        Detections(np.array([0, 1]), np.zeros(2, int), boxes, scores, classes=("a",), category_ids=(7,))
        for boxes, scores in ((first, np.array([0.8, 0.3])), (second, np.array([0.4, 0.6])))
    ]
    merged = merge(tables)
    assert merged.image_index.tolist() == [0, 1, 1]
    assert merged.scores.tolist() == [0.8, 0.3, 0.6]
    weight = 0.4 * np.exp(-((1 - 90 / 110) ** 2) / VOTE_SIGMA)
    moved = 10 * weight / (0.8 + weight)
    assert merged.boxes == pytest.approx(np.array([[moved, 0, 100 + moved, 100], first[1], second[1]]))
    assert (merged.class_scores, merged.classes, merged.category_ids) == (None, ("a",), (7,))


def test_a_detector_merged_with_one_of_nothing_keeps_what_overlaps_little() -> None:
    ground_truth = spread_objects(5, 4)
    ious = np.random.default_rng(0).uniform(0.5, 1, (20, 1))
    table = candidates_at(ground_truth, ious, ious)
    merged = merge([table[np.zeros(20, bool)], table])
    assert np.array_equal(merged.boxes, table.boxes)
    assert np.array_equal(merged.scores, table.scores)


def test_what_each_has_found_alone_adds_up_and_the_gain_is_of_cocos_ap() -> None:
    ground_truth = spread_objects(20, 4)
    names = {"classes": ground_truth.classes, "category_ids": ground_truth.category_ids}
    ious = np.random.default_rng(1).uniform(0.6, 1, (80, 1))
    every = replace(candidates_at(ground_truth, ious, ious), **names)
    half = np.arange(80) % 3 > 0
    tables = [every[half], every[~half]]
    merged = merge(tables)
    found = measure_merge(tables, merged, ground_truth)
    evaluator = CocoEvaluator(ground_truth)
    assert pytest.approx([evaluator(table).overall["AP"] for table in tables]) == found.AP
    assert found.best == 0
    assert found.gain.before == found.AP[0]
    assert found.gain.after == pytest.approx(evaluator(every).overall["AP"])
    assert found.gain.interval[0] > 0


def test_files_are_read_without_ground_truth_as_with_it(tmp_path: Path) -> None:
    ground_truth, found = random_set(np.random.default_rng(2))
    found = replace(found, category_ids=ground_truth.category_ids)
    files = [tmp_path / "a.json", tmp_path / "b.json"]
    for file, rows in zip(files, (found.labels == 0, found.labels > 0)):
        file.write_text(json.dumps(found[rows].to_coco(ground_truth.image_ids)))
    without = images_of(files)
    records = [
        merge([read_detections(file, truth) for file in files]).to_coco(truth.image_ids)
        for truth in (ground_truth, without)
    ]
    by_image = [sorted(one, key=lambda record: (record["image_id"], -record["score"])) for one in records]
    assert by_image[0] == by_image[1]
    assert len(by_image[0]) > 100
    (tmp_path / "none.json").write_text("[]")
    assert len(images_of([tmp_path / "none.json"])) == 0
