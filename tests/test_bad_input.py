"""Whatever a user gives: one line that says what is wrong, where, and what to do; and nothing half-written."""

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import save_file

from retinaconf.api import diagnose
from retinaconf.diagnosis.report.figures import save_figures
from retinaconf.diagnosis.report.page import write_report
from retinaconf.errors import InputError
from retinaconf.inference.evaluate import evaluate
from retinaconf.inference.predict import predict_files
from retinaconf.run_folder import read_weights, write_weights


def change(file: Path, edit: Callable[[dict[str, Any]], Any]) -> None:
    document = json.loads(file.read_text())
    edit(document)
    file.write_text(json.dumps(document))


def flip_a_bit(file: Path) -> None:
    """In the middle of the pixels: the header and the end are whole."""
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 4
    file.write_bytes(data)


def annotation(**changes: Any) -> Callable[[Path], None]:
    """Damage the third annotation of the training set."""
    return lambda data: change(data / "train.json", lambda document: document["annotations"][2].update(changes))


def cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def one_line(result: Any) -> str:
    assert result.code == 1, result.err
    assert result.err.startswith("retinaconf: ")
    assert result.err.count("\n") == 1
    assert "Traceback" not in result.err
    return result.err.removeprefix("retinaconf: ").strip()


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


# --- train ---------------------------------------------------------------------------------------------------------

# What is done to the data, and what the line must name: the file, the record, the remedy.
DAMAGE: dict[str, tuple[Callable[[Path], object], list[str]]] = {
    "no data folder": (shutil.rmtree, ["data: no such folder", "--data takes"]),
    "no annotation file": (lambda data: (data / "train.json").unlink(), ["data: no split 'train'", "it has val"]),
    "no layout": (
        lambda data: [(data / f"{split}.json").unlink() for split in ("train", "val")],
        ["data: no data set recognised", "looked for"],
    ),
    "no image folder": (lambda data: shutil.rmtree(data / "images"), ["images: no such folder", "train.json"]),
    "missing image": (
        lambda data: (data / "images/train-5.png").unlink(),
        ["train-5.png: no such image file", "--data.skip-bad"],
    ),
    "truncated image": (
        lambda data: cut(data / "images/train-5.png"),
        ["train-5.png: truncated", "restore or remove", "--data.skip-bad"],
    ),
    "one bit of an image": (
        lambda data: flip_a_bit(data / "images/train-5.png"),
        ["train-5.png: truncated or damaged", "restore or remove", "--data.skip-bad"],
    ),
    "one bit of a validation image": (
        lambda data: flip_a_bit(data / "images/val-2.png"),
        ["val-2.png: truncated or damaged", "restore or remove", "--data.skip-bad"],
    ),
    "no image": (
        lambda data: (data / "images/train-5.png").write_text("hello"),
        ["train-5.png: not an image", "restore or remove"],
    ),
    "empty image": (lambda data: (data / "images/train-5.png").write_bytes(b""), ["train-5.png: is empty", "restore"]),
    "image of another size": (
        lambda data: Image.new("RGB", (9, 9)).save(data / "images/train-5.png"),
        ["train-5.png: the image is 9 x 9 pixels", "correct the annotation"],
    ),
    "bad validation image": (lambda data: cut(data / "images/val-2.png"), ["val-2.png: truncated", "--data.skip-bad"]),
    "two bad images": (
        lambda data: [cut(data / f"images/train-{n}.png") for n in (1, 5)],
        ["train-1.png: truncated", "(1 more images are bad)"],
    ),
    "invalid JSON": (lambda data: cut(data / "train.json"), ["train.json: not valid JSON"]),
    "no COCO": (lambda data: (data / "train.json").write_text("[]"), ["train.json: no list 'images'", "a COCO file"]),
    "unknown image": (annotation(image_id=4), ["train.json: annotation 3 names image 4", "--data.skip-bad"]),
    "unknown category": (
        annotation(category_id=4),
        ["train.json: annotation 3", "names category 4", "--data.skip-bad"],
    ),
    "NaN box": (annotation(bbox=[1, float("nan"), 3, 4]), ["annotation 3 (image train-2.png)", "nan", "finite"]),
    "box of three": (annotation(bbox=[1, 2, 3]), ["annotation 3 (image train-2.png)", "not four numbers"]),
    "no boxes": (
        lambda data: change(data / "train.json", lambda document: document["annotations"].clear()),
        ["train.json: no boxes to learn from", "give"],
    ),
    "only crowds": (
        lambda data: change(data / "train.json", lambda d: [a.update(iscrowd=1) for a in d["annotations"]]),
        ["train.json: no boxes to learn from", "give"],
    ),
    "other categories in val": (
        lambda data: change(data / "val.json", lambda document: document["categories"][0].update(name="violet")),
        ["val.json: its 3 categories are not the 3 of", "train.json", "use data with the same categories"],
    ),
}


