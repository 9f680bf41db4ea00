"""`retinaconf demo` with a network and scenes that take seconds."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from retinaconf.commands import demo


@pytest.mark.ci
def test_the_demo_from_scenes_to_pictures(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, run_cli: Callable[..., Any]
) -> None:
    tiny = {"model.backbone": "test_resnet", "model.weights": "none", "data.short_side": 64, "data.workers": 0}
    monkeypatch.setattr(demo, "CHANGES", demo.CHANGES | tiny)
    train, val = demo.QUICK_SCENES
    assert train < demo.SCENES[0]
    assert val < demo.SCENES[1]
    assert demo.QUICK_EPOCHS < demo.EPOCHS
    monkeypatch.setattr(demo, "QUICK_SCENES", (8, 3))
    monkeypatch.setattr(demo, "QUICK_EPOCHS", 1)
    out = tmp_path / "demo"
    done = run_cli("demo", "--quick", "--out", out, "--device", "cpu")
    assert done.code == 0, done.err
    assert "1. 8 + 3 scenes" in done.out
    assert json.loads((out / "run/config.json").read_text())["schedule.epochs"] == 1
    report = json.loads((out / "sweep.json").read_text())
    by_joint = {row["joint"]: row["metrics"]["AP"] for row in report["sweep"]}
    assert (
        f"class score alone: AP {by_joint['product(0)']:.3f}; product(0.4), which it was trained for: "
        f"AP {by_joint['product(0.4)']:.3f}; best, "
    ) in done.out
    assert f": AP {max(by_joint.values()):.3f}\n" in done.out
    assert "<html" in (out / "report.html").read_text()
    assert len(list((out / "pictures").glob("*.jpg"))) == 3
