"""The table of boxes: its rows, its other forms, and which files are read or refused, with which words."""

from __future__ import annotations

import io
import json
import sys
import zipfile
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from retinaconf import coco_results, json_text
from retinaconf.data.ground_truth import ground_truth_from_coco
from retinaconf.detections import Detections, read_detections, write_detections
from retinaconf.errors import InputError

GROUND_TRUTH = ground_truth_from_coco(
    {
        "images": [{"id": image_id, "width": 100, "height": 100} for image_id in (7, 3, 12)],
        "categories": [{"id": 10, "name": "cat"}, {"id": 11, "name": "dog"}],
        "annotations": [{"image_id": 7, "category_id": 10, "bbox": [0, 0, 10, 10]}],
    },
    None,
    "planted",
)
RECORD = {"image_id": 3, "category_id": 11, "bbox": [1, 2, 3.5, 4], "score": 0.5}


def write_json(path: Path, records: object) -> Path:
    path.write_text(records if isinstance(records, str) else json.dumps(records))
    return path


def test_a_results_file_becomes_columns_sorted_by_image(tmp_path: Path) -> None:
    records = [
        {**RECORD, "image_id": 12, "score": 0.1},
        RECORD,
        {**RECORD, "image_id": 7, "category_id": 10},
        {**RECORD, "image_id": 12, "score": 1, "id": 5, "segmentation": [[1, 2]]},
    ]
    read = read_detections(write_json(tmp_path / "dt.json", records), GROUND_TRUTH)
    assert read.image_index.tolist() == [0, 1, 2, 2]
    assert read.labels.tolist() == [0, 1, 1, 1]
    assert read.scores.tolist() == [0.5, 0.5, 0.1, 1.0]
    assert read.boxes[1].tolist() == [1, 2, 4.5, 6]
    assert read.class_scores is None
    assert read.quality is None
    assert [len(read.of_image(index)) for index in range(3)] == [1, 1, 2]
    assert read.of_image(2).scores.tolist() == [0.1, 1.0]


@pytest.mark.parametrize("text", ["[]", " [ ] \n", "\ufeff[]"])
def test_an_empty_list_is_no_boxes(tmp_path: Path, text: str) -> None:
    read = read_detections(write_json(tmp_path / "dt.json", text), GROUND_TRUTH)
    assert len(read) == 0
    assert read.boxes.shape == (0, 4)


@pytest.mark.parametrize("chunk", [1, 2, 7, 50, 1000])
@pytest.mark.parametrize("indent", [None, 3])
def test_chunks_may_end_anywhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, chunk: int, indent: int | None
) -> None:
    rng = np.random.default_rng(0)
    records = [
        {**RECORD, "score": float(score), "quality": 1e-7, "note": 'a "}],[{" in a text \u00e9'}
        for score in rng.random(23)
    ]
    monkeypatch.setattr(json_text, "CHUNK", chunk)
    path = write_json(tmp_path / "dt.json", json.dumps(records, indent=indent) + "\n ")
    columns = coco_results.read_coco_results(path)
    assert columns["score"].tolist() == [record["score"] for record in records]
    assert columns["quality"].tolist() == [1e-7] * 23


