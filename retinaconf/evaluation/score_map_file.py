"""A map of scores in a file, and COCO results with calibrated scores."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from retinaconf.coco_results import read_coco_results, read_records
from retinaconf.detections import SCORE_SLACK
from retinaconf.errors import InputError, quoted, reason
from retinaconf.evaluation.score_map import RAW_WEIGHT, Curve, ScoreMap
from retinaconf.files import read_json, write_aside, write_json
from retinaconf.progress import ProgressCallback, silent

FORMAT = "retinaconf score map"
VERSION = 1
RAW_SCORE = "raw_score"  # the key that a calibrated record keeps the detector's own score under


def calibrate_file(score_map: ScoreMap, path: Path, out: Path, progress: ProgressCallback = silent) -> int:
    """Write COCO results anew with calibrated scores, the raw one as `raw_score`, and return their number.

    Order and all other keys of the records stay.

    Raises:
        InputError: the file is missing or malformed, a score is NaN or outside [0, 1], the map does not know a
            category, the records are calibrated already, or `out` cannot be written.
    """
    columns = read_coco_results(path, progress)
    ids, scores = columns["category_id"], columns["score"]
    for row in np.flatnonzero(~((scores >= 0) & (scores <= 1 + SCORE_SLACK)))[:1]:  # also NaN
        raise InputError(f"{path}: record {row} has score {scores[row]}; scores must be in [0, 1]")
    for row in np.flatnonzero(~np.isin(ids, list(score_map.classes)))[:1]:
        raise InputError(
            f"{path}: record {row} has category_id {ids[row]}, which the map does not know; fit it with ground "
            "truth that lists this category"
        )
    calibrated = score_map(ids, np.minimum(scores, 1.0)).tolist()

    def write(aside: Path) -> None:
        row = 0
        with aside.open("w") as file:
            file.write("[")
            for batch in read_records(path):
                for record in batch:
                    if RAW_SCORE in record:
                        raise InputError(
                            f"{path}: record {row} has '{RAW_SCORE}', so it is calibrated already; give the file with "
                            "raw scores"
                        )
                    text = json.dumps(record | {"score": calibrated[row], RAW_SCORE: record["score"]})
                    file.write((",\n" if row else "\n") + text)
                    row += 1
            file.write("\n]\n")

    write_aside(out, write)
    return len(calibrated)


def write_score_map(path: Path, score_map: ScoreMap) -> None:
    """Write a map as JSON.

    Raises:
        InputError: it cannot be written.
    """
    rule = f"{1 - RAW_WEIGHT:g} * interp(score, scores, ious) + {RAW_WEIGHT:g} * score, by its own map or common"
    write_json(path, {"format": FORMAT, "version": VERSION, "calibrated_score": rule, **curves_of(score_map)})


def curves_of(score_map: ScoreMap) -> dict[str, Any]:
    """A map as plain values, which `score_map_of` reads."""

    def lists(curve: Curve) -> dict[str, list[float]]:
        return {"scores": curve.scores.tolist(), "ious": curve.ious.tolist()}

    own = {id_: lists(curve) for id_, curve in score_map.by_class.items()}
    classes = [{"id": id_, "name": name, "own": own.get(id_)} for id_, name in score_map.classes.items()]
    return {"common": lists(score_map.common), "classes": classes}


def read_score_map(path: Path) -> ScoreMap:
    """Read what `write_score_map` wrote.

    Raises:
        InputError: the file is missing, is no such map or one of a later version, or its numbers do not ascend in
            [0, 1].
    """
    try:
        document = read_json(path)
    except FileNotFoundError:
        raise InputError(f"{path}: no such file") from None
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({reason(error)})") from None
    except ValueError:
        document = None
    if not isinstance(document, dict) or document.get("format") != FORMAT:
        raise InputError(f"{path}: not a map of scores; retinaconf calibrate --detections DT --out MAP writes one")
    if document.get("version") != VERSION:
        version = quoted(document.get("version"))
        raise InputError(f"{path}: a map of version {version}; this retinaconf reads version {VERSION}")
    try:
        return score_map_of(document)
    except (KeyError, TypeError, ValueError, OverflowError):
        raise InputError(
            f"{path}: a damaged map: each needs 'scores' and 'ious' that ascend in [0, 1]; fit it again"
        ) from None


def score_map_of(values: dict[str, Any]) -> ScoreMap:
    """The map of what `curves_of` gave.

    Raises:
        KeyError, TypeError, ValueError, OverflowError: it is something else, or its numbers do not ascend in [0, 1].
    """
    own = {int(entry["id"]): entry["own"] for entry in values["classes"]}
    return ScoreMap(
        common=_curve(values["common"]),
        by_class={id_: _curve(curve) for id_, curve in own.items() if curve is not None},
        classes={int(entry["id"]): str(entry["name"]) for entry in values["classes"]},
    )


def _curve(value: Any) -> Curve:
    scores, ious = (np.array(value[name], dtype=np.float64) for name in ("scores", "ious"))
    for column in (scores, ious):
        inside = column.ndim == 1 and len(column) > 0 and bool(((column >= 0) & (column <= 1)).all())
        if not inside or len(scores) != len(ious) or (np.diff(column) < 0).any():
            raise ValueError("not a curve")
    return Curve(scores, ious)
