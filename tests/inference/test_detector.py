import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import retinaconf
from retinaconf.data.images import check_images
from retinaconf.data.layouts import load_split
from retinaconf.detections import Detections
from retinaconf.errors import InputError
from retinaconf.inference.detector import BATCH, Detector
from retinaconf.model.backbone import FoldedConv2d
from retinaconf.model.retinanet import with_weights
from retinaconf.run_folder import read_weights


@pytest.fixture(scope="module")
def detector(trained: Any) -> Detector:
    return retinaconf.load(trained.run, device="cpu")


@pytest.fixture(scope="module")
def image(trained: Any) -> Image.Image:
    return Image.open(trained.data / "images/val-3.png").convert("RGB")


def assert_same(one: Detections, two: Detections, atol: float = 0.0) -> None:
    assert len(one) == len(two) > 0
    np.testing.assert_array_equal(one.labels, two.labels)
    np.testing.assert_allclose(one.boxes, two.boxes, rtol=0, atol=100 * atol)
    for name in ("scores", "class_scores", "quality"):
        np.testing.assert_allclose(getattr(one, name), getattr(two, name), rtol=0, atol=atol)


def test_it_is_what_was_trained(detector: Detector, trained: Any):
    assert detector.classes == ("red", "green", "blue")
    assert detector.category_ids == (3, 8, 90)
    assert detector.config == trained.config
    assert not detector.model.training
    state = read_weights(trained.run).state
    assert detector.state.keys() == state.keys()
    assert all(torch.equal(tensor, state[name]) for name, tensor in detector.state.items())


def test_its_convolutions_hold_the_norms_and_nothing_changes(detector: Detector, trained: Any):
    weights = read_weights(trained.run)
    as_trained = with_weights(weights.config.model, len(weights.classes), weights.state).eval()
    assert any(isinstance(module, FoldedConv2d) for module in as_trained.modules())
    assert not any(isinstance(module, FoldedConv2d) for module in detector.model.modules())
    as_trained.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    images, sizes = torch.rand(2, 3, 96, 128) * 255, torch.tensor([[96, 128], [80, 100]])
    with torch.no_grad():
        for one, two in zip(as_trained(images, sizes)[:3], detector.model(images, sizes)[:3]):
            assert torch.equal(one, two)


def test_no_weights_are_drawn_at_random_before_those_of_the_run_are_loaded(trained: Any):
    state, weights = torch.get_rng_state(), read_weights(trained.run)
    loaded = with_weights(weights.config.model, len(weights.classes), weights.state).state_dict()
    assert torch.equal(torch.get_rng_state(), state)
    assert loaded.keys() == weights.state.keys()
    assert all(torch.equal(tensor, loaded[name]) for name, tensor in weights.state.items())


def test_a_folder_a_text_or_the_file_itself_can_be_loaded(detector: Detector, trained: Any, image: Image.Image):
    (expected,) = detector.predict(image)
    for run in (str(trained.run), trained.run / "model.safetensors"):
        assert_same(retinaconf.load(run, device="cpu").predict(image)[0], expected)


def test_one_image_in_any_form(detector: Detector, image: Image.Image, tmp_path: Path):
    image.save(tmp_path / "a.png")
    array = np.asarray(image)
    (expected,) = detector.predict(image)
    for form in (
        tmp_path / "a.png",
        str(tmp_path / "a.png"),
        Image.open(tmp_path / "a.png"),
        array,
        array / 255,
        torch.from_numpy(array.copy()).permute(2, 0, 1),
        torch.from_numpy(array / 255).permute(2, 0, 1).float(),
        [image],
        (array,),
        iter([image]),
        {tmp_path / "a.png"},
        tmp_path,
        str(tmp_path),
        tmp_path.glob("*.png"),
        f"{tmp_path}/*.png",
        tmp_path / "?.png",
    ):
        (found,) = detector.predict(form)
        assert_same(found, expected)