@pytest.mark.parametrize(("damage", "named"), DAMAGE.values(), ids=DAMAGE)
def test_bad_data_stops_a_training_before_it_starts(
    run_cli: Callable[..., Any], tiny_data: Path, tiny_flags: list[str], tmp_path: Path, damage: Any, named: list[str]
):
    damage(tiny_data)
    run = tmp_path / "run"
    line = one_line(run_cli("train", "conf-r50-1x", "--data", tiny_data, "--out", run, *tiny_flags))
    for part in named:
        assert part in line
    assert str(tiny_data) in line
    assert [path.name for path in tmp_path.iterdir() if path != tiny_data] == []


SETTINGS = {
    "unknown backbone": (["--model.backbone", "resnet99"], ["backbone 'resnet99'", "no such model"]),
    "backbone without strides": (["--model.backbone", "vit_tiny_patch16_224"], ["vit_tiny_patch16_224"]),
    "missing weights": (["--model.weights", "nowhere.pth"], ["nowhere.pth: no such file with weights"]),
    "weights that are none": (
        ["--model.weights", __file__],
        ["test_bad_input.py: not a readable file of weights"],
    ),
    "batch in parts": (["--optimizer.accumulate", "3"], ["data.batch-size 4 does not divide", "change one of them"]),
}


@pytest.mark.parametrize(("flags", "named"), SETTINGS.values(), ids=SETTINGS)
def test_settings_that_cannot_train_leave_the_run_folder_free(
    run_cli: Callable[..., Any], tiny_data: Path, tiny_flags: list[str], tmp_path: Path, flags: list[str], named: Any
):
    run = tmp_path / "run"
    line = one_line(run_cli("train", "conf-r50-1x", "--data", tiny_data, "--out", run, *tiny_flags, *flags))
    for part in named:
        assert part in line
    assert not run.exists()


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_is_not_there(
    run_cli: Callable[..., Any], tiny_data: Path, tiny_flags: list[str], tmp_path: Path, untrained: Path
):
    out, gpu = tmp_path / "out", ["--device", "cuda"]
    for words in (
        ["train", "conf-r50-1x", "--data", tiny_data, "--out", out, *tiny_flags, *gpu],
        ["evaluate", untrained, "--data", tiny_data, *gpu],
        ["predict", untrained, tiny_data / "images", "--out", out, *gpu],
    ):
        assert "--device cuda: torch finds no GPU here; use --device cpu" in one_line(run_cli(*words))
    assert not out.exists()


@pytest.mark.parametrize("inside", [False, True], ids=["a file", "inside a file"])
def test_an_output_that_cannot_be_written(
    run_cli: Callable[..., Any],
    tiny_data: Path,
    tiny_flags: list[str],
    tmp_path: Path,
    untrained: Path,
    inside: bool,
):
    file = tmp_path / "file"
    file.write_text("precious")
    out = file / "out" if inside else file
    for words in (
        ["train", "conf-r50-1x", "--data", tiny_data, "--out", out, *tiny_flags],
        ["predict", untrained, tiny_data / "images/train-0.png", "--out", out],
    ):
        line = one_line(run_cli(*words))
        assert line.startswith(f"{out}: cannot be written (")
        assert "choose another --out" in line
    assert file.read_text() == "precious"


