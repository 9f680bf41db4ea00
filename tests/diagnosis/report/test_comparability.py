"""What is said of two detectors whose numbers are about other boxes."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from as_coco import as_coco
from planted import candidates_at, random_set, spread_objects

from retinaconf.cli import main
from retinaconf.diagnosis.measures.diagnose import Diagnosis, diagnose
from retinaconf.diagnosis.measures.post_processing import PostProcessing
from retinaconf.diagnosis.report.comparability import incomparable
from retinaconf.diagnosis.report.page import write_report


def detector(power: float = 1, threshold: float = 0.3, cut: float = 0.0, **settings: float) -> Diagnosis:
    """Sixty candidates on each of twenty objects; the score to a power has the same order and another scale."""
    rng = np.random.default_rng(0)
    truth = spread_objects(5, 4)
    ious = rng.uniform(0.55, 0.95, (20, 60))
    candidates = candidates_at(truth, ious, np.clip(ious + rng.normal(0, 0.5, ious.shape), 0.01, 0.99) ** power)
    process = PostProcessing(score_threshold=threshold, **settings)
    return diagnose(truth, candidates=candidates[candidates.scores > cut], post_processing=process, replicates=2)


@pytest.mark.slow
def test_the_same_detector_twice_may_be_compared() -> None:
    assert incomparable(detector(), detector()) == []
    ground_truth, boxes = random_set(np.random.default_rng(0))
    assert incomparable(diagnose(ground_truth, boxes), diagnose(ground_truth, boxes)) == []


def test_what_nms_lost_depends_on_the_scores_scale_and_the_order_does_not() -> None:
    plain, cubed = detector(), detector(power=3)
    (said,) = incomparable(plain, cubed)
    on_an_object = [len(each.before.boxes) / 20 for each in (plain, cubed)]
    assert said.startswith("Do not compare what NMS lost: it was given {:.1f} and {:.1f} boxes".format(*on_an_object))
    # Among fewer candidates the best is worse, though the detector is the same.
    best = [each.casualties.best_iou.mean() for each in (plain, cubed)]
    assert best[0] > best[1] + 0.002
    assert plain.before.alignment.within.concordance == cubed.before.alignment.within.concordance


def test_a_file_that_was_cut_lacks_boxes_of_an_object() -> None:
    whole, cut = detector(), detector(cut=0.8)
    assert whole.before.alignment.within.boxes == 50
    order, lost = incomparable(whole, cut)
    boxes = cut.before.alignment.within.boxes
    assert f"order within objects: it is that of 50.0 and of {boxes:.1f} boxes an object" in order
    assert lost.startswith("Do not compare what NMS lost")


def test_other_settings_other_stages_and_other_numbers_of_detections() -> None:
    (settings,) = incomparable(detector(), detector(max_detections=50))
    assert "NMS IoU 0.5 and 100 detections an image; and with NMS IoU 0.5 and 50" in settings
    candidates = detector()
    after = candidates.after.boxes
    detections = diagnose(candidates.ground_truth, after, replicates=2)
    (stages,) = incomparable(candidates, detections)
    assert stages.startswith("Candidates are known of one detector only")
    fewer = diagnose(candidates.ground_truth, after[after.scores > np.median(after.scores)], replicates=2)
    (calibration,) = incomparable(detections, fewer)
    assert f"calibration: it is that of 4.0 and of {len(fewer.after.boxes) / 5:.1f} detections" in calibration


@pytest.mark.parametrize("nothing", ["objects", "boxes"])
def test_where_there_is_nothing_there_is_nothing_to_say(nothing: str) -> None:
    ground_truth, boxes = random_set(np.random.default_rng(0))
    if nothing == "objects":
        ground_truth = replace(ground_truth, crowd=np.ones(len(ground_truth.boxes), bool))
    else:
        boxes = boxes[np.zeros(0, np.int64)]
    both = [diagnose(ground_truth, candidates=boxes, replicates=2) for _ in range(2)]
    assert incomparable(*both) == []


@pytest.mark.ci
def test_the_report_and_the_command_say_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plain, cubed = detector(), detector(power=3)
    (sentence,) = incomparable(plain, cubed)
    write_report(tmp_path / "r.html", [plain, cubed])
    assert sentence in (tmp_path / "r.html").read_text()
    write_report(tmp_path / "r.html", [plain])
    assert "Do not compare" not in (tmp_path / "r.html").read_text()

    truth = plain.ground_truth
    (tmp_path / "gt.json").write_text(json.dumps(as_coco(truth)))
    for name, power in (("a", 1), ("b", 3)):
        boxes = detector(power, threshold=0).before.boxes
        columns = {"image_id": truth.image_ids[boxes.image_index], "category_id": np.full(len(boxes), 10)}
        xywh = np.concatenate([boxes.boxes[:, :2], boxes.boxes[:, 2:] - boxes.boxes[:, :2]], axis=1)
        np.savez(tmp_path / f"{name}.npz", version=1, bbox=xywh, score=boxes.scores, **columns)
    files = [str(tmp_path / name) for name in ("a.npz", "b.npz", "gt.json")]
    words = ["diagnose", "--candidates", *files[:2], "--ground-truth", files[2], "--score-threshold", "0.3"]
    with pytest.raises(SystemExit) as done:
        main(words)
    assert done.value.code == 0
    assert f"note on both: {sentence}" in capsys.readouterr().out.splitlines()
