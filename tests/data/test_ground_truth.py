import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from as_coco import as_coco
from hypothesis import given
from hypothesis import strategies as st

from retinaconf import json_text
from retinaconf.data.ground_truth import Fault, GroundTruth, ground_truth_from_coco, read_coco
from retinaconf.errors import InputError


def document(annotations: list[Any]) -> dict[str, Any]:
    return {
        "images": [
            {"id": 50, "file_name": "fifty.jpg", "height": 30, "width": 40},
            {"id": 7, "file_name": "seven.jpg", "height": 60, "width": 80},
            {"id": 9, "file_name": "nine.jpg", "height": 10, "width": 10},
        ],
        "annotations": annotations,
        "categories": [{"id": 90, "name": "toothbrush"}, {"id": 1, "name": "person"}, {"id": 18, "name": "dog"}],
    }


def annotation(**changes: Any) -> dict[str, Any]:
    return {"id": 1, "image_id": 7, "category_id": 18, "bbox": [1, 2, 3, 4], "area": 12, "iscrowd": 0} | changes


def write(tmp_path: Path, value: Any) -> Path:
    file = tmp_path / "train.json"
    file.write_text(value if isinstance(value, str) else json.dumps(value))
    return file


def test_columns_are_sorted_by_image_and_labels_by_category_id():
    gt = ground_truth_from_coco(
        document(
            [
                annotation(id=1, image_id=9, category_id=90, bbox=[0, 0, 5, 5]),
                annotation(id=2, image_id=50, category_id=1, bbox=[10.5, 20, 4, 8]),
                annotation(id=3, image_id=9, category_id=1, bbox=[1, 1, 2, 2], area=3.5, iscrowd=1),
                annotation(id=4, image_id=50, category_id=18, bbox=[-3, 2, 100, 4]),
            ]
        ),
        Path("images"),
        "test",
    )
    assert len(gt) == 3
    assert gt.image_ids.tolist() == [50, 7, 9]  # the file's order
    assert gt.image_sizes.tolist() == [[30, 40], [60, 80], [10, 10]]
    assert gt.path(1) == Path("images/seven.jpg")
    assert gt.offsets.tolist() == [0, 2, 2, 4]
    assert gt.image_index.tolist() == [0, 0, 2, 2]
    assert gt.classes == ("person", "dog", "toothbrush")
    assert gt.category_ids == (1, 18, 90)
    assert gt.labels.tolist() == [0, 1, 2, 0]
    # Not clipped: the official evaluation uses boxes as they are.
    assert gt.boxes.tolist() == [[10.5, 20, 14.5, 28], [-3, 2, 97, 6], [0, 0, 5, 5], [1, 1, 3, 3]]
    assert gt.crowd.tolist() == [False, False, False, True]
    assert gt.areas.tolist() == [12, 12, 12, 3.5]
    assert gt.dropped == ()


def test_no_column_holds_python_objects():
    # Reference counts of objects would be written to, and each loader worker would end with a copy of them.
    gt = ground_truth_from_coco(document([annotation()]), None, "test")
    columns = {name: value for name, value in vars(gt).items() if isinstance(value, np.ndarray)}
    assert set(columns) == {
        "image_ids", "file_names", "image_sizes", "boxes", "labels", "crowd", "areas", "offsets",
    }  # fmt: skip
    assert not any(column.dtype.hasobject for column in columns.values())


def test_what_may_be_left_out_has_a_default():
    short = {"image_id": 7, "category_id": 18, "bbox": [1, 2, 3, 4]}
    gt = ground_truth_from_coco(
        {"images": [{"id": 7}], "annotations": [short], "categories": [{"id": 18}]}, None, "test"
    )
    assert (gt.areas.tolist(), gt.crowd.tolist(), gt.classes) == ([12], [False], ("18",))
    assert gt.image_sizes.tolist() == [[0, 0]]
    assert gt.path(0) == Path("7")


def test_a_split_without_boxes_keeps_its_images_and_shapes():
    gt = ground_truth_from_coco(document([]), None, "test")
    assert (len(gt), gt.boxes.shape, gt.labels.shape, gt.crowd.dtype) == (3, (0, 4), (0,), np.dtype(bool))
    assert gt.offsets.tolist() == [0, 0, 0, 0]


# --- faults --------------------------------------------------------------------------------------------------------