def test_bad_records_are_skipped_and_listed_on_request(
    run_cli: Callable[..., Any], tiny_data: Path, tiny_flags: list[str], tmp_path: Path
):
    flip_a_bit(tiny_data / "images/train-5.png")
    (tiny_data / "images/val-1.png").unlink()
    annotation(bbox=[1, float("nan"), 3, 4])(tiny_data)
    run = tmp_path / "run"
    words = ["train", "conf-r50-1x", "--data", tiny_data, "--out", run, *tiny_flags, "--max-steps", "2"]  # one epoch
    result = run_cli(*words, "--data.skip-bad")
    assert (result.code, result.err) == (0, "")
    for printed in (result.out, (run / "log.txt").read_text()):
        assert "train.json: annotation 3 (image train-2.png) has bbox" in printed
        assert "train-5.png: truncated or damaged" in printed
        assert "val-1.png: no such image file" in printed
        assert printed.count("; dropped") == 3
        assert "train.json, 7 images" in printed
        assert "1 image and 1 annotation left out" in printed
        assert "val.json, 3 images" in printed


def test_a_training_stops_where_more_than_a_share_is_left_out(
    run_cli: Callable[..., Any], tiny_data: Path, tiny_flags: list[str], tmp_path: Path
):
    for n in range(1, 8):
        (tiny_data / f"images/train-{n}.png").unlink()
    words = ["train", "conf-r50-1x", "--data", tiny_data, "--out", tmp_path / "run", *tiny_flags, "--data.skip-bad"]
    line = one_line(run_cli(*words))
    assert "train.json: 7 of 8 images cannot be used, more than data.max-skipped 0.01 allows" in line
    assert not (tmp_path / "run").exists()


# --- runs that are there already -----------------------------------------------------------------------------------


@pytest.fixture
def finished(trained: Any, tmp_path: Path) -> Path:
    """A copy of a whole run, to damage."""
    return Path(shutil.copytree(trained.run, tmp_path / "run"))


def test_an_existing_run_is_not_overwritten(
    run_cli: Callable[..., Any], finished: Path, trained: Any, tiny_flags: list[str]
):
    before = contents(finished)
    words = ["train", "conf-r50-1x", "--data", trained.data, "--out", finished, *tiny_flags]
    line = one_line(run_cli(*words))
    assert line == f"{finished} holds a run already; continue it with --resume, or choose another --out"
    line = one_line(run_cli(*words, "--resume", "--optimizer.lr", "0.5"))
    assert "config.json: optimizer.lr is 0.01 there and 0.5 here; resume with the settings of the run" in line
    line = one_line(run_cli(*words, "--resume", "--seed", "1"))
    assert "config.json: seed is 0 there and 1 here" in line
    assert contents(finished) == before


def test_resuming_with_other_categories(
    run_cli: Callable[..., Any], finished: Path, tiny_data: Path, tiny_flags: list[str]
):
    before = (finished / "last.ckpt").read_bytes()
    for split in ("train", "val"):
        change(tiny_data / f"{split}.json", lambda document: document["categories"].append({"id": 4, "name": "new"}))
    words = ["train", "conf-r50-1x", "--data", tiny_data, "--out", finished, *tiny_flags, "--resume"]
    line = one_line(run_cli(*words))
    assert "last.ckpt: its categories are not those of" in line
    assert "train.json (category 4 is 'new' here and missing there); resume with the data of the run, or choose" in line
    assert (finished / "last.ckpt").read_bytes() == before


CHECKPOINTS: dict[str, tuple[Callable[[Path], object], str]] = {
    "cut": (cut, "not a readable checkpoint"),
    "text": (lambda file: file.write_text("hello"), "not a readable checkpoint"),
    "empty": (lambda file: file.write_bytes(b""), "not a readable checkpoint"),
    "another's": (lambda file: torch.save({"model": {}}, file), "not a checkpoint of this version's training"),
    "a list": (lambda file: torch.save([1], file), "not a checkpoint of this version's training"),
    "code": (lambda file: torch.save({"step": change}, file), "not a readable checkpoint"),
}


