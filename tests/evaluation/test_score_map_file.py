"""A map written and read again, and COCO results calibrated by one."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from planted import random_set

from retinaconf.errors import InputError
from retinaconf.evaluation import score_map as module
from retinaconf.evaluation.score_map import Curve, ScoreMap, fit
from retinaconf.evaluation.score_map_file import calibrate_file, read_score_map, write_score_map


def test_a_map_is_the_same_when_it_is_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "OWN_MAP", 12)
    ground_truth, boxes = random_set(np.random.default_rng(3))
    fitted = fit(boxes, ground_truth)
    assert 0 < len(fitted.by_class) < len(fitted.classes)
    write_score_map(tmp_path / "map.json", fitted)
    again = read_score_map(tmp_path / "map.json")
    assert again.classes == fitted.classes
    ids = np.array(ground_truth.category_ids)[boxes.labels]
    assert again(ids, boxes.scores).tolist() == fitted(ids, boxes.scores).tolist()


def test_records_keep_their_order_and_other_keys(tmp_path: Path) -> None:
    record = {"image_id": 5, "category_id": 7, "bbox": [0, 0, 1, 1], "score": 0.5, "track": "ü", "segmentation": [[1]]}
    records = [record, record | {"score": 0.9, "image_id": -1}, record | {"score": 0.1}]
    (tmp_path / "dt.json").write_text(json.dumps(records))
    fitted = ScoreMap(Curve(np.array([0.0, 1]), np.array([0.0, 0.5])), {}, {7: "cat"})
    assert calibrate_file(fitted, tmp_path / "dt.json", tmp_path / "out.json") == 3
    out = json.loads((tmp_path / "out.json").read_text())
    expected = fitted(np.full(3, 7), np.array([0.5, 0.9, 0.1])).tolist()
    assert out == [r | {"score": s, "raw_score": r["score"]} for r, s in zip(records, expected)]
    (tmp_path / "none.json").write_text("[]")
    assert calibrate_file(fitted, tmp_path / "none.json", tmp_path / "out.json") == 0
    assert json.loads((tmp_path / "out.json").read_text()) == []


@pytest.mark.parametrize(
    ("change", "line"),
    [
        ({"score": float("nan")}, "record 1 has score nan"),
        ({"score": 1.5}, "record 1 has score 1.5"),
        ({"category_id": 9}, "record 1 has category_id 9, which the map does not know"),
        ({"raw_score": 0.3}, "record 1 has 'raw_score', so it is calibrated already"),
        ({"bbox": None}, "record 1 has bbox None"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_cannot_be_calibrated_leaves_no_file(tmp_path: Path, change: dict[str, object], line: str) -> None:
    record = {"image_id": 5, "category_id": 7, "bbox": [0, 0, 1, 1], "score": 0.5}
    (tmp_path / "dt.json").write_text(json.dumps([record, record | change]))
    fitted = ScoreMap(Curve(np.array([0.5]), np.array([0.5])), {}, {7: "cat"})
    with pytest.raises(InputError, match=line):
        calibrate_file(fitted, tmp_path / "dt.json", tmp_path / "out.json")
    assert [path.name for path in tmp_path.iterdir()] == ["dt.json"]


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("[1, 2]", "not a map of scores"),
        ("{", "not a map of scores"),
        ('{"format": "retinaconf score map", "version": 2}', "a map of version 2"),
        ('{"format": "retinaconf score map", "version": 1}', "a damaged map"),
        (
            '{"format": "retinaconf score map", "version": 1, "classes": [], '
            '"common": {"scores": [0.2, 0.1], "ious": [0, 1]}}',
            "a damaged map",
        ),
    ],
)
def test_what_is_no_map_is_refused(tmp_path: Path, text: str, line: str) -> None:
    (tmp_path / "map.json").write_text(text)
    with pytest.raises(InputError, match=line):
        read_score_map(tmp_path / "map.json")
    with pytest.raises(InputError, match="no such file"):
        read_score_map(tmp_path / "nowhere.json")
