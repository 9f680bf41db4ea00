import inspect
import json
import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from retinaconf.config import Config, config_from_flat
from retinaconf.errors import InputError


def test_a_configuration_is_flat_on_disk():
    flat = Config().flat()
    assert flat["model.backbone"] == "resnet50.tv_in1k"
    assert flat["seed"] == 0
    assert not any(isinstance(value, dict) for value in flat.values())
    sections = {name: type(section) for name, section in Config() if hasattr(type(section), "model_fields")}
    complete = {f"{section}.{field}" for section, kind in sections.items() for field in kind.model_fields}
    assert set(flat) == complete | {"seed", "precision", "compile"}


def test_every_field_has_a_help_text():
    for section in (type(value) for _, value in Config() if hasattr(type(value), "model_fields")):
        source = inspect.getsource(section).splitlines()
        for field in section.model_fields:
            line = next(n for n, text in enumerate(source) if text.startswith(f"    {field}: "))
            assert source[line + 1].strip().startswith('"""'), field


# Values that change no other field's validity.
FLAT = {
    "model.backbone": st.text(min_size=1),
    "model.freeze": st.sampled_from(["none", "stem", "backbone", "all but class"]),
    "model.channels": st.integers(8, 10**6),
    "model.anchor_ratios": st.lists(st.floats(0.05, 20), min_size=1, unique=True).map(tuple),
    "model.anchor_scales": st.lists(st.floats(1, 10), min_size=1, unique=True).map(tuple),
    "model.mean": st.tuples(*[st.floats(-10, 10)] * 3),
    "data.flip": st.floats(0, 1),
    "data.scale": st.floats(0.1, 5).map(lambda low: (low, low * 2)),
    "loss.quality": st.sampled_from(["l1", "smooth-l1", "l2", "gfocal", "ce", "ce-weighted"]),
    "optimizer.lr": st.floats(min_value=0, exclude_min=True, allow_infinity=False),
    "optimizer.momentum": st.floats(0, 1, exclude_max=True),
    "schedule.milestones": st.lists(st.integers(0, 100), max_size=4).map(tuple),
    "inference.detections": st.integers(1, 10**6),
    "seed": st.integers(0, 2**63),
    "precision": st.sampled_from(["32", "bf16-mixed", "16-mixed"]),
    "compile": st.booleans(),
}


@given(st.fixed_dictionaries({}, optional=FLAT))
@pytest.mark.ci
def test_a_configuration_survives_json_bit_by_bit(changes: dict[str, Any]):
    config = Config().changed(**changes)
    again = config_from_flat(json.loads(json.dumps(config.flat())), "test")
    assert again == config
    assert {name: again.flat()[name] for name in changes} == {
        name: list(value) if isinstance(value, tuple) else value for name, value in changes.items()
    }


def test_a_configuration_of_version_0_1_has_the_anchors_that_it_had():
    old = {name: value for name, value in Config().flat().items() if not name.startswith("model.anchor_")}
    assert config_from_flat(old) == Config()
    assert Config().model.anchor_ratios == (0.5, 1.0, 2.0)
    assert Config().model.anchor_scales == (4.0, 4 * 2 ** (1 / 3), 4 * 2 ** (2 / 3))


@pytest.mark.parametrize(("stem", "freeze"), [(True, "stem"), (False, "none")])
def test_a_configuration_of_version_0_1_freezes_what_it_froze(stem: bool, freeze: str):
    old = {name: value for name, value in Config().flat().items() if name != "model.freeze"}
    assert config_from_flat(old | {"model.freeze_stem": stem}) == Config().changed(**{"model.freeze": freeze})
    with pytest.raises(InputError, match=r"unknown setting 'model\.freeze_stem'"):
        config_from_flat({"model.freeze_stem": "yes"})


