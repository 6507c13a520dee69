"""Temporary changes leave nothing behind."""

import pytest
import torch
from torch import nn

from lifelong.errors import UserError
from lifelong.numerics.swap import differentiating, evaluating, leading, swapped, taught


def pair():
    torch.manual_seed(0)
    network = nn.Linear(3, 4)
    params = dict(network.named_parameters())
    return network, params, {name: torch.randn_like(p) for name, p in params.items()}


def test_network_computes_with_the_values_without_copying():
    network, params, values = pair()
    inputs, before = torch.randn(5, 3), {name: p.data_ptr() for name, p in params.items()}
    own = network(inputs)
    with swapped(params, values):
        assert all(p.data_ptr() == values[name].data_ptr() for name, p in params.items())
        made = network(inputs)
    torch.testing.assert_close(made, inputs @ values["weight"].T + values["bias"])
    assert {name: p.data_ptr() for name, p in params.items()} == before
    assert torch.equal(network(inputs), own) and not torch.equal(made, own)


def test_casts_of_autocast_are_those_of_the_weights_at_the_time():
    network, params, values = pair()
    inputs = torch.randn(5, 3)
    with torch.autocast("cpu", dtype=torch.bfloat16):  # which keeps casts, by parameter
        own = network(inputs)
        with taught(network, params, values):
            made = network(inputs)
        again = network(inputs)
    torch.testing.assert_close(
        made.float(), inputs @ values["weight"].T + values["bias"], atol=0.1, rtol=0.05
    )
    assert torch.equal(own, again) and (made - own).abs().max() > 0.5


def test_restored_after_an_exception():
    network, params, values = pair()
    before = {name: p.detach().clone() for name, p in params.items()}
    with pytest.raises(KeyError), swapped(params, values):
        raise KeyError("stop")
    assert all(torch.equal(p, before[name]) for name, p in params.items())


def test_an_earlier_graph_stays_valid():
    """The student's forward pass, then the teacher's, then the student's backward pass."""
    network, params, values = pair()
    inner, inputs = nn.Linear(3, 3), torch.randn(5, 3)
    score = network(inner(inputs).tanh()).square().sum()
    expected = torch.autograd.grad(score, [*inner.parameters(), *params.values()], retain_graph=True)
    with swapped(params, values), torch.no_grad():
        network(inputs)
    made = torch.autograd.grad(score, [*inner.parameters(), *params.values()])
    assert all(torch.equal(a, b) for a, b in zip(made, expected, strict=True))


def test_leading_block_stands_in_for_a_grown_head():
    network, params, _ = pair()
    inputs, old = torch.randn(5, 3), {"weight": torch.randn(2, 3), "bias": torch.randn(2)}
    with swapped(params, old):
        torch.testing.assert_close(network(inputs), inputs @ old["weight"].T + old["bias"])
    assert network(inputs).shape == (5, 4)


@pytest.mark.parametrize(
    ("values", "word"),
    [
        ({"weight": torch.zeros(5, 3)}, "shape"),
        ({"weight": torch.zeros(3)}, "shape"),
        ({"weigth": torch.zeros(4, 3)}, "weight"),
        ({"bias": torch.zeros(4, dtype=torch.float64)}, "float64"),
    ],
)
def test_misfits_are_refused_before_anything_moves(values, word):
    network, params, good = pair()
    before = {name: p.data_ptr() for name, p in params.items()}
    with pytest.raises(UserError, match=word), swapped(params, {"bias": good["bias"]} | values):
        pass
    assert {name: p.data_ptr() for name, p in params.items()} == before


def test_leading_is_the_tensor_itself_where_shapes_agree():
    whole = torch.arange(12.0).view(4, 3)
    assert leading(whole, whole.shape, "x") is whole
    assert torch.equal(leading(whole, torch.Size((2, 3)), "x"), whole[:2])


def test_modes_and_flags_come_back_one_by_one():
    network = nn.Sequential(nn.Dropout(), nn.Linear(2, 2), nn.Dropout())
    network[0].eval()
    network[1].bias.requires_grad_(False)
    with evaluating(network), differentiating(network, {"bias": network[1].bias}):
        assert not any(m.training for m in network.modules())
        assert network[1].bias.requires_grad and not network[1].weight.requires_grad
    assert [m.training for m in network] == [False, True, True]
    assert not network[1].bias.requires_grad and network[1].weight.requires_grad


def test_a_teacher_has_its_weights_no_dropout_and_no_gradient():
    _, params, values = pair()
    network = nn.Sequential(nn.Dropout(0.5), nn.Linear(3, 4)).train()
    own = {f"1.{name}": p.detach().clone() for name, p in network[1].named_parameters()}
    teacher, inputs = {f"1.{name}": value for name, value in values.items()}, torch.randn(5, 3)
    with taught(network, dict(network.named_parameters()), teacher):
        made = network(inputs)
    torch.testing.assert_close(made, inputs @ values["weight"].T + values["bias"])
    assert not made.requires_grad and network[0].training and network(inputs).requires_grad
    assert all(torch.equal(p, own[name]) for name, p in network.named_parameters())
