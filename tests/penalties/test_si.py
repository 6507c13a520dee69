"""SI on quadratics, where its path integral is known, and in small loops."""

import pytest
import torch
from torch import nn

from lifelong.core.axes import Context
from lifelong.core.state import copy, equal, join, split
from lifelong.errors import UserError
from lifelong.penalties.si import Si


def descend(penalty, state, weight, curvature, target, rate, steps, clip=None, extra=0.0):
    """Gradient descent on sum curvature / 2 (w - target)^2; the penalty's own gradient too."""
    given = Context(params={"w": weight})
    state = penalty.begin_stage(given, state or penalty.init(given))
    for step in range(steps):
        given.step = step
        weight.grad = None
        (curvature / 2 * (weight - target).square()).sum().backward()
        state = penalty.after_backward(given, state)
        loss = penalty.loss(given, state)
        if loss is not None:
            loss.backward()
        weight.grad += extra
        if clip is not None:
            weight.grad.clamp_(-clip, clip)
        with torch.no_grad():
            weight -= rate * weight.grad
        state = penalty.after_update(given, state)
        assert state["step"] is None  # a checkpoint after the step holds nothing of it
    return state


A, START, TARGET = (torch.tensor(v) for v in ([3.0, 0.5], [2.0, -1.0], [1.0, 4.0]))


@pytest.mark.parametrize("steps", [1, 7, 200])
def test_path_is_the_closed_form_of_gradient_descent(steps):
    """w_t - m = r^t d with r = 1 - rate a, so path = a d^2 (1 - r^(2 steps)) / (2 - rate a)."""
    weight, penalty, rate = nn.Parameter(START.clone()), Si(), 0.1
    path = descend(penalty, None, weight, A, TARGET, rate, steps)["path"]["w"]
    shrink = 1 - rate * A
    expected = A * (START - TARGET).square() * (1 - shrink ** (2 * steps)) / (2 - rate * A)
    torch.testing.assert_close(path, expected)


def test_small_steps_give_each_weight_its_drop_in_loss():
    weight, rate = nn.Parameter(START.clone()), 1e-4
    path = descend(Si(), None, weight, A, TARGET, rate, 500)["path"]["w"]
    drop = A / 2 * ((START - TARGET).square() - (weight.detach() - TARGET).square())
    torch.testing.assert_close(path, drop, rtol=2e-3, atol=1e-5)
    coarse = nn.Parameter(START.clone())  # control: with large steps it does not
    path = descend(Si(), None, coarse, A, TARGET, 0.3, 5)["path"]["w"]
    drop = A / 2 * ((START - TARGET).square() - (coarse.detach() - TARGET).square())
    assert not torch.allclose(path, drop, rtol=0.05)


def test_after_a_finished_descent_the_penalty_is_the_quadratic_itself():
    """importance -> a / 2 with small steps and damping, so strength 1 adds a / 2 (w - m)^2."""
    weight, penalty = nn.Parameter(START.clone()), Si(damping=1e-8)
    state = descend(penalty, None, weight, A, TARGET, 2e-3, 12000)
    given = Context(params={"w": weight})
    state = penalty.end_stage(given, state)
    torch.testing.assert_close(state["importance"]["w"], A / 2, rtol=5e-3, atol=0)
    assert penalty.loss(given, state).item() == 0.0
    with torch.no_grad():
        weight += torch.tensor([0.5, -2.0])
    loss = penalty.loss(given, state)
    expected = (A / 2 * torch.tensor([0.25, 4.0])).sum()
    torch.testing.assert_close(loss.detach(), expected, rtol=5e-3, atol=0)
    gradient = torch.autograd.grad(loss, weight)[0]
    torch.testing.assert_close(gradient, A * torch.tensor([0.5, -2.0]), rtol=5e-3, atol=0)


def test_damping_bounds_the_importance_of_a_weight_that_hardly_moved():
    path = torch.tensor([0.3, 0.3])
    weight = nn.Parameter(torch.tensor([1.0, 2.0]))
    state = {"anchor": None, "importance": None, "start": {"w": torch.tensor([1.0, 0.0])},
             "path": {"w": path}, "step": None}  # fmt: skip
    found = Si(damping=0.5).end_stage(Context(params={"w": weight}), state)["importance"]["w"]
    torch.testing.assert_close(found, torch.tensor([0.3 / 0.5, 0.3 / 4.5]))