def test_changed_leaves_the_original_as_it_is():
    config = Config()
    changed = config.changed(**{"optimizer.lr": 0.5, "data.scale": [0.5, 2]})
    assert (changed.optimizer.lr, changed.data.scale) == (0.5, (0.5, 2.0))
    assert config == Config()
    with pytest.raises(ValidationError):
        changed.optimizer.lr = 1.0  # type: ignore[misc]


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("optimizer.lr", 0),
        ("optimizer.lr", -0.1),
        ("optimizer.lr", math.nan),
        ("optimizer.lr", math.inf),
        ("optimizer.lr", "fast"),
        ("optimizer.lr", None),
        ("optimizer.momentum", 1),
        ("optimizer.ema", 1.0),
        ("optimizer.accumulate", 0),
        ("optimizer.name", "lion"),
        ("inference.alpha", 1.5),
        ("inference.alpha", -0.1),
        ("inference.alpha", math.nan),
        ("inference.score_threshold", 1),
        ("inference.nms_iou", 1.01),
        ("inference.joint", "sum"),
        ("inference.candidates", 0),
        ("data.batch_size", 0),
        ("data.batch_size", 2.5),
        ("data.short_side", 16),
        ("data.flip", 1.1),
        ("data.workers", -1),
        ("data.scale", [1.0]),
        ("data.scale", [0, 1]),
        ("data.scale", [1.2, 0.8]),
        ("schedule.epochs", 0),
        ("schedule.decay", "linear"),
        ("schedule.milestones", 8),
        ("schedule.warmup_steps", -1),
        ("model.quality", "both"),
        ("model.channels", 4),
        ("model.head_convs", -1),
        ("model.mean", [0.5, 0.5]),
        ("model.anchor_ratios", []),
        ("model.anchor_ratios", [1, 0]),
        ("model.anchor_ratios", [-1]),
        ("model.anchor_ratios", [math.nan]),
        ("model.anchor_ratios", [1, math.inf]),
        ("model.anchor_ratios", [1, 2, 1]),  # twice the same anchor
        ("model.anchor_ratios", [1e4]),  # a third of a pixel wide on P3
        ("model.anchor_ratios", 1),
        ("model.anchor_scales", []),
        ("model.anchor_scales", [0.1]),
        ("model.anchor_scales", [4, 65]),
        ("loss.quality", "bce"),
        ("loss.focal_alpha", 2),
        ("seed", -1),
        ("precision", "64"),
    ],
)
def test_a_value_that_does_not_fit_is_named_with_its_field(field: str, value: Any):
    conf = Config().changed(**{"model.quality": "classification"})
    with pytest.raises(InputError) as caught:
        conf.changed(**{field: value})
    message = str(caught.value)
    assert field in message.replace("-", "_")
    assert "\n" not in message


CONF = {"model.quality": "classification", "inference.alpha": 0.4}


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"inference.alpha": 0.4}, "model.quality is none"),
        ({"inference.joint": "cls*obj"}, "model.quality is none"),
        ({"inference.min_quality": 0.5}, "model.quality is none"),
        ({"model.quality": "localization", "model.class_target": "iou"}, "set model.quality none"),
        ({"model.quality": "distribution"}, "set model.box distribution"),
        ({"model.quality": "distribution", "model.box": "distances"}, "set model.box distribution"),
        ({"model.head_norm": "group", "model.channels": 48}, "channels in multiples of 32, not 48"),
        ({"loss.joint": "product"}, "needs a quality branch, and model.quality is none"),
        ({"loss.joint": "product", "model.class_target": "iou"}, "needs a quality branch, and model.quality is none"),
        (
            CONF | {"loss.joint": "product", "inference.joint": "cls*obj"},
            "loss.joint product trains .* ranks by another",
        ),
        (CONF | {"loss.rank": 0.5, "inference.joint": "cls"}, "loss.rank trains .* ranks by another score"),
        ({"data.short_side": 800, "data.long_side": 600}, "data.long-side 600 is less than data.short-side 800"),
    ],
    ids=[
        *("alpha", "joint", "min-quality", "joint head with a branch", "quality of no distribution", "of distances"),
        *("groups", "product without a quality", "product of a joint head", "product", "rank", "sides"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(changes: dict[str, Any], named: str):
    with pytest.raises(InputError, match=named) as caught:
        Config().changed(**changes)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "changes",
    [
        {"matching.assigner": "task-aligned", "model.class_target": "label"},
        {"matching.assigner": "task-aligned", "model.class_target": "iou", "loss.rank": 1.0},
        {"loss.rank": 1.0},  # of the class score alone
        CONF | {"loss.joint": "product", "inference.joint": "proportional"},
        CONF | {"inference.joint": "cls*obj"},  # each trained by itself
        {"model.box": "distribution", "model.class_target": "iou", "loss.box": "giou"},
        {"model.box": "distances", "loss.box": "l1", "model.level_scale": True},
    ],
)
def test_settings_that_make_sense_together(changes: dict[str, Any]):
    assert Config().changed(**changes).flat() == Config().flat() | changes


@pytest.mark.parametrize("name", ["optimizer.rate", "rate", "optimiser.lr", "optimizer", "optimizer.lr.x", ""])
def test_an_unknown_setting_is_named(name: str):
    with pytest.raises(InputError, match=f"unknown setting '{name}'.*--help"):
        Config().changed(**{name: 1})
