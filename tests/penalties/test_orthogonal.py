"""The overlap of subspaces against hand-made values and autograd of the formula."""

import time

import pytest
import torch
from torch import nn

from lifelong.core.axes import Context, Subspace, Tuner
from lifelong.core.model import Model
from lifelong.core.state import equal, join, split
from lifelong.errors import UserError
from lifelong.penalties.orthogonal import Orthogonal

PAST = torch.eye(4)[:2]  # e1, e2
CURRENT = torch.tensor([[0.5, -0.5, 0.0, 0.0], [0.0, 0.0, 1.0, 0.0]])


class Given(Tuner):
    """A tuner whose subspaces are what the test says (read from the tuner's state)."""

    has_subspaces = True

    def attach(self, model, state, seed): ...

    def fold(self, model, state): ...

    def subspaces(self, model, state):
        return {
            name: Subspace(past, model.network.get_parameter(f"{name}.lora_A"))
            for name, past in state.items()
        }


def context(pasts, currents, ups=()):
    net = nn.ModuleDict()
    for name, value in currents.items():
        net[name] = nn.Module()
        net[name].lora_A = nn.Parameter(value.clone())
        if ups:
            net[name].lora_B = nn.Parameter(ups[name].clone())
    net["head"] = nn.Linear(2, 2)
    model = Model(network=net, processor=None, kind="decoder", window=1)
    return Context(params=dict(net.named_parameters()), model=model, tuner=Given(), tuner_state=pasts)


def formula(given, form):
    total = torch.zeros(())
    for past, current in given.tuner.subspaces(given.model, given.tuner_state).values():
        overlap = past @ current.T
        total = total + (overlap.abs() if form == "absolute" else overlap.square()).sum()
    return total


@pytest.mark.parametrize(("form", "value"), [("absolute", 1.0), ("squared", 0.5)])
def test_two_row_example(form, value):
    given = context({"m": PAST}, {"m": CURRENT})
    assert Orthogonal(strength=1.0, form=form).loss(given, {}).item() == value
    assert Orthogonal(form=form).loss(given, {}).item() == 0.5 * value


def several():
    """Modules of unlike sizes, one of them without a past."""
    torch.manual_seed(0)
    pasts = {"a": (6, 8), "b": (6, 8), "c": (6, 5), "d": (0, 8), "e": (9, 8)}
    currents = {"a": (2, 8), "b": (2, 8), "c": (2, 5), "d": (2, 8), "e": (3, 8)}
    return context(
        {name: torch.randn(size) for name, size in pasts.items()},
        {name: torch.randn(size) for name, size in currents.items()},
    )


@pytest.mark.parametrize("form", ["absolute", "squared"])
def test_value_and_gradient_equal_autograd_of_the_formula(form):
    given, penalty = several(), Orthogonal(strength=0.7, form=form)
    for past in given.tuner_state.values():
        past.requires_grad_()
    loss, expected = 3 * penalty.loss(given, {}), 3 * 0.7 * formula(given, form)
    torch.testing.assert_close(loss, expected)
    factors = [p for name, p in given.params.items() if "lora" in name]
    made = torch.autograd.grad(loss, factors, retain_graph=True, materialize_grads=True)
    wanted = torch.autograd.grad(expected, factors, materialize_grads=True)
    for left, right in zip(made, wanted, strict=True):
        torch.testing.assert_close(left, right)
    loss.backward()
    assert all(past.grad is None for past in given.tuner_state.values())
    assert not given.params["d.lora_A"].grad.any() if given.params["d.lora_A"].grad is not None else True


def test_zero_where_orthogonal():
    given = context({"m": PAST}, {"m": torch.eye(4)[2:]})
    loss = Orthogonal().loss(given, {})
    assert loss.item() == 0.0
    assert not torch.autograd.grad(loss, given.params["m.lora_A"])[0].any()


def test_orthogonal_inputs_make_orthogonal_updates():
    """A_old A_new^T = 0 gives dW_old dW_new^T = 0, whatever the other factors are."""
    torch.manual_seed(0)
    basis = torch.linalg.qr(torch.randn(8, 8))[0]
    given = context({"m": basis[:3]}, {"m": basis[5:]})
    assert Orthogonal().loss(given, {}).item() < 1e-5
    old, new = torch.randn(6, 3) @ basis[:3], torch.randn(6, 3) @ given.params["m.lora_A"].detach()
    assert (old @ new.T).abs().max() < 1e-5
    tilted = context({"m": basis[:3]}, {"m": basis[2:5]})  # control
    assert Orthogonal().loss(tilted, {}) > 0.4