def test_the_path_takes_the_gradient_before_the_penalty_and_before_clipping():
    """The update moved by -rate * (g + extra), clipped; the path holds g alone."""
    weight = nn.Parameter(torch.tensor([2.0]))
    path = descend(Si(), None, weight, torch.tensor([3.0]), torch.tensor([0.0]), 0.1, 1, clip=1.0, extra=5.0)
    torch.testing.assert_close(path["path"]["w"], torch.tensor([6.0 * 0.1 * 1.0]))
    weight, penalty = nn.Parameter(START.clone()), Si(strength=4.0)
    state = penalty.end_stage(
        Context(params={"w": weight}), descend(penalty, None, weight, A, TARGET, 0.05, 30)
    )
    with torch.no_grad():
        weight += 1.0
    before = weight.detach().clone()
    given = Context(params={"w": weight})
    held = torch.autograd.grad(penalty.loss(given, state), weight)[0]
    assert held.abs().min() > 0.1
    state = descend(penalty, state, weight, A, -TARGET, 0.01, 1)
    task = A * (before + TARGET)
    torch.testing.assert_close(state["path"]["w"], -task * (weight.detach() - before), rtol=1e-4, atol=1e-6)


def test_a_path_uphill_is_no_importance():
    weight, penalty = nn.Parameter(torch.tensor([0.5])), Si()
    state = descend(penalty, None, weight, torch.tensor([1.0]), torch.tensor([0.0]), 0.1, 3, extra=-4.0)
    assert state["path"]["w"].item() < 0
    assert penalty.end_stage(Context(params={"w": weight}), state)["importance"]["w"].item() == 0.0


def test_importance_adds_up_over_stages_and_grown_rows_are_free():
    net, penalty = nn.Linear(2, 2, bias=False), Si(damping=1.0)
    given = Context(params={"weight": net.weight})
    state = penalty.begin_stage(given, penalty.init(given))
    state["path"]["weight"] += 3.0
    state = penalty.end_stage(given, state)
    grown = nn.Linear(2, 3, bias=False)
    with torch.no_grad():
        grown.weight[:2] = net.weight
    wide = Context(params={"weight": grown.weight})
    assert penalty.loss(wide, state).item() == 0.0
    with torch.no_grad():
        grown.weight += 1.0
    assert penalty.loss(wide, state).item() == pytest.approx(3.0 * 4)
    state = penalty.begin_stage(wide, state)
    state["path"]["weight"] += 2.0
    state = penalty.end_stage(wide, state)
    assert state["importance"]["weight"].tolist() == [[5.0, 5.0], [5.0, 5.0], [2.0, 2.0]]
    assert state["anchor"]["weight"].shape == (3, 2)


def test_nothing_kept_shares_memory_with_the_weights_and_frozen_ones_have_no_path():
    net, penalty = nn.Linear(2, 2), Si()
    net.bias.requires_grad_(False)
    given = Context(params={n: p for n, p in net.named_parameters() if p.requires_grad})
    state = penalty.begin_stage(given, penalty.init(given))
    net(torch.ones(1, 2)).sum().backward()
    state = penalty.after_backward(given, state)
    own = {p.data_ptr() for p in net.parameters()} | {net.weight.grad.data_ptr()}
    kept = [state["start"]["weight"], *(t["weight"] for t in state["step"].values())]
    assert own.isdisjoint(t.data_ptr() for t in kept)
    net.weight.grad.zero_()  # control: an alias would lose the gradient
    assert state["step"]["gradient"]["weight"].abs().min() > 0
    assert set(state["path"]) == {"weight"}
    state = penalty.end_stage(given, penalty.after_update(given, state))
    assert own.isdisjoint(t.data_ptr() for t in state["anchor"].values())
    assert equal(join(*split(copy(state))), state)


def test_strength_zero_measures_nothing_and_ranges_are_checked():
    weight, off = nn.Parameter(START.clone()), Si(strength=0)
    state = off.end_stage(Context(params={"w": weight}), descend(off, None, weight, A, TARGET, 0.1, 3))
    assert all(value is None for value in state.values())
    assert off.loss(Context(params={"w": weight}), state) is None
    with pytest.raises(UserError, match="damping"):
        Si(damping=0.0)