BAD_ANNOTATIONS = {
    "unknown image": (annotation(image_id=8), "annotation 1 names image 8, which 'images' does not list"),
    "no image": ({"id": 4, "category_id": 1, "bbox": [1, 2, 3, 4]}, "annotation 4 names image None"),
    "image id as text": (annotation(image_id="7"), "names image '7'"),
    "image id as a list": (annotation(image_id=[7]), r"names image \[7\]"),
    "unknown category": (annotation(category_id=2), r"1 \(image seven.jpg\) names category 2, which 'categories' does"),
    "category as an object": (annotation(category_id={"id": 1}), "names category {'id': 1}"),
    "not an object": ([1, 2], "annotation at position 1 is not an object"),
    "NaN": (annotation(bbox=[1, float("nan"), 3, 4]), r"1 \(image seven.jpg\) has bbox .*nan.*must be finite"),
    "infinite": (annotation(bbox=[1, 2, float("inf"), 4]), "must be finite"),
    "larger than a float": (annotation(bbox=[1, 2, 10**400, 4]), "must be finite"),
    "three numbers": (annotation(bbox=[1, 2, 3]), "not four numbers"),
    "five numbers": (annotation(bbox=[1, 2, 3, 4, 5]), "not four numbers"),
    "no box": ({"image_id": 7, "category_id": 1}, "annotation at position 1 .* has bbox None, not four numbers"),
    "box as text": (annotation(bbox="1234"), "has bbox '1234', not four numbers"),
    "box of texts": (annotation(bbox=["1", "2", "3", "4"]), "not four numbers"),
    "null in the box": (annotation(bbox=[1, 2, 3, None]), "not four numbers"),
    "area as text": (annotation(area="12"), "has area '12', not a finite number"),
    "area NaN": (annotation(area=float("nan")), "has area nan, not a finite number"),
    "area larger than a float": (annotation(area=10**400), "not a finite number"),
    "crowd as text": (annotation(iscrowd="0"), "has iscrowd '0', not 0 or 1"),
    "crowd out of range": (annotation(iscrowd=2), "has iscrowd 2, not 0 or 1"),
}


@pytest.mark.parametrize(("bad", "message"), BAD_ANNOTATIONS.values(), ids=BAD_ANNOTATIONS)
def test_a_bad_annotation_stops_or_is_dropped_and_listed(tmp_path: Path, bad: Any, message: str):
    file = write(tmp_path, document([annotation(id=100), bad, annotation(id=101)]))
    with pytest.raises(InputError, match=message) as caught:
        read_coco(file)
    assert str(caught.value).startswith(f"{file}: annotation")
    assert "--data.skip-bad" in str(caught.value)
    assert "\n" not in str(caught.value)

    gt = read_coco(file, skip_bad=True)
    assert len(gt.boxes) == 2
    (fault,) = gt.dropped
    assert fault.message.startswith(f"{file}: annotation")
    assert fault.kind == "bad-annotation"


@pytest.mark.parametrize(
    ("size", "message"),
    [
        ([0, 5], "has width 0"),
        ([5, 0], "has height 0"),
        ([-2, 5], "has width -2"),
        ([5, -0.5], "has height -0.5"),
        ([0, 0], "has width 0"),
    ],
    ids=str,
)
@pytest.mark.parametrize("skip_bad", [False, True])
def test_boxes_without_extent_are_always_dropped_and_named(
    tmp_path: Path, size: list[float], message: str, skip_bad: bool
):
    file = write(tmp_path, document([annotation(id=31, bbox=[1, 2, *size]), annotation(id=32)]))
    gt = read_coco(file, skip_bad=skip_bad)
    assert gt.boxes.tolist() == [[1, 2, 4, 6]]
    assert gt.dropped == (Fault("degenerate-box", f"{file}: annotation 31 (image seven.jpg) {message}"),)


def test_dropped_records_are_named_by_position_without_an_id():
    record = annotation(bbox=[1, 2, 0, 4])
    del record["id"]
    gt = ground_truth_from_coco(document([annotation(), record]), None, "test")
    assert gt.dropped == (Fault("degenerate-box", "test: annotation at position 1 (image seven.jpg) has width 0"),)


