from typing import get_args

import pytest
import torch

from retinaconf.config import InferenceConfig, JointMethod
from retinaconf.inference.joint_score import (
    JOINT_SCORES,
    JointScore,
    joint_score,
    product,
    proportional,
    released,
    sweep,
)


def scores(n=1000, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(n, 7, generator=generator), torch.rand(n, 1, generator=generator)


def test_alpha_0_is_the_class_score_bit_by_bit():
    cls, quality = scores()
    for edge in (0.0, 1.0):
        quality[0] = edge
        assert torch.equal(product(0.0)(cls, quality), cls)
        assert torch.equal(joint_score(InferenceConfig(joint="cls", alpha=0.7))(cls, quality), cls)


def test_alpha_1_is_the_quality():
    cls, quality = scores()
    assert torch.equal(product(1.0)(cls, quality), quality.expand_as(cls))


def test_equation_1_by_hand():
    """IoU^0.5 * classification^0.5 at 0.64 and 0.25 is 0.4; at equal values it is that value."""
    half = product(0.5)
    assert half(torch.tensor(0.25), torch.tensor(0.64)).item() == pytest.approx(0.4)
    assert half(torch.tensor(0.3), torch.tensor(0.3)).item() == pytest.approx(0.3)


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        pytest.param({"joint": "cls"}, 0.25, id="cls"),
        pytest.param({"joint": "cls", "min_quality": 0.5}, 0.25, id="cls (obj > 0.5)"),
        pytest.param({"joint": "cls", "min_quality": 0.64}, 0.0, id="cls (obj > its own), exclusive"),
        pytest.param({"joint": "cls*obj"}, 0.16, id="cls * obj"),
        pytest.param({"joint": "cls*obj", "min_quality": 0.9}, 0.0, id="cls * obj (obj > 0.9)"),
        pytest.param({"alpha": 0.4}, 0.64**0.4 * 0.25**0.6, id="product"),
        pytest.param({"alpha": 0.4, "min_quality": 0.7}, 0.0, id="product (obj > 0.7)"),
    ],
)
def test_table_4_by_hand(config, expected):
    score = joint_score(InferenceConfig(**config))(torch.tensor(0.25), torch.tensor(0.64))
    assert score.item() == pytest.approx(expected)


def test_proportional_by_hand():
    """The best class 0.36 with quality 0.81 at alpha 0.5: 0.54, 1.5 times as much, and so is the other: 0.02 to 0.03.

    Equation (11) gives it sqrt(0.02 * 0.81) = 0.127, as if the box had been found to fit an object of that class.
    """
    cls, quality = torch.tensor([[0.36, 0.02, 0.0]]), torch.tensor([0.81])
    torch.testing.assert_close(proportional(0.5).of_classes(cls, quality), torch.tensor([[0.54, 0.03, 0.0]]))
    assert product(0.5).of_classes(cls, quality)[0, 1].item() == pytest.approx(0.0162**0.5)


def test_proportional_is_the_product_at_the_best_class_and_keeps_the_ratios():
    cls, quality = scores()
    best = cls.amax(1, keepdim=True)
    for alpha in (0.0, 0.3, 1.0):
        joint = joint_score(InferenceConfig(joint="proportional", alpha=alpha)).of_classes(cls, quality[:, 0])
        torch.testing.assert_close(joint.amax(1, keepdim=True), product(alpha)(best, quality))
        torch.testing.assert_close(joint * best, cls * joint.amax(1, keepdim=True))


def test_proportional_at_its_edges():
    cls, quality = scores()
    assert torch.equal(proportional(0.0).of_classes(cls, quality[:, 0]), cls)
    assert proportional(0.4).of_classes(cls, None) is cls
    assert torch.equal(proportional(0.6).of_classes(0 * cls, quality[:, 0]), 0 * cls)  # scores that underflow
    assert (proportional(0.6, min_quality=0.5).of_classes(cls, quality[:, 0])[quality[:, 0] <= 0.5] == 0).all()
    one = cls[:, :1]
    torch.testing.assert_close(proportional(0.4).of_classes(one, quality[:, 0]), product(0.4)(one, quality))


def test_without_a_branch_it_is_the_class_score():
    cls, _ = scores()
    assert product(0.4)(cls, None) is cls


def test_the_product_is_the_weighted_geometric_mean():
    cls, quality = scores()
    for alpha in (0.2, 0.5, 0.9):
        expected = torch.exp(alpha * quality.double().log() + (1 - alpha) * cls.double().log())
        torch.testing.assert_close(product(alpha)(cls, quality), expected.float())


def test_the_sweep_holds_the_rows_of_tables_4_and_5():
    joints = sweep()
    assert [joint.alpha for joint in joints[:10]] == [0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9]
    assert [joint.name for joint in joints[10:]] == [
        "cls(obj>0.5)",
        "cls*obj",
        "cls*obj(obj>0.5)",
        "product(0.4)(obj>0.5)",
        "proportional(0.2)",
        "proportional(0.4)",
        "proportional(0.6)",
        "proportional(0.8)",
    ]
    assert JointScore("cls*obj", 1.0, 1.0).alpha is None
    assert released(0.4).alpha is None
    assert proportional(0.4).alpha is None


def test_the_setting_names_every_joint_score():
    assert tuple(JOINT_SCORES) == get_args(JointMethod)
