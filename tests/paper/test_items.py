"""The published numbers as the text has them, and the declarations."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from retinaconf.commands.paper import PaperItem
from retinaconf.errors import InputError
from retinaconf.paper import published
from retinaconf.paper.items import ITEMS, LADDER, Training, for_base, only, rows_of
from retinaconf.recipes import DETECTORS, RECIPES

PAPER = Path(__file__).parents[3] / "shared" / "paper" / "retinanet-conf.txt"
TABLES = [published.TABLE1, published.TABLE2, published.TABLE3, published.TABLE4, published.TABLE6]


def test_published_rows_stand_in_the_paper():
    if not PAPER.is_file():
        pytest.skip(f"no paper: {PAPER} does not exist")
    lines = [re.findall(r"\d\.\d+", line.replace("0534", "0.534")) for line in PAPER.read_text().splitlines()]
    in_text = {tuple(float(number) for number in numbers[-count:]) for numbers in lines for count in (6, 10)}
    rows = [row for table in TABLES for row in table.values()]
    rows += [row for curve in published.TABLE5.values() for row in curve]
    assert [row for row in rows if row not in in_text] == []


@pytest.mark.parametrize("base", ["r50", "lite0"])
@pytest.mark.parametrize("name", list(ITEMS))
def test_claims_are_of_rows_and_weights_cancel(name: str, base: str):
    item = for_base(ITEMS[name], base)
    names = [row.name for row in item.rows]
    assert len(set(names)) == len(names)
    for claim in item.claims:
        assert claim.parts
        for part in claim.parts:
            assert set(part.weights) <= set(names)
            assert sum(part.weights.values()) == 0


def test_the_published_numbers_bear_out_what_is_claimed_of_them():
    # So that no sign is wrong: each part's published difference is on the claimed side of its margin.
    for name, item in ITEMS.items():
        rows = {row.name: row.published for row in item.rows}
        for part in (part for claim in item.claims for part in claim.parts):
            if any(rows[row] is None for row in part.weights):
                continue
            value = sum(weight * rows[row][0] for row, weight in part.weights.items())  # type: ignore[index]
            holds = value > part.margin if part.relation == "more" else abs(value) < part.margin
            assert holds, (name, part.text, value)


def test_the_command_knows_every_item():
    assert set(PaperItem.__args__) == {*ITEMS, "all"}  # type: ignore[attr-defined]


def test_lite0_leaves_out_what_needs_other_backbones():
    rows = [row.name for row in for_base(ITEMS["table6"], "lite0").rows]
    assert rows == ["RetinaNet, base", "IoU-aware Net, base", "RetinaNet-Conf, base"]


def test_a_training_is_judged_by_all_its_joint_scores_at_once():
    assert len(rows_of(Training("iou-aware"))) == 10
    assert [row.joint.alpha for row in rows_of(Training("retinanet")).values()] == [0.0]
    assert "product(0.4), large levels only" in rows_of(Training("conf"))
    assert list(rows_of(Training("aligned"))) == ["product(0.4)", "product(0.4), vote"]


RECIPE = "aligned, varifocal, slow backbone, Soft-NMS"


def test_a_step_of_the_ladder_is_the_step_before_and_what_it_names():
    plain = RECIPES["retinanet-lite0"]
    rows = {row.name: row for row in ITEMS["ladder"].rows}
    settings = {
        name: plain.changed(**(DETECTORS[row.training.detector] | dict(row.training.changes))).flat()
        for name, row in rows.items()
    }
    assert settings["RetinaNet"] == plain.flat()
    finish = {f"inference.{key}": value for key, value in rows[RECIPE].finish}
    assert settings[RECIPE] | finish == RECIPES["aligned-lite0"].flat()
    large, steps = RECIPES["retinanet-r50-1x"], dict(rows["aligned, varifocal"].training.changes)
    assert large.changed(**DETECTORS["aligned"], **steps, **finish) == RECIPES["aligned-r50-1x"]
    for name, (before, changes) in LADDER.items():
        differ = {key for key, value in settings[name].items() if value != settings[before][key]}
        if name == "aligned":
            assert differ == {"model.class_target", "model.quality", "loss.joint", "inference.alpha"}
        else:
            assert differ == set(changes)
        assert rows[name].joint.alpha == settings[name]["inference.alpha"]  # judged as it is trained and used
    files = [row.training.name for row in rows.values() if not row.finish]
    assert len(set(files)) == len(files)
    assert all(re.fullmatch(r"[a-z-]+", name) for name in files)


def test_a_step_with_a_slow_backbone_is_first_compared_with_the_retinanet_that_has_one():
    claims = {claim.text: [part.text for part in claim.parts] for claim in ITEMS["ladder"].claims}
    step, slow = "aligned, varifocal, slow backbone", "RetinaNet, slow backbone"
    others = ["aligned, slow backbone", slow, "RetinaNet"]
    assert claims[step] == [f"{step} > {other}" for other in others]
    assert claims[RECIPE] == [f"{RECIPE} > {other}" for other in (step, slow, "RetinaNet")]
    assert ITEMS["ladder"].controls[step] == (slow, "RetinaNet")
    assert claims[slow] == [f"{slow} > RetinaNet"]


def test_only_some_rows():
    item = only(ITEMS["ladder"], ["RetinaNet", "GIoU", "one anchor, ATSS"])
    texts = [part.text for claim in item.claims for part in claim.parts]
    assert texts == ["GIoU > RetinaNet", "one anchor, ATSS > RetinaNet"]
    with pytest.raises(InputError, match="no row 'TOOD'; there are 'RetinaNet', 'GIoU'"):
        only(ITEMS["ladder"], ["TOOD"])
    assert "aligned, group norm" in {row.name for row in for_base(ITEMS["ladder"], "lite0", 96).rows}
    assert "aligned, group norm" not in {row.name for row in for_base(ITEMS["ladder"], "lite0", 16).rows}