@pytest.mark.parametrize(
    ("records", "words"),
    [
        ('{"annotations": []}', "must be a JSON list"),
        ("", "must be a JSON list"),
        ('[{"image_id": 3', "not valid JSON"),
        ("[{}, ", "not valid JSON"),
        ("[" + "9" * 5000 + "]", "not valid JSON"),
        (json.dumps([RECORD]) + " []", "more text after"),
        ("[{} {}]", "expected ',' or"),
        ("[" + "9" * 5000 + "]", "not valid JSON (Exceeds the limit"),
        ("[" * 50_000 + "]" * 50_000, "not valid JSON (maximum recursion depth exceeded"),
        ([{**RECORD, "bbox": [0] * 50_000}], "has bbox [0, 0, 0, 0, 0, 0, ...], not four numbers"),
        ([RECORD, 5], "record 1 is not an object"),
        ([RECORD, {**RECORD, "score": None}], "record 1 has score None, not a number"),
        ([RECORD, {"image_id": 3, "category_id": 11, "score": 0.1}], "record 1 has no 'bbox'"),
        ([{**RECORD, "bbox": [1, 2, 3]}], "record 0 has bbox [1, 2, 3], not four numbers"),
        ([{**RECORD, "bbox": [1, 2, 3, "4"]}], "not four numbers"),
        ([{**RECORD, "bbox": None}], "not four numbers"),
        ([{**RECORD, "image_id": "3"}], "image_id '3', not an integer"),
        ([{**RECORD, "image_id": 3.5}], "image_id 3.5, not an integer"),
        ([{**RECORD, "image_id": 2.0**53}], "image_id 9007199254740992.0, not an integer"),
        ([{**RECORD, "image_id": 2**63}], "image_id 9223372036854775808, not an integer"),
        ([{**RECORD, "image_id": True}], "image_id True, not an integer"),
        ([{**RECORD, "image_id": 4}], "record 0 names image 4, which planted does not list"),
        ([RECORD, {**RECORD, "category_id": 1}], "record 1 (image 3) has category_id 1, which planted does not list"),
        ([RECORD, {**RECORD, "score": float("nan")}], "record 1 (image 3) has score nan; scores must be in [0, 1]"),
        ([{**RECORD, "score": 1.5}], "score 1.5; scores must be in [0, 1]"),
        ([{**RECORD, "score": -0.1}], "score -0.1"),
        ([{**RECORD, "quality": 7}], "quality 7.0"),
        ([{**RECORD, "bbox": [1, 2, -3, 4]}], "bbox [1.0, 2.0, -3.0, 4.0] of negative size"),
        ([{**RECORD, "bbox": [1, 2, float("inf"), 4]}], "must be finite"),
        ([{**RECORD, "quality": 0.5}, RECORD], "'quality' changes from present to absent at record 1"),
        ([RECORD, {**RECORD, "quality": 0.5}], "'quality' changes from present to absent at record 1"),
    ],
)
def test_what_is_wrong_is_said_in_one_line(tmp_path: Path, records: object, words: str) -> None:
    path = write_json(tmp_path / "dt.json", records)
    with pytest.raises(InputError) as raised:
        read_detections(path, GROUND_TRUTH)
    message = str(raised.value)
    assert words in message
    assert str(path) in message
    assert "\n" not in message


def test_a_missing_file_and_a_folder_are_said(tmp_path: Path) -> None:
    for path in (tmp_path / "none.json", tmp_path / "none.npz", tmp_path):
        with pytest.raises(InputError, match=r"no such file|cannot be read"):
            read_detections(path, GROUND_TRUTH)


def test_an_optional_field_that_starts_in_a_later_batch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(json_text, "CHUNK", 200)
    path = write_json(tmp_path / "dt.json", [RECORD] * 4 + [{**RECORD, "quality": 0.1}] * 2)
    with pytest.raises(InputError, match="at record 4"):
        read_detections(path, GROUND_TRUTH)


def test_whole_floats_are_ids_and_a_float32_one_is_clipped(tmp_path: Path) -> None:
    path = write_json(tmp_path / "dt.json", [{**RECORD, "image_id": 3.0, "score": 1.0000001}])
    read = read_detections(path, GROUND_TRUTH)
    assert (read.image_index[0], read.scores[0]) == (1, 1.0)


def test_the_columnar_file_comes_back_as_it_was(tmp_path: Path) -> None:
    path = tmp_path / "candidates.npz"
    images = [
        {"image_id": 12, "category_ids": [10, 11], "boxes": [[0, 0, 5, 5], [1, 2, 3, 4]], "scores": [0.5, 0.25]},
        {"image_id": 3, "category_ids": [], "boxes": [], "scores": []},
        {"image_id": 7, "category_ids": [11], "boxes": np.array([[-3.5, 1, 70, 3]]), "scores": np.array([1.0])},
    ]
    for image in images:
        image |= {"class_scores": image["scores"], "quality": image["scores"]}
    assert write_detections(path, iter(images)) == 3
    read = read_detections(path, GROUND_TRUTH)
    assert read.image_index.tolist() == [0, 2, 2]
    assert read.boxes.tolist() == [[-3.5, 1, 70, 3], [0, 0, 5, 5], [1, 2, 3, 4]]
    assert read.quality.tolist() == [1.0, 0.5, 0.25]
    assert read.labels.tolist() == [1, 0, 1]
    with np.load(path, allow_pickle=False) as archive:
        assert int(archive["version"]) == 1


