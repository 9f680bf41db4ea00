"""The diagnosis as one JSON document with stable keys; docs/diagnosis.md explains each."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import numpy as np

from retinaconf.data.ground_truth import GroundTruth
from retinaconf.diagnosis.measures.casualties import Casualties
from retinaconf.diagnosis.measures.correlation import RankCorrelation
from retinaconf.diagnosis.measures.diagnose import Diagnosis, Stage
from retinaconf.diagnosis.measures.oracles import DESCRIPTIONS
from retinaconf.diagnosis.measures.paper_statistics import IOU_THRESHOLDS, SCORE_THRESHOLDS, Counts
from retinaconf.diagnosis.measures.remedies import Remedies
from retinaconf.diagnosis.measures.task_alignment import count_boxes
from retinaconf.diagnosis.report.advice import advise
from retinaconf.diagnosis.report.summary import summarize
from retinaconf.evaluation.alpha_sweep import AlphaSweep
from retinaconf.evaluation.coco import SIZES, object_size
from retinaconf.evaluation.gains import Gain

VERSION = 1
WORST = 50  # casualties listed one by one


def to_json(diagnosis: Diagnosis) -> dict[str, Any]:
    """Every number of the diagnosis as JSON values: fractions, pixels; None where undefined."""
    truth, before, after = diagnosis.ground_truth, diagnosis.before, diagnosis.after
    stages = {"before_nms": before, "after_nms": after}
    document = {
        "version": VERSION,
        "settings": {**vars(diagnosis.post_processing), "object_iou": diagnosis.object_iou},
        "data": {
            "ground_truth": truth.source,
            "detections": after.boxes.source,
            "candidates": before.boxes.source if before else None,
            "images": len(truth),
            "left_out": asdict(truth.left_out),
            "objects": int((~truth.crowd).sum()),
            "crowd_regions": int(truth.crowd.sum()),
            "classes": list(truth.classes),
            "num_detections": len(after.boxes),
            "num_candidates": len(before.boxes) if before else None,
            "notes": list(diagnosis.notes),
        },
        "own_score": {**vars(diagnosis.own_score), "formula": diagnosis.own_score.formula},
        "summary": summarize(diagnosis),
        "advice": advise(diagnosis),
        "metrics": diagnosis.metrics.overall,
        "metrics_per_class": diagnosis.metrics.per_class,
        "paper": {
            "thresholds": {"score": SCORE_THRESHOLDS, "iou": IOU_THRESHOLDS},
            "image_ids": truth.image_ids,
            **{
                reading: {name: stage and _counts(stage.counts[reading]) for name, stage in stages.items()}
                for reading in ("same_class", "any_class")
            },
            "positive_anchors": diagnosis.coverage and diagnosis.coverage.positive_anchors,
        },
        "correlation": {name: stage and _correlation(stage, truth.classes) for name, stage in stages.items()},
        "task_alignment": {
            **(vars(before.alignment.rankings) if before else dict.fromkeys(vars(after.alignment.rankings))),
            **vars(count_boxes(after.overlaps)),
        },
        "density": {
            "edges": after.alignment.density_edges,
            **{name: stage and stage.alignment.density for name, stage in stages.items()},
        },
        "casualties": diagnosis.casualties and _casualties(diagnosis, diagnosis.casualties),
        "oracles": [
            {
                "name": rung.name,
                "description": DESCRIPTIONS[rung.name],
                "AP": rung.AP,
                "AP50": rung.AP50,
                "AP75": rung.AP75,
                "gain": rung.gain.points,
                "interval": rung.gain.interval,
            }
            for rung in diagnosis.oracles
        ],
        "quality": diagnosis.quality and _quality(diagnosis.quality, before is not None),
        "calibration": _calibration(diagnosis),
        "remedies": _remedies(diagnosis.remedies),
        "coverage": _coverage(diagnosis),
    }
    plain = _plain(document)
    assert isinstance(plain, dict)
    return plain


def _plain(value: Any) -> Any:
    """JSON's own types, NaN as None."""
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, np.ndarray | np.generic):
        return _plain(value.tolist())
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def _counts(counts: Counts) -> dict[str, Any]:
    total = counts.total()
    score, iou = total.proportions()
    return {
        "total": {"score": total.score[0], "iou": total.iou[0]},
        "proportion": {"score": score[0], "iou": iou[0]},
        "per_image": {"score": counts.score, "iou": counts.iou},
    }


def _correlation(stage: Stage, classes: tuple[str, ...]) -> dict[str, Any]:
    def group(ranks: RankCorrelation, index: int) -> dict[str, Any]:
        return {
            "spearman": ranks.spearman[index],
            "kendall": ranks.kendall[index],
            "concordance": ranks.concordance[index],
            "n": ranks.count[index],
        }

    alignment = stage.alignment
    return {
        "all": group(alignment.everything, 0),
        "on_objects": group(alignment.on_objects, 0),
        "per_class": {name: group(alignment.per_class, index) for index, name in enumerate(classes)},
        "per_size": {name: group(alignment.per_size, index) for index, name in enumerate(SIZES)},
        "within_object": {
            "spearman": alignment.within.spearman,
            "kendall": alignment.within.kendall,
            "concordance": alignment.within.concordance,
            "objects": alignment.within.objects,
            "boxes": alignment.within.boxes,
        },
    }