@pytest.mark.parametrize(("damage", "message"), CHECKPOINTS.values(), ids=CHECKPOINTS)
def test_a_damaged_checkpoint(
    run_cli: Callable[..., Any], finished: Path, trained: Any, tiny_flags: list[str], damage: Any, message: str
):
    damage(finished / "last.ckpt")
    (finished / "last.ckpt.previous").unlink()
    before = contents(finished)
    words = ["train", "conf-r50-1x", "--data", trained.data, "--out", finished, *tiny_flags, "--resume"]
    line = one_line(run_cli(*words))
    assert line.startswith(f"{finished / 'last.ckpt'}: {message}")
    assert line.endswith("train anew")
    after = contents(finished)
    may_change = ("log.txt", "checked-images.json")  # the start reads the images before the checkpoint
    assert {name: after[name] for name in before if name not in may_change} == {
        name: before[name] for name in before if name not in may_change
    }


# --- evaluate and predict ------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def untrained(tmp_path_factory: pytest.TempPathFactory, write_run: Callable[..., Path]) -> Path:
    return write_run(tmp_path_factory.mktemp("untrained") / "run")


@pytest.fixture(scope="module")
def branchless(tmp_path_factory: pytest.TempPathFactory, write_run: Callable[..., Path]) -> Path:
    changes = {"model.quality": "none", "inference.alpha": 0.0}
    return write_run(tmp_path_factory.mktemp("branchless") / "run", **changes)


@pytest.mark.parametrize("alpha", ["1.5", "-0.1", "nan", "inf"])
def test_a_wrong_alpha(run_cli: Callable[..., Any], untrained: Path, tiny_data: Path, tmp_path: Path, alpha: str):
    out = tmp_path / "out"
    for words in (
        ["evaluate", untrained, "--data", tiny_data, "--json", out],
        ["predict", untrained, tiny_data / "images", "--out", out],
    ):
        line = one_line(run_cli(*words, "--alpha", alpha))
        assert line.startswith("inference.alpha: Input should be ")
        assert f"not {float(alpha)}" in line
        assert not out.exists()


def test_an_alpha_without_a_branch(run_cli: Callable[..., Any], branchless: Path, tiny_data: Path, tmp_path: Path):
    out = tmp_path / "out"
    for words in (
        ["evaluate", branchless, "--data", tiny_data, "--json", out],
        ["predict", branchless, tiny_data / "images", "--out", out],
    ):
        line = one_line(run_cli(*words, "--alpha", "0.4"))
        assert "need a quality branch, and model.quality is none; leave them out" in line
        assert not out.exists()
    line = one_line(run_cli("evaluate", branchless, "--data", tiny_data, "--sweep"))
    assert line == f"{branchless}: has no quality branch, so there is nothing to sweep; evaluate it without --sweep"


def swap(categories: list[dict[str, Any]]) -> None:
    """Give two classes the ids of each other."""
    categories[0]["name"], categories[1]["name"] = categories[1]["name"], categories[0]["name"]


@pytest.mark.parametrize(
    ("edit", "named"),
    [
        (
            lambda categories: categories.append({"id": 4, "name": "new"}),
            ("its 4 categories are not the 3", "category 4 is 'new' here and missing there"),
        ),
        (
            lambda categories: categories[0].update(name="violet"),
            ("its 3 categories are not the 3", "category 3 is 'violet' here and 'red' there"),
        ),
        (swap, ("its 3 categories are not the 3", "category 3 is 'green' here and 'red' there")),
    ],
    ids=["one more", "another name", "another order"],
)
@pytest.mark.parametrize("command", ["evaluate", "tune"])
def test_data_with_other_categories(
    run_cli: Callable[..., Any], untrained: Path, tiny_data: Path, edit: Any, named: tuple[str, str], command: str
):
    change(tiny_data / "val.json", lambda document: edit(document["categories"]))
    line = one_line(run_cli(command, untrained, "--data", tiny_data))
    assert line.startswith(f"{tiny_data / 'val.json'}: {named[0]} of {untrained} ({named[1]}); ")
    assert "use data with the same categories" in line


