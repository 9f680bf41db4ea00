import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel

from retinaconf.training.ema import MovingAverage


def test_the_average_is_torchs_and_so_is_its_state():
    """With weights, a parameter that does not learn, and the statistics of a norm; read by the other at the end."""
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
    network[0].bias.requires_grad_(False)

    def torchs(averaged, current, updates):
        for kept, new in zip(averaged, current):
            kept.lerp_(new, 1 - min(0.9, (1 + float(updates)) / (10 + float(updates))))

    ours, theirs = MovingAverage(network, 0.9), AveragedModel(network, multi_avg_fn=torch.no_grad()(torchs))
    for _ in range(100):  # until the decay is the full one
        network(torch.rand(2, 3, 8, 8))
        with torch.no_grad():
            network[0].weight += torch.randn_like(network[0].weight)
        ours.update(network)
        theirs.update_parameters(network)
    state, expected = ours.state_dict(), theirs.state_dict()
    assert set(state) == set(expected)
    assert state["n_averaged"] == 100
    assert all(torch.equal(state[name], expected[name]) for name in state)
    ours.load_state_dict(expected)
    assert not torch.equal(ours.module[0].weight, network[0].weight)
