"""What version 0.1 wrote is read, and means the same.

`stored/version-0.1.tar.xz` was made by version 0.1 itself (commit 07f6d29): `data/`; `run/`, trained for 51 of 60
epochs, the weights rounded to 3 bits of mantissa so that they pack well; `candidates.npz`, the 60 best of each image of
`val`; and `expected.json`: what 0.1's `evaluate`, `diagnose --candidates` and `train --resume` said of them.
"""

import json
import tarfile
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

import retinaconf

ARCHIVE = Path(__file__).parent / "stored/version-0.1.tar.xz"


@pytest.fixture
def stored(tmp_path):
    with tarfile.open(ARCHIVE) as archive:
        archive.extractall(tmp_path, filter="data")
    expected = json.loads((tmp_path / "expected.json").read_text())
    return SimpleNamespace(
        run=tmp_path / "run", data=tmp_path / "data", candidates=tmp_path / "candidates.npz", expected=expected
    )


def test_a_run_detects_and_is_evaluated(stored, run_cli, tmp_path):
    """As 0.1 did with one image a batch: there, the images of a batch changed each other's detections a little."""
    detector = retinaconf.load(stored.run, device="cpu")
    for name, one in stored.expected["predict"].items():
        (found,) = detector.predict(stored.data / "images" / name)
        np.testing.assert_allclose(found.boxes[:5], one["boxes"], atol=2e-3)  # stored with 3 decimals
        np.testing.assert_allclose(found.scores[:5], one["scores"], atol=2e-5)
        assert found.labels[:5].tolist() == one["labels"]

    result = run_cli("evaluate", stored.run, "--data", stored.data, "--json", tmp_path / "a.json", "--device", "cpu")
    assert (result.code, result.err) == (0, "")
    report = json.loads((tmp_path / "a.json").read_text())
    assert report["metrics"] == pytest.approx(stored.expected["evaluate"]["metrics"], abs=1e-6)
    assert report["per_class"] == pytest.approx(stored.expected["evaluate"]["per_class"], abs=1e-6)
    assert report["metrics"]["AP50"] > 0.9  # it does detect


@pytest.mark.ci
def test_a_run_continues(stored, run_cli):
    """Its next steps have the losses that they had in 0.1, up to rounding."""
    words = ("--data", stored.data, "--out", stored.run, "--resume", "--max-steps", 106, "--device", "cpu")
    result = run_cli("train", stored.run, *words)
    assert result.code == 0, result.err
    lines = (stored.run / "metrics.jsonl").read_text().splitlines()
    now = [one for one in map(json.loads, lines) if one["kind"] == "train" and one["step"] > 102]
    assert [one["step"] for one in now] == [104, 106]
    for old, new in zip(stored.expected["continued"], now):
        for name in ("epoch", "lr", "loss", "class", "box", "quality"):
            assert new[name] == pytest.approx(old[name], rel=1e-3), name


def test_candidates_are_diagnosed(stored, run_cli, tmp_path):
    files = ("--candidates", stored.candidates, "--ground-truth", stored.data / "val.json")
    result = run_cli("diagnose", *files, "--json", tmp_path / "b.json")
    assert result.code == 0, result.err
    report = json.loads((tmp_path / "b.json").read_text())
    expected = stored.expected["diagnose"]
    assert report["metrics"] == pytest.approx(expected["metrics"], abs=1e-9)
    assert [report["data"][name] for name in ("num_candidates", "num_detections")] == [
        expected["num_candidates"],
        expected["num_detections"],
    ]