def test_channels_of_opencv(detector: Detector, image: Image.Image, tmp_path: Path):
    """`bgr` is about arrays and tensors; files and PIL images know their own order."""
    image.save(tmp_path / "a.png")
    array = np.asarray(image)[:, :, ::-1]
    with_alpha = np.concatenate([array, np.full_like(array[:, :, :1], 255)], axis=2)
    tensor = torch.from_numpy(array.copy()).permute(2, 0, 1)
    (expected,) = detector.predict(image)
    for form in (array, array / 255, with_alpha, tensor, [image], tmp_path / "a.png"):
        assert_same(detector.predict(form, bgr=True)[0], expected)
    assert not np.array_equal(detector.predict(array)[0].scores, expected.scores)
    grey = np.asarray(image.convert("L"))
    assert_same(detector.predict(grey, bgr=True)[0], detector.predict(grey)[0])
    drawn = expected.draw(array, bgr=True)
    np.testing.assert_array_equal(np.asarray(drawn), np.asarray(expected.draw(image)))


def test_a_stream_reads_no_further_than_it_must(detector: Detector, image: Image.Image):
    given = 0

    def camera() -> Iterator[Image.Image]:
        nonlocal given
        while True:
            given += 1
            yield image

    stream = detector.stream(camera())
    assert given == 0
    (expected,) = detector.predict(image)
    for _ in range(BATCH):
        assert_same(next(stream), expected, atol=1e-5)
    assert given == BATCH
    next(stream)
    assert given == 2 * BATCH
    with pytest.raises(InputError, match="alpha"):
        detector.stream(camera(), alpha=2)  # at once


def test_a_folder_is_its_images_sorted_by_path(detector: Detector, trained: Any, tmp_path: Path):
    for name, source in (("b.png", "val-1"), ("a/z.png", "val-2"), ("c.PNG", "val-3")):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        Image.open(trained.data / f"images/{source}.png").save(tmp_path / name, format="PNG")
    (tmp_path / "notes.txt").write_text("hello")
    paths = [tmp_path / name for name in ("a/z.png", "b.png", "c.PNG")]
    for one, two in zip(detector.predict(tmp_path), detector.predict(paths), strict=True):
        assert_same(one, two)


def test_a_generator_is_read_as_it_is_needed(detector: Detector, image: Image.Image):
    given = 0

    def images() -> Iterator[Image.Image]:
        nonlocal given
        for _ in range(2 * BATCH + 1):
            given += 1
            yield image
        raise InputError("a camera that is gone")

    with pytest.raises(InputError, match="a camera"):
        detector.predict(images())
    assert given == 2 * BATCH + 1
    frames = iter([image] * (BATCH + 1))
    assert len(detector.predict(frames)) == BATCH + 1