def test_a_columnar_file_of_nothing(tmp_path: Path) -> None:
    assert write_detections(tmp_path / "none.npz", []) == 0
    assert len(read_detections(tmp_path / "none.npz", GROUND_TRUTH)) == 0


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"version": np.int64(9)}, "format version 9"),
        ({"version": np.ones(3)}, "format version [1.0, 1.0, 1.0]"),
        ({"score": None}, "no array 'score'"),
        ({"score": np.array([1, 0])}, "array 'score' holds int64, not float"),
        ({"score": np.array([0.1])}, "has shape"),
        ({"bbox": np.zeros((2, 3))}, "has shape"),
        ({"quality": np.array([0.1])}, "has shape"),
        ({"image_id": np.array([3.0, 3.0])}, "holds float64, not int"),
        ({"image_id": np.array([3, 99])}, "row 1 names image 99"),
        ({"score": np.array([0.5, np.nan])}, "row 1 (image 3) has score nan"),
        ({"image_id": np.array([3, None])}, "not a columnar candidates file"),
    ],
)
def test_a_bad_columnar_file_is_said_in_one_line(tmp_path: Path, change: dict, words: str) -> None:
    columns = {
        "version": np.int64(1),
        "image_id": np.array([3, 3]),
        "category_id": np.array([10, 10]),
        "bbox": np.ones((2, 4)),
        "score": np.array([0.5, 0.5]),
        **change,
    }
    path = tmp_path / "candidates.npz"
    np.savez(path, **{name: column for name, column in columns.items() if column is not None})
    with pytest.raises(InputError) as raised:
        read_detections(path, GROUND_TRUTH)
    assert words in str(raised.value)
    assert "\n" not in str(raised.value)


def header(shape: tuple[int, ...]) -> bytes:
    """Of an array of numbers, of which there are none."""
    stream = io.BytesIO()
    np.lib.format.write_array_header_1_0(stream, {"descr": "<f8", "fortran_order": False, "shape": shape})
    return stream.getvalue()


