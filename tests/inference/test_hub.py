"""Saving, sharing and loading a detector; the network is never used."""

import json
import shlex
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import huggingface_hub.hub_mixin
import numpy as np
import pytest
from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError, RepositoryNotFoundError

import retinaconf
from retinaconf.detections import Detections
from retinaconf.errors import InputError
from retinaconf.inference import detector as module
from retinaconf.inference.model_card import best_metrics, model_card
from retinaconf.recipes import RECIPES


def assert_same(one: Detections, two: Detections) -> None:
    assert len(one) == len(two) > 0
    assert (one.classes, one.category_ids) == (two.classes, two.category_ids)
    for name in ("boxes", "labels", "scores", "class_scores", "quality"):
        np.testing.assert_array_equal(getattr(one, name), getattr(two, name))


class FakeHub:
    """A folder in the place of the Hub: `owner/name/` holds the files of a model."""

    def __init__(self, root: Path):
        self.root = root
        self.asked: list[tuple[str, str]] = []
        self.down: Exception | None = None

    def download(self, repo_id: str, filename: str, **options: Any) -> str:
        self.asked.append((repo_id, filename))
        if self.down is not None:
            raise self.down
        if not (self.root / repo_id).is_dir():
            raise error_of(RepositoryNotFoundError)
        if not (self.root / repo_id / filename).is_file():
            raise EntryNotFoundError("404")
        return str(self.root / repo_id / filename)


def error_of(kind: type[Exception]) -> Exception:
    """An error of the Hub without the response that its constructor wants."""
    error = kind.__new__(kind)
    error.args = ("404 Client Error\n\nRepository Not Found",)
    return error


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeHub:
    fake = FakeHub(tmp_path / "hub")
    monkeypatch.setattr(module, "hf_hub_download", fake.download)
    monkeypatch.setattr(huggingface_hub.hub_mixin, "hf_hub_download", fake.download)
    monkeypatch.chdir(tmp_path)
    return fake


def test_saved_and_loaded_it_finds_the_same(trained: Any, tmp_path: Path):
    detector = retinaconf.load(trained.run, device="cpu")
    detector.save_pretrained(tmp_path / "saved")
    assert sorted(path.name for path in (tmp_path / "saved").iterdir()) == [
        "README.md",
        "config.json",
        "model.safetensors",
    ]
    assert json.loads((tmp_path / "saved/config.json").read_text()) == trained.config.flat()
    image = trained.data / "images/val-3.png"
    (expected,) = detector.predict(image)
    for again in (
        retinaconf.load(tmp_path / "saved", device="cpu"),
        retinaconf.Detector.from_pretrained(tmp_path / "saved", device="cpu"),
    ):
        assert isinstance(again, retinaconf.Detector)
        assert again.config == trained.config
        assert_same(again.predict(image)[0], expected)


def test_saving_beside_a_card_of_ones_own_leaves_it(trained: Any, tmp_path: Path):
    (tmp_path / "README.md").write_text("mine")
    retinaconf.load(trained.run, device="cpu").save_pretrained(tmp_path)
    assert (tmp_path / "README.md").read_text() == "mine"


def test_the_card_has_classes_recipe_and_the_best_validation(trained: Any, tmp_path: Path):
    detector = retinaconf.load(trained.run, device="cpu")
    lines = [json.loads(line) for line in (trained.run / "metrics.jsonl").read_text().splitlines()]
    best = max(line["AP"] for line in lines if line["kind"] == "val")
    assert detector.metrics is not None
    assert detector.metrics["AP"] == best
    detector.save_pretrained(tmp_path)
    card = (tmp_path / "README.md").read_text()
    assert card.startswith("---\nlibrary_name: retinaconf\npipeline_tag: object-detection\n")
    assert "**Classes:** red, green, blue" in card
    assert f"**Validation:** AP {best:.3f}, AP50 " in card
    assert "RetinaNet-Conf with the backbone `test_resnet`" in card
    assert retinaconf.load(tmp_path, device="cpu").metrics is None


@pytest.mark.parametrize("name", RECIPES)
def test_the_cards_command_gives_the_configuration(name: str, monkeypatch: pytest.MonkeyPatch):
    from retinaconf.commands.train import train

    changes = {"data.short_side": 480, "data.scale": (0.5, 1.0), "model.freeze": "none", "seed": 3}
    config = RECIPES[name].changed(**changes, **{"model.weights": "my weights.pth"})
    card = model_card(config, ["cat"], None)
    assert "**Validation:** not recorded" in card
    (line,) = [line for line in card.splitlines() if line.startswith("retinaconf train")]
    parsed: list[Any] = []
    monkeypatch.setattr("retinaconf.training.run.train_run", lambda *args: parsed.extend(args))
    train(shlex.split(line)[2:])
    assert parsed[0] == config