def test_a_bad_file_of_a_list_is_named_before_any_work(
    detector: Detector, trained: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    good = trained.data / "images/val-1.png"
    (tmp_path / "cut.png").write_bytes(good.read_bytes()[:2000])
    monkeypatch.setattr(detector, "model", None)
    with pytest.raises(InputError, match=r"cut\.png: truncated .* \(1 more images are bad\)$"):
        detector.predict([good] * (BATCH + 1) + [tmp_path / "cut.png", tmp_path / "nowhere.png"])


def test_many_images_in_a_mix_of_forms(detector: Detector, trained: Any):
    paths = sorted((trained.data / "images").glob("*.png"))
    assert len(paths) > 2 * BATCH
    images = [Image.open(path).convert("RGB") for path in paths]
    forms = [
        (path, image, np.asarray(image), torch.from_numpy(np.asarray(image).copy()).permute(2, 0, 1))[n % 4]
        for n, (path, image) in enumerate(zip(paths, images))
    ]
    mixed, plain = detector.predict(forms), detector.predict(paths)
    assert len(mixed) == len(paths)
    for one, two in zip(mixed, plain):
        if len(two):
            assert_same(one, two)
    assert sum(len(found) for found in plain) > 0


def test_an_image_does_not_depend_on_its_neighbours(detector: Detector, trained: Any):
    paths = [trained.data / f"images/train-{n}.png" for n in range(BATCH)]
    assert len({Image.open(path).size for path in paths}) == 3
    batched = detector.predict(paths)
    assert sum(len(found) > 0 for found in batched) > 4
    for path, found in zip(paths, batched):
        (single,) = detector.predict(path)
        if len(single):
            assert_same(found, single, atol=1e-5)


def test_evaluation_predicts_the_same(detector: Detector, trained: Any):
    truth = check_images(load_split(trained.data, "train"))
    (table,) = detector.detect(truth, detector.config.inference)
    for n, found in enumerate(detector.predict([truth.path(n) for n in range(len(truth))])):
        rows = table.image_index == n
        np.testing.assert_array_equal(table.labels[rows], found.labels)
        np.testing.assert_allclose(table.scores[rows], found.scores, rtol=0, atol=1e-5)
        np.testing.assert_allclose(table.boxes[rows], found.boxes, rtol=0, atol=1e-3)


def test_grey_pictures(detector: Detector, trained: Any):
    path = trained.data / "images/train-1.png"
    grey = Image.open(path)
    assert grey.mode == "L"
    (expected,) = detector.predict(grey.convert("RGB"), score_threshold=0)
    for form in (path, np.asarray(grey), np.asarray(grey)[:, :, None], torch.from_numpy(np.asarray(grey).copy())[None]):
        assert_same(detector.predict(form, score_threshold=0)[0], expected)


@pytest.mark.parametrize("size", [(40, 30), (300, 70), (70, 300), (1000, 1000), (1, 1)], ids=str)
def test_boxes_are_in_the_pixels_of_the_original(detector: Detector, image: Image.Image, size: tuple[int, int]):
    (found,) = detector.predict(image.resize(size), score_threshold=0)
    assert 0 < len(found) <= 100
    assert (found.boxes.dtype, found.labels.dtype) == (np.float32, np.int64)
    assert found.boxes.shape == (len(found), 4)
    width, height = size
    assert (found.boxes >= 0).all()
    assert (found.boxes[:, [0, 2]] <= width).all()
    assert (found.boxes[:, [1, 3]] <= height).all()
    assert (found.boxes[:, 2:] > found.boxes[:, :2]).all()
    # They reach over the picture: not the pixels of the resized one.
    assert found.boxes[:, 2].max() > 0.6 * width
    assert found.boxes[:, 3].max() > 0.6 * height
    assert (np.diff(found.scores) <= 0).all()


def test_a_picture_twice_as_large_has_boxes_twice_as_large(detector: Detector, image: Image.Image):
    size = (128, 96)  # the detector resizes to 85 x 64 from both
    small = image.resize(size)
    large = small.resize((256, 192), Image.Resampling.NEAREST)
    (one,), (two,) = detector.predict(small, score_threshold=0), detector.predict(large, score_threshold=0)
    np.testing.assert_allclose(one.boxes[:3] * 2, two.boxes[:3], atol=6)


def test_alpha_joins_the_two_scores(detector: Detector, image: Image.Image):
    for alpha in (0.0, 0.3, 1.0):
        (found,) = detector.predict(image, alpha=alpha, score_threshold=0)
        assert found.quality is not None
        expected = found.quality**alpha * found.class_scores ** (1 - alpha)
        np.testing.assert_allclose(found.scores, expected, rtol=1e-5)
    (plain,) = detector.predict(image, alpha=0.0)
    np.testing.assert_array_equal(plain.scores, plain.class_scores)


def test_an_alpha_replaces_any_joint_score(write_run: Any, image: Image.Image, tmp_path: Path):
    detector = retinaconf.load(write_run(tmp_path / "run", **{"inference.joint": "cls*obj"}), device="cpu")
    (own,) = detector.predict(image, score_threshold=0)
    np.testing.assert_allclose(own.scores, own.class_scores * own.quality, rtol=1e-6)
    (asked,) = detector.predict(image, alpha=0.0, score_threshold=0)
    np.testing.assert_array_equal(asked.scores, asked.class_scores)


def test_an_alpha_leaves_a_joint_score_that_has_one(write_run: Any, tmp_path: Path):
    detector = retinaconf.load(write_run(tmp_path / "run", **{"inference.joint": "proportional"}), device="cpu")
    assert detector.inference_config(alpha=0.7).joint == "proportional"
    assert detector.inference_config(alpha=0.7, joint="product").joint == "product"


def test_the_score_threshold_is_exclusive_and_replaces_the_runs(detector: Detector, image: Image.Image):
    (every,) = detector.predict(image, score_threshold=0)
    threshold = float(every.scores[len(every) // 2])
    (found,) = detector.predict(image, score_threshold=threshold)
    assert len(found) > 0
    assert found.scores.min() > threshold
    assert len(detector.predict(image, score_threshold=0.999)[0]) == 0


def test_a_detector_without_a_branch_has_no_quality(write_run: Any, image: Image.Image, tmp_path: Path):
    run = write_run(tmp_path / "run", **{"model.quality": "none", "inference.alpha": 0.0})
    (found,) = retinaconf.load(run, device="cpu").predict(image, score_threshold=0)
    assert len(found) > 0
    assert found.quality is None
    np.testing.assert_array_equal(found.scores, found.class_scores)


def test_no_images_give_no_detections(detector: Detector):
    assert detector.predict([]) == []


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"alpha": 1.5}, "inference.alpha: "),
        ({"alpha": float("nan")}, "inference.alpha: "),
        ({"score_threshold": -1}, "inference.score_threshold: "),
        ({"alpha": "high"}, "inference.alpha: "),
    ],
    ids=str,
)
def test_settings_that_do_not_fit(detector: Detector, image: Image.Image, changes: dict[str, Any], message: str):
    with pytest.raises(InputError, match=message):
        detector.predict(image, **changes)


