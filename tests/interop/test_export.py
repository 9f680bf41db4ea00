"""Exported files against the detector itself, on real photographs. An export takes seconds: each is made once."""

from __future__ import annotations

import io
import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import retinaconf
from retinaconf.data.loader import padded
from retinaconf.data.transforms import canvas, resized
from retinaconf.inference.joint_score import joint_score, product
from retinaconf.inference.postprocess import Boxes, postprocess
from retinaconf.interop import export
from retinaconf.training.checkpoint import MODEL, read_weights, write_weights

onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")

# Small pictures, and few enough candidates that every level but the last two has more anchors.
SMALL = {"data.short_side": 128, "data.long_side": 192, "inference.candidates": 200, "inference.detections": 50}


# Nothing installed but what the page names can be imported, and what that needs itself.
ALONE = """
import sys

class OnlyThese:
    def find_spec(self, name, path=None, target=None):
        first = name.partition(".")[0]
        allowed = {"numpy", "PIL", "onnxruntime", "flatbuffers", "google", "packaging", "defusedxml"}
        if first not in allowed | sys.stdlib_module_names and not first.startswith("_"):
            raise ImportError(f"no {name} here")

sys.meta_path.insert(0, OnlyThese())
for absent in ("torch", "torchvision", "timm", "onnx", "retinaconf"):
    try:
        __import__(absent)
    except ImportError:
        continue
    sys.exit(f"{absent} could be imported")
"""
REPORT = """
found = {"boxes": boxes[: counts[0]], "scores": scores[0, : counts[0]], "labels": labels[0, : counts[0]]}
print(json.dumps({name: values.tolist() for name, values in found.items()}))
"""


def write_lively_run(write_run: Callable[..., Path], folder: Path, **changes: Any) -> Path:
    """A run with random weights whose scores spread over (0, 1) and whose boxes move, so that much is found."""
    write_run(folder, **(SMALL | changes))
    weights = read_weights(folder)
    state = dict(weights.state)
    for name, factor in (("class_conv", 100.0), ("quality_conv", 100.0), ("box_conv", 20.0)):
        if f"head.{name}.weight" in state:
            state[f"head.{name}.weight"] = state[f"head.{name}.weight"] * factor
    state["head.class_conv.bias"] = torch.full_like(state["head.class_conv.bias"], -1.0)
    write_weights(folder / MODEL, state, weights.config, weights.classes, weights.category_ids)
    return folder


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory, write_run: Callable[..., Path]) -> Callable[..., Any]:
    """`exported(key)`: a run, its file, and `call(**arrays)`, the file as a function to arrays by name."""
    folder = tmp_path_factory.mktemp("exported")
    made: dict[str, Any] = {}
    changes: dict[str, dict[str, Any]] = {
        "conf.onnx": {},
        "conf-raw.onnx": {"model.anchors": "torchvision"},
        "torchvision.onnx": {
            "model.quality": "none",
            "inference.alpha": 0.0,
            "inference.rules": "torchvision",
            "inference.score_threshold": 0.3,
        },
        "conf.pt2": {},
        "one-class.onnx": {"model.quality": "none", "inference.alpha": 0.0, "classes": {7: "thing"}},
    }

    def get(key: str) -> Any:
        if key not in made:
            run = write_lively_run(write_run, folder / key.replace(".", "-"), **changes[key])
            out = folder / key
            line = export.export_run(run, out, raw="raw" in key)
            call, session = program(out) if out.suffix == ".pt2" else onnx_file(out)
            made[key] = SimpleNamespace(
                run=run, out=out, line=line, call=call, session=session, detector=retinaconf.load(run, "cpu")
            )
        return made[key]

    return get


def onnx_file(path: Path) -> tuple[Callable[..., Any], Any]:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    return lambda **inputs: dict(zip(names, session.run(None, inputs))), session


def program(path: Path) -> tuple[Callable[..., Any], Any]:
    module = torch.export.load(io.BytesIO(path.read_bytes())).module()

    def call(**inputs: np.ndarray) -> dict[str, np.ndarray]:
        run_settings = {"score_threshold": np.float32(0.05), "alpha": np.float32(0.4)}  # a program has no defaults
        outputs = module(**{name: torch.as_tensor(value) for name, value in (run_settings | inputs).items()})
        return {name: value.numpy() for name, value in outputs.items()}

    return call, None


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


def test_clipping_after_nms_is_refused(
    run_cli: Callable[..., Any], write_run: Callable[..., Path], tmp_path: Path
) -> None:
    run = write_run(tmp_path / "run", **{"inference.rules": "detectron2"})
    done = run_cli("export", run, "--out", tmp_path / "model.onnx")
    assert (done.code, len(done.err.splitlines())) == (1, 1)
    assert "--raw" in done.err


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


def test_raw_outputs_at_several_sizes(exported: Callable[..., Any]) -> None:
    ours = exported("conf-raw.onnx")
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
    config = exported("conf.onnx").detector.config
    assert set(export._settings(config)) == {"score_threshold", "alpha"}
    assert set(export._settings(config.changed(**{"inference.joint": "cls*obj"}))) == {"score_threshold"}


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