IMAGES, CATEGORIES = document([])["images"], document([])["categories"]
BAD_FILES = {
    "empty": ("", "not valid JSON"),
    "cut off": ('{"images": [', "not valid JSON"),
    "no JSON": ("hello", "not valid JSON"),
    "number too long": ('{"images": [' + "9" * 5000 + "]}", "not valid JSON"),
    "a list": ([], "no list 'images' in it"),
    "no images": ({"annotations": [], "categories": CATEGORIES}, "no list 'images' in it; a COCO file has"),
    "images not a list": ({"images": {}, "annotations": [], "categories": CATEGORIES}, "no list 'images'"),
    "no annotations": ({"images": IMAGES, "categories": CATEGORIES}, "no list 'annotations'"),
    "no categories": ({"images": IMAGES, "annotations": []}, "no list 'categories'"),
    "categories empty": ({"images": IMAGES, "annotations": [], "categories": []}, "'categories' is empty"),
    "category id text": (document([]) | {"categories": [{"id": "1"}]}, "category at position 0 has no integer 'id'"),
    "category no object": (document([]) | {"categories": ["cat"]}, "category at position 0 has no integer 'id'"),
    "category twice": (document([]) | {"categories": [{"id": 5}, {"id": 5}]}, "category id 5 occurs twice"),
    "image without id": (document([]) | {"images": [{"file_name": "a"}]}, "image at position 0 has no integer 'id'"),
    "image no object": (document([]) | {"images": [{"id": 1}, None]}, "image at position 1 has no integer 'id'"),
    "image id true": (document([]) | {"images": [{"id": True}]}, "image at position 0 has no integer 'id'"),
    "image id too large": (document([]) | {"images": [{"id": 2**63}]}, "image at position 0 has no integer 'id'"),
    "image twice": (document([]) | {"images": [{"id": 3}, {"id": 3}]}, "image id 3 occurs twice"),
    "file name": (document([]) | {"images": [{"id": 3, "file_name": 5}]}, "image 3: 'file_name' is not a text"),
    "size negative": (document([]) | {"images": [{"id": 3, "height": -1, "width": 5}]}, "image 3 has size 5 x -1"),
    "size text": (document([]) | {"images": [{"id": 3, "height": "9", "width": 5}]}, "image 3 has size 5 x '9'"),
    "size fraction": (document([]) | {"images": [{"id": 3, "height": 9, "width": 5.5}]}, "image 3 has size 5.5 x 9"),
}


@pytest.mark.parametrize("skip_bad", [False, True])
@pytest.mark.parametrize(("content", "message"), BAD_FILES.values(), ids=BAD_FILES)
def test_a_file_that_is_not_coco_is_refused(tmp_path: Path, content: Any, message: str, skip_bad: bool):
    file = write(tmp_path, content)
    with pytest.raises(InputError, match=message) as caught:
        read_coco(file, skip_bad=skip_bad)
    assert str(caught.value).startswith(f"{file}: ")
    assert "\n" not in str(caught.value)


def test_a_file_that_cannot_be_opened(tmp_path: Path):
    with pytest.raises(InputError, match=r"none\.json: no such file"):
        read_coco(tmp_path / "none.json")
    with pytest.raises(InputError, match="cannot be read"):
        read_coco(tmp_path)
    (tmp_path / "latin.json").write_bytes('{"name": "ü"}'.encode("latin-1"))
    with pytest.raises(InputError, match=r"latin\.json: not valid JSON"):
        read_coco(tmp_path / "latin.json")


def test_a_large_file_is_read_as_a_small_one_and_faults_keep_their_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    # Annotations before images and categories, in batches of which some are usual and others are not.
    good = [annotation(id=i, image_id=(9, 50)[i % 2], bbox=[i, 0.1, 2, 3], segmentation=[[1.5] * 8]) for i in range(60)]
    without = {"image_id": 7, "category_id": 1, "bbox": [1, 2, 3, 4]}
    odd = [annotation(id="x", area=None), without, annotation(id=31, bbox=[1, 2, 0, 4]), annotation(iscrowd=True)]
    bad = [annotation(id=71, image_id=8), annotation(id=72, bbox=[1, 2, 3]), annotation(id=73, category_id=2)]
    annotations = [*good[:30], *odd, *bad, *good[30:]]
    file = write(tmp_path, {"annotations": annotations} | document(annotations))
    monkeypatch.setattr(json_text, "CHUNK", 1000)
    gt = read_coco(file, skip_bad=True)
    assert len(gt.boxes) == 63
    assert gt.boxes[gt.offsets[0] : gt.offsets[1], 0].tolist() == list(range(1, 60, 2))
    assert [fault.message.split(": ")[1].split(" (")[0][:20] for fault in gt.dropped] == [
        "annotation 31", "annotation 71 names ", "annotation 72", "annotation 73",
    ]  # fmt: skip
    whole = ground_truth_from_coco(document(annotations), None, str(file), skip_bad=True)
    assert_equal(gt, replace(whole, annotation_files=(file,)))


# --- subset and round trip -----------------------------------------------------------------------------------------


