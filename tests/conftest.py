"""What many tests share: the real data, a tiny data set and a detector trained on it in seconds."""

from __future__ import annotations

import gc
import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from filelock import FileLock
from hypothesis import settings
from PIL import Image, ImageDraw

# Machines differ in speed, and a test that fails does so every time.
settings.register_profile("retinaconf", deadline=None, derandomize=True, database=None, max_examples=50)
settings.load_profile("retinaconf")

gc.set_threshold(50_000)  # Python's collector looks at all that torch consists of, and took a twentieth of the time

REAL_DATA = Path(__file__).parents[2] / "shared" / "data"
CATEGORIES = {3: "red", 8: "green", 90: "blue"}  # ids neither contiguous nor counted from 0 or 1
COLOURS = {3: (230, 40, 40), 8: (40, 200, 60), 90: (50, 70, 235)}

# Every field that makes training take seconds; the rest is the default set-up.
TINY = {
    "model.backbone": "test_resnet",
    "model.weights": "none",
    "model.freeze": "none",
    "model.freeze_norm": False,
    "model.channels": 16,
    "model.head_convs": 1,
    "model.quality": "classification",
    "data.short_side": 64,
    "data.long_side": 128,
    "data.batch_size": 4,
    "data.workers": 0,
    "optimizer.name": "adamw",
    "optimizer.lr": 0.01,
    "optimizer.reference_batch": 4,
    "optimizer.clip_norm": 10.0,
    "schedule.epochs": 6,
    "schedule.decay": "cosine",
    "schedule.warmup_steps": 2,
    "inference.alpha": 0.4,
}


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Add up what tests have counted with `record_property(what, (as it should be, of all))`."""
    totals: dict[str, list[int]] = {}
    for report in terminalreporter.getreports("passed") + terminalreporter.getreports("failed"):
        for what, counts in report.user_properties if report.when == "call" else ():
            totals[what] = [sum(pair) for pair in zip(totals.get(what, [0, 0]), counts)]
    for what, (right, cases) in totals.items():
        terminalreporter.write_line(f"{right:6,} of {cases:6,} {what}")


@pytest.fixture(scope="session", autouse=True)
def written_files_may_stay_in_memory() -> Iterator[None]:
    """Nothing here survives a power cut, so nothing waits for the disk."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda descriptor: None)
        yield


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real data sets beside a development checkout."""
    if not REAL_DATA.is_dir():
        pytest.skip(f"no real data: {REAL_DATA} does not exist")
    return REAL_DATA


@pytest.fixture(scope="session")
def tiny_config() -> Any:
    """A detector that trains, evaluates and predicts in seconds; `tiny_config(**changes)`."""
    from retinaconf.config import Config

    return lambda **changes: Config().changed(**(TINY | changes))


@pytest.fixture(scope="session")
def tiny_settings() -> dict[str, Any]:
    """The same set-up by the names of `Config.flat`."""
    return TINY


@pytest.fixture(scope="session")
def tiny_flags() -> list[str]:
    """The same set-up as options of `retinaconf train`."""
    flags = []
    for name, value in TINY.items():
        section, field = name.replace("_", "-").split(".")
        flags += (
            [f"--{section}.{'' if value else 'no-'}{field}"]
            if isinstance(value, bool)
            else [
                f"--{section}.{field}",
                str(value),
            ]
        )
    return flags


def coco_document(images: list[dict[str, Any]], annotations: list[dict[str, Any]]) -> dict[str, Any]:
    categories = [{"id": i, "name": name} for i, name in CATEGORIES.items()]
    return {"images": images, "annotations": annotations, "categories": categories}


def write_split(root: Path, split: str, count: int, seed: int) -> None:
    """Coloured rectangles on noise, the colour being the class.

    The first image has no boxes, the second is greyscale, the third has a crowd region over its right half.
    """
    rng = np.random.default_rng([seed, len(split)])
    (root / "images").mkdir(parents=True, exist_ok=True)
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for n in range(count):
        width, height = ((128, 96), (96, 128), (112, 112))[n % 3]
        image_id = 1000 - 7 * n  # descending: rows are in the file's order, not the ids'
        noise = rng.integers(90, 160, (height, width, 3), dtype=np.uint8)
        picture = Image.fromarray(noise)
        pen = ImageDraw.Draw(picture)

        def annotate(category: int, box: tuple[int, int, int, int], crowd: int = 0, image_id: int = image_id) -> None:
            x, y, w, h = box
            record = {"id": len(annotations) + 1, "image_id": image_id, "category_id": category}
            annotations.append(record | {"bbox": [x, y, w, h], "area": w * h, "iscrowd": crowd})

        for part in range(0 if n == 0 else 2):  # one object in each half
            category = (3, 8, 90)[rng.integers(3)]
            w, h = (int(side) for side in rng.integers(28, 46, 2))
            x = part * width // 2 + int(rng.integers(0, width // 2 - w + 1))
            y = int(rng.integers(0, height - h + 1))
            pen.rectangle((x, y, x + w - 1, y + h - 1), fill=COLOURS[category])
            annotate(category, (x, y, w, h))
        if n == 1:
            picture = picture.convert("L")
        if n == 2:
            annotate(3, (width // 2, 0, width // 2, height), crowd=1)
        name = f"{split}-{n}.png"
        picture.save(root / "images" / name)
        images.append({"id": image_id, "file_name": name, "height": height, "width": width})
    (root / f"{split}.json").write_text(json.dumps(coco_document(images, annotations)))


@pytest.fixture(scope="session")
def make_data() -> Callable[..., Path]:
    """`make_data(root, train=8, val=4)` writes a tiny flat COCO data set into `root`."""

    def make(root: Path, train: int = 8, val: int = 4, seed: int = 0) -> Path:
        write_split(root, "train", train, seed)
        if val:
            write_split(root, "val", val, seed)
        return root

    return make


@pytest.fixture
def tiny_data(tmp_path: Path, make_data: Callable[..., Path]) -> Path:
    """A tiny data set of its own for each test, to damage as it likes."""
    return make_data(tmp_path / "data")


@pytest.fixture
def run_cli(capsys: pytest.CaptureFixture[str]) -> Callable[..., Any]:
    """`run_cli("train", ...)` is the command in this process: its `code`, `out` and `err`."""
    from retinaconf.cli import main

    def run(*words: Any) -> Any:
        capsys.readouterr()
        with pytest.raises(SystemExit) as stop:
            main([str(word) for word in words])
        out, err = capsys.readouterr()
        return SimpleNamespace(code=stop.value.code, out=out, err=err)

    return run


@pytest.fixture(scope="session")
def write_run(tiny_config: Any) -> Callable[..., Path]:
    """`write_run(folder, **changes)`: a run with random weights, for what needs a detector but no good one."""
    import torch

    from retinaconf.model.retinanet import RetinaNet
    from retinaconf.run_folder import CONFIG, MODEL, write_config, write_weights

    def write(folder: Path, classes: dict[int, str] = CATEGORIES, **changes: Any) -> Path:
        folder.mkdir(parents=True)
        config = tiny_config(**changes)
        torch.manual_seed(0)
        state = RetinaNet(config.model, len(classes)).state_dict()
        write_config(folder / CONFIG, config)
        write_weights(folder / MODEL, state, config, tuple(classes.values()), tuple(classes))
        return folder

    return write


@pytest.fixture(scope="session")
def shared_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One folder for all processes that share the tests: what takes seconds is made once, under a `FileLock`."""
    own = tmp_path_factory.getbasetemp()
    folder = (own.parent if "PYTEST_XDIST_WORKER" in os.environ else own) / "shared"
    folder.mkdir(exist_ok=True)
    return folder


@pytest.fixture(scope="session")
def trained(
    shared_folder: Path,
    tmp_path_factory: pytest.TempPathFactory,
    make_data: Callable[..., Path],
    tiny_config: Any,
) -> Any:
    """One training for all tests that only look: `trained.run`, `trained.data`, `trained.config`."""
    from retinaconf.training.run import train_run

    config, made = tiny_config(), shared_folder / "trained"
    with FileLock(shared_folder / "trained.lock"):
        if not made.exists():
            making = shared_folder / "in training"
            train_run(config, make_data(making / "data", train=20, val=4), making / "run", device="cpu")
            making.rename(made)
    root = shutil.copytree(made, tmp_path_factory.mktemp("trained") / "copy")  # commands leave files beside a run
    return SimpleNamespace(run=root / "run", data=root / "data", config=config)
