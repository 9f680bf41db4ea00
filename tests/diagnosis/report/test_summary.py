"""What the report says: true of what was measured, silent on what was not, and usable by the detector's owner."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from planted import candidates_at, spread_objects

from retinaconf.data.ground_truth import GroundTruth, read_coco
from retinaconf.detections import Detections, read_detections
from retinaconf.diagnosis.measures.diagnose import Diagnosis, diagnose
from retinaconf.diagnosis.measures.post_processing import PostProcessing
from retinaconf.diagnosis.report.advice import advise
from retinaconf.diagnosis.report.summary import summarize

YOLOX = PostProcessing(nms_iou=0.65)


@pytest.fixture(scope="module")
def coco(shared_data: Path) -> GroundTruth:
    return read_coco(shared_data / "coco-mini" / "annotations" / "instances_val2017.json")


@pytest.fixture(scope="module")
def boxes(shared_data: Path, coco: GroundTruth) -> Detections:
    return read_detections(shared_data / "yolox-nano" / "candidates-val2017.npz", coco)


@pytest.fixture(scope="module")
def yolox(coco: GroundTruth, boxes: Detections) -> Diagnosis:
    return diagnose(coco, candidates=boxes, post_processing=YOLOX)


def said(diagnosis: Diagnosis) -> str:
    return "\n".join([*summarize(diagnosis), *advise(diagnosis)])


@pytest.mark.slow
def test_a_yolox_is_compared_with_the_score_that_it_uses(yolox: Diagnosis) -> None:
    """It ranks by class score x objectness: over that nothing is to be gained, over the class score alone much."""
    sweep, text = yolox.quality, said(yolox)
    assert "The detector ranks by class score × quality. Compared with that," in text
    assert abs(sweep.over_own.points) < 0.005
    assert sweep.over_class_score.points > 0.03
    over_own, over_class = (f"{100 * gain.points:+.1f} points" for gain in (sweep.over_own, sweep.over_class_score))
    assert re.search(
        rf"changes AP by {re.escape(over_own)}.* images that alpha was not chosen on: no sure difference", text
    )
    assert f"Compared with the class score alone, that alpha changes AP by {over_class}" in text
    assert "Keep the score as it is" in text


def test_the_class_score_alone_is_not_compared_with_itself(yolox: Diagnosis) -> None:
    best_without = replace(yolox, quality=replace(yolox.quality, best_alpha=0.0))
    text = said(best_without)
    assert "with the best alpha, 0 (the class score alone), changes AP by" in text
    assert "Compared with the class score alone" not in text


def test_the_documents_report_is_this_one(yolox: Diagnosis) -> None:
    text = (Path(__file__).parents[3] / "docs" / "diagnosis.md").read_text(encoding="utf-8")
    text = text[text.index("## A real report") : text.index("## What goes in")]
    quoted = [
        " ".join(block.replace("\n> ", " ").split()) for block in re.findall(r"^> (.*?)$(?!\n>)", text, re.M | re.S)
    ]
    assert quoted == [*summarize(yolox), *advise(yolox)[1:]]


def test_what_makes_the_detections_is_named(yolox: Diagnosis) -> None:
    assert "a score above 0, NMS within each class at IoU 0.65, the best 100 of an image" in said(yolox)


def test_the_owner_of_a_yolo_is_told_nothing_that_only_others_can_do(yolox: Diagnosis) -> None:
    text = said(yolox).lower()
    for word in ("retrofit", "conf-", "recipe", "anchor"):
        assert word not in text
    advice = advise(yolox)
    for words in (
        "score of 0.",
        "Keep NMS at IoU 0.65",
        "`retinaconf calibrate --detections DT --ground-truth GT --out MAP`",
        "What training could add",
    ):
        assert any(words in line for line in advice), words
    for line in advice[1:]:
        assert re.search(r"\d", line), line  # each with what was measured


def test_every_count_says_of_what(yolox: Diagnosis) -> None:
    text = said(yolox)
    total = yolox.casualties.of(~yolox.ground_truth.crowd)
    assert f"{total['found']} of the 811 objects have a candidate of their class that overlaps them" in text
    assert f"{yolox.before.alignment.within.objects} of the 811 objects: those with at least two candidates" in text
    lost = yolox.casualties.lost[~yolox.ground_truth.crowd & (yolox.casualties.best_iou > 0)]
    assert len(lost) == total["found"]
    assert f"For {np.mean(lost > 0.05):.0%} of the {len(lost)}, NMS removes" in text


@pytest.mark.slow
def test_candidates_given_as_detections_are_the_first_thing_said(coco: GroundTruth, boxes: Detections) -> None:
    given = diagnose(coco, boxes, replicates=5)
    assert summarize(given)[0].startswith("These detections seem to be candidates before NMS")
    assert "--candidates" in advise(given)[0]
    real = diagnose(coco, YOLOX(boxes), replicates=5)
    assert not any("candidates before NMS" in line for line in [*summarize(real)[:1], *real.notes])


def test_eight_objects_are_too_few_for_a_verdict() -> None:
    """The better box of each is suppressed, which in eight objects is a large gain and says little."""
    ious, scores = np.tile([0.6, 0.9], (8, 1)), np.tile([0.9, 0.8], (8, 1))
    ground_truth = spread_objects(2, 4)
    few = diagnose(ground_truth, candidates=candidates_at(ground_truth, ious, scores), replicates=20)
    assert few.oracles[1].gain.points > 0.3
    assert summarize(few)[0].startswith("8 objects in 2 images are too few to judge a detector by")
    assert "disagree" not in said(few)
    assert advise(few) == [
        "Diagnose more: at least 100 objects in 20 images. Nothing is sure with 8 objects in 2 images."
    ]


def test_a_gain_that_one_image_makes_is_no_verdict() -> None:
    """100 objects, of which those of one image gain. Draws without that image gain nothing."""
    ious, scores = np.tile([0.6, 0.9], (100, 1)), np.tile([0.8, 0.9], (100, 1))
    scores[:5] = [0.9, 0.8]
    ground_truth = spread_objects(20, 5)
    diagnosis = diagnose(ground_truth, candidates=candidates_at(ground_truth, ious, scores), replicates=200)
    assert diagnosis.oracles[1].gain.points > 0.01
    assert summarize(diagnosis)[0].startswith(
        "These images are too few to tell whether score and localization disagree"
    )


def test_a_better_exponent_is_advised_with_its_gain() -> None:
    """A quality that is the IoU, and a detector that ranks by a class score of noise."""
    rng = np.random.default_rng(0)
    ground_truth = spread_objects(30, 4)
    ious = rng.choice([0.6, 0.75, 0.9], (120, 4))
    candidates = candidates_at(ground_truth, ious, rng.random((120, 4)))
    candidates = replace(candidates, class_scores=candidates.scores, quality=ious.ravel())
    diagnosis = diagnose(ground_truth, candidates=candidates, replicates=100)
    gain = f"{100 * diagnosis.quality.over_own.points:+.1f} points"
    (line,) = [line for line in advise(diagnosis) if line.startswith("Rank by quality^")]
    assert "instead of the class score" in line
    assert gain in line
    assert "leaves its quality unused" in said(diagnosis)


@pytest.mark.parametrize("alpha", [0.0, 1.0])
def test_an_exponent_that_is_the_best_already_is_kept(alpha: float) -> None:
    """Class score and quality are the IoU and noise, or noise and the IoU."""
    rng = np.random.default_rng(0)
    ground_truth = spread_objects(30, 4)
    ious, noise = rng.choice([0.6, 0.75, 0.9], (120, 4)), rng.random((120, 4))
    candidates = candidates_at(ground_truth, ious, ious)
    names = ("class_scores", "quality") if alpha == 0 else ("quality", "class_scores")
    candidates = replace(candidates, **dict(zip(names, (ious.ravel(), noise.ravel()))))
    diagnosis = diagnose(ground_truth, candidates=candidates, replicates=100)
    assert diagnosis.own_score.alpha == diagnosis.quality.best_alpha == alpha
    assert "Keep the score as it is: no other weight of the quality that was tried is better." in advise(diagnosis)
    assert "No other weight of the quality that was tried is better on one half of the images." in said(diagnosis)
    assert ("Compared with the class score alone, the detector's score changes AP by" in said(diagnosis)) == (
        alpha == 1
    )


def test_nms_is_advised_where_it_helps() -> None:
    ground_truth = spread_objects(30, 4)
    easy = np.random.default_rng(0).random((120, 1))
    # Two boxes an object that overlap by 0.5 to 0.6: NMS at 0.9 leaves both, and the second is a false positive.
    candidates = candidates_at(ground_truth, np.tile([1, 0.55], (120, 1)), np.hstack([easy, 0.999 * easy]))
    process = PostProcessing(nms_iou=0.9)
    diagnosis = diagnose(ground_truth, candidates=candidates, post_processing=process, replicates=100)
    gain = f"{100 * diagnosis.remedies.nms.over_own.points:+.1f} points"
    assert any(
        line.startswith(f"Set the IoU of NMS to 0.3 instead of 0.9: AP changes by {gain}") for line in advise(diagnosis)
    )


def test_what_another_nms_does_is_no_gain() -> None:
    """The candidates of an object overlap by 0.55: NMS at 0.5 keeps the better one, the detector's at 0.9 both."""
    ground_truth = spread_objects(30, 4)
    easy = np.random.default_rng(0).random((120, 1))
    candidates = candidates_at(ground_truth, np.tile([1, 0.55], (120, 1)), np.hstack([easy, 0.999 * easy]))
    candidates = replace(candidates, quality=candidates.scores)
    given = replace(PostProcessing(nms_iou=0.9)(candidates), source="dt.json")
    diagnosis = diagnose(ground_truth, given, candidates, replicates=20)
    assert diagnosis.metrics.overall["AP"] < 0.9
    assert [rung.AP for rung in diagnosis.oracles] == pytest.approx([1] * 7)
    gains = [diagnosis.quality.over_own, diagnosis.remedies.nms.over_own, *(rung.gain for rung in diagnosis.oracles)]
    assert [gain.points for gain in gains] == pytest.approx([0] * 9)
    assert f"The detections in the file have AP {100 * diagnosis.metrics.overall['AP']:.1f}" in said(diagnosis)


def test_a_detector_without_nms_is_not_asked_for_candidates() -> None:
    ground_truth = spread_objects(30, 4)
    detections = candidates_at(ground_truth, np.full((120, 1), 0.9), np.full((120, 1), 0.8))
    text = said(diagnose(ground_truth, detections, replicates=20))
    assert "if it has none, nothing is missing here" in text
    assert "Keep the detections without a further NMS" in text
