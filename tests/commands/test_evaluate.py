import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

import retinaconf
from retinaconf.commands.evaluate import print_report
from retinaconf.diagnosis.inputs import diagnose_run
from retinaconf.errors import InputError
from retinaconf.evaluation.coco import METRICS
from retinaconf.inference.evaluate import evaluate
from retinaconf.training.run import train_run

METHODS = ["cls(obj>0.5)", "cls*obj", "cls*obj(obj>0.5)", "product(0.4)(obj>0.5)"]
METHODS += [f"proportional(0.{tenth})" for tenth in (2, 4, 6, 8)]


@pytest.fixture(scope="module")
def report(trained: Any) -> dict[str, Any]:
    return evaluate(trained.run, trained.data, "val", sweep=True, device="cpu")


def test_the_reports_keys(report: dict[str, Any], trained: Any):
    keys = ["run", "data", "split", "found", "images", "left_out", "joint", "metrics", "per_class", "sweep"]
    assert list(report) == keys
    line = f"flat COCO layout in {trained.data}: val.json, 4 images, "
    assert report["found"].startswith(line)
    assert (report["run"], report["data"]) == (str(trained.run), str(trained.data))
    assert (report["split"], report["images"], report["joint"]) == ("val", 4, "product(0.4)")
    assert report["left_out"] == {"images": 0, "annotations": 0, "classes": [], "records": []}
    assert list(report["metrics"]) == list(METRICS)
    assert list(report["per_class"]) == ["red", "green", "blue"]
    assert all(list(row) == ["joint", "alpha", "metrics", "per_class"] for row in report["sweep"])
    assert all(list(row["metrics"]) == list(METRICS) for row in report["sweep"])


def test_the_report_is_json_without_nan(report: dict[str, Any]):
    assert json.loads(json.dumps(report, allow_nan=False)) == report
    assert report["metrics"]["AP_S"] is None  # there is no small object
    numbers = [value for value in report["metrics"].values() if value is not None]
    assert all(0 <= value <= 1 for value in numbers)
    assert 0 < report["metrics"]["AP"] <= report["metrics"]["AP50"]


def test_the_sweep_is_ten_alphas_and_the_other_methods(report: dict[str, Any]):
    rows = report["sweep"]
    assert [row["alpha"] for row in rows] == [round(0.1 * n, 1) for n in range(10)] + [None] * 8
    assert [row["joint"] for row in rows[:10]] == ["product(0)", *(f"product(0.{n})" for n in range(1, 10))]
    assert [row["joint"] for row in rows[10:]] == METHODS
    assert len({row["metrics"]["AP"] for row in rows}) > 3  # they do differ


@pytest.mark.parametrize("alpha", [0.0, 0.4, 0.9])
def test_a_row_of_the_sweep_is_what_evaluation_with_its_alpha_gives(report: dict[str, Any], trained: Any, alpha: float):
    alone = evaluate(trained.run, trained.data, "val", alpha=alpha, device="cpu")
    (row,) = [row for row in report["sweep"] if row["alpha"] == alpha]
    assert alone["metrics"] == row["metrics"]
    assert alone["per_class"] == row["per_class"]
    assert alone["joint"] == row["joint"]
    assert "sweep" not in alone


def test_the_runs_own_joint_score_is_the_reports(report: dict[str, Any], trained: Any):
    own = evaluate(trained.run, trained.data, "val", device="cpu")
    assert own == {key: value for key, value in report.items() if key != "sweep"}
    (row,) = [row for row in report["sweep"] if row["joint"] == report["joint"]]
    assert row["metrics"] == report["metrics"]


