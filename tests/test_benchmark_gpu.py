"""benchmarks/gpu.py runs on any machine, so that it does not fail first where a GPU is lent for minutes."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.mark.slow
def test_every_section_runs_and_the_table_has_them(tmp_path: Path):
    script = [sys.executable, ROOT / "benchmarks" / "gpu.py", "--quick", "--device", "cpu", "--seconds", "900"]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run([*script, "--out", tmp_path], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr[-2000:]
    rows = json.loads((tmp_path / "gpu.json").read_text())
    assert [row["error"] for row in rows.values() if "error" in row] == []
    for side in ("torchvision", "conf-r50", "aligned-r50"):
        training = f"training: {side}: batch 2"
        assert training in done.stdout
        assert rows[training]["images_a_second"] > 0
        assert rows[training]["tflops"] > 0
        assert rows[f"inference: {side}: batch 1, float32"]["detections"] > 0
    for side in ("conf-r50", "aligned-r50"):
        assert all(rows[f"network: {side}: batch {images}, float32"]["seconds"] > 0 for images in (1, 2))
    assert rows["profile"]["calls_a_step"]["aten::nonzero"] == 1
    assert "Self CPU" in (tmp_path / "profile.txt").read_text()


@pytest.mark.slow
def test_a_section_that_fails_or_takes_too_long_leaves_the_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    import signal
    import time

    import gpu

    before = signal.signal(signal.SIGALRM, gpu.out_of_time)
    report = gpu.Report(tmp_path, 60, {"device": "none"})
    report.add("fails", lambda: 1 / 0)
    report.add("works", lambda: {"value": 1})
    rows = json.loads((tmp_path / "gpu.json").read_text())
    assert rows["works"]["value"] == 1
    assert rows["fails"]["error"] == "ZeroDivisionError: division by zero"
    report = gpu.Report(tmp_path, 60, {"device": "none"}, only="one")
    report.add("two", lambda: {"value": 2})
    report.add("one of these", lambda: {"value": 1})
    assert list(json.loads((tmp_path / "gpu.json").read_text())) == ["machine", "one of these"]
    report = gpu.Report(tmp_path, 1.5, {"device": "none"})
    report.add("lasts", lambda: time.sleep(60))
    report.add("too late", lambda: {"value": 2})
    signal.signal(signal.SIGALRM, before)
    rows = json.loads((tmp_path / "gpu.json").read_text())
    assert all(rows[name]["error"].startswith("TimeoutError") for name in ("lasts", "too late"))
