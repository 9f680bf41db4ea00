"""benchmarks/epoch.py: the parts of an epoch make up the whole, and what it looks into is left as it was."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))
import epoch

from retinaconf.errors import InputError


@pytest.mark.ci
def test_the_parts_of_an_epoch_are_the_whole(make_data: Callable[..., Path], tiny_config: Any, tmp_path: Path):
    before = [getattr(place, name) for place, name in epoch.PARTS.values()]
    epochs = epoch.measure(tiny_config(**{"schedule.epochs": 2}), make_data(tmp_path / "data", train=8, val=4), "cpu")
    assert len(epochs) == 2
    for seconds in epochs:
        assert seconds.keys() == {epoch.WHOLE, epoch.WAITING, *epoch.PARTS, epoch.OTHER}
        assert min(seconds.values()) >= 0
        apart = [took for part, took in seconds.items() if part != epoch.WHOLE and not part.startswith(" ")]
        assert sum(apart) == pytest.approx(seconds[epoch.WHOLE])
        within = [took for part, took in seconds.items() if part.startswith(" ")]
        assert 0 < sum(within) < seconds["validation"]
        assert seconds["steps"] > 0
        assert seconds["checkpoints"] > 0
    assert [getattr(place, name) for place, name in epoch.PARTS.values()] == before


@pytest.mark.parametrize(
    ("word", "setting"),
    [
        ("data.workers=8", ("data.workers", "8")),
        ("data.scale=[0.5,1.5]", ("data.scale", [0.5, 1.5])),
        ("run.note=a=b", ("run.note", "a=b")),
    ],
)
def test_a_setting_is_a_name_and_a_value(word: str, setting: tuple[str, Any]):
    assert epoch.changed(word) == setting


@pytest.mark.parametrize(("word", "advice"), [("data.workers", "NAME=VALUE"), ("data.scale=[1,", "the list in JSON")])
def test_other_words_are_refused(word: str, advice: str):
    with pytest.raises(InputError, match=f"give {advice}"):
        epoch.changed(word)
