"""On a GPU: `pytest -m gpu`."""

import copy
from typing import Any

import pytest
import torch
from detectors import DISTRIBUTION, ONE_ANCHOR

from retinaconf.inference.cuda_graphs import MOST, RECORDED_AT, CudaGraphs
from retinaconf.model.retinanet import Outputs, RetinaNet

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="torch finds no CUDA GPU here"),
]
DEVICE = "cuda"
DETECTORS: dict[str, dict[str, Any]] = {
    "conf": {},
    "aligned": ONE_ANCHOR | DISTRIBUTION,
}


@pytest.fixture(params=DETECTORS)
def network(request: pytest.FixtureRequest, tiny_config: Any) -> RetinaNet:
    torch.manual_seed(0)
    network = RetinaNet(tiny_config(**DETECTORS[request.param]).model, 3)
    network.head.class_conv.weight.data *= 100  # else all its logits are one number in bfloat16
    return network.to(DEVICE).eval()


def image(height: int, width: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    pixels = torch.randint(0, 256, (1, 3, height, width), dtype=torch.uint8, generator=generator)
    return pixels.to(DEVICE), torch.tensor([[height - seed % 5, width - 3]], device=DEVICE)


def same(found: Outputs, expected: Outputs) -> None:
    assert found.level_sizes == expected.level_sizes
    for one, other in zip(found, expected):
        if isinstance(one, torch.Tensor):
            torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
@pytest.mark.parametrize("bf16", [False, True])
def test_a_replay_says_what_the_network_says(network: RetinaNet, mode: Any, bf16: bool):
    graphs, kept = CudaGraphs(network), []
    with mode(), torch.autocast(DEVICE, torch.bfloat16, enabled=bf16):
        for seed in range(RECORDED_AT + 3):
            assert len(graphs.recordings) == (2 if seed >= RECORDED_AT else 0)
            for sides in ((64, 96), (96, 64)):
                kept.append((graphs(*image(*sides, seed)), network(*image(*sides, seed))))
    assert None not in graphs.recordings.values()
    for found, expected in kept:  # later replays have left earlier results alone
        same(found, expected)
    assert not torch.equal(kept[-1][0].class_logits, kept[-3][0].class_logits)


def test_what_is_not_replayed(network: RetinaNet):
    graphs = CudaGraphs(network)
    two = torch.cat([image(64, 64)[0]] * 2), torch.cat([image(64, 64)[1]] * 2)
    for _ in range(RECORDED_AT + 1):
        with torch.no_grad():
            graphs(*two)
        assert graphs(*image(64, 64)).class_logits.requires_grad
        with torch.no_grad(), torch.cuda.stream(torch.cuda.Stream()):
            graphs(*image(64, 64))
    assert not graphs.recordings


def test_other_precisions_and_moved_weights_are_recorded_anew(network: RetinaNet):
    graphs = CudaGraphs(network)

    def again() -> None:
        with torch.no_grad():
            for seed in range(RECORDED_AT + 1):
                found = graphs(*image(64, 64, seed))
                same(found, network(*image(64, 64, seed)))

    again()
    with torch.autocast(DEVICE, torch.bfloat16):
        again()
    network.load_state_dict({name: 1.5 * tensor for name, tensor in network.state_dict().items()})
    again()  # in place
    assert len(graphs.recordings) == 2
    network.cpu().to(DEVICE)
    again()
    copied = copy.deepcopy(graphs)
    assert copied.network is not network
    assert not copied.recordings


def test_only_the_shapes_used_last_are_kept(network: RetinaNet):
    graphs = CudaGraphs(network)
    shapes = [(64, 64 + 32 * more) for more in range(MOST + 2)]
    with torch.no_grad():
        for sides in [*shapes, shapes[0]]:
            for _ in range(RECORDED_AT + 1):
                found = graphs(*image(*sides))
            same(found, network(*image(*sides)))
    assert [key[0][3] for key in graphs.recordings] == [sides[1] for sides in [*shapes[3:], shapes[0]]]


def test_a_backbone_that_cannot_be_recorded(network: RetinaNet):
    graphs, plain = CudaGraphs(network), network.backbone.forward
    network.backbone.forward = lambda x: plain(x * x.max().item() / x.max().item())  # type: ignore[method-assign]
    with torch.no_grad():
        for seed in range(RECORDED_AT + 2):
            same(graphs(*image(64, 64, seed)), network(*image(64, 64, seed)))
    assert list(graphs.recordings.values()) == [None]
