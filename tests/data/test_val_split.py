from collections import Counter
from itertools import combinations
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from retinaconf.data.layouts import load_split
from retinaconf.data.val_split import draw_val

OBJECTS = st.dictionaries(
    st.text("abcdef", min_size=1, max_size=3), st.lists(st.sampled_from("ABCD"), max_size=4), min_size=2, max_size=8
)


def images_by_class(objects: dict[str, list[str]]) -> dict[str, set[str]]:
    return {label: {name for name in objects if label in objects[name]} for label in set().union(*objects.values())}


@given(OBJECTS, st.floats(0.05, 0.95), st.randoms())
def test_it_depends_on_the_images_alone(objects: dict[str, list[str]], fraction: float, random) -> None:
    val = draw_val(objects, fraction)
    assert set(val) < set(objects)
    assert val == sorted(set(val))
    names = list(objects)
    random.shuffle(names)
    assert draw_val({name: objects[name][::-1] for name in names}, fraction) == val


@given(OBJECTS, st.floats(0.05, 0.95))
def test_a_class_in_two_images_is_in_both_splits_where_that_is_possible(objects: dict[str, list[str]], fraction: float):
    """Held against every possible split. A class that is in one image is learnt and not measured."""
    images = images_by_class(objects)

    def fits(val: set[str]) -> bool:
        return all(names - val and (names & val or len(names) == 1) for names in images.values())

    val = set(draw_val(objects, fraction))
    assert all(names - val for names in images.values())
    possible = any(fits(set(some)) for n in range(len(objects)) for some in combinations(objects, n))
    assert fits(val) == possible


def test_the_share_is_exact_and_a_rare_class_is_in_both() -> None:
    objects = {f"{n:03d}": ["dog"] * (n % 5) + ["cat"] * (n % 3) for n in range(164)}
    objects["007"] = objects["101"] = ["emu"]
    val = draw_val(objects, 0.2)
    assert len(val) == 33  # 32.8
    assert len({"007", "101"} & set(val)) == 1
    total, drawn = (Counter(label for name in names for label in objects[name]) for names in (objects, val))
    assert all(abs(drawn[label] / total[label] - 0.2) < 0.01 for label in ("dog", "cat"))


@pytest.mark.parametrize("fraction", [0.1, 0.2, 0.5])
@pytest.mark.parametrize("name", ["bccd", "voc-animals", "coco-mini"])
def test_boxes_of_real_data_are_shared_out_evenly(shared_data: Path, name: str, fraction: float) -> None:
    truth = load_split(shared_data / name, "train")
    objects: dict[str, list[str]] = {file: [] for file in truth.file_names.tolist()}
    for image, label in zip(truth.image_index, truth.labels):
        objects[truth.file_names[image]].append(truth.classes[label])
    val = set(draw_val(objects, fraction))
    images = images_by_class(objects)
    assert all(names & val and names - val for names in images.values() if len(names) > 1)
    # With 75 classes in 343 images, one image of each needs more than a tenth.
    assert len(val) == round(fraction * len(objects)) or (name, fraction) == ("coco-mini", 0.1)
    total, drawn = (Counter(label for file in files for label in objects[file]) for files in (objects, val))
    assert abs(drawn.total() / total.total() - fraction) < 0.015
    for label, names in images.items():
        if len(names) > 60:
            assert abs(drawn[label] / total[label] - fraction) < 0.02
