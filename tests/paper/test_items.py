"""The published numbers as the text has them, and the declarations."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from retinaconf.commands.paper import PaperItem
from retinaconf.paper import published
from retinaconf.paper.items import ITEMS, Training, for_base, joints_of

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
    assert len(joints_of(Training("iou-aware"))) == 10
    assert [joint.alpha for joint in joints_of(Training("retinanet"))] == [0.0]
    assert "product(0.4), large levels only" in {joint.name for joint in joints_of(Training("conf"))}
