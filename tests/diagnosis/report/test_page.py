"""The report's file: complete in itself, small, and safe whatever things are called."""

import base64
import io
import json
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from as_coco import as_coco
from PIL import Image
from planted import SIDE, shifted
from planted import truth as planted_truth
from synthetic import made_up_truth, synthetic_candidates

from retinaconf import api
from retinaconf.data.ground_truth import GroundTruth
from retinaconf.detections import Detections
from retinaconf.diagnosis.measures.diagnose import Diagnosis, diagnose
from retinaconf.diagnosis.measures.own_score import OwnScore
from retinaconf.diagnosis.measures.post_processing import PostProcessing
from retinaconf.diagnosis.report.document import to_json
from retinaconf.diagnosis.report.explorer_data import MAX_CANDIDATES, explorer_data, pack_candidates
from retinaconf.diagnosis.report.page import image_losses, inline_json, opening_threshold, write_report
from retinaconf.diagnosis.report.summary import summarize
from retinaconf.errors import InputError
from retinaconf.pages.pictures import encode_jpeg


class Elements(HTMLParser):
    """Every element's name and attributes, and the text of the scripts."""

    def __init__(self, text: str):
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.scripts: list[str] = []
        self.visible: list[str] = []
        self._raw = ""
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        self._raw = tag if tag in ("script", "style") else ""
        if tag == "script":
            self.scripts.append("")

    def handle_endtag(self, tag):
        self._raw = ""

    def handle_data(self, data):
        if self._raw == "script":
            self.scripts[-1] += data
        elif not self._raw:
            self.visible.append(data)


@pytest.fixture(scope="module")
def truth(tmp_path_factory) -> GroundTruth:
    return made_up_truth(tmp_path_factory.mktemp("images"))


@pytest.fixture(scope="module")
def diagnosis(truth) -> Diagnosis:
    return diagnose(truth, candidates=synthetic_candidates(truth), replicates=20)


def page(path: Path, *diagnoses: Diagnosis, **options) -> Elements:
    write_report(path, diagnoses, **options)
    return Elements(path.read_text(encoding="utf-8"))


def explorer_json(elements: Elements) -> dict:
    return json.loads(elements.scripts[0])


def test_everything_is_inside(tmp_path, diagnosis):
    elements = page(tmp_path / "report.html", diagnosis)
    for tag, attributes in elements.elements:
        assert tag not in ("link", "iframe", "object", "embed", "base")
        for name in ("src", "href", "srcset", "action", "xlink:href"):
            assert attributes.get(name, "data:").startswith(("data:", "#")), (tag, attributes)
        assert not any(name.startswith("on") for name in attributes)
    text = (tmp_path / "report.html").read_text()
    assert not re.search(r"@import|url\(|https?://", text)


def test_policy_admits_this_program_only(tmp_path, diagnosis):
    elements = page(tmp_path / "report.html", diagnosis)
    policy = next(a["content"] for tag, a in elements.elements if a.get("http-equiv") == "Content-Security-Policy")
    assert "default-src 'none'" in policy
    assert re.search(r"script-src 'sha256-[\w+/=]+'", policy)
    assert "unsafe-eval" not in policy


@pytest.mark.parametrize(
    "name", ["<script>alert(1)</script>", "</script><b>", "a&amp;b", "\"'><img src=x onerror=x>", "é 犬 $style"]
)
def test_names_are_text(tmp_path, truth, name):
    odd = replace(
        truth, classes=(name, *truth.classes[1:]), file_names=np.array([name + str(i) for i in range(len(truth))])
    )
    elements = page(
        tmp_path / "report.html", diagnose(odd, candidates=synthetic_candidates(odd), replicates=5), names=[name]
    )
    tags = [tag for tag, _ in elements.elements]
    assert tags.count("script") == 2
    assert "img" not in tags
    assert explorer_json(elements)["classes"][0] == name
    assert explorer_json(elements)["detectors"][0]["name"] == name
    assert name in "".join(elements.visible)


def test_numbers_of_the_diagnosis_are_in_the_page(tmp_path, diagnosis):
    text = "".join(page(tmp_path / "report.html", diagnosis).visible)
    numbers = to_json(diagnosis)
    for sentence in summarize(diagnosis):
        assert sentence in text
    assert f"{100 * numbers['metrics']['AP']:.1f}" in text
    assert f"{numbers['casualties']['overall']['mean_lost_iou']:.3f}" in text
    assert f"{numbers['calibration']['laece']:.3f}" in text
    for step in numbers["oracles"]:
        assert f"{100 * step['AP50']:.1f}" in text


def test_worst_images_come_first(tmp_path, diagnosis, truth, monkeypatch):
    """And the image of the worst object is there, whatever the mean over its image's objects."""
    losses = image_losses(diagnosis, opening_threshold([diagnosis])[0])
    monkeypatch.setattr("retinaconf.diagnosis.report.page.MOST", 1)
    shown = [image["name"] for image in explorer_json(page(tmp_path / "r.html", diagnosis, max_images=3))["images"]]
    worst = truth.image_index[np.argmax(diagnosis.casualties.lost)]
    best = [image for image in np.argsort(-losses, kind="stable") if image != worst][:2]
    assert losses[worst] < losses[best].min()
    assert shown == [str(truth.file_names[image]) for image in (*best, worst)]