def test_a_split_without_objects(run_cli: Callable[..., Any], untrained: Path, tiny_data: Path):
    change(tiny_data / "val.json", lambda document: document["annotations"].clear())
    result = run_cli("evaluate", untrained, "--data", tiny_data)
    assert (result.code, result.err) == (0, "")
    assert "0 boxes, 3 classes; warning: no objects in it, so that nothing can be measured" in result.out
    line = one_line(run_cli("tune", untrained, "--data", tiny_data))
    assert line == f"{tiny_data / 'val.json'}: no objects in it; tune on a split with annotated objects"


def test_evaluation_of_a_split_or_an_image_that_is_not_there(
    run_cli: Callable[..., Any], untrained: Path, tiny_data: Path, tmp_path: Path
):
    report = tmp_path / "report.json"
    words = ["evaluate", untrained, "--data", tiny_data, "--json", report]
    assert "no split 'test' in this flat COCO layout; it has train, val" in one_line(run_cli(*words, "--split", "test"))
    cut(tiny_data / "images/val-3.png")
    assert "val-3.png: truncated" in one_line(run_cli(*words))
    assert not report.exists()


def test_a_report_that_cannot_be_written_leaves_nothing(
    run_cli: Callable[..., Any], untrained: Path, tiny_data: Path, tmp_path: Path
):
    result = run_cli("evaluate", untrained, "--data", tiny_data, "--json", tmp_path / "nowhere/report.json")
    assert one_line(result).startswith(f"{tmp_path / 'nowhere/report.json'}: cannot be written (No such file")
    assert "AP50" in result.out  # the numbers are not lost
    assert not (tmp_path / "nowhere").exists()


@pytest.mark.parametrize("value", ["x" * 100_000, [[0] * 50_000], [[[["deep"] * 9000]]], 10**4000])
def test_a_long_value_is_not_repeated_whole(run_cli: Callable[..., Any], tiny_data: Path, tmp_path: Path, value: Any):
    for record in ({"bbox": value}, {"category_id": value}, {"image_id": value}, {"area": value, "id": value}):
        annotation(**record)(tiny_data)
        line = one_line(
            run_cli("calibrate", "--detections", "x", "--data", tiny_data, "--out", "y", "--split", "train")
        )
        assert len(line) < 1100
        assert line.startswith(f"{tiny_data / 'train.json'}: annotation ")
        assert line.endswith("mend it, or drop such records with --data.skip-bad")


def test_a_message_has_nothing_that_a_terminal_obeys(run_cli: Callable[..., Any], tiny_data: Path):
    name = "two\nlines \x1b[31m\u202e.png" + "n" * 900
    change(tiny_data / "val.json", lambda document: document["images"][1].update(file_name=name))
    words = ["train", "conf-r50-1x", "--data", tiny_data, "--out", tiny_data / "run"]
    line = one_line(run_cli(*words))
    assert r"two\nlines \x1b[31m\u202e.png" in line
    result = run_cli("check", "--data", tiny_data)
    assert r"two\nlines\x1b[31m\u202e.png" in "".join(result.out.split())  # it is folded
    assert "\x1b[31m" not in result.out


def rewrite(run: Path, **metadata: str) -> None:
    """The same weights with other metadata."""
    file = run / "model.safetensors"
    with safe_open(file, framework="pt") as tensors:
        old = tensors.metadata()
        state = {name: tensors.get_tensor(name) for name in tensors.keys()}  # noqa: SIM118
    save_file(state, file, {name: value for name, value in (old | metadata).items() if value})


def resize(run: Path, section: str = "model", **sizes: Any) -> None:
    """The same weights with other sizes in the settings."""
    flat = json.loads((run / "config.json").read_text())
    sizes = sizes or {"channels": 1_000_000}
    rewrite(run, config=json.dumps(flat | {f"{section}.{name}": size for name, size in sizes.items()}))


def spoil(run: Path) -> None:
    """One weight that is NaN, as after a training that diverged."""
    weights = read_weights(run)
    weights.state["head.box_conv.bias"][3] = float("nan")
    write_weights(run / "model.safetensors", weights.state, weights.config, weights.classes, weights.category_ids)


