"""L2 against its closed form, in a plain PyTorch loop."""

import pytest
import torch
from torch import nn

from lifelong.core.axes import Context
from lifelong.core.state import copy, equal, join, split
from lifelong.errors import UserError
from lifelong.penalties.l2 import L2


def network(rows=3):
    torch.manual_seed(0)
    return nn.Linear(2, rows)


def context(net):
    return Context(params=dict(net.named_parameters()))


def held(net, **settings):
    penalty = L2(**settings)
    state = penalty.begin_stage(context(net), penalty.init(context(net)))
    return penalty, penalty.end_stage(context(net), state)


def shift(net, amount=0.5):
    with torch.no_grad():
        for parameter in net.parameters():
            parameter += amount


def test_value_and_gradient_are_the_closed_form():
    net = network()
    penalty, state = held(net, strength=3.0)
    assert penalty.loss(context(net), state).item() == 0.0
    shift(net)
    loss = penalty.loss(context(net), state)
    torch.testing.assert_close(loss.item(), 3.0 / 2 * 9 * 0.25)
    for gradient in torch.autograd.grad(loss, list(net.parameters())):
        torch.testing.assert_close(gradient, torch.full_like(gradient, 3.0 * 0.5))


def test_anchor_shares_no_memory_with_the_weights():
    net = network()
    _, state = held(net)
    shift(net)  # control: an alias would follow, and the penalty stay 0
    assert not torch.equal(state["anchor"]["weight"], net.weight)
    own = {p.data_ptr() for p in net.parameters()}
    assert own.isdisjoint(a.data_ptr() for a in state["anchor"].values())


def test_nothing_to_hold_before_the_first_stage_ends():
    net, penalty = network(), L2()
    state = penalty.begin_stage(context(net), penalty.init(context(net)))
    shift(net)
    assert penalty.loss(context(net), state) is None


def test_initial_anchor_holds_from_the_start_and_stays():
    net = network()
    first = {name: p.detach().clone() for name, p in net.named_parameters()}
    penalty = L2(anchor="initial")
    state = penalty.begin_stage(context(net), penalty.init(context(net)))
    shift(net)
    assert penalty.loss(context(net), state) > 0
    state = penalty.end_stage(context(net), state)
    assert all(torch.equal(state["anchor"][name], value) for name, value in first.items())
    moving = held(net, anchor="last")[1]
    assert not torch.equal(moving["anchor"]["weight"], first["weight"])


def test_last_anchor_moves_with_the_stages():
    net = network()
    penalty, state = held(net)
    shift(net)
    state = penalty.end_stage(context(net), state)
    assert penalty.loss(context(net), state).item() == 0.0


def test_grown_head_is_held_on_its_old_rows():
    net = network(rows=3)
    penalty, state = held(net, strength=2.0)
    grown = network(rows=5)
    with torch.no_grad():
        grown.weight[:3], grown.bias[:3] = net.weight + 1, net.bias
    loss = penalty.loss(context(grown), state)
    torch.testing.assert_close(loss.item(), 6.0)
    gradient = torch.autograd.grad(loss, grown.weight)[0]
    assert not gradient[3:].any() and bool((gradient[:3] - 2.0).abs().max() < 1e-5)
    assert penalty.end_stage(context(grown), state)["anchor"]["weight"].shape == (5, 2)
    with pytest.raises(UserError, match="weight"):
        penalty.loss(context(network(rows=2)), state)


def run(penalty, steps=20):
    """Trained weights after a second stage on other data."""
    net, state, made = network(), None, []
    for stage in range(2):
        if penalty:
            state = penalty.begin_stage(context(net), state or penalty.init(context(net)))
        inputs = torch.randn(16, 2, generator=torch.Generator().manual_seed(stage))
        optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
        for _ in range(steps):
            loss = (net(inputs) - stage).square().mean()
            held_loss = penalty.loss(context(net), state) if penalty else None
            loss = loss if held_loss is None else loss + held_loss
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        if penalty:
            state = penalty.end_stage(context(net), state)
        made.append([p.detach().clone() for p in net.parameters()])
    return made


@pytest.mark.parametrize("anchor", ["last", "initial"])
def test_zero_strength_changes_no_bit(anchor):
    baseline, off, on = run(None), run(L2(strength=0, anchor=anchor)), run(L2(strength=0.1, anchor=anchor))
    assert all(torch.equal(a, b) for a, b in zip(baseline[1], off[1], strict=True))
    assert not torch.equal(baseline[1][0], on[1][0])


def test_more_strength_means_less_drift():
    runs = [run(L2(strength=strength)) for strength in (0.0, 1.0, 9.0)]
    drift = [(made[1][0] - made[0][0]).norm() for made in runs]
    assert drift[0] > 1.2 * drift[1] > 2.4 * drift[2] > 0


def test_minimum_on_a_quadratic_is_the_weighted_mean():
    """min a/2 (w - 4)^2 + s/2 (w - 1)^2 at w = (4 a + s) / (a + s)."""
    weight = nn.Parameter(torch.tensor([1.0]))
    given, penalty = Context(params={"w": weight}), L2(strength=2.0)
    state = penalty.end_stage(given, penalty.init(given))
    optimizer = torch.optim.SGD([weight], lr=0.1)
    for _ in range(100):
        loss = 3.0 / 2 * (weight - 4).square().sum() + penalty.loss(given, state)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    torch.testing.assert_close(weight.item(), (4 * 3.0 + 2.0) / 5.0)


def test_state_comes_back_from_disk_form():
    net = network()
    penalty, state = held(net)
    back = join(*split(copy(state)))
    assert equal(back, state)
    shift(net)
    assert torch.equal(penalty.loss(context(net), back), penalty.loss(context(net), state))


def test_range_is_checked():
    with pytest.raises(UserError, match="strength"):
        L2(strength=-1.0)
