import json
from pathlib import Path
from typing import Any

import pytest

from retinaconf.training import loop
from retinaconf.training.patience import Validation, is_over, verdict, waited
from retinaconf.training.run import train_run

VALIDATE = loop._validate


def course(*aps: float) -> list[Validation]:
    return [Validation(epoch, ap) for epoch, ap in enumerate(aps, 1)]


@pytest.mark.parametrize(
    ("aps", "since"),
    [((), 0), ((0.1,), 0), ((0.1, 0.2, 0.15, 0.1), 2), ((0.2, 0.1, 0.2), 0), ((0.0, 0.0, 0.0), 0)],
    ids=["none yet", "one", "worse twice", "of equals the last, whose weights are kept", "nothing learnt yet"],
)
def test_epochs_since_the_best(aps: tuple[float, ...], since: int):
    assert waited(course(*aps)) == since
    assert [is_over(course(*aps), patience) for patience in (0, 2, 3)] == [False, since >= 2, since >= 3]


RISES = [0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7]


@pytest.mark.parametrize(
    ("aps", "patience", "epochs", "said"),
    [
        (RISES, 0, 7, "AP was best in epoch 7 of 7"),
        (
            [*RISES, 0.6, 0.6, 0.6, 0.6, 0.6],
            0,
            12,
            "AP was best in epoch 7 of 12; schedule.patience 3 would have stopped after epoch 10 and saved 17% of the "
            "time",
        ),
        # Epochs 2 to 6 are worse than the first: a patience of 5 would have stopped before the best.
        (
            [0.5, 0.1, 0.2, 0.3, 0.4, 0.4, 0.6, *[0.1] * 13],
            0,
            20,
            "AP was best in epoch 7 of 20; schedule.patience 6 would have stopped after epoch 13 and saved 35% of the "
            "time",
        ),
        ([*RISES, 0.6, 0.6, 0.6], 0, 10, "AP was best in epoch 7 of 10"),  # it would have ended just there
        ([*RISES, 0.6], 0, 8, "AP was best in epoch 7 of 8"),
        (
            [0.2, 0.1, 0.1],
            2,
            12,
            "AP was best in epoch 1 of 3; schedule.patience 2 stopped the run and saved 75% of the time",
        ),
        ([0.2, 0.1, 0.1], 2, 3, "AP was best in epoch 1 of 3"),  # it was the last one anyway
        (
            [0.2, 0.1, 0.1, 0.1, 0.1, 0.1],
            9,
            6,
            "AP was best in epoch 1 of 6; schedule.patience 3 would have stopped "
            "after epoch 4 and saved 33% of the time",
        ),
    ],
)
def test_the_last_line(aps: list[float], patience: int, epochs: int, said: str):
    assert verdict(course(*aps), patience, epochs) == said


@pytest.mark.parametrize(
    "aps", [[0.5, 0.1, 0.2, 0.3, 0.4, 0.4, 0.6, *[0.1] * 13], [*RISES, *[0.6] * 8], [0.3] * 3 + [0.1] * 9]
)
def test_what_is_proposed_does_what_is_said(aps: list[float]):
    """Played epoch by epoch."""
    said = verdict(course(*aps), 0, len(aps))
    patience = int(said.split("schedule.patience ")[1].split()[0])
    ended = next(n for n in range(1, len(aps) + 1) if is_over(course(*aps[:n]), patience))
    assert f"stopped after epoch {ended} " in said
    assert max(aps[:ended]) == max(aps)
    assert f"saved {1 - ended / len(aps):.0%} of" in said


def scripted(monkeypatch: pytest.MonkeyPatch, *aps: float) -> None:
    """Validations that are real but for their AP."""
    told = iter(aps)

    def changed(*args: Any) -> Any:
        table, metrics = VALIDATE(*args)
        metrics.overall["AP"] = next(told)
        return table, metrics

    monkeypatch.setattr(loop, "_validate", changed)


@pytest.mark.ci
def test_a_run_stops_when_it_is_not_better_any_more(
    tiny_data: Path, tiny_config: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    config, run = tiny_config(**{"schedule.patience": 2, "data.batch_size": 8}), tmp_path / "run"
    scripted(monkeypatch, 0.1, 0.3, 0.2, 0.25, 0.9)
    train_run(config, tiny_data, run, device="cpu")
    said = "AP was best in epoch 2 of 4; schedule.patience 2 stopped the run and saved 33% of the time"
    assert (run / "log.txt").read_text().splitlines()[-1] == said
    kept = {name: (run / name).read_bytes() for name in ("metrics.jsonl", "model.safetensors", "last.ckpt")}

    # Stopped in between, it counts on: nothing is left to do after the fourth epoch.
    other = tmp_path / "other"
    scripted(monkeypatch, 0.1, 0.3, 0.2, 0.25, 0.9)
    train_run(config, tiny_data, other, max_steps=3, device="cpu")
    assert (other / "log.txt").read_text().splitlines()[-1] == "AP was best in epoch 2 of 3"
    train_run(config, tiny_data, other, resume=True, device="cpu")
    train_run(config, tiny_data, other, resume=True, device="cpu")
    for name in ("metrics.jsonl", "model.safetensors"):
        assert (other / name).read_bytes() == kept[name]
    assert (other / "log.txt").read_text().count(said) == 2


def test_a_run_without_patience_says_what_it_would_have_saved(trained: Any):
    metrics = map(json.loads, (trained.run / "metrics.jsonl").read_text().splitlines())
    aps = [line["AP"] for line in metrics if line["kind"] == "val"]
    assert (trained.run / "log.txt").read_text().splitlines()[-1] == verdict(course(*aps), 0, 6)