def best_validation(run: Path) -> dict[str, Any]:
    """The metrics that training found for the weights that it kept, the last of equals."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    record = max((line for line in lines if line["kind"] == "val"), key=lambda line: (line["AP"], line["step"]))
    return {"metrics": {name: record[name] for name in METRICS}, "per_class": record["per_class"]}


def test_the_numbers_are_to_the_last_digit_those_of_the_validation_of_the_kept_weights(
    report: dict[str, Any], trained: Any
):
    assert best_validation(trained.run).items() <= report.items()


@pytest.mark.parametrize(
    "changes",
    [
        {
            "data.batch_size": 3,
            "inference.joint": "proportional",
            "optimizer.ema": 0.8,
            "schedule.epochs": 3,
        },
        pytest.param(
            {"data.batch_size": 5, "inference.joint": "cls*obj", "inference.alpha": 0.0, "precision": "bf16-mixed"},
            marks=pytest.mark.slow,
        ),
    ],
    ids=["averaged weights", "bf16"],
)
@pytest.mark.ci
def test_training_validates_as_evaluate_does(
    make_data: Callable[..., Path], tiny_config: Any, tmp_path: Path, changes: dict[str, Any]
):
    """In any batch size, precision and joint score, of averaged weights too; images of three shapes, 11 in all."""
    data = make_data(tmp_path / "data", train=12, val=11)
    train_run(tiny_config(**changes), data, tmp_path / "run", device="cpu")
    report = evaluate(tmp_path / "run", data, "val", device="cpu")
    assert report["metrics"]["AP"] > 0.01
    assert best_validation(tmp_path / "run").items() <= report.items()


def test_any_split(trained: Any):
    train = evaluate(trained.run, trained.data, "train", device="cpu")
    assert (train["split"], train["images"]) == ("train", 20)


def test_an_untrained_detector_and_one_that_finds_nothing(write_run: Callable[..., Path], trained: Any, tmp_path: Path):
    # Class scores start at 0.01, below the threshold.
    changes = {"model.quality": "none", "inference.alpha": 0.0}
    nothing = evaluate(write_run(tmp_path / "nothing", **changes), trained.data, "val", device="cpu")
    assert nothing["metrics"]["AP"] == nothing["metrics"]["AR"] == 0
    changes |= {"inference.score_threshold": 0.0}
    chance = evaluate(write_run(tmp_path / "chance", **changes), trained.data, "val", device="cpu")
    assert chance["metrics"]["AR"] > 0


def test_the_tables_show_every_number(report: dict[str, Any], capsys: pytest.CaptureFixture[str]):
    print_report(report)
    out = capsys.readouterr().out
    rows = [line.split() for line in out.splitlines()]

    def cells(metrics: dict[str, float | None]) -> list[str]:
        return ["-" if value is None else f"{value:.3f}" for value in metrics.values()]

    assert ["joint", "score", *METRICS] in rows
    assert [report["joint"], *cells(report["metrics"])] in rows
    for name, value in report["per_class"].items():
        assert [name, *cells({name: value})] in rows
    for row in report["sweep"]:
        assert [row["joint"], *cells(row["metrics"])] in rows
    assert "val, 4 images" in out
    report = {key: value for key, value in report.items() if key != "sweep"}
    print_report(report)
    assert "cls*obj" not in capsys.readouterr().out


@pytest.fixture(scope="module")
def results(trained: Any, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The validation split's detections as a file, and the report about them."""
    file = tmp_path_factory.mktemp("results") / "dt.json"
    report = evaluate(trained.run, trained.data, "val", device="cpu", detections=file)
    return SimpleNamespace(file=file, report=report, records=json.loads(file.read_text()))


def test_the_detections_file_has_the_data_sets_ids_and_both_scores(results: Any, trained: Any):
    images = {
        image["id"]: image["file_name"] for image in json.loads((trained.data / "val.json").read_text())["images"]
    }
    detector = retinaconf.load(trained.run, device="cpu")
    every = detector.predict([trained.data / "images" / name for name in images.values()])  # in one batch, as there
    for image_id, found in zip(images, every):
        mine = [record for record in results.records if record["image_id"] == image_id]
        expected = found.to_coco(image_id)
        assert [record["category_id"] for record in mine] == [record["category_id"] for record in expected]
        for key in ("bbox", "score", "class_score", "quality"):
            np.testing.assert_allclose([r[key] for r in mine], [r[key] for r in expected], rtol=1e-4, atol=1e-3)
    assert {record["image_id"] for record in results.records} <= images.keys()
    assert {record["category_id"] for record in results.records} == {3, 8, 90}


def test_pycocotools_finds_the_reports_numbers_in_the_file(
    results: Any, trained: Any, capsys: pytest.CaptureFixture[str]
):
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    truth = COCO(str(trained.data / "val.json"))
    evaluation = COCOeval(truth, truth.loadRes(str(results.file)), "bbox")
    evaluation.evaluate()
    evaluation.accumulate()
    evaluation.summarize()
    capsys.readouterr()
    ours = results.report["metrics"]
    assert ours["AP"] > 0.05
    places = {"AP": 0, "AP50": 1, "AP75": 2, "AP_M": 4, "AP_L": 5, "AR": 8, "AR_M": 10, "AR_L": 11}
    for name, place in places.items():
        if ours[name] is not None:
            assert evaluation.stats[place] == pytest.approx(ours[name], abs=1e-9), name