@pytest.mark.parametrize("key", ["conf.onnx", "one-class.onnx"])
def test_the_page_s_inference_needs_no_torch(key: str, exported: Callable[..., Any], tmp_path: Path) -> None:
    ours = exported(key)
    (tmp_path / "model.onnx").write_bytes(ours.out.read_bytes())
    pixels = np.random.default_rng(0).integers(0, 255, (9, 12, 3), dtype=np.uint8)
    photo = Image.fromarray(pixels).resize((373, 251), Image.Resampling.BICUBIC)
    exif = photo.getexif()
    exif[0x0112] = 6  # lying on its side
    photo.save(tmp_path / "photo.jpg", exif=exif)

    page = (Path(__file__).parents[2] / "docs/export.md").read_text()
    (snippet,) = re.findall(r"^```python\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)
    done = subprocess.run(
        [sys.executable, "-c", ALONE + snippet + REPORT], cwd=tmp_path, capture_output=True, text=True
    )
    assert (done.returncode, done.stderr) == (0, "")
    *shown, report = done.stdout.splitlines()
    given = {name: np.array(values) for name, values in json.loads(report).items()}

    (wanted,) = ours.detector.predict(tmp_path / "photo.jpg")
    assert len(wanted) > 10
    np.testing.assert_array_equal(given["labels"], wanted.labels)
    np.testing.assert_allclose(given["scores"], wanted.scores, atol=1e-5)
    np.testing.assert_allclose(given["boxes"], wanted.boxes, atol=1e-3)
    assert [line.split()[0] for line in shown] == [wanted.classes[label] for label in wanted.labels]


def test_the_command(
    run_cli: Callable[..., Any], exported: Callable[..., Any], tmp_path: Path, monkeypatch: Any
) -> None:
    ours = exported("conf.onnx")
    monkeypatch.setattr(export, "_onnx", lambda *args: ours.out.read_bytes())  # it takes seconds
    done = run_cli("export", ours.run, "--out", tmp_path / "model.onnx")
    assert (done.code, done.err) == (0, "")
    assert "detections as in torch, largest difference" in done.out
    assert len(done.out.splitlines()) == 1
    assert (tmp_path / "model.onnx").read_bytes() == ours.out.read_bytes()


def test_a_file_that_differs_is_not_written(
    run_cli: Callable[..., Any],
    write_run: Callable[..., Path],
    exported: Callable[..., Any],
    tmp_path: Path,
    monkeypatch: Any,
) -> None:
    """Of the same network with other weights."""
    run = write_run(tmp_path / "run", **SMALL)
    for kind, raw in (("conf.onnx", ()), ("conf-raw.onnx", ("--raw",))):
        monkeypatch.setattr(export, "_onnx", lambda *args, kind=kind: exported(kind).out.read_bytes())
        done = run_cli("export", run, "--out", tmp_path / "model.onnx", *raw)
        assert (done.code, done.out) == (1, "")
        assert "not written, the exported file differs from torch" in done.err
        assert len(done.err.splitlines()) == 1
        assert [path.name for path in tmp_path.iterdir()] == ["run"]


def test_what_the_user_can_get_wrong(
    run_cli: Callable[..., Any], write_run: Callable[..., Path], tmp_path: Path, monkeypatch: Any
) -> None:
    run = write_run(tmp_path / "run", **SMALL)

    def complaint(code: int, *words: Any) -> str:
        done = run_cli("export", *words)
        assert (done.code, done.out, len(done.err.splitlines())) == (code, "", 1)
        assert sorted(path.name for path in tmp_path.iterdir()) == ["run"]
        return str(done.err)

    wrong_suffix = complaint(2, run, "--out", tmp_path / "model.pb")
    assert ".onnx" in wrong_suffix
    assert ".pt2" in wrong_suffix
    assert "give a run folder" in complaint(1, tmp_path / "nothing", "--out", tmp_path / "model.onnx")
    assert "a folder that exists" in complaint(1, run, "--out", tmp_path / "no-folder/model.onnx")
    monkeypatch.setattr(export, "_onnx", lambda *args: torch.ones(2) @ torch.ones(3))
    assert "torch cannot export a detector on test_resnet (RuntimeError" in complaint(
        1, run, "--out", tmp_path / "model.onnx"
    )
    found = export.importlib.util.find_spec
    monkeypatch.setattr(export.importlib.util, "find_spec", lambda name: None if name == "onnxscript" else found(name))
    assert "onnxscript; pip install 'retinaconf[onnx]'" in complaint(1, run, "--out", tmp_path / "model.onnx")


def test_tensor_exponents_give_the_joint_score_of_numbers() -> None:
    """An exported graph has alpha as a tensor, which rounds 1 - alpha to 32 bits."""
    from retinaconf.inference.joint_score import JointScore

    scores, quality = torch.rand(2, 100, generator=torch.Generator().manual_seed(0))
    for alpha in (0.0, 0.3, 1.0):
        exponent = torch.tensor(alpha)
        traced = JointScore("", exponent, 1 - exponent)(scores, quality)  # type: ignore[arg-type]
        torch.testing.assert_close(traced, product(alpha)(scores, quality), rtol=1e-6, atol=0)
