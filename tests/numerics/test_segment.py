"""Slopes along a segment equal finite differences; its ends are exact."""

import torch
from torch import nn

from lifelong.numerics.segment import Segment, ends


def made():
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3)).double()
    params = dict(network.named_parameters())
    after = {n: p.detach() + 0.3 * torch.randn_like(p) for n, p in params.items()}
    before = {n: p.detach().clone() for n, p in params.items()}
    inputs = torch.randn(8, 4, dtype=torch.float64)
    segment = Segment(network, params, before, after, lambda n: None if n == "2.bias" else int(n[0] == "2"))
    return network, segment, lambda: network(inputs).square().mean()


def test_slopes_equal_finite_differences():
    network, segment, loss = made()
    point = torch.tensor([0.3, 0.8], dtype=torch.float64)
    segment.move(point)
    value, slopes = segment.slopes(loss, 2)
    assert value == float(loss())
    for g in range(2):
        values = []
        for shift in (1e-6, -1e-6):
            segment.move(point + shift * torch.eye(2, dtype=torch.float64)[g])
            values.append(float(loss()))
        assert abs((values[0] - values[1]) / 2e-6 - float(slopes[g])) < 1e-7
        assert abs(float(slopes[g])) > 1e-3  # the check could fail


def test_ends_are_exact_and_what_has_no_group_stays():
    network, segment, _ = made()
    bias = network[2].bias.clone()
    for ratio, values in ((1.0, segment.after), (0.0, segment.before)):
        segment.move([ratio, ratio])
        assert all(torch.equal(segment.params[n], values[n]) for n in segment.groups)
    assert torch.equal(network[2].bias, bias) and "2.bias" not in segment.groups


def test_gradients_leave_no_trace():
    network, segment, loss = made()
    network[0].weight.requires_grad_(False)
    segment.slopes(loss, 2)
    assert all(p.grad is None for p in network.parameters()) and not network[0].weight.requires_grad


def test_ends_of_an_undoing():
    network, _, _ = made()
    params = dict(network.named_parameters())
    now = {n: p.clone() for n, p in params.items()}
    before, after = ends(params, lambda: [p.data.mul_(0.5) for p in params.values()])
    for n, p in params.items():
        assert torch.equal(p, now[n]) and torch.equal(after[n], now[n]) and torch.equal(before[n], now[n] / 2)