def test_diagnose_reads_the_file(results: Any, trained: Any, run_cli: Callable[..., Any], tmp_path: Path):
    words = ["--detections", results.file, "--ground-truth", trained.data / "val.json", "--json", tmp_path / "d.json"]
    assert run_cli("diagnose", *words).code == 0
    document = json.loads((tmp_path / "d.json").read_text())
    assert document["metrics"] == pytest.approx(results.report["metrics"], abs=1e-9)


def test_the_command_writes_the_same_file(results: Any, trained: Any, run_cli: Callable[..., Any], tmp_path: Path):
    file = tmp_path / "dt.json"
    words = ["evaluate", trained.run, "--data", trained.data, "--device", "cpu", "--sweep", "--detections", file]
    assert run_cli(*words).code == 0
    assert json.loads(file.read_text()) == results.records
    result = run_cli(*words[:-1], tmp_path / "nowhere/dt.json")
    assert result.code == 1
    assert "AP50" not in result.out  # told before anything is computed
    nowhere = tmp_path / "nowhere"
    assert (
        result.err
        == f"retinaconf: {nowhere / 'dt.json'}: cannot be written, there is no folder {nowhere}; make it first\n"
    )
    assert not nowhere.exists()


def test_a_detector_that_finds_nothing_writes_an_empty_list(
    write_run: Callable[..., Path], trained: Any, tmp_path: Path
):
    run = write_run(tmp_path / "run", **{"inference.score_threshold": 0.999})
    evaluate(run, trained.data, "val", device="cpu", detections=tmp_path / "dt.json")
    assert json.loads((tmp_path / "dt.json").read_text()) == []


@pytest.mark.parametrize("split", ["train", "val"])
@pytest.mark.ci
def test_what_is_left_out_is_counted_with_the_result(
    run_cli: Callable[..., Any], write_run: Callable[..., Path], tiny_data: Path, tmp_path: Path, split: str
):
    run = write_run(tmp_path / "run", **{"data.skip_bad": True})
    missing = tiny_data / f"images/{split}-2.png"
    missing.unlink()
    evaluation, diagnosis = tmp_path / "evaluation.json", tmp_path / "diagnosis.json"
    words = [run, "--data", tiny_data, "--split", split]
    for command, file in (("evaluate", evaluation), ("diagnose", diagnosis)):
        result = run_cli(command, *words, "--json", file)
        assert result.code == 0, result.err
        images = {"train": 7, "val": 3}[split]
        assert f"{images} images; 1 image left out" in result.out
    for left_out in (
        json.loads(evaluation.read_text())["left_out"],
        json.loads(diagnosis.read_text())["data"]["left_out"],
    ):
        assert (left_out["images"], left_out["annotations"]) == (1, 0)
        assert left_out["records"] == [f"{missing}: no such image file; restore it, or correct the path"]
    assert f"{missing}: no such image file" in run_cli("evaluate", *words).out

    (tiny_data / f"images/{split}-1.png").unlink()
    for command in ("evaluate", "diagnose"):
        result = run_cli(command, *words)
        assert result.code == 1
        (line,) = result.err.splitlines()
        assert f"{split}.json: 2 of {images + 1} images cannot be used, more than data.max-skipped 0.01 allows" in line
        assert f"the first: {tiny_data / f'images/{split}-1.png'}" in line


@pytest.mark.ci
def test_the_share_that_is_left_out_is_not_that_of_a_sample(
    write_run: Callable[..., Path], make_data: Callable[..., Path], tmp_path: Path
):
    data = make_data(tmp_path / "data", val=60)
    document = json.loads((data / "val.json").read_text())
    for n in (5, 50):  # two of 120 boxes, which is as many as a hundredth, rounded up
        document["annotations"][n]["bbox"] = [1, 2, 3]
    (data / "val.json").write_text(json.dumps(document))
    run = write_run(tmp_path / "run", **{"data.skip_bad": True})
    assert len(diagnose_run(run, data, images=6, device="cpu").ground_truth) == 6
    document["annotations"][70]["bbox"] = [1, 2, 3]
    (data / "val.json").write_text(json.dumps(document))
    with pytest.raises(InputError, match=r"3 of 119 annotations cannot be used"):
        diagnose_run(run, data, images=6, device="cpu")
