"""`retinaconf tune`: what is kept in the run, what uses it, and what does not survive other weights."""

from __future__ import annotations

import base64
import json
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import retinaconf
from retinaconf.data.layouts import load_split
from retinaconf.errors import InputError
from retinaconf.evaluation.calibration import calibrate
from retinaconf.evaluation.coco import CocoEvaluator
from retinaconf.evaluation.matching import match_detections
from retinaconf.evaluation.score_map import fit
from retinaconf.evaluation.thresholds import RIGHT, Goal, choose_thresholds
from retinaconf.files import locked
from retinaconf.run_folder import MODEL, read_weights, write_weights


@pytest.fixture(scope="module")
def tuned(trained: Any, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """A copy of the trained run, tuned, and the report."""
    run = tmp_path_factory.mktemp("tuned") / "run"
    shutil.copytree(trained.run, run)
    return run, retinaconf.tune(run, trained.data, precision=0.8, device="cpu")


def test_weights_and_settings_stay_and_the_choices_are_read_again(trained: Any, tuned: tuple[Path, dict[str, Any]]):
    run, report = tuned
    before, after = read_weights(trained.run), read_weights(run)
    assert before.tuning is None
    assert all(torch.equal(tensor, after.state[name]) for name, tensor in before.state.items())
    assert (after.config, after.classes, after.category_ids) == (before.config, before.classes, before.category_ids)
    assert (run / "config.json").read_bytes() == (trained.run / "config.json").read_bytes()

    detector = retinaconf.load(run, "cpu")
    assert detector.tuning is not None
    ground_truth = load_split(trained.data, "val")
    (table,) = detector.detect(ground_truth, detector.inference_config())
    plain = replace(table, confidence=None)
    ids = np.array(ground_truth.category_ids)[table.labels]
    assert table.confidence == pytest.approx(fit(plain, ground_truth)(ids, table.scores), abs=0)
    matches = match_detections(table, ground_truth, np.array([RIGHT]))
    chosen = choose_thresholds(matches, 0, ground_truth, Goal(precision=0.8))
    assert detector.tuning.thresholds == chosen
    rows = report["thresholds"]["by_class"]
    assert {name: row["threshold"] for name, row in rows.items()} == {
        name: chosen.by_class.get(id_) for name, id_ in zip(detector.classes, detector.category_ids)
    }
    evaluator = CocoEvaluator(ground_truth)
    by_confidence = evaluator(replace(table, scores=table.confidence)).overall
    assert by_confidence == pytest.approx(evaluator(table).overall, abs=0.0005, nan_ok=True)
    assert report["calibration"]["after"]["pooled_error"] < report["calibration"]["before"]["pooled_error"]


def test_scores_that_rank_do_not_change_and_confidence_is_beside_them(trained: Any, tuned: tuple[Path, dict[str, Any]]):
    image = trained.data / "images/val-3.png"
    detector = retinaconf.load(tuned[0], "cpu")
    assert detector.tuning is not None
    config = detector.inference_config()
    assert (config.joint, config.alpha) == (detector.tuning.joint, detector.tuning.alpha)
    (with_it,) = detector.predict(image)
    (without,) = retinaconf.load(trained.run, "cpu").predict(image, alpha=config.alpha)
    assert without.confidence is None
    assert with_it.scores.tolist() == without.scores.tolist()
    assert with_it.confidence is not None
    for label in np.unique(with_it.labels):
        of_class = with_it.labels == label
        order = np.argsort(with_it.scores[of_class], kind="stable")
        assert (np.diff(with_it.confidence[of_class][order]) >= 0).all()
    assert with_it[:2].confidence is not None
    assert [record["confidence"] for record in with_it.to_coco(1)] == with_it.confidence.tolist()
    (other,) = detector.predict(image, alpha=round(config.alpha / 2 + 0.01, 2))  # the map is of other scores
    assert other.confidence is None
    assert "confidence" not in other.to_coco(1)[0]


def test_pictures_show_boxes_from_the_threshold_of_their_class(
    trained: Any, tuned: tuple[Path, dict[str, Any]], run_cli: Callable[..., Any], tmp_path: Path
):
    run = tuned[0]
    image = trained.data / "images/val-3.png"
    words = ["predict", run, image, "--device", "cpu", "--out"]
    done = run_cli(*words, tmp_path / "a")
    assert done.code == 0, done.err
    assert "boxes in them: score from the run's threshold of the class on (precision 0.8: red " in done.out
    detector = retinaconf.load(run, "cpu")
    assert detector.tuning is not None
    (found,) = detector.predict(image)
    from PIL import Image

    expected = found[detector.tuning.thresholds.keep(found)]
    assert 0 < len(expected) < len(found)
    drawn = np.asarray(Image.open(tmp_path / "a/val-3.jpg"))
    expected.draw(image).save(tmp_path / "expected.jpg", format="JPEG", quality=92)
    assert np.array_equal(drawn, np.asarray(Image.open(tmp_path / "expected.jpg")))
    as_scores = replace(expected, scores=expected.confidence, confidence=None)  # the label is the confidence
    assert np.array_equal(np.asarray(as_scores.draw(image)), np.asarray(expected.draw(image)))
    records = json.loads((tmp_path / "a/detections.json").read_text())
    assert len(records) == len(found)
    assert all("confidence" in record for record in records)
    assert "boxes in them: score above 0.5" in run_cli(*words, tmp_path / "b", "--score-threshold", 0.5).out
    assert "boxes in them: score above 0.3" in run_cli(*words, tmp_path / "c", "--alpha", 0.05).out


@pytest.mark.ci
def test_evaluate_and_diagnose_say_what_it_is_worth(
    trained: Any, tuned: tuple[Path, dict[str, Any]], run_cli: Callable[..., Any], tmp_path: Path
):
    words = ["--data", trained.data, "--device", "cpu", "--json", tmp_path / "a.json"]
    done = run_cli("evaluate", tuned[0], *words, "--detections", tmp_path / "dt.json")
    assert done.code == 0, done.err
    report = json.loads((tmp_path / "a.json").read_text())
    ground_truth = load_split(trained.data, "val")
    detector = retinaconf.load(tuned[0], "cpu")
    (table,) = detector.detect(ground_truth, detector.inference_config())
    read = calibrate(replace(table, scores=table.confidence), ground_truth)
    assert report["tuned"]["laece_0"]["confidence"] == pytest.approx(read.mean_laece_0)
    assert report["tuned"]["laece_0"]["confidence"] < report["tuned"]["laece_0"]["score"]
    assert report["tuned"]["AP_by_confidence"] == pytest.approx(report["metrics"]["AP"], abs=0.0005)
    assert detector.tuning is not None
    kept = detector.tuning.thresholds.keep(table)
    matches = match_detections(table, ground_truth, np.array([RIGHT]))
    right = (matches.matched[:, 0] >= 0)[kept[matches.row] & ~matches.ignored[:, 0]]
    assert report["tuned"]["shown"]["all together"]["precision"] == pytest.approx(right.mean())
    assert "thresholds: precision 0.8" in done.out
    assert all("confidence" in record for record in json.loads((tmp_path / "dt.json").read_text()))
    plain = run_cli("evaluate", trained.run, *words)
    assert "tuned" not in json.loads((tmp_path / "a.json").read_text())
    assert "tuned" not in plain.out

    done = run_cli("diagnose", tuned[0], *words, "--report", tmp_path / "a.html")
    assert done.code == 0, done.err
    (data,) = re.findall(r'id="explorer-data">(.*?)</script>', (tmp_path / "a.html").read_text())
    (packed,) = json.loads(data)["images"][0]["candidates"]
    labels, scores, confidence = (
        np.frombuffer(base64.b64decode(packed[name]), of)
        for name, of in (("labels", "<u2"), ("scores", "<f4"), ("confidence", "<f4"))
    )
    ids = np.array(detector.category_ids)[labels]
    assert len(scores) > len(ground_truth.boxes)
    assert confidence == pytest.approx(detector.tuning.score_map(ids, scores.astype(np.float64)), abs=1e-6)
    document = json.loads((tmp_path / "a.json").read_text())
    assert document["calibration"]["confidence_laece_0"] == pytest.approx(read.mean_laece_0)
    assert f"and the confidence of this tuned run by {read.mean_laece_0:.2f}" in done.out

    done = run_cli("compare", trained.run, tuned[0], *words)
    assert done.code == 0, done.err
    document = json.loads((tmp_path / "a.json").read_text())
    assert document["differences"]["confidence_laece_0"]["b"] == pytest.approx(read.mean_laece_0)
    assert document["differences"]["confidence_laece_0"]["a"] == document["differences"]["laece_0"]["a"]
    assert "A is not tuned" in done.out


def test_other_weights_do_not_keep_it(
    trained: Any, tuned: tuple[Path, dict[str, Any]], run_cli: Callable[..., Any], tmp_path: Path
):
    done = run_cli("train", tuned[0], "--data", trained.data, "--out", tmp_path / "on", "--max-steps", 1)
    assert done.code == 0, done.err
    assert read_weights(tmp_path / "on").tuning is None
    assert read_weights(tmp_path / "on").config.inference == read_weights(trained.run).config.inference
    copy = retinaconf.load(tuned[0], "cpu")
    copy.save_pretrained(tmp_path / "saved")  # the same weights
    assert read_weights(tmp_path / "saved").tuning == read_weights(tuned[0]).tuning


@pytest.mark.slow
def test_a_continued_training_replaces_it_with_the_weights(trained: Any, tmp_path: Path):
    from retinaconf.training.run import train_run

    run = tmp_path / "run"
    train_run(trained.config, trained.data, run, max_steps=5, device="cpu")  # one epoch; the third is the best
    retinaconf.tune(run, trained.data, device="cpu")
    before = read_weights(run)
    assert before.tuning is not None
    train_run(trained.config, trained.data, run, resume=True, max_steps=15, device="cpu")
    after = read_weights(run)
    assert any(not torch.equal(tensor, after.state[name]) for name, tensor in before.state.items())
    assert after.tuning is None


def test_tuned_again_it_starts_from_the_settings_of_training(
    trained: Any, tuned: tuple[Path, dict[str, Any]], run_cli: Callable[..., Any], tmp_path: Path
):
    run = tmp_path / "run"
    shutil.copytree(tuned[0], run)
    weights = read_weights(run)
    assert weights.tuning is not None
    other = weights.tuning | {"alpha": 0.9, "joint": "proportional"}
    write_weights(run / MODEL, weights.state, weights.config, weights.classes, weights.category_ids, other)
    report = tmp_path / "report.json"
    done = run_cli("tune", run, "--data", trained.data, "--precision", 0.8, "--device", "cpu", "--json", report)
    assert done.code == 0, done.err
    assert read_weights(run).tuning == weights.tuning
    assert json.loads(report.read_text())["ranking"]["own"] == {"joint": "product", "alpha": 0.4}
    for words in ("ranked by product", "precision 0.8", "LaECE_0"):
        assert words in done.out


@pytest.mark.parametrize(
    ("words", "code", "line"),
    [
        (["--precision", 0.9, "--recall", 0.9], 2, "leave one out"),
        (["--precision", 1.5], 2, "--precision 1.5: give a share"),
        (["--recall", 0], 2, "--recall 0: give a share"),
        (["--json", "RUN/model.safetensors"], 1, "would be overwritten"),
    ],
    ids=str,
)
def test_mistakes_end_in_one_line(
    trained: Any, run_cli: Callable[..., Any], words: list[Any], code: int, line: str, tmp_path: Path
):
    run = tmp_path / "run"
    shutil.copytree(trained.run, run)
    before = (run / MODEL).read_bytes()
    words = [str(word).replace("RUN", str(run)) for word in words]
    done = run_cli("tune", run, "--data", trained.data, "--device", "cpu", *words)
    assert done.code == code, done.err
    assert line in done.err
    assert (run / MODEL).read_bytes() == before


def test_a_run_that_is_being_trained_and_one_that_finds_nothing_are_refused(
    trained: Any, run_cli: Callable[..., Any], tmp_path: Path
):
    run = tmp_path / "run"
    shutil.copytree(trained.run, run)
    with locked(run / "log.txt"):
        done = run_cli("tune", run, "--data", trained.data, "--device", "cpu")
    assert (done.code, "another process is at work" in done.err) == (1, True)
    weights = read_weights(run)
    none = weights.config.changed(**{"inference.score_threshold": 0.999999})
    write_weights(run / MODEL, weights.state, none, weights.classes, weights.category_ids)
    done = run_cli("tune", run, "--data", trained.data, "--device", "cpu")
    assert (done.code, "no detections" in done.err) == (1, True), done.err


@pytest.mark.parametrize("change", [{"version": 2}, {"score_map": {}}, {"alpha": "x"}, {"thresholds": None}])
def test_what_is_damaged_is_named(tuned: tuple[Path, dict[str, Any]], change: dict[str, Any], tmp_path: Path):
    weights = read_weights(tuned[0])
    assert weights.tuning is not None
    file = tmp_path / MODEL
    tuning = weights.tuning | change
    write_weights(file, weights.state, weights.config, weights.classes, weights.category_ids, tuning)
    with pytest.raises(InputError, match="run `retinaconf tune` again"):
        retinaconf.load(file, "cpu")


@pytest.mark.ci
def test_it_says_what_was_held_out_and_whether_the_run_knows(trained: Any, tmp_path: Path):
    run = Path(shutil.copytree(trained.run, tmp_path / "run"))
    data = Path(shutil.copytree(trained.data, tmp_path / "data"))
    (data / "val.json").unlink()
    found = retinaconf.tune(run, data, device="cpu")["data"]
    assert found.endswith(f"{run} keeps no list of them, and may have been trained on them)")
    (run / "val.txt").write_text("train-3\ntrain-4\ntrain-5\n")
    report = retinaconf.tune(run, data, device="cpu")
    said = f"no split 'val' there: 3 of the 20 images are val, as {run / 'val.txt'} lists"
    assert (report["images"], report["data"]) == (3, f"{data / 'train.json'} ({said})")


@pytest.mark.parametrize("soft", [True, False, None])  # None: as version 0.2.0 has written it
def test_a_run_that_was_given_soft_nms_uses_it(trained: Any, tuned: tuple[Path, dict[str, Any]], tmp_path: Path, soft):
    run, report = tuned
    assert report["soft_nms"]["chosen"] == (report["soft_nms"]["interval"][0] > 0)
    weights = read_weights(run)
    assert weights.tuning is not None
    tuning = {key: value for key, value in weights.tuning.items() if key != "soft_nms"}
    tuning |= {} if soft is None else {"soft_nms": soft}
    write_weights(tmp_path / MODEL, weights.state, weights.config, weights.classes, weights.category_ids, tuning)
    detector = retinaconf.load(tmp_path / MODEL, "cpu")
    config = detector.inference_config()
    assert (config.soft_nms, config.nms_iou) == ((True, 0.75) if soft else (False, 0.5))
    assert detector.inference_config(nms_iou=0.6).nms_iou == 0.6
    ground_truth = load_split(trained.data, "val")
    evaluated = retinaconf.evaluate(tmp_path / MODEL, trained.data, "val", device="cpu")["metrics"]["AP"]
    wanted = detector.config.inference.model_copy(update={"soft_nms": bool(soft), "nms_iou": config.nms_iou})
    (table,) = detector.detect(ground_truth, wanted.model_copy(update={"joint": config.joint, "alpha": config.alpha}))
    assert evaluated == CocoEvaluator(ground_truth)(table).overall["AP"]
