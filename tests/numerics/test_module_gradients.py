"""Single modules, usual and unusual, against one forward and one backward pass per example."""

import pytest
import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from lifelong.numerics.module_gradients import places_of
from lifelong.numerics.per_example import PerExample, squared_gradient_sum


def brute_force(params, score, inputs):
    """(B, *shape) by a forward and a backward pass for each example alone."""
    rows = []
    for index in range(len(inputs)):
        value = score(inputs[index : index + 1])[0]
        rows.append(torch.autograd.grad(value, list(params.values()), materialize_grads=True))
    return {name: torch.stack(column) for name, column in zip(params, zip(*rows, strict=True), strict=True)}


def same(left, right, tolerance=2e-5):
    for name, expected in right.items():
        error = (left[name] - expected).norm()
        assert left[name].shape == expected.shape and left[name].dtype == torch.float32, name
        assert error <= tolerance * expected.norm() + 1e-9, (name, error, expected.norm())


class Named(nn.Module):
    """A module whose input comes by keyword."""

    def __init__(self, inner, key):
        super().__init__()
        self.inner, self.key = inner, key

    def forward(self, rows):
        return self.inner(**{self.key: rows})


KINDS = {
    "linear": (lambda: nn.Linear(6, 3), (5, 4, 6)),
    "linear of one row": (lambda: nn.Linear(6, 3), (5, 6)),
    "linear by keyword": (lambda: Named(nn.Linear(6, 3), "input"), (5, 4, 6)),
    "linear of images": (lambda: nn.Linear(6, 3), (5, 2, 4, 6)),
    "conv1d": (lambda: Conv1D(3, 6), (5, 4, 6)),
    "conv1d of one row": (lambda: Conv1D(3, 6), (5, 6)),
    "layer norm": (lambda: nn.LayerNorm(6), (5, 4, 6)),
    "group norm": (lambda: nn.GroupNorm(2, 6), (5, 6, 4)),
    "convolution": (lambda: nn.Conv2d(2, 3, 3), (5, 2, 6, 6)),
    "embedding": (lambda: nn.Embedding(7, 3), None),
    "embedding with padding": (lambda: nn.Embedding(7, 3, padding_idx=2), None),
}


@pytest.mark.parametrize("kind", KINDS)
def test_module_alone(kind):
    torch.manual_seed(0)
    make, shape = KINDS[kind]
    network = make()
    inputs = torch.randn(shape) if shape else torch.randint(0, 7, (5, 12))
    params = dict(network.named_parameters())
    score = lambda rows: network(rows).sin().flatten(1).sum(1)  # noqa: E731
    series, expected = PerExample(network, params), brute_force(params, score, inputs)
    same(series.gradients(lambda: score(inputs)), expected)
    squares = {name: rows.square().sum(0) for name, rows in expected.items()}
    same(series.squared_sum(lambda: score(inputs)), squares)  # shortcuts where there are any
    assert not series.exact


def test_places_name_the_rows_of_each_example():
    places, real = places_of(torch.tensor([2, 0, 2, 3]), 4)
    assert real.tolist() == [[True, False], [False, False], [True, True], [True, False]]
    assert places[real].tolist() == [1, 0, 2, 3]


def test_linear_under_an_adapter_keeps_its_own_gradient():
    """A hook that scales the output must not reach into the gradient of the module's weight."""
    network = nn.Sequential(nn.Linear(3, 2))
    network[0].register_forward_hook(lambda module, args, out: 5 * out)
    params, inputs = dict(network.named_parameters()), torch.randn(4, 3)
    series = PerExample(network, params)
    same(series.gradients(lambda: network(inputs).sum(-1)), {"0.weight": 5 * inputs[:, None].expand(4, 2, 3)})
    assert not series.exact


def test_linear_gaussian_closed_form():
    """log-likelihood -(y - w x)^2 / 2 with residuals of one: the sum is that of x^2."""
    network, inputs = nn.Linear(5, 1, bias=False), torch.randn(64, 5)
    targets = network(inputs).detach()[:, 0] + torch.tensor([1.0, -1.0]).repeat(32)
    made = squared_gradient_sum(
        network,
        dict(network.named_parameters()),
        lambda: -0.5 * (targets - network(inputs)[:, 0]) ** 2,
    )
    torch.testing.assert_close(made["weight"][0], (inputs**2).sum(0), rtol=1e-5, atol=0)


class Odd(nn.Module):
    """Ways in which rows do not follow the examples."""

    def __init__(self, way):
        super().__init__()
        self.way, self.linear = way, nn.Linear(6, 6)

    def forward(self, rows):  # (B, T, 6)
        if self.way == "transposed":
            return self.linear(rows.transpose(0, 1)).transpose(0, 1).tanh()
        if self.way == "functional":
            return (self.linear(rows) + torch.nn.functional.linear(rows**2, self.linear.weight)).tanh()
        if self.way == "in place":
            return self.linear(rows).mul_(2).tanh()
        if self.way == "mixed":
            out = self.linear(rows)
            return (out - out.mean(0)).tanh()
        if self.way == "permuted":
            order = rows.flatten(0, 1)[:, 0].argsort()
            back = order.argsort()
            return self.linear(rows.flatten(0, 1)[order])[back].view_as(rows).tanh()
        return self.linear(rows.flatten(0, 1)).view_as(rows).tanh()  # "flat"


@pytest.mark.parametrize("way", ["transposed", "functional", "in place", "mixed", "permuted", "flat"])
def test_unusual_modules_are_never_silently_wrong(way):
    torch.manual_seed(0)
    network = Odd(way)
    params, series = dict(network.named_parameters()), None
    series = PerExample(network, params)
    for seed in range(2):
        inputs = torch.randn(4, 4, 6, generator=torch.Generator().manual_seed(seed))
        score = network(inputs).sum((1, 2))
        rows = [torch.autograd.grad(s, list(params.values()), retain_graph=True) for s in score]
        expected = {n: torch.stack(c) for n, c in zip(params, zip(*rows, strict=True), strict=True)}
        same(series.gradients(lambda inputs=inputs: network(inputs).sum((1, 2))), expected)
    assert ("linear.weight" in series.exact) == (way != "flat")


def test_flat_rows_that_change_their_order_later_are_found_out():
    torch.manual_seed(0)
    network = Odd("flat")
    params, inputs = dict(network.named_parameters()), torch.randn(4, 4, 6)
    series = PerExample(network, params)
    series.gradients(lambda: network(inputs).sum((1, 2)))
    assert not series.exact
    network.way = "permuted"
    same(
        series.gradients(lambda: network(inputs).sum((1, 2))),
        brute_force(params, lambda rows: network(rows).sum((1, 2)), inputs),
    )
    assert series.exact == set(params)
