import json
import re
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from retinaconf.errors import InputError
from retinaconf.inference.detections import Detections


def detections(quality: bool = True, rows: int = 3) -> Detections:
    return Detections(
        boxes=np.array([[1.5, 2, 11.5, 22], [0, 0, 5, 5], [3, 4, 6, 8]], np.float32)[:rows],
        scores=np.array([0.9, 0.5, 0.2], np.float32)[:rows],
        labels=np.array([2, 0, 2])[:rows],
        class_scores=np.array([0.8, 0.6, 0.1], np.float32)[:rows],
        quality=np.array([0.95, 0.4, 0.3], np.float32)[:rows] if quality else None,
        classes=("red", "green", "blue"),
        category_ids=(3, 8, 90),
    )


@pytest.mark.parametrize(("score", "left"), [(0.0, 3), (0.2, 2), (0.5, 1), (0.49, 2), (0.95, 0)])
@pytest.mark.parametrize("quality", [True, False])
def test_above_keeps_whole_rows(score: float, left: int, quality: bool):
    whole = detections(quality)
    part = whole.above(np.float32(score))
    assert len(part) == left
    for name in ("boxes", "scores", "labels", "class_scores"):
        np.testing.assert_array_equal(getattr(part, name), getattr(whole, name)[:left])
    if quality:
        np.testing.assert_array_equal(part.quality, whole.quality[:left])
    else:
        assert part.quality is None
    assert (part.classes, part.category_ids) == (whole.classes, whole.category_ids)


def test_coco_records_have_ids_and_xywh():
    records = json.loads(json.dumps(detections().to_coco(17)))
    assert records[0] == {
        "image_id": 17,
        "category_id": 90,
        "bbox": [1.5, 2, 10, 20],
        "score": pytest.approx(0.9),
        "class_score": pytest.approx(0.8),
        "quality": pytest.approx(0.95),
    }
    assert [record["category_id"] for record in records] == [90, 3, 90]
    assert all("quality" not in record for record in detections(quality=False).to_coco(17))
    assert detections(rows=0).to_coco(17) == []


def test_supervision_gets_the_same_numbers(monkeypatch: pytest.MonkeyPatch):
    supervision = pytest.importorskip("supervision")
    ours = detections()
    theirs = ours.to_supervision()
    assert isinstance(theirs, supervision.Detections)
    np.testing.assert_array_equal(theirs.xyxy, ours.boxes)
    np.testing.assert_array_equal(theirs.confidence, ours.scores)
    np.testing.assert_array_equal(theirs.class_id, ours.labels)
    assert theirs.data["class_name"].tolist() == ["blue", "red", "blue"]
    np.testing.assert_array_equal(theirs.data["quality"], ours.quality)
    assert len(theirs[theirs.confidence > 0.4]) == 2  # supervision can filter it, data included
    assert "quality" not in detections(quality=False).to_supervision().data
    assert len(detections(rows=0).to_supervision()) == 0
    monkeypatch.setitem(sys.modules, "supervision", None)
    with pytest.raises(InputError, match=r"to_supervision needs supervision; .*'retinaconf\[supervision\]'"):
        ours.to_supervision()


def test_drawing_leaves_the_image_as_it_is():
    image = Image.new("RGB", (40, 30))
    picture = detections().draw(image)
    assert picture.size == image.size
    assert image.getbbox() is None  # still black
    assert picture.getbbox() is not None
    assert detections(rows=0).draw(image).getbbox() is None


def test_the_readmes_way_into_pandas(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    pandas = pytest.importorskip("pandas")
    readme = (Path(__file__).parents[2] / "README.md").read_text()
    from_records, from_file = re.findall(r"`(pandas\.[^`]+)`", readme)
    records = detections().to_coco(7)
    (tmp_path / "found").mkdir()
    (tmp_path / "found/detections.json").write_text(json.dumps(records))
    monkeypatch.chdir(tmp_path)
    for expression in (from_records, from_file):
        table = eval(expression, {"pandas": pandas, "records": records})
        assert list(table.columns) == ["image_id", "category_id", "bbox", "score", "class_score", "quality"]
        for key in table.columns:
            np.testing.assert_allclose(table[key].tolist(), [record[key] for record in records], rtol=1e-12)
