"""In Python as on the command line: the same numbers and files, and the same complaints."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import retinaconf
from retinaconf.errors import InputError
from retinaconf.run_folder import MODEL


@pytest.fixture
def files(tiny_data: Path) -> Path:
    """The data set's folder with detections of its `val`: in `good.json` its own boxes, in `bad.json` shifted."""
    annotations = json.loads((tiny_data / "val.json").read_text())["annotations"]
    for name, shift in (("good", 0), ("bad", 6)):
        records = [
            {"image_id": a["image_id"], "category_id": a["category_id"], "bbox": [a["bbox"][0] + shift, *a["bbox"][1:]]}
            for a in annotations
        ]
        results = [record | {"score": 0.9 - n / 100} for n, record in enumerate(records)]
        (tiny_data / f"{name}.json").write_text(json.dumps(results))
    return tiny_data


@pytest.mark.ci
def test_train_and_evaluate_are_the_commands(
    run_cli: Callable[..., Any], tiny_data: Path, tiny_flags: list[str], tiny_settings: dict[str, Any], tmp_path: Path
):
    words = ("train", "retinanet-lite0", "--data", tiny_data, "--out", tmp_path / "command", *tiny_flags)
    assert run_cli(*words, "--max-steps", 2).code == 0
    run = retinaconf.train("retinanet-lite0", str(tiny_data), str(tmp_path / "function"), tiny_settings, max_steps=1)
    again = retinaconf.train("retinanet-lite0", tiny_data, run, tiny_settings, max_steps=2, resume=True)
    assert run == again == tmp_path / "function"
    assert (run / MODEL).read_bytes() == (tmp_path / "command" / MODEL).read_bytes()

    assert run_cli("evaluate", run, "--data", tiny_data, "--sweep", "--json", tmp_path / "val.json").code == 0
    assert retinaconf.evaluate(str(run), str(tiny_data), sweep=True) == json.loads((tmp_path / "val.json").read_text())


@pytest.mark.ci
def test_files_are_diagnosed_and_compared_on_a_data_set(run_cli: Callable[..., Any], files: Path, tmp_path: Path):
    truth = files / "val.json"
    (by_file,) = retinaconf.diagnose(detections=[files / "bad.json"], ground_truth=truth, images=files / "images")
    (by_data,) = retinaconf.diagnose(detections=[str(files / "bad.json")], data=str(files), report=tmp_path / "a.html")
    assert by_data.metrics.overall == pytest.approx(by_file.metrics.overall, nan_ok=True)
    assert by_data.metrics.overall["AP50"] > 0.5
    assert "<html" in (tmp_path / "a.html").read_text()
    words = ("diagnose", "--detections", files / "bad.json", "--data", files, "--layout", "flat")
    result = run_cli(*words, "--json", tmp_path / "d.json", "--report", tmp_path / "b.html")
    assert (result.code, f"report: {tmp_path / 'b.html'}\n" in result.out) == (0, True)
    assert json.loads((tmp_path / "d.json").read_text())["metrics"]["AP"] == by_data.metrics.overall["AP"]

    found = retinaconf.compare(detections=[files / "bad.json", files / "good.json"], data=files)
    assert found.differences["AP"].mean > 0
    assert found.differences["AP"].mean == pytest.approx(1 - by_data.metrics.overall["AP"])


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: retinaconf.train("unheard-of", "d", "o"), "no recipe 'unheard-of'; there are "),
        (lambda: retinaconf.train("conf-lite0", "d", "o", {"optimizer.rate": 1}), "unknown setting 'optimizer.rate'"),
        (lambda: retinaconf.train("conf-lite0", "d", "o", max_steps=0), "--max-steps 0: give at least 1"),
        (lambda: retinaconf.evaluate("absent", "d"), "absent"),
        (lambda: retinaconf.tune("absent", "d"), "absent"),
        (lambda: retinaconf.tune("absent", "d", precision=2), "--precision 2: give a share"),
        (lambda: retinaconf.compare("a", data="d"), "compare: 1 runs; give two, A and B"),
        (lambda: retinaconf.compare(detections="dt.json", data="d"), r"'dt.json': give a list of paths, such as \['dt"),
        (lambda: retinaconf.diagnose("run", "d", nms_iou=0.5), "--nms-iou: it is for the diagnosis of files"),
        (lambda: retinaconf.export("run", "a.txt"), r"a.txt: end it in .onnx or .pt2"),
    ],
)
def test_mistakes_are_one_line(
    call: Callable[[], Any], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=message) as caught:
        call()
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_files_need_no_torch(files: Path):
    code = "import sys, retinaconf; retinaconf.train; retinaconf.diagnose(detections=['good.json'], data='.');"
    shown = subprocess.run(
        [sys.executable, "-c", f"{code} print({{'torch', 'matplotlib'}} & set(sys.modules))"],
        capture_output=True,
        text=True,
        check=True,
        cwd=files,
    )
    assert shown.stdout == "set()\n"
    assert set(retinaconf.__all__) <= set(dir(retinaconf))