@pytest.mark.parametrize("form", ["absolute", "squared"])
def test_descent_removes_the_overlap(form):
    given, penalty = several(), Orthogonal(strength=0.5, form=form)
    factors = [p for name, p in given.params.items() if "lora" in name]
    first, rate = penalty.loss(given, {}).item(), 0.02
    for step in range(300):
        loss = penalty.loss(given, {})
        gradients = torch.autograd.grad(loss, factors, materialize_grads=True)
        with torch.no_grad():
            for factor, g in zip(factors, gradients, strict=True):
                factor -= rate / (1 + step / 30) * g
    assert penalty.loss(given, {}).item() < 0.1 * first


def test_past_that_grows_or_changes_is_seen():
    given, penalty = context({"m": PAST.clone()}, {"m": CURRENT}), Orthogonal(strength=1.0)
    assert penalty.loss(given, {}).item() == 1.0
    given.tuner_state["m"] = torch.eye(4)[:3]
    assert penalty.loss(given, {}).item() == 2.0
    given.tuner_state["m"].mul_(2)
    assert penalty.loss(given, {}).item() == 4.0
    given.tuner_state["m"] = torch.eye(4)[:3]  # maybe at the old address
    assert penalty.loss(given, {}).item() == 2.0


def test_first_stage_and_zero_strength_give_none():
    empty = context({"m": torch.zeros(0, 4)}, {"m": CURRENT})
    assert Orthogonal().loss(empty, {}) is None
    assert Orthogonal(strength=0).loss(context({"m": PAST}, {"m": CURRENT}), {}) is None
    assert Orthogonal(strength=0).loss(Context(params={}), {}) is None


def test_magnitude_is_the_sum_of_norms_of_both_factors():
    ups = {"m": torch.zeros(3, 2)}
    given = context({"m": PAST}, {"m": CURRENT}, ups)
    loss = Orthogonal(strength=0, magnitude=2.0).loss(given, {})
    torch.testing.assert_close(loss.item(), 2.0 * 1.5**0.5)
    down, up, head = torch.autograd.grad(
        loss,
        [given.params["m.lora_A"], given.params["m.lora_B"], given.params["head.weight"]],
        materialize_grads=True,
    )
    torch.testing.assert_close(down, 2.0 * CURRENT / 1.5**0.5)
    assert not up.any() and not head.any()  # norm 0: no gradient rather than a NaN
    both = Orthogonal(strength=1.0, magnitude=2.0).loss(given, {})
    torch.testing.assert_close(both.item(), 1.0 + 2.0 * 1.5**0.5)
    started = context({"m": torch.zeros(0, 4)}, {"m": CURRENT})
    torch.testing.assert_close(Orthogonal(magnitude=1.0).loss(started, {}).item(), 1.5**0.5)


def test_half_precision_factors_get_half_precision_gradients():
    given = context({"m": PAST.bfloat16()}, {"m": CURRENT.bfloat16()})
    loss = Orthogonal(strength=1.0).loss(given, {})
    assert loss.dtype == torch.float32 and loss.item() == 1.0
    assert torch.autograd.grad(loss, given.params["m.lora_A"])[0].dtype == torch.bfloat16


def test_autocast_leaves_the_products_in_float32():
    given, penalty = several(), Orthogonal()
    exact = penalty.loss(given, {})
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(penalty.loss(given, {}), exact)
        assert formula(given, "absolute") * 0.5 != exact  # control


def test_state_is_empty_and_missing_parts_are_named():
    penalty = Orthogonal()
    state = penalty.init(Context(params={}))
    assert equal(join(*split(state)), state) and state == {}
    with pytest.raises(UserError, match="tuner"):
        penalty.loss(Context(params={}), state)
    for wrong in ({"strength": -1.0}, {"form": "cubic"}, {"magnitude": -0.1}):
        with pytest.raises(UserError, match=next(iter(wrong))):
            Orthogonal(**wrong)


def test_stage_fifty_is_cheaper_than_the_formula_and_stacks_once(monkeypatch):
    torch.manual_seed(0)
    names = [f"m{index}" for index in range(24)]
    given = context(
        {name: torch.randn(392, 256) for name in names}, {name: torch.randn(8, 256) for name in names}
    )
    penalty, stacks, own = Orthogonal(), [], torch.stack
    monkeypatch.setattr(torch, "stack", lambda parts, *a: stacks.append(parts[0].shape) or own(parts, *a))
    penalty.loss(given, {}).backward()
    seconds = []
    for form in (lambda: penalty.loss(given, {}), lambda: 0.5 * formula(given, "absolute")):
        started = time.perf_counter()
        for _ in range(5):
            form().backward()
        seconds.append((time.perf_counter() - started) / 5)
    assert stacks.count(torch.Size((392, 256))) == 1
    print(f"{seconds[0] * 1e3:.2f} ms, formula {seconds[1] * 1e3:.2f} ms")
    assert seconds[0] < 1.5 * seconds[1] + 1e-3
