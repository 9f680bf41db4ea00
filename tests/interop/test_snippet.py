"""docs/export.md's inference runs where there is no torch, and finds what the detector finds."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

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


# tests/test_strangers_path.py runs it on a file of one class and without alpha.
@pytest.mark.ci
def test_the_page_s_inference_needs_no_torch(exported: Callable[..., Any], tmp_path: Path) -> None:
    ours = exported("conf.onnx")
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
    assert len(wanted) >= 10
    np.testing.assert_array_equal(given["labels"], wanted.labels)
    np.testing.assert_allclose(given["scores"], wanted.scores, atol=1e-5)
    np.testing.assert_allclose(given["boxes"], wanted.boxes, atol=1e-3)
    assert [line.split()[0] for line in shown] == [wanted.classes[label] for label in wanted.labels]