def test_the_card_names_the_detector():
    product = {"loss.joint": "product", "inference.alpha": 0.4}
    distribution = product | {"model.box": "distribution", "model.quality": "distribution"}
    for changes, named in (
        ({}, "\nRetinaNet with the backbone"),
        ({"model.class_target": "iou"}, "\nJoint head with the backbone"),
        (
            product | {"model.quality": "classification"},
            "\nRetinaNet-Conf, class score and quality trained as one product,",
        ),
        (
            distribution,
            "\nRetinaNet with a quality from the distributions of its boxes (GFLv2), class score and quality",
        ),
    ):
        assert named in model_card(RECIPES["retinanet-lite0"].changed(**changes), ["cat"], None)


def test_many_classes_are_not_all_listed():
    card = model_card(RECIPES["conf-lite0"], [f"class-{n}" for n in range(365)], None)
    assert "class-99 and 265 more" in card
    assert "class-100" not in card


@pytest.mark.parametrize("text", ["", "{", "[]\n3\n", '{"kind": "train", "loss": 2}\n', None])
def test_no_metrics_where_none_are_recorded(tmp_path: Path, text: str | None):
    if text is not None:
        (tmp_path / "metrics.jsonl").write_text(text)
    assert best_metrics(tmp_path) is None


def test_a_model_of_the_hub(hub: FakeHub, trained: Any, run_cli: Callable[..., Any], tmp_path: Path):
    here = retinaconf.load(trained.run, device="cpu")
    here.save_pretrained(hub.root / "someone/cells")
    image = trained.data / "images/val-3.png"
    (expected,) = here.predict(image)
    (found,) = retinaconf.load("someone/cells", device="cpu").predict(image)
    assert_same(found, expected)
    assert ("someone/cells", "model.safetensors") in hub.asked
    assert run_cli("predict", "someone/cells", image, "--out", tmp_path / "out", "--device", "cpu").code == 0
    assert len(json.loads((tmp_path / "out/detections.json").read_text())) == len(expected)


def test_pushing_uploads_what_saving_writes(trained: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    class Api:
        def __init__(self, token: str | None):
            pass

        def create_repo(self, repo_id: str, **options: Any) -> Any:
            return type("Repo", (), {"repo_id": repo_id})

        def upload_folder(self, repo_id: str, folder_path: Path, **options: Any) -> str:
            shutil.copytree(folder_path, tmp_path / "uploaded")
            return f"commit of {repo_id}"

    monkeypatch.setattr(huggingface_hub.hub_mixin, "HfApi", Api)
    assert retinaconf.load(trained.run, device="cpu").push_to_hub("someone/cells") == "commit of someone/cells"
    assert sorted(path.name for path in (tmp_path / "uploaded").iterdir()) == [
        "README.md",
        "config.json",
        "model.safetensors",
    ]


@pytest.mark.parametrize(
    ("down", "message"),
    [
        (None, "the Hugging Face Hub has no such model, or not for you; correct the name, or `hf auth login`"),
        (LocalEntryNotFoundError("offline\n\nreally"), "the Hugging Face Hub cannot be reached (LocalEntryNotFound"),
        (EntryNotFoundError("404"), "the model of this name on the Hugging Face Hub has no model.safetensors"),
        (ConnectionError("no route"), "the Hugging Face Hub cannot be reached (ConnectionError); go online"),
    ],
    ids=["no such model", "offline", "no weights", "no network"],
)
def test_a_model_that_cannot_be_had(
    hub: FakeHub, run_cli: Callable[..., Any], down: Exception | None, message: str, tmp_path: Path
):
    hub.down = down
    result = run_cli("evaluate", "someone/cells", "--data", tmp_path)
    assert result.code == 1
    assert result.err.startswith(f"retinaconf: someone/cells: no such folder here, and {message}")
    assert result.err.count("\n") == 1


def test_offline_by_setting(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(InputError, match=r"someone/cells: no such folder here, and .* cannot be reached") as caught:
        retinaconf.load("someone/cells")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("run", ["runs/cells", "runs", "/a/b", "./a", "../a/b", "a/b/c", "a b/c", "-a/b"])
def test_what_does_not_read_as_a_name_is_not_asked_for(hub: FakeHub, tmp_path: Path, run: str):
    (tmp_path / "runs").mkdir()  # a typing error in the name of a run is no reason to ask a server
    with pytest.raises(InputError, match=r": no such file; give a run folder"):
        retinaconf.load(run)
    assert hub.asked == []
