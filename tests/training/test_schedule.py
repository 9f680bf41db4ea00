import itertools
import re

import pytest
import torch
from torch import nn

from retinaconf.recipes import recipe
from retinaconf.training.schedule import build_optimizer, describe, learning_rate, peak_learning_rate

STEPS = 1000


def test_the_papers_schedule():
    config = recipe("conf-r50-1x")
    assert learning_rate(config, 0, STEPS) == pytest.approx(0.001 * 0.01)
    assert learning_rate(config, 250, STEPS) == pytest.approx((0.001 + 0.999 / 2) * 0.01)
    assert learning_rate(config, 500, STEPS) == pytest.approx(0.01)
    assert learning_rate(config, 8 * STEPS - 1, STEPS) == pytest.approx(0.01)
    assert learning_rate(config, 8 * STEPS, STEPS) == pytest.approx(0.001)
    assert learning_rate(config, 11 * STEPS, STEPS) == pytest.approx(0.0001)
    assert learning_rate(recipe("conf-r50-2x"), 22 * STEPS, STEPS) == pytest.approx(0.0001)
    assert learning_rate(recipe("conf-r50-2x"), 16 * STEPS - 1, STEPS) == pytest.approx(0.01)


def test_scaled_to_the_batch_and_said_so():
    config = recipe("retinanet-r50-1x").changed(**{"data.batch_size": 4})
    assert peak_learning_rate(config) == pytest.approx(0.0025)
    assert "0.01 x 4/16 = 0.0025" in describe(config, STEPS)


def test_cosine_falls_to_a_hundredth():
    config = recipe("conf-lite0")
    rates = [learning_rate(config, step, 10) for step in range(config.schedule.epochs * 10 + 1)]
    after = rates[config.schedule.warmup_steps :]
    assert all(a >= b for a, b in itertools.pairwise(after))
    assert rates[-1] == pytest.approx(0.01 * peak_learning_rate(config))


@pytest.mark.parametrize("name", ["conf-r50-1x", "conf-lite0"])
@pytest.mark.parametrize("epochs", [1, 3, 24])
@pytest.mark.parametrize("steps", [1, 5, 20, 1000])
def test_warm_up_leaves_a_short_run_its_learning_rate_and_the_line_says_what_happens(name, epochs, steps):
    config = recipe(name).changed(**{"schedule.epochs": epochs})
    rates = [learning_rate(config, step, steps) for step in range(epochs * steps)]
    line = describe(config, steps)
    said, reached = re.search(r", (\d+) warm-up steps?(?: to ([\d.e-]+))?", line).groups()
    assert int(said) == min(config.schedule.warmup_steps, epochs * steps // 10)
    assert all(a < b for a, b in itertools.pairwise(rates[: int(said) + 1]))
    assert max(rates) == rates[int(said)] == pytest.approx(float(reached or peak_learning_rate(config)), rel=1e-2)
    assert max(rates) > 0.97 * peak_learning_rate(config)
    assert ("is more than a tenth of the run" in line) == (config.schedule.warmup_steps > epochs * steps // 10)


class Small(nn.Module):
    def __init__(self):
        super().__init__()
        self.frozen, self.conv, self.norm = nn.Conv2d(3, 3, 3), nn.Conv2d(3, 3, 3), nn.BatchNorm2d(3)
        self.frozen.requires_grad_(False)


@pytest.mark.parametrize(("name", "kind"), [("sgd", torch.optim.SGD), ("adamw", torch.optim.AdamW)])
def test_optimizers(name, kind):
    config = recipe("conf-r50-1x").changed(**{"optimizer.name": name, "optimizer.weight_decay": 0.03})
    optimizer = build_optimizer(Small(), config)
    assert type(optimizer) is kind
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    assert all(p.requires_grad for p in parameters)
    assert len(parameters) == 4
    for group in optimizer.param_groups:
        decayed = name == "sgd" or all(p.ndim > 1 for p in group["params"])
        assert group["weight_decay"] == (0.03 if decayed else 0)
