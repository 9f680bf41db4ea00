"""What does Soft-NMS gain, by the IoU of the NMS before it and by sigma?

    python studies/soft_nms.py --data ROOT [--split val] RUN ...
    python studies/soft_nms.py --ground-truth GT [--nms-iou 0.65] CANDIDATES ...

For each run (or file of candidates before NMS) the AP and the best F1 at IoU 0.5 of its own NMS, and what Soft-NMS adds
to them, in points; voting and the score threshold are those of the run. Of the recipes' setting also the 95 % interval
(paired bootstrap over the images). On test only that setting is measured: nothing is chosen there.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np

from retinaconf.config import SOFT_NMS_IOU, SOFT_NMS_SIGMA
from retinaconf.data.ground_truth import GroundTruth, read_coco
from retinaconf.data.splits import read_split
from retinaconf.detections import Detections, read_detections
from retinaconf.diagnosis.measures.post_processing import PostProcessing, soft_nms, vote
from retinaconf.evaluation.average_precision import curve_of
from retinaconf.evaluation.gains import measure_gains
from retinaconf.evaluation.matching import match_detections
from retinaconf.evaluation.score_map import num_objects

NMS_IOUS = (0.6, 0.7, 0.75, 0.8)
SIGMAS = (0.5, 0.7, 1.0)


def softened(candidates: Detections, process: PostProcessing, nms_iou: float, sigma: float) -> Detections:
    """The detections by NMS at `nms_iou` and Soft-NMS."""
    kept = soft_nms(replace(process, nms_iou=nms_iou, vote=False)(candidates), sigma)
    kept = kept[kept.scores > process.score_threshold]
    return vote(kept, candidates) if process.vote else kept


def best_f1(detections: Detections, truth: GroundTruth) -> float:
    """The largest F1 of any score threshold, at IoU 0.5."""
    matches = match_detections(detections, truth, np.array([0.5]))
    right = matches.matched[~matches.ignored[:, 0], 0] >= 0  # in descending score
    f1 = 2 * np.cumsum(right) / (np.arange(len(right)) + 1 + num_objects(truth, np.arange(len(truth))).sum())
    return float(f1.max(initial=0))


def found_by(options: argparse.Namespace) -> Iterator[tuple[GroundTruth, Detections, PostProcessing]]:
    """The ground truth, the candidates and the post-processing of each run or file."""
    for path in options.candidates:
        if options.ground_truth is not None:
            truth = read_coco(options.ground_truth)
            yield truth, read_detections(path, truth), PostProcessing(nms_iou=options.nms_iou)
            continue
        from retinaconf.inference.detector import load

        detector = load(path)
        config = detector.inference_config()
        truth = read_split(options.data, options.split, detector.config.data, like=detector, whose=path)
        (candidates,) = detector.detect(truth, config, suppress=False)
        process = PostProcessing(config.score_threshold, options.nms_iou, config.detections, config.vote)
        yield truth, candidates, process


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("candidates", type=Path, nargs="+")
    parser.add_argument("--data", type=Path)
    parser.add_argument("--split", default="val")
    parser.add_argument("--ground-truth", type=Path)
    parser.add_argument("--nms-iou", type=float, default=0.5, help="of the NMS that Soft-NMS is compared with")
    options = parser.parse_args()
    recipes = (SOFT_NMS_IOU, SOFT_NMS_SIGMA)
    settings = [(nms_iou, sigma) for nms_iou in NMS_IOUS for sigma in SIGMAS] if options.split != "test" else [recipes]
    gains = []
    for path, (truth, candidates, process) in zip(options.candidates, found_by(options)):
        plain = process(candidates)
        own, own_f1 = curve_of(plain, truth), best_f1(plain, truth)
        everything = np.ones(len(truth))
        rows = []
        for setting in settings:
            soft = softened(candidates, process, *setting)
            curve = curve_of(soft, truth)
            rows.append((curve(everything).mean() - own(everything).mean(), best_f1(soft, truth) - own_f1))
            if setting == recipes:
                images = np.arange(len(truth))
                (gain,) = measure_gains([own, curve], [(0, 1)], images, len(images), 1000, 0)
        gains.append(rows)
        low, high = gain.interval
        print(
            f"{path}: AP {100 * own(everything).mean():.2f}, F1 {100 * own_f1:.2f}; by Soft-NMS as in the recipes "
            f"AP {100 * gain.points:+.2f} ({100 * low:+.2f} to {100 * high:+.2f})",
            flush=True,
        )
    print("\n| NMS | sigma | AP, each | mean | F1, each | mean |\n|---|---|---|---|---|---|")
    for (nms_iou, sigma), columns in zip(settings, 100 * np.array(gains).transpose(1, 2, 0)):
        told = " | ".join(f"{' '.join(f'{value:+.2f}' for value in each)} | {each.mean():+.2f}" for each in columns)
        print(f"| {nms_iou:g} | {sigma:g} | {told} |")


if __name__ == "__main__":
    main()