MODELS: dict[str, tuple[Callable[[Path], object], str]] = {
    "no folder": (shutil.rmtree, "no such file; give a run folder"),
    "no weights": (lambda run: (run / "model.safetensors").unlink(), "no such file; give a run folder"),
    "cut": (lambda run: cut(run / "model.safetensors"), "not a readable safetensors file"),
    "text": (lambda run: (run / "model.safetensors").write_text("hello"), "not a readable safetensors file"),
    "empty": (lambda run: (run / "model.safetensors").write_bytes(b""), "not a readable safetensors file"),
    "another's": (lambda run: rewrite(run, config=""), "no 'config' in its metadata; was it written by retinaconf?"),
    "no classes": (lambda run: rewrite(run, classes=""), "no 'classes' in its metadata"),
    "metadata no JSON": (lambda run: rewrite(run, config="{"), "its metadata is damaged; restore the file"),
    "config no object": (lambda run: rewrite(run, config="[]"), "its metadata is damaged; restore the file"),
    "classes a number": (lambda run: rewrite(run, classes="3"), "its metadata is damaged; restore the file"),
    "ids for other classes": (lambda run: rewrite(run, category_ids="[1]"), "its metadata is damaged"),
    "unknown setting": (lambda run: rewrite(run, config='{"model.wings": 2}'), "unknown setting 'model.wings'"),
    "not a number": (spoil, "its weights are not finite (in head.box_conv.bias); restore the file, or train anew"),
    "another class count": (
        lambda run: rewrite(run, classes='["a", "b"]', category_ids="[1, 2]"),
        "its weights do not fit its configuration (",
    ),
    "a million channels": (resize, "should be (1000000,"),
    "no end of convolutions": (lambda run: resize(run, head_convs=10**9), "less than or equal to 100"),
    "no spread of colours": (lambda run: resize(run, std=[1, 0, 1]), "divides the colours; give numbers above 0"),
    "huge pictures": (lambda run: resize(run, "data", short_side=10**6, long_side=10**6), "less than or equal to 8192"),
    "half a character": (lambda run: rewrite(run, classes='["\\ud800", "b", "c"]'), "its metadata is damaged"),
}


@pytest.mark.parametrize(("damage", "message"), MODELS.values(), ids=MODELS)
def test_a_run_that_cannot_be_loaded(
    run_cli: Callable[..., Any], untrained: Path, tiny_data: Path, tmp_path: Path, damage: Any, message: str
):
    run = Path(shutil.copytree(untrained, tmp_path / "run"))
    damage(run)
    out = tmp_path / "out"
    for words in (
        ["evaluate", run, "--data", tiny_data, "--json", out],
        ["predict", run, tiny_data / "images", "--out", out],
    ):
        line = one_line(run_cli(*words))
        assert line.startswith(str(run))
        assert message in line
        assert not out.exists()


def test_pictures_that_cannot_be_predicted(
    run_cli: Callable[..., Any], untrained: Path, tiny_data: Path, tmp_path: Path
):
    out, images = tmp_path / "out", tiny_data / "images"
    (tmp_path / "empty").mkdir()
    cut(images / "val-3.png")
    (tmp_path / "text.jpg").write_text("hello")
    for given, message in (
        (tmp_path / "nowhere.jpg", "nowhere.jpg: no such file or folder"),
        (tmp_path / "empty", "empty: no images in this folder"),
        (tmp_path / "text.jpg", "text.jpg: not an image"),
        (images / "val-3.png", "val-3.png: truncated"),
    ):
        assert message in one_line(run_cli("predict", untrained, given, "--out", out))
        assert not out.exists()
    line = one_line(run_cli("predict", untrained, images / "val-1.png", "--out", out, "--score-threshold", "1.5"))
    assert line == "--score-threshold 1.5: give a number from 0 up to, not including, 1"
    assert "no images; give files" in one_line(run_cli("predict", untrained, "--out", out))
    assert not out.exists()


