"""Whether a change that should not alter results alters any.

    python benchmarks/identity.py

Trains each detector for some steps on the demo's scenes, on one CPU thread. Prints digests of its losses and metrics,
its weights, its detections, its evaluation and its diagnosis, then those of a retrofit. Run it before and after a
change: equal lines mean bit-identical results. It uses only the command line, so it runs on any version.
"""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from safetensors.numpy import load_file

from retinaconf.data.scenes import write_scenes

DETECTORS = ("retinanet", "iou-aware", "joint", "conf")
SMALL = "--model.weights none --data.short-side 128 --data.long-side 192 --data.workers 0 --schedule.epochs 4"


def digest(*parts: bytes) -> str:
    return hashlib.sha256(b"".join(parts)).hexdigest()[:12]


def retinaconf(folder: Path, words: str) -> None:
    command = [sys.executable, "-m", "retinaconf", *words.split()]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"retinaconf {words}\n{done.stderr}")


def show(folder: Path, run: str) -> None:
    weights = load_file(folder / run / "model.safetensors")
    retinaconf(folder, f"evaluate {run} --data data --json {run}-evaluation.json --detections {run}-detections.json")
    retinaconf(folder, f"diagnose {run} --data data --json {run}-diagnosis.json")
    shown = {"weights": digest(*(name.encode() + weights[name].tobytes() for name in sorted(weights)))}
    if (folder / run / "metrics.jsonl").exists():
        shown["metrics"] = digest((folder / run / "metrics.jsonl").read_bytes())
    for what in ("evaluation", "detections", "diagnosis"):
        shown[what] = digest((folder / f"{run}-{what}.json").read_bytes())
    print(f"{run:10}", *(f"{name} {value}" for name, value in shown.items()), flush=True)


def main() -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_scenes(folder / "data", train=24, val=12)
        for detector in DETECTORS:
            retinaconf(folder, f"train {detector}-lite0 --data data --out {detector} {SMALL}")
            show(folder, detector)
        retinaconf(folder, "retrofit retinanet --data data --out retrofit")
        show(folder, "retrofit")


if __name__ == "__main__":
    main()
