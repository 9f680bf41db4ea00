"""What starting from a trained detector is worth on few pictures of new classes, against ImageNet's backbone alone.

    python studies/fine_tuning.py --data ROOT --out DIR [--new cow dog] [--pictures 50 100 200] [--seeds 3]
                                   [--ways WAY ...]

It also compares other ways to continue that detector: frozen or slower weights, and the presets of `data.augment`.

The first detector learns the other classes, on the pictures of `train` that show no new class. It is then continued on
few pictures of the new classes, drawn by the seed, and so is ImageNet's backbone. Each training sees the same number of
images, and its last weights are evaluated on the whole of `val`, which chooses nothing. Differences are paired over
seeds and images (`retinaconf/evaluation/compare.py`). DIR keeps the trainings and `measured.jsonl`; a stopped
command continues. It ends with `fine-tuning.json` and `fine-tuning.png`.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from retinaconf.config import Config
from retinaconf.data.ground_truth import GroundTruth
from retinaconf.data.layouts import load_split
from retinaconf.data.splits import read_split
from retinaconf.evaluation.coco import CocoEvaluator
from retinaconf.evaluation.compare import bootstrap_ap, paired_difference
from retinaconf.files import write_aside, write_json
from retinaconf.inference.detector import load
from retinaconf.recipes import recipe
from retinaconf.run_folder import LOG, MODEL, write_config
from retinaconf.training.loop import launch, train
from retinaconf.training.progress import Progress

RECIPE = "aligned-lite0"
SMALL = {"data.short_side": 192, "data.long_side": 336, "data.batch_size": 8, "data.workers": 0, "data.skip_bad": True}
SMALL |= {"optimizer.kept_lr": 1.0, "loss.iou_score": "quality-focal"}  # as the recipe had it when this was measured
# About two hours of two CPU cores for two ways, three numbers of pictures and three seeds.
FIRST_EPOCHS = 10  # of the first detector
IMAGES_SEEN = 1200  # by each training on the new classes
IMAGENET, DETECTOR = "ImageNet", "detector"
# By name, what a training changes. All but the first start from the first detector.
WAYS: dict[str, dict[str, Any]] = {
    IMAGENET: {},
    DETECTOR: {},
    "detector, backbone frozen": {"model.freeze": "backbone"},
    "detector, kept weights at a tenth of the rate": {"optimizer.kept_lr": 0.1},
    "detector, augment none": {"data.augment": "none"},
    "detector, augment light": {"data.augment": "light"},
    "detector, augment strong": {"data.augment": "strong"},
}
MEASURED = "measured.jsonl"


class FineTuning:
    """The data of the two trainings, and the folder of what was trained and measured."""

    def __init__(self, root: Path, out: Path, new: Sequence[str], device: str = "auto"):
        """Read the data.

        Raises:
            InputError: bad data.
        """
        self.out, self.device = out, device
        data = recipe(RECIPE).changed(**SMALL).data
        whole = read_split(root, "train", data)
        shown = np.isin(np.arange(len(whole)), whole.image_index[np.isin(whole.labels, _rows(whole, new))])
        old = [name for name in whole.classes if name not in new]
        self.first_set = of_classes(whole.subset(np.flatnonzero(~shown)), old)
        self.pool = of_classes(whole.subset(np.flatnonzero(shown)), new)
        self.val = of_classes(load_split(root, "val"), new)

    def first(self) -> Path:
        """The run of the first detector, trained if it is not there."""
        config = recipe(RECIPE).changed(**SMALL, **{"schedule.epochs": FIRST_EPOCHS})
        return self._trained(self.out / "first", config, self.first_set)

    def measure(self, way: str, pictures: int, seed: int) -> dict[str, Any]:
        """AP of a training on so many pictures, by COCO and on each draw of the images; read if it is known."""
        key = {"way": way, "pictures": pictures, "seed": seed}
        measured = self.out / MEASURED
        for text in measured.read_text().splitlines() if measured.exists() else []:
            if (line := json.loads(text)) | key == line:
                return dict(line)
        chosen = np.random.default_rng(seed).permutation(len(self.pool))[:pictures]
        weights = {} if way == IMAGENET else {"model.weights": str(self.first())}
        changes = SMALL | weights | WAYS[way] | {"schedule.epochs": IMAGES_SEEN // pictures, "seed": seed}
        config = recipe(RECIPE).changed(**changes)
        name = f"{way.replace(',', '').replace(' ', '-')}-{pictures}-{seed}"
        run = self._trained(self.out / name, config, self.pool.subset(np.sort(chosen)))
        detector = load(run, self.device)
        (table,) = detector.detect(self.val, detector.config.inference)
        metrics = CocoEvaluator(self.val)(table)
        draws = [round(value, 5) for value in bootstrap_ap(table, self.val)]
        line = key | {"AP": metrics.overall["AP"], "AP50": metrics.overall["AP50"], "draws": draws}
        with measured.open("a") as file:
            file.write(json.dumps(line, separators=(",", ":")) + "\n")
        return line

    def _trained(self, run: Path, config: Config, train_set: GroundTruth) -> Path:
        if not (run / MODEL).exists():
            run.mkdir(parents=True, exist_ok=True)
            write_config(run / "config.json", config)
            train(config, train_set, None, run, launch(config, self.device), Progress(run / LOG, silent=False))
        return run


def of_classes(truth: GroundTruth, names: Sequence[str]) -> GroundTruth:
    """The same images with the boxes of some classes only."""
    rows = _rows(truth, names)
    kept = np.isin(truth.labels, rows)
    return replace(
        truth,
        boxes=truth.boxes[kept],
        labels=np.searchsorted(rows, truth.labels[kept]),
        crowd=truth.crowd[kept],
        areas=truth.areas[kept],
        offsets=np.searchsorted(truth.image_index[kept], np.arange(len(truth) + 1)),
        classes=tuple(truth.classes[row] for row in rows),
        category_ids=tuple(truth.category_ids[row] for row in rows),
    )


def _rows(truth: GroundTruth, names: Sequence[str]) -> np.ndarray:
    return np.sort([truth.classes.index(name) for name in names])


def document(found: dict[tuple[str, int], list[dict[str, Any]]]) -> list[dict[str, Any]]:
    """By way and number of pictures: the APs of the seeds, their mean, and `over`: paired differences to other ways."""
    rows = []
    for (way, pictures), lines in found.items():
        values = np.array([line["AP"] for line in lines])
        row: dict[str, Any] = {"way": way, "pictures": pictures, "AP": values.tolist(), "mean": float(values.mean())}
        row["over"] = {}
        for other in (IMAGENET, DETECTOR)[: [*WAYS].index(way)]:
            others = found[other, pictures]
            gains = values - np.array([line["AP"] for line in others])
            draws = np.array([line["draws"] for line in lines]) - np.array([line["draws"] for line in others])
            difference = paired_difference(gains, draws)
            row["over"][other] = {"difference": difference.mean, "interval": [difference.low, difference.high]}
        rows.append(row)
    return rows


def picture(rows: list[dict[str, Any]], path: Path) -> None:
    """AP over the number of pictures, a line for each way, a dot for each seed."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 3.8), layout="constrained")
    axes = figure.add_subplot()
    for way in dict.fromkeys(row["way"] for row in rows):
        ours = [row for row in rows if row["way"] == way]
        (line,) = axes.plot([row["pictures"] for row in ours], [100 * row["mean"] for row in ours], label=way)
        for row in ours:
            axes.plot([row["pictures"]] * len(row["AP"]), 100 * np.array(row["AP"]), ".", color=line.get_color())
    axes.set_xscale("log", base=2)
    axes.set_xticks([row["pictures"] for row in ours], labels=[str(row["pictures"]) for row in ours])
    axes.set(xlabel="training pictures of the new classes", ylabel="AP on val, %", ylim=(0, None))
    axes.legend(title="starts from", frameon=False)
    write_aside(path, lambda aside: figure.savefig(aside, format="png", dpi=150))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--new", nargs="+", default=["cow", "dog"])
    parser.add_argument("--pictures", type=int, nargs="+", default=[50, 100, 200])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--ways", nargs="+", choices=[*WAYS], default=[*WAYS])
    parser.add_argument("--device", default="auto")
    options = parser.parse_args()
    study = FineTuning(options.data, options.out, options.new, options.device)
    ways = list(dict.fromkeys([IMAGENET, DETECTOR, *options.ways]))
    found: dict[tuple[str, int], list[dict[str, Any]]] = {(way, n): [] for way in ways for n in options.pictures}
    for seed in range(options.seeds):  # outermost: what a stopped command has measured is whole seeds
        for way, pictures in found:
            found[way, pictures].append(study.measure(way, pictures, seed))
    rows = document(found)
    for row in rows:
        text = f"{row['way']}, {row['pictures']} pictures: AP {100 * row['mean']:.1f}"
        for other, over in row["over"].items():
            low, high = over["interval"]
            text += f", {100 * over['difference']:+.1f} ({100 * low:+.1f} to {100 * high:+.1f}) over {other}"
        print(text)
    write_json(options.out / "fine-tuning.json", rows)
    picture(rows, options.out / "fine-tuning.png")


if __name__ == "__main__":
    main()