def test_pictures_are_never_written_over_the_images(run_cli: Callable[..., Any], untrained: Path, tmp_path: Path):
    images = tmp_path / "images"
    images.mkdir()
    for name in ("a.png", "b.jpg"):
        Image.new("RGB", (64, 48)).save(images / name)
    before = contents(images)
    line = one_line(run_cli("predict", untrained, images, "--out", images))
    assert line == f"{images / 'b.jpg'}: is an input and would be overwritten; choose another place"
    assert contents(images) == before


# --- outputs that are inputs ---------------------------------------------------------------------------------------

OVERWRITING: dict[str, list[str]] = {
    "check": ["check --data DATA --json DATA/train.json", "check --data DATA --json DATA/images/val-1.png"],
    "evaluate": [
        *(f"evaluate RUN --data DATA --json RUN/{name}" for name in ("model.safetensors", "last.ckpt", "config.json")),
        "evaluate RUN --data DATA --json DATA/train.json",
        "evaluate RUN/model.safetensors --data DATA --json RUN/metrics.jsonl",
        "evaluate RUN --data DATA --detections DATA/val.json",
        "evaluate RUN --data DATA --detections new.json --json new.json",
    ],
    "diagnose": [
        "diagnose --detections dt.json --ground-truth DATA/val.json --report DATA/val.json",
        "diagnose --detections dt.json --ground-truth DATA/val.json --json dt.json",
        "diagnose --detections dt.json --ground-truth DATA/val.json --images DATA/images --json DATA/images/val-1.png",
        "diagnose RUN --data DATA --report RUN/log.txt",
    ],
    "compare": [
        "compare --detections dt.json other.json --ground-truth DATA/val.json --json DATA/val.json",
        "compare --detections dt.json other.json --ground-truth DATA/val.json --report other.json",
        "compare RUN other --data DATA --json RUN/log.txt",
        "compare RUN --against other --data DATA --json new.json --report new.json",
    ],
    "export": ["export RUN --out model.onnx"],  # a link to the weights
}


@pytest.mark.parametrize("command", OVERWRITING)
def test_no_command_overwrites_what_it_reads(
    run_cli: Callable[..., Any], finished: Path, tiny_data: Path, tmp_path: Path, monkeypatch: Any, command: str
):
    monkeypatch.chdir(tmp_path)
    for name in ("dt.json", "other.json"):
        (tmp_path / name).write_text("[]")
    (tmp_path / "model.onnx").symlink_to(finished / "model.safetensors")
    before = contents(tmp_path)
    for line in OVERWRITING[command]:
        words = line.replace("RUN", str(finished)).replace("DATA", str(tiny_data)).split()
        assert re.search(r"is an input.* would be overwritten|two outputs would be", one_line(run_cli(*words))), line
        assert contents(tmp_path) == before


def test_no_function_overwrites_what_it_read(finished: Path, tiny_data: Path, tmp_path: Path):
    (tmp_path / "dt.json").write_text("[]")
    (tmp_path / "density-after-nms.svg").symlink_to(tiny_data / "images/val-1.png")
    before = contents(tmp_path)
    truth = tiny_data / "val.json"
    (diagnosis,) = diagnose(ground_truth=truth, detections=[tmp_path / "dt.json"], images=tiny_data / "images")
    for overwrite in (
        lambda: write_report(truth, [diagnosis]),
        lambda: write_report(tmp_path / "dt.json", [diagnosis]),
        lambda: save_figures(diagnosis, tmp_path),
        lambda: evaluate(finished, tiny_data, "val", detections=tiny_data / "train.json"),
        lambda: predict_files(finished, [tiny_data / "images/val-1.png"], tmp_path / "same"),
    ):
        (tmp_path / "same").mkdir(exist_ok=True)
        (tmp_path / "same/val-1.jpg").unlink(missing_ok=True)
        (tmp_path / "same/val-1.jpg").hardlink_to(tiny_data / "images/val-1.png")
        with pytest.raises(InputError, match=r"is an input.* and would be overwritten"):
            overwrite()
        shutil.rmtree(tmp_path / "same")
        assert contents(tmp_path) == before
