"""Exported files against the detector itself, on real photographs."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import retinaconf
from retinaconf.data.loader import padded
from retinaconf.data.transforms import canvas, resized
from retinaconf.inference.joint_score import joint_score, product
from retinaconf.inference.postprocess import postprocess
from retinaconf.inference.suppression import Boxes
from retinaconf.interop import export

onnx = pytest.importorskip("onnx")
pytestmark = pytest.mark.ci  # torch takes long to export


@pytest.fixture(scope="module")
def photographs(shared_data: Path) -> list[np.ndarray]:
    """20 of COCO, upright and lying, resized as the runs here ask."""
    pixels = []
    for path in sorted((shared_data / "coco-mini/val2017").glob("*.jpg"))[:20]:
        image = Image.open(path).convert("RGB")
        height, width = resized((image.height, image.width), 128, 192)
        pixels.append(np.asarray(image.resize((width, height), Image.Resampling.BILINEAR)))
    assert len({image.shape for image in pixels}) > 4
    return pixels


def batches(pixels: list[np.ndarray], size: int) -> list[dict[str, np.ndarray]]:
    result = []
    for start in range(0, len(pixels), size):
        part = pixels[start : start + size]
        sizes = [image.shape[:2] for image in part]
        result.append({"images": padded(part, canvas(sizes)).float().numpy(), "sizes": np.array(sizes)})
    return result


def by_torch(detector: Any, inputs: dict[str, np.ndarray], **changes: Any) -> list[Boxes]:
    config = detector.inference_config(**changes)
    sizes = torch.from_numpy(inputs["sizes"])
    with torch.inference_mode():
        outputs = detector.model(torch.from_numpy(inputs["images"]), sizes)
        return postprocess(outputs, sizes, config, [joint_score(config)])[0]


def assert_same(outputs: dict[str, np.ndarray], wanted: list[Boxes]) -> int:
    """Same rows in the same order, and nothing in the rows behind; returns how many rows there are."""
    assert outputs["counts"].tolist() == [len(found.scores) for found in wanted]
    for n, found in enumerate(wanted):
        count = len(found.scores)
        row = {name: values[n] for name, values in outputs.items() if name != "counts"}
        np.testing.assert_array_equal(row["labels"][:count], found.labels)
        for name in set(row) - {"labels"}:
            np.testing.assert_allclose(row[name][:count], getattr(found, name), atol=1e-4, rtol=0)
            assert not row[name][count:].any()
        assert (row["labels"][count:] == -1).all()
    return sum(len(found.scores) for found in wanted)


@pytest.mark.parametrize("size", [1, 4])
@pytest.mark.parametrize("alpha", [0.0, 0.4])
@pytest.mark.parametrize("key", ["conf.onnx", pytest.param("conf.pt2", marks=pytest.mark.slow)])
def test_detections_are_those_of_torch(
    key: str, alpha: float, size: int, exported: Callable[..., Any], photographs: list[np.ndarray]
) -> None:
    ours = exported(key)
    rows = 0
    for inputs in batches(photographs, size):
        outputs = ours.call(**inputs, alpha=np.array(alpha, np.float32))
        rows += assert_same(outputs, by_torch(ours.detector, inputs, alpha=alpha))
        assert set(outputs) == {"counts", "boxes", "scores", "labels", "class_scores", "quality"}
        if alpha == 0:
            np.testing.assert_array_equal(outputs["scores"], outputs["class_scores"])
    assert rows > 500


@pytest.mark.slow
def test_boxes_and_quality_of_distributions(exported: Callable[..., Any], photographs: list[np.ndarray]) -> None:
    """One anchor a cell, and a scale per level."""
    ours = exported("aligned.onnx")
    rows, qualities = 0, []
    for inputs in batches(photographs, 4):
        outputs = ours.call(**inputs)
        rows += assert_same(outputs, by_torch(ours.detector, inputs))
        qualities.append(outputs["quality"][outputs["quality"] > 0])
    assert rows > 200
    assert np.concatenate(qualities).std() > 0.01


@pytest.mark.slow
def test_soft_nms_and_score_voting(exported: Callable[..., Any], photographs: list[np.ndarray]) -> None:
    ours = exported("vote.onnx")
    moved = fallen = 0
    for inputs in batches(photographs, 4):
        outputs = ours.call(**inputs)
        assert_same(outputs, by_torch(ours.detector, inputs))
        for n, plain in enumerate(by_torch(ours.detector, inputs, vote=False)):
            difference = np.abs(outputs["boxes"][n, : len(plain.scores)] - plain.boxes.numpy())
            moved += int((difference.max(axis=1) > 1).sum())
        for n, plain in enumerate(by_torch(ours.detector, inputs, soft_nms=False)):
            fallen += int((outputs["scores"][n, : len(plain.scores)] < plain.scores.numpy() - 0.001).sum())
    assert moved > 100
    assert fallen > 20


@pytest.mark.slow
def test_the_proportional_joint_score(exported: Callable[..., Any], photographs: list[np.ndarray]) -> None:
    ours = exported("proportional.onnx")
    unlike_the_product = 0
    for inputs in batches(photographs, 4):
        outputs = ours.call(**inputs, alpha=np.array(0.7, np.float32))
        wanted = by_torch(ours.detector, inputs, alpha=0.7)
        assert_same(outputs, wanted)
        product = by_torch(ours.detector, inputs, alpha=0.7, joint="product")
        unlike_the_product += sum(not torch.equal(a.scores, b.scores) for a, b in zip(wanted, product))
    assert unlike_the_product > 0


@pytest.mark.slow
def test_other_rules(exported: Callable[..., Any], photographs: list[np.ndarray]) -> None:
    """Of a level the best pairs instead of the best anchors, and boxes without area stay."""
    ours = exported("torchvision.onnx")
    by_the_paper = 0
    for inputs in batches(photographs, 4):
        outputs = ours.call(**inputs)
        assert_same(outputs, by_torch(ours.detector, inputs))
        wanted = by_torch(ours.detector, inputs, rules="paper")
        by_the_paper += sum(len(found.scores) for found in wanted) == outputs["counts"].sum() and all(
            np.array_equal(outputs["scores"][n, : len(found.scores)], found.scores) for n, found in enumerate(wanted)
        )
    assert by_the_paper < 5  # else nothing was seen of them


@pytest.mark.slow  # tests/test_strangers_path.py exports such a detector, too
@pytest.mark.parametrize("size", [1, 4])
def test_one_class_and_no_branch(size: int, exported: Callable[..., Any], photographs: list[np.ndarray]) -> None:
    ours = exported("one-class.onnx")
    assert [value.name for value in ours.session.get_inputs()] == ["images", "sizes"]
    assert [value.name for value in ours.session.get_overridable_initializers()] == ["score_threshold"]  # no alpha
    rows = 0
    for inputs in batches(photographs, size):
        outputs = ours.call(**inputs)
        rows += assert_same(outputs, by_torch(ours.detector, inputs))
        assert "quality" not in outputs
    assert rows > 200


@pytest.mark.slow  # test_exportable.py compares the module that is exported
def test_raw_outputs_at_several_sizes(exported: Callable[..., Any]) -> None:
    ours = exported("raw.onnx")
    rng = np.random.default_rng(0)
    for shape in ((1, 3, 32, 32), (1, 3, 32, 96), (3, 3, 128, 64), (2, 3, 160, 288)):
        images = rng.uniform(0, 255, shape).astype(np.float32)
        sizes = rng.integers(20, shape[2:], (shape[0], 2), endpoint=True)
        outputs = ours.call(images=images, sizes=sizes)
        assert list(outputs) == ["class_logits", "box_deltas", "quality_logits", "anchors"]
        with torch.inference_mode():
            wanted = ours.detector.model(torch.from_numpy(images), torch.from_numpy(sizes))
        np.testing.assert_array_equal(outputs.pop("anchors"), wanted.anchors)
        for name, values in outputs.items():
            np.testing.assert_allclose(values, getattr(wanted, name), atol=1e-4, rtol=1e-5)


@pytest.mark.parametrize("key", ["conf.onnx", pytest.param("conf.pt2", marks=pytest.mark.slow)])
def test_images_without_detections_and_of_one_cell(key: str, exported: Callable[..., Any]) -> None:
    ours = exported(key)
    noise = np.random.default_rng(0).uniform(0, 255, (2, 3, 32, 64)).astype(np.float32)
    inputs = {"images": noise, "sizes": np.array([[32, 64], [20, 33]])}
    outputs = ours.call(**inputs, score_threshold=np.array(0.9999, np.float32))
    assert outputs["counts"].tolist() == [0, 0]
    assert_same(outputs, by_torch(ours.detector, inputs, score_threshold=0.9999))
    # One that finds something beside one that does not: a picture of no size has no box with an area.
    inputs["sizes"] = np.array([[32, 64], [0, 0]])
    outputs = ours.call(**inputs)
    assert outputs["counts"][0] > 0
    assert outputs["counts"][1] == 0
    assert_same(outputs, by_torch(ours.detector, inputs))


def test_inputs_that_may_be_left_out_have_the_run_s_values(exported: Callable[..., Any]) -> None:
    ours = exported("conf.onnx")
    noise = np.random.default_rng(1).uniform(0, 255, (1, 3, 96, 128)).astype(np.float32)
    inputs = {"images": noise, "sizes": np.array([[96, 128]])}
    plain = ours.call(**inputs)
    given = ours.call(**inputs, alpha=np.array(0.4, np.float32), score_threshold=np.array(0.05, np.float32))
    other = ours.call(**inputs, alpha=np.array(0.1, np.float32))
    np.testing.assert_array_equal(plain["scores"], given["scores"])
    assert not np.array_equal(plain["scores"], other["scores"])


def test_another_joint_score_has_no_alpha(exported: Callable[..., Any]) -> None:
    inference = exported("conf.onnx").detector.config.inference
    assert set(export._settings("classification", inference)) == {"score_threshold", "alpha"}
    other = inference.model_copy(update={"joint": "cls*obj"})
    assert set(export._settings("classification", other)) == {"score_threshold"}


def test_the_file_says_what_it_is_and_not_where_it_was_made(exported: Callable[..., Any]) -> None:
    ours = exported("conf.onnx")
    about = ours.session.get_modelmeta().custom_metadata_map
    assert json.loads(about["classes"]) == ["red", "green", "blue"]
    assert json.loads(about["category_ids"]) == [3, 8, 90]
    assert (about["short_side"], about["long_side"]) == ("128", "192")
    assert json.loads(about["config"]) == ours.detector.config.flat()
    assert str(Path(retinaconf.__file__).parent).encode() not in ours.out.read_bytes()


@pytest.mark.slow
def test_a_program_says_what_it_is(exported: Callable[..., Any]) -> None:
    ours = exported("conf.pt2")
    files = {export.METADATA: ""}
    torch.export.load(io.BytesIO(ours.out.read_bytes()), extra_files=files)
    about = json.loads(files[export.METADATA])
    assert set(about) == {"classes", "category_ids", "short_side", "long_side", "config"}
    assert json.loads(about["classes"]) == ["red", "green", "blue"]


def test_norms_are_part_of_the_convolutions(exported: Callable[..., Any]) -> None:
    ours = exported("conf.onnx")
    kinds = [node.op_type for node in onnx.load(ours.out).graph.node]
    assert "BatchNormalization" not in kinds
    assert "Rsqrt" not in kinds
    body = sum(isinstance(module, torch.nn.Conv2d) for module in ours.detector.model.backbone.modules())
    head = 5 * (2 + 3)  # levels; towers of one convolution, and those on top
    assert kinds.count("Conv") == body + 3 + 3 + 2 + head  # and the pyramid's


def test_tensor_exponents_give_the_joint_score_of_numbers() -> None:
    """An exported graph has alpha as a tensor, which rounds 1 - alpha to 32 bits."""
    from retinaconf.inference.joint_score import JointScore

    scores, quality = torch.rand(2, 100, generator=torch.Generator().manual_seed(0))
    for alpha in (0.0, 0.3, 1.0):
        exponent = torch.tensor(alpha)
        traced = JointScore("", exponent, 1 - exponent)(scores, quality)  # type: ignore[arg-type]
        torch.testing.assert_close(traced, product(alpha)(scores, quality), rtol=1e-6, atol=0)
