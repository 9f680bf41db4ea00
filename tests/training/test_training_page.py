"""`training.html` of a small run, and the SVG that it adds to the report's."""

import json
import re
import sys
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from retinaconf.config import Config
from retinaconf.errors import InputError
from retinaconf.pages import svg
from retinaconf.run_folder import metrics_line
from retinaconf.training.epochs import read_epochs
from retinaconf.training.page import write_page
from retinaconf.training.run import train_run


def test_a_run_leaves_a_page_that_asks_nobody_for_anything(trained: Any):
    page = (trained.run / "training.html").read_text()
    assert len(page) < 2_000_000
    assert re.findall(r"""(?:src|href)=["'](?!#|data:image/jpeg)""", page) == []
    assert "default-src 'none'" in page
    assert not re.search(r"https?://|<script|url\(|@import", page)
    val = [json.loads(line) for line in (trained.run / "metrics.jsonl").read_text().splitlines() if '"val"' in line]
    assert f'<h1 id="title">AP {val[-1]["AP"]:.3f} after 6 of 6 epochs</h1>' in page
    assert "The run has ended." in page
    assert 'http-equiv="refresh"' not in page
    assert re.findall("<h3>(.*?)</h3>", page)[:4] == ["Losses", "AP", "Learning rate", "Images a second"]
    classes = dict(re.findall(r'<th scope="row">(\w+)</th><td>([\d.]+)</td>', page))
    assert classes == {name: f"{value:.3f}" for name, value in val[-1]["per_class"].items()}
    assert "epoch 5: " in page
    assert "epoch 6: " in page
    for drawing in re.findall(r"<svg.*?</svg>", page, re.DOTALL):
        ET.fromstring(drawing)


@pytest.mark.slow
def test_a_resumed_run_shows_the_validation_before_it_was_stopped(trained: Any, tmp_path: Path):
    """A page from the whole run and one from its second half differ in the speed alone, which is measured."""

    def without_speed(page: Path) -> str:
        text = re.sub(
            r"<div class=\"tile\"><strong>[\d.]+</strong><span>images a second.*?</div>", "", page.read_text()
        )
        return re.sub(r"<h3>Images a second</h3>.*?</figure>", "", text, flags=re.DOTALL)

    run = tmp_path / "run"  # the page names the folder
    train_run(trained.config, trained.data, run, max_steps=25, device="cpu")
    assert 'http-equiv="refresh"' not in (run / "training.html").read_text()
    (run / "training.html").unlink()
    train_run(trained.config, trained.data, run, resume=True, device="cpu")
    shown, whole = (without_speed(one / "training.html") for one in (run, trained.run))
    assert shown.replace(str(run), str(trained.run)) == whole


def test_names_are_escaped_and_a_page_without_validation_says_so(tmp_path: Path):
    run = tmp_path / "<run>"
    run.mkdir()
    line = {"kind": "train", "step": 4, "epoch": 1.0, "lr": 0.1, "loss": 3.0, "class": 1.0, "box": 2.0}
    (run / "metrics.jsonl").write_text(metrics_line(line))
    write_page(run, Config(), read_epochs(run), None, [], ended=False)
    page = (run / "training.html").read_text()
    assert "<run>" not in page
    assert "Loss 3.000 after 1 of 12 epochs" in page
    assert page.count("There was no validation yet.") == 2
    assert 'http-equiv="refresh"' in page
    val = {"kind": "val", "step": 4, "epoch": 1.0, "AP": 0.5, "per_class": {"<script>": 0.5, "b": None}}
    (run / "metrics.jsonl").write_text(metrics_line(line) + metrics_line(val))
    write_page(run, Config(), read_epochs(run), None, [], ended=False)
    rows = re.findall('<th scope="row">(.*?)</th><td>(.*?)</td>', (run / "training.html").read_text())
    assert rows == [("&lt;script&gt;", "0.500"), ("b", "-")]


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (0, 1, [0, 0.2, 0.4, 0.6, 0.8, 1]),
        (0, 12, [0, 5, 10]),
        (0, 0.0008, [0, 0.0002, 0.0004, 0.0006, 0.0008]),
        (-0.3, 0.5, [-0.2, 0, 0.2, 0.4]),
        (0, 3, [0, 1, 2, 3]),
    ],
)
def test_ticks_are_round(low: float, high: float, expected: list[float]):
    assert svg.ticks(low, high) == expected


def test_a_course_is_drawn_to_scale_with_names_apart():
    text = svg.courses([("a", "series-1", [(0, 2), (4, 1)]), ("b", "series-2", [(4, 1.01)])], "epoch", "loss")
    root = ET.fromstring(text)
    path = next(one.get("d", "") for one in root.iter("path") if one.get("class") == "series-1")
    (x0, y0), (x1, y1) = (tuple(map(float, pair.split())) for pair in path[1:].split(" L"))
    assert (x0, y0) == (svg.LEFT, svg.TOP)
    assert (x1, y1) == (svg.WIDTH - 84, pytest.approx((svg.TOP + svg.HEIGHT - svg.BOTTOM) / 2))
    names = {one.text: float(one.get("y", "")) for one in root.iter("text") if one.text in ("a", "b")}
    assert abs(names["a"] - names["b"]) >= 14


# --- TensorBoard ---------------------------------------------------------------------------------------------------


def curves(run: Path) -> dict[str, list[tuple[int, float]]]:
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    events = accumulator.EventAccumulator(str(run / "tensorboard"))
    events.Reload()
    return {tag: [(one.step, one.value) for one in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


@pytest.mark.slow
def test_tensorboard_shows_what_the_log_holds_however_a_run_was_stopped(
    tiny_data: Path, tiny_config: Any, tmp_path: Path
):
    pytest.importorskip("tensorboard")
    config, runs = tiny_config(**{"schedule.epochs": 2}), [tmp_path / name for name in ("whole", "resumed", "late")]
    train_run(config, tiny_data, runs[0], device="cpu", tensorboard=True)
    for run, first in zip(runs[1:], (True, False)):  # of the last it is asked for with --resume only
        train_run(config, tiny_data, run, max_steps=2, device="cpu", tensorboard=first)
        train_run(config, tiny_data, run, resume=True, device="cpu", tensorboard=True)
    records = [json.loads(line) for line in (runs[0] / "metrics.jsonl").read_text().splitlines()]
    losses = [(one["step"], one["loss"]) for one in records if one["kind"] == "train"]
    for run in runs:
        shown = curves(run)
        assert {"train/loss", "train/lr", "val/AP", "val AP by class/red"} <= shown.keys()
        steps, values = zip(*shown["train/loss"])
        assert steps == tuple(step for step, _ in losses)
        np.testing.assert_allclose(values, [value for _, value in losses], rtol=1e-6)


def test_a_missing_tensorboard_is_said_in_one_line_before_anything_is_written(
    tiny_data: Path, tiny_config: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    with pytest.raises(InputError, match=r"train --tensorboard needs tensorboard; .*'retinaconf\[tensorboard\]'"):
        train_run(tiny_config(), tiny_data, tmp_path / "run", device="cpu", tensorboard=True)
    assert not (tmp_path / "run").exists()
