"""All that is timed, in one command: `make bench`, or with `--quick` in about three minutes.

    python benchmarks/bench.py [--quick] [--out bench]

Writes OUT/bench.json and OUT/bench.md: the machine, then a table of medians with the least and the most. What has a
peer takes turns with it, so that ratios hold on a busy machine, too. Parts of it are scripts of their own, which say
more: `speed.py` (networks), `loading.py`, `diagnosis.py`. How times grow: `scaling.py`.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from hotcoco import COCO, COCOeval
from large_sets import found, truth, write_coco
from pycocotools import coco, cocoeval

from retinaconf.cli import COMMANDS
from retinaconf.detections import to_xywh
from retinaconf.evaluation.coco import CocoEvaluator
from retinaconf.inference.joint_score import sweep

HERE = Path(__file__).parent
Row = dict[str, Any]


def script(name: str, *words: str) -> dict[str, Any]:
    """The report of another benchmark, run in a process of its own."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "report.json"
        subprocess.run([sys.executable, HERE / name, *words, "--json", file], check=True)
        report: dict[str, Any] = json.loads(file.read_text())
        return report


def networks(quick: bool) -> dict[str, Row]:
    """Against torchvision's RetinaNet and FCOS."""
    parts = ("post-processing", "assignment and losses", "inference", "training step")
    words = ("--rounds", "1", "--no-fcos", "--ours", "conf", "--parts", *parts) if quick else ()
    return script("speed.py", *words)


def loading(quick: bool) -> dict[str, Row]:
    """CPU seconds of an image, against torchvision's dataset with transforms.v2."""
    size = ("--rounds", "1", "--images", "32") if quick else ("--rounds", "5")
    report = script("loading.py", *size, "--ways", "none", "flip", "strong")["loading"]
    theirs = report["torchvision v2"]
    return {
        f"loading: {way}": {"ours": seconds, "torchvision": theirs, "ratio": {"torchvision": seconds / theirs}}
        for way, seconds in report.items()
        if way != "torchvision v2"
    }


def turns(works: dict[str, Callable[[], Any]], rounds: int) -> Row:
    """CPU seconds of each side: median, least and most, and the median ratio of ours to the others in a round."""
    times: dict[str, list[float]] = {side: [] for side in works}
    for _ in range(rounds):
        for side, work in works.items():
            started = time.process_time()
            with contextlib.redirect_stdout(io.StringIO()):
                work()
            times[side].append(time.process_time() - started)
    ratio = {s: statistics.median(a / b for a, b in zip(times["ours"], times[s])) for s in works if s != "ours"}
    spread = {side: [min(column), max(column)] for side, column in times.items()}
    return {**{side: statistics.median(column) for side, column in times.items()}, "spread": spread, "ratio": ratio}


def evaluation(quick: bool) -> dict[str, Row]:
    """From boxes in memory to COCO's numbers, 100 boxes an image; and those of all joint scores."""
    images = 500 if quick else 5000
    made = truth(images, 7, 80)
    boxes = found(made, 100)
    xywh = to_xywh(boxes.boxes)
    columns = np.column_stack([boxes.image_index + 1, xywh, boxes.scores, boxes.labels + 1])
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "truth.json"
        write_coco(file, made)
        with contextlib.redirect_stdout(io.StringIO()):
            hot, theirs = COCO(str(file)), coco.COCO(str(file))

    def by_hotcoco() -> None:
        run = COCOeval(hot, hot.load_res(columns), "bbox")
        run.evaluate()
        run.accumulate()
        run.summary_lines()

    def by_pycocotools() -> None:
        run = cocoeval.COCOeval(theirs, theirs.loadRes(columns), "bbox")
        run.evaluate()
        run.accumulate()
        run.summarize()

    works = {"ours": lambda: CocoEvaluator(made)(boxes), "hotcoco": by_hotcoco, "pycocotools": by_pycocotools}
    evaluator = CocoEvaluator(made)
    tables = [boxes.rescored(number / len(sweep())) for number in range(len(sweep()))]
    all_scores = turns({"ours": lambda: [evaluator(table) for table in tables]}, 1)
    return {
        f"evaluation, {images:,} images": turns(works, 1 if quick else 3),
        f"evaluation of {len(tables)} joint scores, {images:,} images": all_scores,
    }


def opening(quick: bool) -> dict[str, Row]:
    """Reading annotations of train2017's size, polygons and all, in a process of its own."""
    images = 11_800 if quick else 118_000
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "train.json"
        write_coco(file, truth(images, 7, 80))
        words = [sys.executable, str(HERE / "large_sets.py"), str(file)]
        done = subprocess.run(words, check=True, capture_output=True, text=True)
    return {f"opening annotations of {images:,} images": json.loads(done.stdout)}


def start_up(quick: bool) -> dict[str, Row]:
    """CPU seconds, user and system, of each command's help."""

    def used() -> float:
        usage = resource.getrusage(resource.RUSAGE_CHILDREN)
        return usage.ru_utime + usage.ru_stime

    rows = {}
    for command in COMMANDS:
        before = used()
        subprocess.run([sys.executable, "-m", "retinaconf", command, "--help"], check=True, stdout=subprocess.DEVNULL)
        rows[f"retinaconf {command} --help"] = {"ours": used() - before}
    return rows


def diagnosis(quick: bool) -> dict[str, Row]:
    """5,000 images of 1,000 candidates; or 500 of 100 detections."""
    case, images = ("detections", 500) if quick else ("candidates", 5000)
    words = [sys.executable, HERE / "diagnosis.py", case, "--images", str(images), "--json"]
    measured = json.loads(subprocess.run(words, capture_output=True, text=True, check=True).stdout.splitlines()[-1])
    row = {"ours": measured["seconds"], "peak GiB": measured["gigabytes"] * 1e9 / 2**30}
    return {f"diagnose, {images:,} images, {case}": row}


SECTIONS = (start_up, opening, evaluation, loading, networks, diagnosis)


def markdown(report: dict[str, Any]) -> str:
    """The table."""
    peers = ("RetinaNet", "FCOS", "torchvision", "hotcoco", "pycocotools")
    lines = [report["machine"], "", "| | ours | least to most | peer | ratio to it |", "|---|---|---|---|---|"]
    for name, row in report["rows"].items():
        least, most = row.get("spread", {}).get("ours", ("", ""))
        spread = f"{least:.3f} to {most:.3f}" if least else ""
        peak = f", {row['peak GiB']:.2f} GiB" if "peak GiB" in row else ""
        found = [peer for peer in peers if peer in row]
        theirs = ", ".join(f"{peer} {row[peer]:.3f}" for peer in found)
        ratios = ", ".join(f"{row['ratio'][peer]:.2f}" for peer in found)
        lines.append(f"| {name} | {row['ours']:.3f} {row.get('unit', 's')}{peak} | {spread} | {theirs} | {ratios} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--out", type=Path, default=Path("bench"))
    parser.add_argument("--only", nargs="+", choices=[section.__name__ for section in SECTIONS])
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    libraries = ", ".join(f"{name} {version(name)}" for name in ("torch", "torchvision", "hotcoco", "numpy"))
    machine = f"{platform.processor() or platform.machine()}, {os.cpu_count()} CPUs; {libraries}"
    report: dict[str, Any] = {"machine": machine, "rows": {}}
    for section in SECTIONS:
        if not options.only or section.__name__ in options.only:
            report["rows"] |= section(options.quick)
            (options.out / "bench.json").write_text(json.dumps(report, indent=1) + "\n")
            (options.out / "bench.md").write_text(markdown(report))
    print(markdown(report))


if __name__ == "__main__":
    main()
