import gc
import json
from pathlib import Path
from typing import Any

import pytest
from typing_extensions import TypedDict

from retinaconf import json_text
from retinaconf.errors import InputError
from retinaconf.json_text import opened, quick_decoder


class Point(TypedDict):
    x: int
    y: float


USUAL = {"x": 3, "y": 0.1, "name": 'a "}, {" in a text \u00e9', "parts": [{"a": 1}, {"a": 2}]}
# What does not fit the form of `Point`, or only looks like the place between two records.
ODD: list[Any] = [
    {"x": "3", "y": 1},
    {"x": 1.5, "y": 1},
    {"x": True, "y": 1},
    {"y": 1},
    5,
    [{}, {}],
    None,
    "}, {",
    12.25,
]


def read(path: Path, **kwargs: Any) -> dict[str, Any]:
    with opened(path) as text:
        found = {}
        for key in text.keys():  # noqa: SIM118
            is_list = text.peek() == "["
            found[key] = [r for batch in text.records(**kwargs) for r in batch] if is_list else text.value()
        text.end()
    return found


@pytest.mark.parametrize("chunk", [1, 3, 40, 10_000])
@pytest.mark.parametrize("indent", [None, 2])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_what_is_read_in_parts_is_what_json_reads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, chunk: int, indent: int | None, encoding: str
) -> None:
    monkeypatch.setattr(json_text, "CHUNK", chunk)
    document = {
        "info": {"a": [1, {}]},
        "n": 123456,
        "none": [],
        "one": [USUAL] * 9,
        "two": [USUAL, *ODD, USUAL],
        "z": {},
    }
    (tmp_path / "a.json").write_bytes((json.dumps(document, indent=indent) + "\n ").encode(encoding))
    assert read(tmp_path / "a.json") == document


def test_records_of_the_usual_form_have_its_fields_only(tmp_path: Path) -> None:
    record = {"x": 3, "y": 0.1, "name": "a"}
    (tmp_path / "a.json").write_text(json.dumps({"points": [record] * 4}))
    *quick, last = read(tmp_path / "a.json", decode=quick_decoder(Point))["points"]
    assert quick == [{"x": 3, "y": 0.1}] * 3
    assert last == record  # only what is followed by another record is known to have ended


@pytest.mark.parametrize("odd", ODD, ids=str)
def test_one_odd_record_comes_as_it_is(tmp_path: Path, odd: Any) -> None:
    document = {"points": [USUAL, USUAL, odd, USUAL]}
    (tmp_path / "a.json").write_text(json.dumps(document))
    assert read(tmp_path / "a.json", decode=quick_decoder(Point)) == document


@pytest.mark.parametrize(
    "text",
    [
        *("", "{", '{"a"', '{"a": ', '{"a": [', '{"a": [1,', '{"a": [1,]}', '{"a": [{}, {}', '{"a": 1,}', '{"a" 1}'),
        *("{1: 2}", '{"a": [{} {}]}', '{"a": 1} {}', '{"a": [' + "9" * 5000 + "]}", '{"a": {"b": ' + "[" * 100_000),
    ],
    ids=range(15),
)
def test_what_is_no_json_is_said_in_a_line(tmp_path: Path, text: str) -> None:
    (tmp_path / "a.json").write_text(text)
    with pytest.raises(InputError, match=r"a\.json: not valid JSON \(") as raised:
        read(tmp_path / "a.json")
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("collects", [True, False])
def test_the_garbage_collector_rests_and_goes_on_as_before(tmp_path: Path, collects: bool) -> None:
    (tmp_path / "a.json").write_text("[")
    before = gc.isenabled()
    try:
        (gc.enable if collects else gc.disable)()
        with opened(tmp_path / "a.json") as text:
            assert not gc.isenabled()
            with pytest.raises(InputError):
                text.value()
        assert gc.isenabled() == collects
    finally:
        (gc.enable if before else gc.disable)()
