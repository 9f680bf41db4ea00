"""A small valid file of each kind, of which the hostile ones are made."""

from __future__ import annotations

import io
import json
import pickle
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from forks import Forks
from PIL import Image


def write_seeds(root: Path, make_data: Callable[..., Path], flags: list[str], forks: Forks) -> None:
    """A tree of valid files."""
    make_data(root / "data", train=4, val=3)
    _write_voc(root / "voc")
    _write_yolo(root / "yolo")
    _write_photos(root / "photos")
    _write_boxes(root)
    for name in ("tmp", "out"):
        (root / name).mkdir()
    for words in (
        ["train", "conf-r50-1x", "--data", "data", "--out", "run", *flags, "--schedule.epochs", "1"],
        ["calibrate", "--detections", "dt.json", "--ground-truth", "data/val.json", "--out", "map.json"],
        ["tune", "run", "--data", "data"],
    ):
        ended = forks.run(*words, folder=root)
        assert ended.code == 0, ended.err
    (root / "names.json").write_text(json.dumps({"categories": [{"id": 1, "name": "a"}, {"id": 2, "name": "b"}]}))
    (root / "weights.pth").write_bytes(torch_saved(foreign_weights()))
    with (root / "weights.pkl").open("wb") as file:
        pickle.dump({"model": {name: tensor.numpy() for name, tensor in foreign_weights().items()}}, file)


def _write_voc(root: Path) -> None:
    for name in ("Annotations", "JPEGImages", "ImageSets/Main"):
        (root / name).mkdir(parents=True)
    for n in range(4):
        Image.effect_noise((64, 48), 50).convert("RGB").save(root / f"JPEGImages/{n}.jpg")
        box = f"<xmin>{5 + n}</xmin><ymin>6</ymin><xmax>{30 + n}</xmax><ymax>40</ymax>"
        size = "<size><width>64</width><height>48</height><depth>3</depth></size>"
        one = f"<object><name>cat</name><difficult>0</difficult><bndbox>{box}</bndbox></object>"
        text = f"<annotation><filename>{n}.jpg</filename>{size}{one}{one.replace('cat', 'dog')}</annotation>"
        (root / f"Annotations/{n}.xml").write_text(text)
    (root / "ImageSets/Main/train.txt").write_text("0\n1\n2\n")
    (root / "ImageSets/Main/val.txt").write_text("3\n")


def _write_yolo(root: Path) -> None:
    for split in ("train", "val"):
        for part in ("images", "labels"):
            (root / part / split).mkdir(parents=True)
        for n in range(3):
            Image.effect_noise((64, 48), 50).convert("RGB").save(root / f"images/{split}/{n}.png")
            text = f"0 0.5 0.5 0.{2 + n} 0.4\n1 0.2 0.2 0.6 0.2 0.6 0.6\n"
            (root / f"labels/{split}/{n}.txt").write_text(text)
    (root / "val.txt").write_text("".join(f"./images/val/{n}.png\n" for n in range(3)))
    names = {"path": ".", "train": "images/train", "val": "val.txt", "nc": 2, "names": ["cat", "dog"]}
    (root / "data.yaml").write_text(yaml.safe_dump(names))


def _write_photos(root: Path) -> None:
    """Pictures of every kind, as a data set of COCO's."""
    (root / "images").mkdir(parents=True)
    colour = Image.effect_noise((64, 48), 50).convert("RGB")
    numbers = np.arange(64 * 48, dtype=np.uint16).reshape(48, 64) * 20
    exif = Image.Exif()
    exif[0x0112] = 6
    pictures = {
        "rgb.jpg": (colour, {"exif": exif}),
        "cmyk.jpg": (colour.convert("CMYK"), {}),
        "progressive.jpg": (colour, {"progressive": True}),
        "rgba.png": (colour.convert("RGBA"), {}),
        "palette.png": (colour.quantize(16), {"transparency": 3}),
        "deep.png": (Image.fromarray(numbers), {}),
        "bits.bmp": (colour.convert("1"), {}),
        "rgb.bmp": (colour, {}),
        "deep.tif": (Image.fromarray(numbers), {}),
        "pages.tif": (colour, {"save_all": True, "append_images": [colour], "compression": "tiff_lzw"}),
        "float.tif": (Image.fromarray(numbers.astype(np.float32) / 65535), {}),
        "film.gif": (colour.quantize(64), {"save_all": True, "append_images": [colour.quantize(8)], "loop": 0}),
        "loss.webp": (colour, {"quality": 70}),
        "film.webp": (colour.convert("RGBA"), {"save_all": True, "append_images": [colour.convert("RGBA")]}),
        "grey.pgm": (colour.convert("L"), {}),
    }
    images, annotations = [], []
    for n, (name, (picture, options)) in enumerate(pictures.items(), start=1):
        picture.save(root / "images" / name, **options)
        images.append({"id": n, "file_name": name, "width": 0, "height": 0})
        annotations.append({"id": n, "image_id": n, "category_id": 1, "bbox": [3, 4, 30, 20]})
    document = {"images": images, "annotations": annotations, "categories": [{"id": 1, "name": "noise"}]}
    (root / "train.json").write_text(json.dumps(document))


def _write_boxes(root: Path) -> None:
    """Detections on the three images of `val`: each true box, moved a little, and a wrong one."""
    truth = json.loads((root / "data/val.json").read_text())
    rng = random.Random(0)
    for name in ("dt", "other"):
        records: list[dict[str, Any]] = []
        for one in truth["annotations"] * 3:
            for score in (0.9, 0.2):
                x, y, w, h = one["bbox"]
                box = [x + rng.uniform(-9, 9), y, w, h + rng.uniform(0, 9)]
                more = {"score": score * rng.random(), "class_score": rng.random(), "quality": rng.random()}
                records.append({key: one[key] for key in ("image_id", "category_id")} | {"bbox": box} | more)
        (root / f"{name}.json").write_text(json.dumps(records))
    with (root / "dt.npz").open("wb") as file:
        np.savez(file, **_columns(records))


def _columns(records: list[dict[str, Any]]) -> dict[str, np.ndarray]:
    kinds = {"image_id": np.int64, "category_id": np.int64, "bbox": np.float64, "score": np.float64}
    return {"version": np.int64(1)} | {
        name: np.array([record[name] for record in records], kind) for name, kind in kinds.items()
    }


def foreign_weights() -> dict[str, Any]:
    """Some of the tensors of torchvision's RetinaNet, which are enough to be taken for one."""
    import torch

    shapes = {
        "backbone.body.conv1.weight": (64, 3, 7, 7),
        "backbone.fpn.extra_blocks.p6.weight": (8, 8, 3, 3),
        "head.classification_head.conv.0.0.weight": (8, 8, 3, 3),
        "head.classification_head.cls_logits.weight": (18, 8, 3, 3),
        "head.classification_head.cls_logits.bias": (18,),
        "head.regression_head.bbox_reg.weight": (36, 8, 3, 3),
        "head.regression_head.bbox_reg.bias": (36,),
    }
    blocks = {f"backbone.body.layer{stage}.{n}.conv1.weight": (8, 8, 3, 3) for stage in range(1, 5) for n in (0, 1)}
    return {name: torch.ones(shape) for name, shape in (shapes | blocks).items()}


def torch_saved(value: Any, **options: Any) -> bytes:
    import torch

    buffer = io.BytesIO()
    torch.save(value, buffer, **options)
    return buffer.getvalue()