def test_a_subset_has_the_chosen_images_in_the_chosen_order():
    gt = ground_truth_from_coco(
        document(
            [
                annotation(image_id=50, bbox=[0, 0, 1, 1]),
                annotation(image_id=9, bbox=[0, 0, 2, 2]),
                annotation(image_id=9, bbox=[0, 0, 3, 3], category_id=1),
            ]
        ),
        Path("folder"),
        "test",
    )
    part = gt.subset([2, 0])
    assert part.image_ids.tolist() == [9, 50]
    assert part.file_names.tolist() == ["nine.jpg", "fifty.jpg"]
    assert part.image_sizes.tolist() == [[10, 10], [30, 40]]
    assert part.boxes[:, 2].tolist() == [2, 3, 1]
    assert part.labels.tolist() == [1, 0, 1]
    assert part.offsets.tolist() == [0, 2, 3]
    assert (part.classes, part.category_ids, part.image_folder) == (gt.classes, gt.category_ids, gt.image_folder)
    nothing = gt.subset([])
    assert (len(nothing), nothing.boxes.shape, nothing.offsets.tolist()) == (0, (0, 4), [0])


@st.composite
def ground_truths(draw: st.DrawFn) -> GroundTruth:
    ids = st.integers(-(2**53), 2**53)
    images = draw(st.lists(ids, min_size=1, max_size=6, unique=True))
    categories = draw(st.lists(ids, min_size=1, max_size=5, unique=True))
    corner = st.integers(-64, 64).map(lambda n: n / 4)  # sums of quarters are exact
    side = st.integers(1, 256).map(lambda n: n / 4)
    records = draw(
        st.lists(
            st.fixed_dictionaries(
                {
                    "image_id": st.sampled_from(images),
                    "category_id": st.sampled_from(categories),
                    "bbox": st.tuples(corner, corner, side, side).map(list),
                    "area": st.floats(0, 1e6),
                    "iscrowd": st.integers(0, 1),
                }
            ),
            max_size=12,
        )
    )
    return ground_truth_from_coco(
        {
            "images": [{"id": i, "file_name": f"{i}.png", "height": 5, "width": 6} for i in images],
            "categories": [{"id": i, "name": f"class {i}"} for i in categories],
            "annotations": records,
        },
        None,
        "test",
    )


def assert_equal(one: GroundTruth, two: GroundTruth) -> None:
    for name, value in vars(one).items():
        np.testing.assert_array_equal(value, getattr(two, name), err_msg=name)


@given(ground_truths())
@pytest.mark.ci
def test_coco_and_back_changes_nothing(gt: GroundTruth):
    document = json.loads(json.dumps(as_coco(gt)))
    assert [record["id"] for record in document["annotations"]] == list(range(1, len(gt.boxes) + 1))
    assert_equal(gt, ground_truth_from_coco(document, None, "test"))


@given(ground_truths(), st.data())
def test_a_subset_is_what_a_file_of_those_images_gives(gt: GroundTruth, data: st.DataObject):
    chosen = data.draw(st.lists(st.integers(0, len(gt) - 1), unique=True))
    document = as_coco(gt)
    kept = [document["images"][i] for i in chosen]
    ids = {image["id"] for image in kept}
    records = [record for record in document["annotations"] if record["image_id"] in ids]
    expected = ground_truth_from_coco(document | {"images": kept, "annotations": records}, None, "test")
    assert_equal(gt.subset(chosen), expected)


def test_real_coco_files(shared_data: Path):
    gt = read_coco(shared_data / "coco-mini/annotations/instances_val2017.json", shared_data / "coco-mini/val2017")
    assert (len(gt), len(gt.boxes), len(gt.classes)) == (100, 823, 80)
    assert gt.category_ids[-1] == 90
    assert gt.crowd.any()
    assert (np.diff(gt.offsets) == 0).any()  # an image without boxes
    assert all(gt.path(i).is_file() for i in range(len(gt)))


@pytest.mark.parametrize(
    "name", ["two\nlines", "\x1b[31mred", "\ud800", "\u202egnp", "n" * 1001, ["a"], {"a": 1}, None]
)
def test_names_of_classes_are_one_line_of_text(name: object):
    with pytest.raises(
        InputError, match=r"category 1 has the name .*; give it one line of text of up to 1,000 char"
    ) as e:
        ground_truth_from_coco(document([]) | {"categories": [{"id": 1, "name": name}]}, None, "x.json")
    assert str(e.value).isprintable()


@pytest.mark.parametrize("name", ["\ud800.png", "n" * 1001, 3])
def test_names_of_files_are_those_that_files_can_have(name: object):
    with pytest.raises(InputError, match=r"image 3: 'file_name' is not a text of up to 1,000 characters"):
        ground_truth_from_coco(document([]) | {"images": [{"id": 3, "file_name": name}]}, None, "x.json")


def test_nesting_beyond_every_coco_file_is_refused_in_a_line(tmp_path: Path):
    (tmp_path / "deep.json").write_text('{"images": ' + "[" * 200_000 + "]" * 200_000 + "}")
    with pytest.raises(
        InputError, match=r"deep\.json: not valid JSON \((maximum recursion depth exceeded|Stack overflow)"
    ):
        read_coco(tmp_path / "deep.json")
