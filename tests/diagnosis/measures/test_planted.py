"""Detectors whose alignment is known: every number comes out as computed by hand."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from planted import SIDE, candidates_at, shifted, spread_objects, truth

from retinaconf.detections import Detections
from retinaconf.diagnosis.measures.diagnose import Diagnosis, diagnose
from retinaconf.diagnosis.measures.post_processing import PostProcessing
from retinaconf.diagnosis.report.document import to_json
from retinaconf.diagnosis.report.summary import summarize

SHIFTS = np.array([31, 25, 18, 10, 4])
IOUS = (SIDE - SHIFTS) / (SIDE + SHIFTS)  # 0.527 to 0.923
WORST, BEST = IOUS[[0, -1]]


def rungs(diagnosis: Diagnosis) -> dict[str, float]:
    return {rung.name: rung.AP for rung in diagnosis.oracles}


def planted(scores_of: np.ndarray, images: int = 20, per_image: int = 5) -> Diagnosis:
    ground_truth = spread_objects(images, per_image)
    count = images * per_image
    return diagnose(
        ground_truth, candidates=candidates_at(ground_truth, np.tile(IOUS, (count, 1)), scores_of), replicates=50
    )


def test_perfect_alignment() -> None:
    diagnosis = planted(np.tile(IOUS, (100, 1)))
    alignment = diagnosis.before.alignment
    for ranks in (alignment.everything, alignment.on_objects):
        assert (ranks.spearman[0], ranks.kendall[0], ranks.concordance[0]) == pytest.approx((1, 1, 1))
    assert (alignment.within.spearman, alignment.within.kendall, alignment.within.concordance) == pytest.approx(
        (1, 1, 1)
    )
    assert alignment.within.objects == 100
    assert diagnosis.casualties.lost.max() == 0
    assert len(diagnosis.casualties.worst(10)) == 0
    # The kept box has IoU 0.923: right at nine of the ten thresholds. No oracle for ranking has anything to mend.
    assert diagnosis.metrics.overall["AP"] == pytest.approx(0.9)
    assert list(rungs(diagnosis).values()) == pytest.approx([0.9] * 7)
    assert len(diagnosis.after.boxes) == 100
    assert summarize(diagnosis)[0].startswith("Score and localization agree about as well as they can")


def test_anti_aligned() -> None:
    diagnosis = planted(np.tile(WORST + BEST - IOUS, (100, 1)))
    alignment = diagnosis.before.alignment
    for ranks in (alignment.everything, alignment.on_objects):
        assert (ranks.spearman[0], ranks.kendall[0], ranks.concordance[0]) == pytest.approx((-1, -1, 0))
    assert alignment.per_size.kendall[2] == pytest.approx(-1)  # 100 x 100 is large; the other sizes have no objects
    assert np.isnan(alignment.per_size.kendall[:2]).all()
    assert alignment.per_class.kendall[0] == pytest.approx(-1)
    casualties = diagnosis.casualties
    assert casualties.lost == pytest.approx(np.full(100, BEST - WORST))
    assert casualties.fallen(0.75).all()
    assert not casualties.fallen(0.5).any()
    assert not casualties.neighbour.any()
    total = casualties.of(np.ones(100, bool))
    assert total["mean_best_iou"] == pytest.approx(BEST)
    assert total["mean_kept_iou"] == pytest.approx(WORST)
    assert (total["lost_at_50"], total["lost_at_75"], total["lost_at_75_to_neighbour"]) == (0, 100, 0)
    # NMS keeps IoU 0.527: one threshold of ten. Ranked by IoU it keeps 0.923: nine.
    ladder = rungs(diagnosis)
    assert ladder["as_is"] == pytest.approx(0.1)
    assert ladder["class_right"] == pytest.approx(0.1)
    assert ladder["no_duplicates"] == pytest.approx(0.1)
    for name in ("ranked_by_iou", "score_is_iou", "score_is_iou_no_duplicates"):
        assert ladder[name] == pytest.approx(0.9), name
    assert summarize(diagnosis)[0].startswith("Score and localization clearly disagree")


def test_independent_scores() -> None:
    rng = np.random.default_rng(0)
    scores = rng.random((600, 5))
    diagnosis = planted(scores, images=30, per_image=20)
    alignment = diagnosis.before.alignment
    assert abs(alignment.on_objects.spearman[0]) < 0.05
    assert abs(alignment.within.kendall) < 0.05
    assert alignment.within.concordance == pytest.approx(0.5, abs=0.03)
    chosen = IOUS[scores.argmax(1)]
    assert diagnosis.casualties.kept_iou == pytest.approx(chosen)
    assert diagnosis.casualties.lost == pytest.approx(BEST - chosen)


def test_the_order_within_objects_does_not_depend_on_the_scores_scale() -> None:
    """The same boxes in the same order, cut at 0.3: of the cubed scores a third of them is left."""
    rng = np.random.default_rng(0)
    ground_truth = spread_objects(5, 4)
    ious = rng.uniform(0.55, 0.95, (20, 70))
    scores = np.clip(ious + rng.normal(0, 0.2, ious.shape), 0.01, 0.99)
    process = PostProcessing(score_threshold=0.3)
    plain, cubed = (
        diagnose(ground_truth, candidates=candidates_at(ground_truth, ious, scores**power), post_processing=process)
        for power in (1, 3)
    )
    assert len(cubed.before.boxes) < 0.7 * len(plain.before.boxes)
    for name in ("within", "on_objects", "per_class", "per_size"):
        one, other = (getattr(each.before.alignment, name) for each in (plain, cubed))
        for number in ("spearman", "kendall", "concordance"):
            np.testing.assert_array_equal(getattr(one, number), getattr(other, number))
    assert plain.before.alignment.within.boxes == 50
    # By hand: of each object the 50 best by score.
    best = np.argsort(-scores, axis=1)[:, :50]
    expected = []
    for row in range(20):
        s, u = scores[row, best[row]], ious[row, best[row]]
        signs = np.sign(s[:, None] - s) * np.sign(u[:, None] - u)
        expected.append((signs > 0).sum() / (signs != 0).sum())
    assert plain.before.alignment.within.concordance == pytest.approx(np.mean(expected))


@pytest.mark.parametrize("lost", [0, 1, 7, 20])
def test_nms_loses_exactly_k_objects(lost: int) -> None:
    ground_truth = spread_objects(5, 4)
    ious = np.tile([0.9, 0.6], (20, 1))
    scores = np.tile([0.95, 0.9], (20, 1))
    scores[:lost] = [0.3, 0.8]  # these keep the worse box
    diagnosis = diagnose(ground_truth, candidates=candidates_at(ground_truth, ious, scores))
    total = diagnosis.casualties.of(np.ones(20, bool))
    assert (total["lost_at_75"], total["lost_at_50"]) == (lost, 0)
    assert total["mean_lost_iou"] == pytest.approx(0.3 * lost / 20)
    assert sorted(diagnosis.casualties.worst(50)) == list(range(lost))
    # At IoU 0.75 the lost are misses, ranked after all the hits: precision 1 up to recall (20 - lost) / 20.
    levels = np.count_nonzero(np.linspace(0, 1, 101) <= (20 - lost) / 20) if lost < 20 else 0
    ladder = {rung.name: rung for rung in diagnosis.oracles}
    as_is, ranked = ladder["as_is"].AP75, ladder["ranked_by_iou"].AP75
    assert as_is == pytest.approx(levels / 101)
    assert ranked == pytest.approx(1)
    document = to_json(diagnosis)
    assert len(document["casualties"]["worst"]) == lost
    assert {worst["cause"] for worst in document["casualties"]["worst"]} <= {"own"}


def test_a_neighbour_takes_the_box() -> None:
    """Two objects that overlap by 0.6: each has a perfect candidate, NMS keeps one. A better score mends nothing."""
    box = [0.0, 0.0, SIDE, SIDE]
    ground_truth = truth([[box, shifted(box, 0.6)]])
    candidates = candidates_at(ground_truth, np.array([[1.0], [1.0]]), np.array([[0.9], [0.8]]))
    casualties = diagnose(ground_truth, candidates=candidates).casualties
    assert casualties.neighbour.tolist() == [False, True]
    assert casualties.kept_iou == pytest.approx([1, 0.6])
    assert casualties.of(np.ones(2, bool))["lost_at_75_to_neighbour"] == 1


def test_class_right() -> None:
    ground_truth = spread_objects(20, 6)
    candidates = candidates_at(ground_truth, np.ones((120, 1)), np.full((120, 1), 0.9))
    labels = candidates.labels.copy()
    labels[::2] = 1  # half the objects are called class 1
    ladder = rungs(diagnose(ground_truth, candidates=replace(candidates, labels=labels)))
    assert ladder["as_is"] == pytest.approx(51 / 101)  # recall 0.5 with precision 1, class 1 has no objects
    assert ladder["class_right"] == pytest.approx(1)
    assert ladder["score_is_iou"] == pytest.approx(51 / 101)
    # One box an object: there is no order to be right or wrong.
    (verdict, *_) = summarize(diagnose(ground_truth, candidates=candidates))
    assert verdict.startswith("A better order of these candidates would")


def test_no_duplicates() -> None:
    """Object 0 is found twice before object 1 is found: precision falls to 2/3 for the second half of the recalls."""
    ground_truth = spread_objects(1, 2)
    boxes = ground_truth.boxes[[0, 0, 1]]
    detections = Detections(np.zeros(3, int), np.zeros(3, int), boxes, np.array([0.9, 0.8, 0.7]))
    ladder = rungs(diagnose(ground_truth, detections))
    assert ladder["as_is"] == pytest.approx((51 + 50 * 2 / 3) / 101)
    assert ladder["no_duplicates"] == pytest.approx(1)


def test_score_is_iou_puts_the_background_last() -> None:
    ground_truth = spread_objects(1, 1)
    boxes = np.array([ground_truth.boxes[0], [2000, 2000, 2100, 2100]])
    detections = Detections(np.zeros(2, int), np.zeros(2, int), boxes, np.array([0.3, 0.9]))
    ladder = rungs(diagnose(ground_truth, detections))
    assert ladder["as_is"] == pytest.approx(0.5)
    assert ladder["ranked_by_iou"] == pytest.approx(0.5)
    assert ladder["quality_is_iou"] == pytest.approx(1)
    assert ladder["score_is_iou"] == pytest.approx(1)


def test_a_quality_score_that_is_the_iou_is_worth_what_the_oracle_says() -> None:
    ground_truth = spread_objects(20, 3)
    ious = np.tile(IOUS, (60, 1))
    candidates = candidates_at(ground_truth, ious, np.tile(WORST + BEST - IOUS, (60, 1)))
    candidates = replace(candidates, quality=ious.ravel(), class_scores=candidates.scores)
    diagnosis = diagnose(ground_truth, candidates=candidates, replicates=50)
    sweep = diagnosis.quality
    assert sweep.AP[0] == pytest.approx(0.1)
    assert sweep.AP[-1] == pytest.approx(0.9)
    assert (sweep.over_class_score.points, sweep.over_own.points) == pytest.approx(
        (0.8, 0.8)
    )  # its own score is the class score
    assert sweep.over_class_score.interval == pytest.approx((0.8, 0.8))  # every image is alike
    by_quality = diagnose(ground_truth, candidates=replace(candidates, scores=candidates.quality), replicates=50)
    assert by_quality.own_score.rule == "power"
    assert by_quality.metrics.overall["AP"] == pytest.approx(0.9)
    assert (by_quality.quality.over_class_score.points, by_quality.quality.over_own.points) == pytest.approx((0.8, 0))
    assert by_quality.quality.over_own.interval == pytest.approx((0, 0))
    assert not set(sweep.chosen_on) & set(sweep.reported_on)
    assert len(sweep.chosen_on) + len(sweep.reported_on) == 20


def test_a_quality_score_of_noise_is_worth_nothing() -> None:
    rng = np.random.default_rng(1)
    ground_truth = spread_objects(20, 3)
    ious = np.tile(IOUS, (60, 1))
    candidates = candidates_at(ground_truth, ious, ious)
    candidates = replace(candidates, quality=rng.random(300))
    sweep = diagnose(ground_truth, candidates=candidates, replicates=50).quality
    assert sweep.best_alpha == 0
    assert (sweep.over_class_score.points, *sweep.over_class_score.interval) == (0, 0, 0)


@pytest.mark.parametrize("joint", ["class x quality", "root", "power", "minimum"])
def test_no_oracle_depends_on_the_optional_columns(joint: str) -> None:
    """The same boxes with the same scores have the same ladder, however the detector makes its score."""
    rng = np.random.default_rng(2)
    ground_truth = spread_objects(6, 3)
    classes, quality = rng.random((2, 18 * 5))
    scores = {
        "class x quality": classes * quality,
        "root": np.sqrt(classes * quality),
        "power": quality**0.4 * classes**0.6,
        "minimum": np.minimum(classes, quality),
    }[joint]
    bare = candidates_at(ground_truth, rng.choice(IOUS, (18, 5)), scores)
    ladders = [
        diagnose(ground_truth, candidates=candidates, replicates=20).oracles
        for candidates in (bare, replace(bare, class_scores=classes, quality=quality))
    ]
    assert ladders[0] == ladders[1]


def test_a_gain_has_the_interval_of_a_paired_bootstrap() -> None:
    """Half of the images gain and half do not; the interval is redone here from the share of those in a draw."""
    ground_truth = spread_objects(40, 1)
    good = np.arange(40) % 2 == 0
    ious = np.where(good[:, None], [0.92, 0.62], [0.62, 0.92])
    scores = np.where(good[:, None], [0.9, 0.8], [0.7, 0.6])  # NMS keeps the first
    diagnosis = diagnose(ground_truth, candidates=candidates_at(ground_truth, ious, scores))
    rung = next(rung for rung in diagnosis.oracles if rung.name == "ranked_by_iou")
    assert (rung.gain.before, rung.gain.after) == (diagnosis.oracles[0].AP, rung.AP)
    # Six of the ten thresholds (0.65 to 0.9) tell 0.62 from 0.92. There the good ones come first: precision 1 up to
    # their share of the objects.
    shares = np.random.default_rng(5).choice(good, (2000, 40)).mean(1)
    drawn = 6 / 10 * (1 - (np.floor(100 * shares + 1e-9) + 1) / 101)
    assert rung.gain.interval == pytest.approx(np.quantile(drawn, [0.025, 0.975]), abs=0.03)