@pytest.mark.parametrize(
    ("images", "message"),
    [
        ("nowhere.jpg", r"nowhere\.jpg: no such image file"),
        (3, "cannot read an image from int"),
        ([None], "cannot read an image from NoneType"),
        (
            np.zeros((2, 8, 8, 3)),
            r"^a batch of shape \(2, 8, 8, 3\) in one ndarray is not taken; give a list of images",
        ),
        (
            torch.zeros(2, 3, 8, 8),
            r"^a batch of shape \(2, 3, 8, 8\) in one Tensor is not taken; give a list of images",
        ),
        (np.full((8, 8, 3), np.nan), "nan"),
        (
            np.zeros((3, 8, 8), np.uint8),
            r"^array of shape \(3, 8, 8\) is not an image; give \(H, W\) or \(H, W, 1, 3 or 4\)",
        ),
        (np.zeros((8, 8, 3), np.int64), "^array has type int64; give bool, uint8, uint16, or float in"),
        ("tests/*.png", r"^tests/\*\.png: no image matches this pattern"),
        (b"\xff\xd8\xff", r"^cannot read an image from bytes; open an encoded one by PIL.Image.open\(io.BytesIO"),
        (io.BytesIO(b"\xff\xd8\xff"), "^cannot read an image from BytesIO; open it by PIL.Image.open, or give a path"),
        ([Path("tests")], "^tests: is a folder, not an image; give the path of an image"),
        ("tests/inference", "^tests/inference: no images in this folder"),
    ],
    ids=[
        *(
            "missing file",
            "number",
            "None",
            "batch of arrays",
            "batch of tensors",
            "NaN",
            "channels first",
            "integers",
            "pattern",
            "bytes",
            "file object",
        ),
        *("folder in a list", "folder without images"),
    ],
)
def test_what_is_no_image(detector: Detector, images: Any, message: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(Path(__file__).parents[2])
    with pytest.raises(InputError, match=message) as caught:
        detector.predict(images)
    assert "\n" not in str(caught.value)


def test_the_public_names_are_listed_before_they_are_loaded():
    assert {"load", "Detector"} <= set(dir(retinaconf))