def three_objects(truth: GroundTruth) -> tuple[GroundTruth, Detections]:
    """An object with boxes of IoU 0.8 and 1, scores 0.9 and 0.6; one with a box of IoU 1, score 0.8; one missed."""
    objects = np.array([[0.0, 0, 10, 10], [100, 0, 110, 10], [200, 0, 210, 10]])
    single = replace(
        truth.subset([0]),
        boxes=objects,
        labels=np.zeros(3, np.int64),
        crowd=np.zeros(3, dtype=bool),
        areas=np.full(3, 100.0),
        offsets=np.array([0, 3]),
    )
    candidates = Detections(
        image_index=np.zeros(3, np.int64),
        labels=np.zeros(3, np.int64),
        boxes=np.array([[0.0, 0, 10, 8], objects[0], objects[1]]),
        scores=np.array([0.9, 0.6, 0.8]),
        source="three.json",
    )
    return single, candidates


def test_losses_by_hand(truth):
    """0.2 on one of two found objects, as long as its better box takes part."""
    single, candidates = three_objects(truth)
    for boxes in ({"candidates": candidates}, {"detections": candidates}):
        diagnosis = diagnose(single, **boxes, replicates=0)
        losses = {threshold: image_losses(diagnosis, threshold).item() for threshold in (0, 0.59, 0.7, 0.85, 0.95)}
        assert losses == pytest.approx({0: 0.1, 0.59: 0.1, 0.7: 0, 0.85: 0, 0.95: 0})


def test_opening_threshold_by_hand(truth):
    """Best is 0.8, LRP = (0.4 + 0 + 1 missed) / 3: at 0.9 two objects are missed, and 0.6 adds a duplicate."""
    single, candidates = three_objects(truth)
    opened = opening_threshold([diagnose(single, candidates=candidates, replicates=0)])
    assert opened == (0.795, "just below the best threshold of the median class")
    cut = PostProcessing(score_threshold=0.798)
    opened = opening_threshold([diagnose(single, candidates=candidates, post_processing=cut, replicates=0)])
    assert opened == (0.798, "the diagnosis's")
    empty = replace(single, boxes=np.zeros((0, 4)), labels=single.labels[:0], crowd=single.crowd[:0], areas=np.zeros(0))
    empty = replace(empty, offsets=np.array([0, 0]))
    assert opening_threshold([diagnose(empty, candidates=candidates, replicates=0)]) == (0.0, "the diagnosis's")


def test_same_input_same_file(tmp_path, diagnosis):
    write_report(tmp_path / "a.html", [diagnosis])
    write_report(tmp_path / "b.html", [diagnosis])
    assert (tmp_path / "a.html").read_bytes() == (tmp_path / "b.html").read_bytes()


def test_detections_only_says_what_is_missing(tmp_path, truth, diagnosis):
    elements = page(tmp_path / "r.html", diagnose(truth, detections=diagnosis.after.boxes, replicates=5))
    text = "".join(elements.visible)
    assert "These are detections: what an NMS threw away is not in the file" in text
    assert "had a better box for each of these" not in text  # there is no gallery
    assert all(image["note"].endswith(" IoU short") for image in explorer_json(elements)["images"])
    assert explorer_json(elements)["settings"]["nms_iou"] == 1.0


def test_pictures_that_are_not_there_are_said(tmp_path, truth, diagnosis):
    """Of a folder that holds none of them, before anything is computed; of a few, in notes and page."""
    for made, write in (("gt.json", as_coco(truth)), ("dt.json", [])):
        (tmp_path / made).write_text(json.dumps(write))
    with pytest.raises(InputError, match=r"holds none of the 6 pictures .* \(the first is picture 0.png\)"):
        api.diagnose(ground_truth=tmp_path / "gt.json", detections=[tmp_path / "dt.json"], images=tmp_path)
    for name in ("picture 0.png", "picture 1.png"):
        (tmp_path / name).write_bytes((truth.image_folder / name).read_bytes())
    (tmp_path / "picture 1.png").write_text("not a picture")
    (some,) = api.diagnose(ground_truth=tmp_path / "gt.json", detections=[tmp_path / "dt.json"], images=tmp_path)
    assert f"4 of 6 pictures are not in {tmp_path} (the first: picture 2.png)" in " ".join(some.notes)
    assert "missing" not in "".join(page(tmp_path / "r.html", diagnosis).visible)
    assert "5 of 6 pictures are missing" in "".join(page(tmp_path / "r.html", some).visible)
    bare = diagnose(replace(truth, image_folder=None), candidates=diagnosis.before.boxes, replicates=2)
    assert "No picture is shown" in "".join(page(tmp_path / "r.html", bare).visible)


