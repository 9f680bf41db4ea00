"""Winograd's convolution against torch's direct one in float64."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from retinaconf.inference import winograd
from retinaconf.inference.detector import Detector
from retinaconf.inference.winograd import Winograd, conv3x3, pays
from retinaconf.model.retinanet import RetinaNet
from retinaconf.recipes import recipe
from retinaconf.run_folder import Weights


def error(given: Tensor, x: Tensor, weight: Tensor, bias: Tensor | None) -> float:
    """The largest difference from the exact convolution, in units of its spread."""
    exact = F.conv2d(x.double(), weight.double(), None if bias is None else bias.double(), padding=1)
    assert given.shape == exact.shape
    return float((given - exact).abs().max() / exact.std())


@pytest.mark.parametrize(("height", "width"), [(4, 4), (1, 1), (3, 9), (76, 128), (37, 50), (5, 1300)])
@pytest.mark.parametrize(("images", "channels", "wide", "with_bias"), [(1, 8, 5, True), (3, 2, 16, False)])
@pytest.mark.parametrize("memory_format", [torch.channels_last, torch.contiguous_format])
def test_it_is_the_convolution(
    height: int, width: int, images: int, channels: int, wide: int, with_bias: bool, memory_format: torch.memory_format
):
    torch.manual_seed(height * width)
    x = torch.randn(images, channels, height, width).to(memory_format=memory_format)
    weight = torch.randn(wide, channels, 3, 3).to(memory_format=memory_format)
    bias = torch.randn(wide) if with_bias else None
    assert error(conv3x3(x, weight, bias), x, weight, bias) < 1e-4


def test_rounding_with_as_many_channels_as_it_is_used_for():
    torch.manual_seed(0)
    x, weight = torch.randn(1, 256, 40, 40).relu(), torch.randn(256, 256, 3, 3) * 0.03
    assert error(conv3x3(x, weight), x, weight, None) < 1e-4


def test_parts_of_an_image_are_as_the_whole(monkeypatch: pytest.MonkeyPatch):
    torch.manual_seed(0)
    x, weight = torch.randn(2, 8, 70, 30), torch.randn(4, 8, 3, 3)
    whole = conv3x3(x, weight)
    monkeypatch.setattr(winograd, "MOST_TILES", 17)
    assert torch.allclose(conv3x3(x, weight), whole, atol=1e-5)


def test_what_is_not_finite_stays_so():
    x, weight = torch.zeros(1, 8, 12, 12), torch.ones(4, 8, 3, 3)
    x[0, 0, 5, 5] = torch.nan
    assert not conv3x3(x, weight)[0, :, 4:7, 4:7].isfinite().any()


def test_the_mode_takes_the_convolutions_for_which_it_pays(monkeypatch: pytest.MonkeyPatch):
    taken: list[tuple[int, ...]] = []

    def noted(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        taken.append(tuple(weight.shape))
        return conv3x3(x, weight, bias)

    monkeypatch.setattr(winograd, "conv3x3", noted)
    network = nn.Sequential(
        nn.Conv2d(3, 256, 3, padding=1),
        nn.Conv2d(256, 300, 3, padding=1),
        nn.Conv2d(300, 256, 1),
        nn.Conv2d(256, 256, 3, padding=1, groups=2),
        nn.Conv2d(256, 256, 3, padding=2, dilation=2),
        nn.Conv2d(256, 256, 3),
        nn.Conv2d(256, 256, 3, stride=2, padding=1),
        nn.Conv2d(256, 256, 3, padding=1),  # too small by now
    )
    x = torch.randn(1, 3, 68, 70)
    with torch.no_grad():
        plain = network(x)
        assert not taken
        with Winograd():
            fast = network(x)
    assert taken == [(300, 256, 3, 3)]
    assert not torch.equal(fast, plain)
    assert torch.allclose(fast, plain, atol=1e-4)


def test_it_is_for_32_bits():
    x, weight = torch.zeros(1, 256, 100, 100), torch.zeros(256, 256, 3, 3)
    rest = (None, (1, 1), (1, 1), (1, 1), 1)
    assert pays(x, weight, *rest)
    assert not pays(x.double(), weight.double(), *rest)
    assert not pays(x.bfloat16(), weight.bfloat16(), *rest)


@pytest.mark.parametrize("detector", ["conf", pytest.param("aligned", marks=pytest.mark.slow)])
@pytest.mark.ci
def test_a_network_says_the_same(detector: str, monkeypatch: pytest.MonkeyPatch):
    torch.manual_seed(0)
    network = RetinaNet(recipe(f"{detector}-r50-1x").changed(**{"model.weights": "none"}).model, 80).eval()
    for name, module in network.named_modules():
        if isinstance(module, nn.Conv2d):  # as after some training: no layer shrinks or blows up what it is given
            residual = 0.1 if name.endswith("conv3") else 1
            nn.init.normal_(module.weight, std=residual * (2 / module.weight[0].numel()) ** 0.5)
    counted: list[int] = []
    monkeypatch.setattr(winograd, "conv3x3", lambda x, *rest: counted.append(1) or conv3x3(x, *rest))
    images, sizes = torch.randint(0, 256, (1, 3, 576, 576), dtype=torch.uint8), torch.tensor([[576, 576]])
    with torch.no_grad():
        direct = network(images, sizes)
        with Winograd():
            fast = network(images, sizes)
    assert len(counted) >= 9  # P3 and the towers on it
    assert direct.class_logits.std() > 0.1
    for name, share in (("class_logits", 3e-5), ("box_deltas", 1e-4)):
        wanted = getattr(direct, name)
        assert (getattr(fast, name) - wanted).abs().max() < share * wanted.std(), name


@pytest.mark.ci
def test_a_detector_on_a_cpu_uses_it(monkeypatch: pytest.MonkeyPatch):
    config = recipe("retinanet-lite0").changed(
        **{"model.weights": "none", "model.channels": 256, "data.short_side": 576, "data.long_side": 576}
    )
    state = RetinaNet(config.model, 1).state_dict()
    counted: list[int] = []
    monkeypatch.setattr(winograd, "conv3x3", lambda x, *rest: counted.append(1) or conv3x3(x, *rest))
    Detector(Weights(config, ("cell",), (1,), state), "cpu").predict(torch.zeros(3, 576, 576, dtype=torch.uint8))
    assert len(counted) >= 6  # the towers on P3