def _casualties(diagnosis: Diagnosis, casualties: Casualties) -> dict[str, Any]:
    truth = diagnosis.ground_truth
    assert diagnosis.before is not None
    candidates = diagnosis.before.boxes
    size = object_size(truth.areas)
    image = truth.image_index

    def worth(row: int) -> dict[str, Any]:
        best, kept = int(casualties.best_candidate[row]), int(casualties.kept_candidate[row])
        return {
            "image_id": truth.image_ids[image[row]],
            "file_name": str(truth.file_names[image[row]]),
            "object": row,
            "class": truth.classes[truth.labels[row]],
            "size": SIZES[size[row]],
            "box": truth.boxes[row],
            "best_iou": casualties.best_iou[row],
            "kept_iou": casualties.kept_iou[row],
            "best_candidate": best,
            "kept_candidate": kept,
            "best_score": candidates.scores[best],
            "kept_score": candidates.scores[kept] if kept >= 0 else None,
            "cause": "neighbour" if casualties.neighbour[row] else "own",
        }

    return {
        **_by_size(casualties.of, truth),
        "worst": [worth(int(row)) for row in casualties.worst(WORST)],
    }


def _quality(sweep: AlphaSweep, with_nms: bool) -> dict[str, Any]:
    return {
        "alphas": sweep.alphas,
        "AP": sweep.AP,
        "AP50": sweep.AP50,
        "AP75": sweep.AP75,
        "nms_redone": with_nms,
        "best_alpha": sweep.best_alpha,
        "chosen_on_images": len(sweep.chosen_on),
        "reported_on_images": len(sweep.reported_on),
        "baseline_AP": sweep.over_class_score.before,
        "own_AP": sweep.over_own.before,
        "best_AP": sweep.over_own.after,
        "gain": sweep.over_class_score.points,
        "interval": sweep.over_class_score.interval,
        "gain_over_own": sweep.over_own.points,
        "interval_over_own": sweep.over_own.interval,
        "replicates": sweep.over_own.replicates,
    }


def _calibration(diagnosis: Diagnosis) -> dict[str, Any]:
    calibration, lrp = diagnosis.calibration, diagnosis.calibration.lrp
    bins = calibration.reliability
    return {
        "laece": calibration.mean_laece,
        "laece_0": calibration.mean_laece_0,
        "d_ece": calibration.d_ece,
        "mean_olrp": calibration.mean_olrp,
        "confidence_laece_0": diagnosis.confidence and diagnosis.confidence.mean_laece_0,
        "per_class": {
            name: {
                "olrp": lrp.olrp[index],
                "threshold": lrp.threshold[index],
                "localization": lrp.localization[index],
                "false_positive": lrp.false_positive[index],
                "false_negative": lrp.false_negative[index],
                "laece": calibration.laece[index],
                "laece_0": calibration.laece_0[index],
                "objects": lrp.objects[index],
            }
            for index, name in enumerate(diagnosis.ground_truth.classes)
        },
        "reliability": {
            "edges": bins.edges,
            "count": bins.count,
            "mean_score": bins.mean_score,
            "mean_iou": bins.mean_iou,
            "precision": bins.precision,
        },
    }


def _remedies(remedies: Remedies) -> dict[str, Any]:
    nms, map_ = remedies.nms, remedies.recalibration
    return {
        "nms": {"nms_ious": nms.ious, "AP": nms.AP, "best_nms_iou": nms.best, **_gain(nms.over_own)},
        "clipping": remedies.clipping and _gain(remedies.clipping),
        "soft_nms": remedies.soft_nms and _gain(remedies.soft_nms),
        "voting": remedies.voting and _gain(remedies.voting),
        "shown_best": remedies.shown and vars(remedies.shown),
        "shown_customary": remedies.customary and vars(remedies.customary),
        "recalibration": map_ and vars(map_),
        "chosen_on_images": len(remedies.chosen_on),
        "reported_on_images": len(remedies.reported_on),
    }


def _gain(gain: Gain) -> dict[str, Any]:
    return {"own_AP": gain.before, "changed_AP": gain.after, "gain": gain.points, "interval": gain.interval}


def _coverage(diagnosis: Diagnosis) -> dict[str, Any] | None:
    coverage, truth = diagnosis.coverage, diagnosis.ground_truth
    if coverage is None:
        return None
    return {
        **_by_size(coverage.of, truth),
        "never": np.flatnonzero(~truth.crowd & (coverage.positives == 0)),
    }


def _by_size(of: Callable[[np.ndarray], dict[str, Any]], truth: GroundTruth) -> dict[str, Any]:
    """What is counted over a mask (B,) of objects: of all, and of each size."""
    size = object_size(truth.areas)
    groups = {"overall": ~truth.crowd} | {name: ~truth.crowd & (size == index) for index, name in enumerate(SIZES)}
    return {name: of(chosen) for name, chosen in groups.items()}