@pytest.mark.parametrize("what", ["no pictures", "no objects", "no boxes", "crowd only"])
def test_degenerate_input(tmp_path, truth, what):
    candidates = synthetic_candidates(truth)
    if what == "no pictures":
        truth = replace(truth, image_folder=None)
    elif what == "no objects":
        none = np.zeros(0, np.int64)
        truth = replace(
            truth,
            boxes=np.zeros((0, 4)),
            labels=none,
            crowd=none.astype(bool),
            areas=none.astype(float),
            offsets=np.zeros(len(truth) + 1, np.int64),
        )
    elif what == "no boxes":
        candidates = candidates[np.zeros(0, np.int64)]
    else:
        truth = replace(truth, crowd=np.ones(len(truth.boxes), bool))
    elements = page(tmp_path / "r.html", diagnose(truth, candidates=candidates, replicates=5))
    assert len(explorer_json(elements)["images"]) == len(truth)
    assert (explorer_json(elements)["images"][0]["jpeg"] is None) == (what == "no pictures")


def test_two_detectors(tmp_path, truth, diagnosis):
    other = diagnose(truth, candidates=synthetic_candidates(truth, seed=1, with_quality=False), replicates=5)
    elements = page(tmp_path / "r.html", diagnosis, other, names=["conf", "plain"])
    assert [d["has_quality"] for d in explorer_json(elements)["detectors"]] == [True, False]
    text = "".join(elements.visible)
    assert "Score against IoU before NMS: conf" in text
    assert "Score against IoU before NMS: plain" in text


def test_refusals(tmp_path, truth, diagnosis):
    with pytest.raises(ValueError, match="one detector or two"):
        write_report(tmp_path / "r.html", [])
    half = truth.subset([0, 1])
    with pytest.raises(InputError, match="same ground truth"):
        write_report(tmp_path / "r.html", [diagnosis, diagnose(half, candidates=synthetic_candidates(half))])
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot be written"):
        write_report(tmp_path / "file" / "r.html", [diagnosis])
    (tmp_path / "folder").mkdir()
    with pytest.raises(InputError, match="cannot be written"):
        write_report(tmp_path / "folder", [diagnosis])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "folder"]  # nothing half-written


def test_fifty_images_stay_below_15_megabytes(tmp_path, diagnosis):
    """Noise, which JPEG cannot compress, and more candidates than the page takes: ten such images, five times."""
    truth = made_up_truth(tmp_path, num_images=10, objects=20, noise_picture=True)
    candidates = synthetic_candidates(truth, per_object=MAX_CANDIDATES // 20 + 10)
    settings = {"alpha": None, "nms_iou": 0.5, "score_threshold": 0.0, "max_detections": 100}
    rule = OwnScore("class", 0.0)
    data = explorer_data(truth, [candidates], [rule], ["noise"], range(10), ["0.00 IoU lost"] * 10, settings)
    assert all(image["candidates"][0]["left_out"] == 200 for image in data["images"])
    write_report(tmp_path / "r.html", [diagnosis], max_images=0)
    rest = (tmp_path / "r.html").stat().st_size
    assert 12e6 < 5 * len(inline_json(data)) + rest < 15e6


def test_pack_keeps_the_best_in_their_order(truth):
    candidates = synthetic_candidates(truth)
    rows = np.flatnonzero(candidates.image_index == 0)
    packed = pack_candidates(candidates, 0, 40)
    assert packed["left_out"] == len(rows) - 40
    boxes = np.frombuffer(base64.b64decode(packed["boxes"]), "<f4").reshape(-1, 4)
    best = np.sort(rows[np.argsort(-candidates.scores[rows], kind="stable")[:40]])
    np.testing.assert_array_equal(boxes, candidates.boxes[best].astype(np.float32))


def test_jpeg_is_scaled_and_bounded():
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (900, 1200, 3), dtype=np.uint8))
    data = encode_jpeg(noise, 640, 200_000)
    assert Image.open(io.BytesIO(data)).size == (640, 480)
    assert len(data) <= 200_000


def test_inline_json_cannot_end_its_element():
    text = inline_json({"</script><!--": "<"})
    assert "<" not in text
    assert json.loads(text) == {"</script><!--": "<"}


def test_the_gallery_says_which_box_removed_the_better_one(tmp_path):
    """Two objects that overlap by 0.6. The box on the first removes that on the second; a worse one is kept."""
    first = [0.0, 0.0, SIDE, SIDE]
    second = shifted(first, 0.6)
    truth = planted_truth([[first, second]])
    boxes = np.array([first, second, shifted(second, 0.7)])
    candidates = Detections(np.zeros(3, int), np.zeros(3, int), boxes, np.array([0.9, 0.8, 0.1]))
    elements = page(tmp_path / "r.html", diagnose(truth, candidates=candidates, replicates=2))
    said = "kept IoU 0.70 (score 0.10), removed IoU 1.00 (score 0.80), by a neighbour's box (score 0.90)"
    assert said in "".join(elements.visible)
