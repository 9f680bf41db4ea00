"""What the hostile files are: seeds, how they are spoilt, and which commands read them."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass

from mutations import mutated_json
from spoils import (
    spoil_checkpoint,
    spoil_jsonl,
    spoil_npz,
    spoil_picture,
    spoil_pkl,
    spoil_pth,
    spoil_safetensors,
    spoil_text,
    spoil_xml,
    spoil_yaml,
)


@dataclass(frozen=True)
class Kind:
    """Files of one kind."""

    files: tuple[str, ...]  # seeds, of which a case spoils one
    spoil: Callable[[random.Random, bytes], bytes]
    commands: tuple[str, ...]  # of which a case runs one; FILE stands for the spoilt file, FLAGS for a small network
    quick: int  # cases in `make test`


_TRAIN = "train conf-r50-1x --out out/run --max-steps 1 --device cpu FLAGS --data"
_DIAGNOSE = "diagnose --detections dt.json --ground-truth data/val.json"
_READS_DATA = (
    "check --data {0} --json out/check.json",
    "check --data {0}",
    f"{_TRAIN} {{0}}",
    f"{_TRAIN} {{0}} --data.skip-bad",
)
_READS_RUN = (
    "predict run data/images/val-1.png --out out/pictures --device cpu",
    "evaluate run --data data --json out/report.json --detections out/dt.json --device cpu",
    "train run --data data --out out/run --max-steps 1 --device cpu",
)


def _of(data: str) -> tuple[str, ...]:
    return tuple(command.format(data) for command in _READS_DATA)


KINDS = {
    "coco": Kind(
        ("data/val.json", "data/val.json", "data/train.json"),
        mutated_json,
        (
            *_of("data"),
            *("evaluate run --data data --device cpu", "tune run --data data --device cpu --json out/t.json"),
            f"{_DIAGNOSE} --images data/images --report out/report.html --json out/report.json --figures out/figures",
            "calibrate --detections dt.json --ground-truth data/val.json --out out/map.json --json out/report.json",
            "compare --detections dt.json other.json --ground-truth data/val.json --report out/report.html",
            "calibrate --merge dt.json other.json --ground-truth data/val.json --out out/dt.json",
        ),
        8,
    ),
    "results": Kind(
        ("dt.json",),
        mutated_json,
        (
            f"{_DIAGNOSE} --report out/report.html --json out/report.json",
            f"{_DIAGNOSE} --candidates other.json",
            "diagnose --detections other.json --candidates dt.json --ground-truth data/val.json",
            "calibrate --detections dt.json --ground-truth data/val.json --out out/map.json",
            "calibrate --apply map.json --detections dt.json --out out/dt.json",
            "calibrate --merge dt.json other.json --out out/dt.json",
            "compare --detections dt.json other.json --ground-truth data/val.json --json out/report.json",
        ),
        8,
    ),
    "voc": Kind(
        ("voc/Annotations/0.xml", "voc/Annotations/3.xml"), spoil_xml, (*_of("voc"), "evaluate run --data voc"), 6
    ),
    "lists": Kind(
        ("voc/ImageSets/Main/train.txt", "voc/ImageSets/Main/val.txt", "yolo/val.txt"),
        spoil_text,
        (*_of("voc"), *_of("yolo")),
        5,
    ),
    "labels": Kind(("yolo/labels/train/0.txt", "yolo/labels/val/1.txt"), spoil_text, _of("yolo"), 5),
    "yaml": Kind(("yolo/data.yaml",), spoil_yaml, _of("yolo"), 6),
    "npz": Kind(
        ("dt.npz",),
        spoil_npz,
        (
            "diagnose --candidates dt.npz --ground-truth data/val.json --json out/report.json",
            "diagnose --detections other.json --candidates dt.npz --ground-truth data/val.json --report out/r.html",
            "calibrate --detections dt.npz --ground-truth data/val.json --out out/map.json",
            "compare --detections dt.npz other.json --ground-truth data/val.json",
        ),
        8,
    ),
    "safetensors": Kind(
        ("run/model.safetensors",),
        spoil_safetensors,
        (*_READS_RUN, "tune run --data data --device cpu", "import run/model.safetensors --out out/run"),
        8,
    ),
    "pth": Kind(
        ("weights.pth",),
        spoil_pth,
        ("import weights.pth --out out/run",) * 3 + (f"{_TRAIN} data --model.weights weights.pth",),
        8,
    ),
    "pkl": Kind(("weights.pkl",), spoil_pkl, ("import weights.pkl --out out/run",), 8),
    "names": Kind(("names.json",), mutated_json, ("import weights.pth --out out/run --classes names.json",), 8),
    "config": Kind(
        ("run/config.json",),
        mutated_json,
        (
            f"{_TRAIN.replace('out/run', 'run')} data --resume",
            "train --like run --out out/run --max-steps 1",
            *_READS_RUN,
        ),
        3,
    ),
    "environment": Kind(
        ("run/environment.json",), mutated_json, ("train --like run --out out/run --max-steps 1 --device cpu",), 2
    ),
    "metrics": Kind(
        ("run/metrics.jsonl",),
        spoil_jsonl,
        ("train run --resume --data data --out run --device cpu FLAGS --schedule.epochs 1", *_READS_RUN[:1]),
        3,
    ),
    "checkpoint": Kind(
        ("run/last.ckpt",),
        spoil_checkpoint,
        ("train conf-r50-1x --resume --data data --out run --device cpu FLAGS --schedule.epochs 1",),
        3,
    ),
    "map": Kind(("map.json",), mutated_json, ("calibrate --apply map.json --detections dt.json --out out/dt.json",), 8),
    "pictures": Kind(
        (),
        spoil_picture,
        ("check --data photos", "predict run FILE --out out/pictures --device cpu", f"{_TRAIN} photos"),
        8,
    ),
}