@pytest.mark.parametrize(
    ("score", "words"),
    [
        (header((10**12,)), "array 'score' is said to be float64 of shape (1000000000000,), and has 0 bytes"),
        (header((1 << 40, 1 << 40)), "array 'score' is said to be float64 of shape"),
        (header((1 << 24,)) + bytes(1 << 27), "it would unfold from"),
    ],
    ids=["terabytes", "more than there are addresses", "zip bomb"],
)
def test_a_bomb_is_refused_before_it_unfolds(tmp_path: Path, score: bytes, words: str) -> None:
    path = tmp_path / "candidates.npz"
    np.savez(path, version=np.int64(1))
    with zipfile.ZipFile(path, "a", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("score.npy", score)
    with pytest.raises(InputError) as raised:
        read_detections(path, GROUND_TRUTH)
    assert words in str(raised.value)


def test_an_array_that_is_no_archive(tmp_path: Path) -> None:
    np.save(tmp_path / "one.npy", np.ones(3))
    path = (tmp_path / "one.npy").rename(tmp_path / "candidates.npz")
    with pytest.raises(InputError, match="not a columnar candidates file"):
        read_detections(path, GROUND_TRUTH)


def test_a_file_that_is_no_archive(tmp_path: Path) -> None:
    for content in (b"", b"not a zip", b"PK\x03\x04 broken"):
        path = tmp_path / "bad.npz"
        path.write_bytes(content)
        with pytest.raises(InputError, match="not a columnar candidates file"):
            read_detections(path, GROUND_TRUTH)


def test_the_writer_refuses_what_does_not_fit(tmp_path: Path) -> None:
    good = {"image_id": 3, "category_ids": [10], "boxes": [[0, 0, 1, 1]], "scores": [0.5]}
    with pytest.raises(InputError, match="different lengths"):
        write_detections(tmp_path / "x.npz", [{**good, "scores": [0.5, 0.6]}])
    with pytest.raises(InputError, match="quality is given for some images only"):
        write_detections(tmp_path / "x.npz", [good, {**good, "quality": [0.5]}])


def test_the_joint_score() -> None:
    boxes = Detections(
        np.zeros(2, int), np.zeros(2, int), np.zeros((2, 4)), np.array([0.25, 0.5]), quality=np.array([1.0, 0.0])
    )
    assert boxes.rescored(0).scores.tolist() == [0.25, 0.5]
    assert boxes.rescored(0.5).scores.tolist() == [0.5, 0.0]
    assert boxes.rescored(1).scores.tolist() == [1.0, 0.0]
    with pytest.raises(ValueError, match="alpha"):
        boxes.rescored(1.1)


def detections(quality: bool = True, rows: int = 3) -> Detections:
    return Detections(
        image_index=np.zeros(3, int),
        labels=np.array([2, 0, 2]),
        boxes=np.array([[1.5, 2, 11.5, 22], [0, 0, 5, 5], [3, 4, 6, 8]]),
        scores=np.array([0.9, 0.5, 0.2]),
        class_scores=np.array([0.8, 0.6, 0.1]),
        quality=np.array([0.95, 0.4, 0.3]) if quality else None,
        classes=("red", "green", "blue"),
        category_ids=(3, 8, 90),
    )[:rows]


@pytest.mark.parametrize("quality", [True, False])
def test_indexing_keeps_whole_rows(quality: bool) -> None:
    whole = detections(quality)
    chosen = {
        "mask": (whole[np.array([True, False, True])], [0, 2]),
        "indices": (whole[np.array([1, 2])], [1, 2]),
        "slice": (whole[1:], [1, 2]),
        "one": (whole[-1], [2]),
        "above": (whole.above(0.5), [0]),
        "above nothing": (whole.above(0.0), [0, 1, 2]),
        "none": (whole.above(0.95), []),
    }
    for part, rows in chosen.values():
        assert len(part) == len(rows)
        for name, column in whole.columns().items():
            np.testing.assert_array_equal(getattr(part, name), column[rows])
        assert (part.quality is None) == (not quality)
        assert (part.classes, part.category_ids) == (whole.classes, whole.category_ids)
    assert [found.scores.tolist() for found in whole] == [[0.9], [0.5], [0.2]]


def test_coco_records_have_ids_and_xywh() -> None:
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
    of_split = replace(detections(), image_index=np.array([0, 2, 2])).to_coco(np.array([7, 3, 2**53 + 1]))
    assert [record["image_id"] for record in of_split] == [7, 2**53 + 1, 2**53 + 1]


def test_the_classes_of_chosen_rows() -> None:
    found = detections()
    assert found[found.labels == 2].class_names.tolist() == ["blue", "blue"]
    assert [row.class_names.tolist() for row in found] == [["blue"], ["red"], ["blue"]]
    assert isinstance(found, Iterable)
    assert detections(rows=0).class_names.tolist() == []


def test_pandas_gets_the_same_numbers() -> None:
    pytest.importorskip("pandas")
    ours = detections()
    table = ours.to_pandas()
    assert len(table) == len(ours)
    assert table["class_name"].tolist() == [ours.classes[label] for label in ours.labels]
    np.testing.assert_array_equal(table[["x1", "y1", "x2", "y2"]], ours.boxes)
    for name in ("image_index", "label", "score", "class_score", "quality"):
        column = {"label": "labels", "score": "scores", "class_score": "class_scores"}.get(name, name)
        np.testing.assert_array_equal(table[name], getattr(ours, column))
    assert "quality" not in detections(quality=False).to_pandas()
    assert len(detections(rows=0).to_pandas()) == 0


def test_pandas_is_named_where_it_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(InputError, match=r"^to_pandas needs pandas; .*'retinaconf\[pandas\]'$"):
        detections().to_pandas()


def test_supervision_gets_the_same_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
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


def test_drawing_leaves_the_image_as_it_is() -> None:
    image = Image.new("RGB", (40, 30))
    picture = detections().draw(image)
    assert picture.size == image.size
    assert image.getbbox() is None  # still black
    assert picture.getbbox() is not None
    assert detections(rows=0).draw(image).getbbox() is None
