from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from retinaconf.data.layouts import load_split
from retinaconf.errors import InputError
from retinaconf.inference.draw import class_colour
from retinaconf.training.run import train_run
from retinaconf.training.samples import write_samples


def test_the_first_training_images_with_their_boxes(make_data: Callable[..., Path], tmp_path: Path, tiny_config: Any):
    gt = load_split(make_data(tmp_path / "data", train=20, val=0), "train")
    config = tiny_config(**{"data.augment": "none", "data.short_side": 96})
    line = write_samples(tmp_path / "samples", gt, config)
    assert line == f"{tmp_path}/samples: 12 training images as the network sees them; augment none: nothing"
    files = sorted((tmp_path / "samples").iterdir())
    assert [file.name[:2] for file in files] == [f"{n:02}" for n in range(1, 13)]
    rows = {Path(str(name)).stem: row for row, name in enumerate(gt.file_names)}
    drawn = 0
    for file in files:
        row = rows[file.stem[3:]]
        pixels = np.asarray(Image.open(file)).astype(int)
        height, width = gt.image_sizes[row]
        scale = 96 / min(height, width)
        assert pixels.shape[:2] == (round(height * scale), round(width * scale))
        for box in range(gt.offsets[row], gt.offsets[row + 1]):
            if not gt.crowd[box]:
                x, y = (gt.boxes[box, 0] * scale, gt.boxes[box, [1, 3]].mean() * scale)  # middle of its left side
                near = np.abs(pixels[round(y), max(0, round(x) - 1) : round(x) + 2] - class_colour(int(gt.labels[box])))
                drawn += near.sum(axis=1).min() < 90
    assert drawn >= 15  # labels and other boxes lie over some


@pytest.mark.ci
def test_a_run_that_goes_on_keeps_its_samples(tiny_data: Path, tiny_config: Any, tmp_path: Path):
    run, config = tmp_path / "run", tiny_config(**{"data.augment": "light"})
    train_run(config, tiny_data, run, max_steps=1, device="cpu")
    files = sorted((run / "samples").iterdir())
    assert len(files) == 12  # of 8 images: four come again, in the next epoch
    files[0].write_bytes(b"kept")
    files[1].unlink()
    train_run(config, tiny_data, run, resume=True, max_steps=2, device="cpu")
    assert sorted((run / "samples").iterdir()) == [files[0], *files[2:]]
    assert files[0].read_bytes() == b"kept"
    log = (run / "log.txt").read_text()
    assert log.count("samples: ") == 1
    assert "samples: 12 training images as the network sees them; augment light: flip 0.5, crop 0.3," in log


def test_a_run_that_cannot_start_takes_its_samples_away(tiny_data: Path, tiny_config: Any, tmp_path: Path):
    with pytest.raises(InputError, match="does not divide"):
        train_run(tiny_config(**{"optimizer.accumulate": 3}), tiny_data, tmp_path / "run", device="cpu")
    assert not (tmp_path / "run").exists()


def test_samples_of_others_are_left_alone(tiny_data: Path, tiny_config: Any, tmp_path: Path):
    mine = tmp_path / "run/samples/mine.txt"
    mine.parent.mkdir(parents=True)
    mine.write_text("mine")
    with pytest.raises(InputError, match="holds samples but no config"):
        train_run(tiny_config(), tiny_data, tmp_path / "run", device="cpu")
    assert mine.read_text() == "mine"
    assert list((tmp_path / "run").iterdir()) == [mine.parent]


def test_a_disk_that_is_full(tiny_data: Path, tiny_config: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def full(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Image.Image, "save", full)
    with pytest.raises(
        InputError, match=r"samples/01 .*\.jpg: cannot be written \(No space left on device\); free space there"
    ):
        train_run(tiny_config(), tiny_data, tmp_path / "run", device="cpu")
    assert not (tmp_path / "run").exists()
