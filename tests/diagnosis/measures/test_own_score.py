"""Recognising how a detector makes its score of class score and quality."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from retinaconf.data.ground_truth import read_coco
from retinaconf.detections import Detections, read_detections
from retinaconf.diagnosis.measures.own_score import OwnScore, own_score


def boxes(scores: np.ndarray, class_scores: np.ndarray | None, quality: np.ndarray | None) -> Detections:
    count = len(scores)
    return Detections(
        np.zeros(count, int), np.zeros(count, int), np.zeros((count, 4)), scores, class_scores, quality, "random"
    )


def columns(seed: int, count: int = 3000) -> tuple[np.ndarray, np.ndarray]:
    """Class scores and qualities as a detector has them: most of them small, and not unrelated."""
    rng = np.random.default_rng(seed)
    quality = rng.beta(1.5, 1.5, count)
    return np.clip(quality * rng.beta(1, 2, count) * 1.5, 0, 1), quality


FORMULAS = {
    ("class", 0.0): lambda c, q: c,
    ("product", 0.5): lambda c, q: c * q,
    ("root", 0.5): lambda c, q: np.sqrt(c * q),
    ("power", 0.4): lambda c, q: q**0.4 * c**0.6,
    ("power", 0.333): lambda c, q: q ** (1 / 3) * c ** (2 / 3),
    ("power", 1.0): lambda c, q: q,
    ("other", None): lambda c, q: c * q**2,
}


@pytest.mark.parametrize("digits", [None, 5, 3])
@pytest.mark.parametrize("dtype", [np.float64, np.float32, np.float16])
@pytest.mark.parametrize("expected", FORMULAS)
def test_the_common_rules(
    expected: tuple[str, float | None], dtype: type, digits: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("retinaconf.diagnosis.measures.own_score.BOXES_AT_ONCE", 64)
    class_scores, quality = columns(0)
    given = [FORMULAS[expected](class_scores, quality), class_scores, quality]
    given = [column.astype(dtype).astype(np.float64) for column in given]
    if digits is not None:
        given = [column.round(digits) for column in given]
    found = own_score(boxes(*given))
    assert (found.rule, found.alpha) == expected
    joined = found.joined(given[1], given[2])
    if found.alpha is None:
        assert joined is None
    elif digits is None:
        np.testing.assert_allclose(joined, given[0], atol=2e-3)


def test_which_scores_have_an_alpha_themselves() -> None:
    assert OwnScore("root", 0.5).has_alpha(0.5)
    assert not OwnScore("root", 0.5).has_alpha(0.4)
    assert not OwnScore("product", 0.5).has_alpha(0.5)  # the same order, other scores
    assert not OwnScore("other", None).has_alpha(0.5)


def test_one_record_that_keeps_no_rule_is_enough() -> None:
    class_scores, quality = columns(1)
    scores = np.sqrt(class_scores * quality)
    scores[17] += 0.02
    assert own_score(boxes(scores, class_scores, quality)).rule == "other"


def test_the_other_classes_of_an_anchor_keep_no_rule() -> None:
    """`proportional`: the best class has the joint score, and the others their proportion to it."""
    from retinaconf.inference.joint_score import proportional

    torch = pytest.importorskip("torch")
    generator = torch.Generator().manual_seed(0)
    class_scores, quality = torch.rand(400, 3, generator=generator), torch.rand(400, generator=generator)
    joint = proportional(0.4).of_classes(class_scores, quality)
    given = [
        column.double().numpy().ravel() for column in (joint, class_scores, quality[:, None].expand_as(class_scores))
    ]
    assert own_score(boxes(*given)).rule == "other"
    best = class_scores.argmax(1).numpy() + 3 * np.arange(400)
    found = own_score(boxes(*(column[best] for column in given)))
    assert (found.rule, found.alpha) == ("power", 0.4)


def test_without_the_columns_there_is_little_to_recognise() -> None:
    class_scores, quality = columns(2)
    assert own_score(boxes(class_scores, None, None)).rule == "single"
    assert own_score(boxes(class_scores, class_scores, None)).rule == "single"
    assert own_score(boxes(class_scores, None, quality)).rule == "class"
    nothing = boxes(*(np.zeros(0),) * 3)
    assert own_score(nothing).rule == "class"
    assert own_score(boxes(*(np.zeros(3),) * 3)).rule == "class"


def test_a_real_yolox(shared_data: Path) -> None:
    truth = read_coco(shared_data / "coco-mini" / "annotations" / "instances_val2017.json")
    candidates = read_detections(shared_data / "yolox-nano" / "candidates-val2017.npz", truth)
    found = own_score(candidates)
    assert (found.rule, found.alpha) == ("product", 0.5)
    assert found.formula == "class score × quality"
    assert own_score(replace(candidates, scores=np.sqrt(candidates.scores))).rule == "root"
