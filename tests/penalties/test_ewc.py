"""EWC against its closed form, brute force and the analytic optimum."""

import pytest
import torch
from torch import nn

from lifelong.core.axes import Context, Objective, Outputs
from lifelong.core.model import Model
from lifelong.core.state import copy, equal, join, split
from lifelong.errors import UserError
from lifelong.numerics.fisher import diagonal_fisher
from lifelong.penalties import ewc
from lifelong.penalties.ewc import Ewc


class Classes(Objective):
    def encode(self, rows, model, labels): ...

    def answer(self, rows, model, labels): ...

    def collate(self, examples, model):
        return {key: torch.stack([e[key] for e in examples]) for key in ("rows", "labels")}

    def forward(self, net, batch):
        return Outputs(net(batch["rows"]), batch["labels"], torch.arange(len(batch["labels"])))


def network(rows=3):
    torch.manual_seed(0)
    return nn.Linear(4, rows)


def context(net, stage=0, num=24):
    generator, objective = torch.Generator().manual_seed(stage), Classes()
    model = Model(network=net, processor=None, kind="encoder", window=1)
    rows = torch.randn(num, 4, generator=generator)
    labels = torch.randint(0, 3, (num,), generator=generator)
    return Context(
        params=dict(net.named_parameters()),
        model=model,
        objective=objective,
        stage=stage,
        examples=[{"rows": r, "labels": y} for r, y in zip(rows, labels, strict=True)],
        batches=lambda chosen: iter([objective.collate(chosen, model)]),
    )


def shift(net, amount=0.5):
    with torch.no_grad():
        for parameter in net.parameters():
            parameter += amount


def brute_force(net, given):
    total = {name: torch.zeros_like(p) for name, p in net.named_parameters()}
    for example in given.examples:
        score = net(example["rows"]).log_softmax(-1)[example["labels"]]
        for name, g in zip(total, torch.autograd.grad(score, list(net.parameters())), strict=True):
            total[name] += g.square() / len(given.examples)
    return total


def test_importance_value_and_gradient_are_the_closed_form():
    net, penalty = network(), Ewc(strength=7.0, batch_size=5)
    given = context(net)
    state = penalty.end_stage(given, penalty.init(given))
    expected = brute_force(net, given)
    for name, value in expected.items():
        torch.testing.assert_close(state["importance"][name], value, rtol=1e-5, atol=1e-8)
    assert penalty.loss(given, state).item() == 0.0
    shift(net)
    loss = penalty.loss(given, state)
    wanted = 7.0 / 2 * 0.25 * sum(v.sum().item() for v in expected.values())
    assert loss.item() == pytest.approx(wanted, rel=1e-5)
    for name, g in zip(expected, torch.autograd.grad(loss, list(net.parameters())), strict=True):
        torch.testing.assert_close(g, 7.0 * 0.5 * expected[name], rtol=1e-5, atol=1e-7)


def test_batch_size_changes_nothing():
    net = network()
    states = [Ewc(batch_size=size).end_stage(context(net), {"importance": None}) for size in (1, 24)]
    for name, value in states[0]["importance"].items():
        torch.testing.assert_close(states[1]["importance"][name], value, rtol=1e-5, atol=1e-9)


@pytest.mark.parametrize("decay", [0.0, 0.25, 1.0])
def test_old_importance_decays(decay):
    net, penalty = network(), Ewc(decay=decay)
    first, second = context(net, 0), context(net, 1)
    state = penalty.end_stage(second, penalty.end_stage(first, penalty.init(first)))
    for name, value in brute_force(net, second).items():
        expected = decay * brute_force(net, first)[name] + value
        torch.testing.assert_close(state["importance"][name], expected, rtol=1e-5, atol=1e-8)
        assert state["importance"][name].dtype == torch.float32


def test_true_fisher_does_not_read_the_labels():
    net, penalty = network(), Ewc(fisher="true")
    given, other = context(net), context(net)
    other.examples = [{**e, "labels": torch.tensor(2)} for e in other.examples]
    made = [penalty.end_stage(c, penalty.init(c))["importance"] for c in (given, other)]
    assert all(torch.equal(made[0][name], made[1][name]) for name in made[0])
    wrong = Ewc().end_stage(other, penalty.init(other))["importance"]
    assert not torch.allclose(made[0]["weight"], wrong["weight"], rtol=0.1)


def test_separable_quadratic_gives_the_joint_optimum():
    """Losses a/2 (w - p)^2 and b/2 (w - q)^2, importance a: the minimum is (a p + b q) / (a + b)."""
    a, p = torch.tensor([1.0, 5.0, 0.1]), torch.tensor([1.0, -2.0, 3.0])
    b, q = torch.tensor([2.0, 0.5, 1.0]), torch.tensor([0.0, 4.0, -1.0])
    weight = nn.Parameter(p.clone())  # the first stage's optimum
    given, penalty = Context(params={"w": weight}), Ewc(strength=1.0)
    state = {"anchor": {"w": weight.detach().clone()}, "importance": {"w": a}}
    optimizer = torch.optim.SGD([weight], lr=0.15)
    for _ in range(400):
        loss = (b / 2 * (weight - q).square()).sum() + penalty.loss(given, state)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    torch.testing.assert_close(weight.detach(), (a * p + b * q) / (a + b))


def test_zero_strength_changes_nothing_and_measures_nothing(monkeypatch):
    net, calls = network(), []
    counted = lambda *args: calls.append(args) or diagonal_fisher(*args)  # noqa: E731
    monkeypatch.setattr(ewc, "diagonal_fisher", counted)
    given, penalty = context(net), Ewc(strength=0)
    state = penalty.end_stage(given, penalty.begin_stage(given, penalty.init(given)))
    shift(net)
    assert penalty.loss(given, state) is None and not calls
    Ewc().end_stage(given, penalty.init(given))
    assert len(calls) == 1


def test_nothing_to_hold_before_the_first_stage_ends():
    net, penalty = network(), Ewc()
    assert penalty.loss(context(net), penalty.init(context(net))) is None


def test_anchor_shares_no_memory_with_the_weights():
    net, penalty = network(), Ewc()
    state = penalty.end_stage(context(net), penalty.init(context(net)))
    shift(net)  # control: an alias would follow, and the penalty stay 0
    assert penalty.loss(context(net), state) > 0


def test_grown_head_keeps_importance_on_its_old_rows():
    net, penalty = network(3), Ewc(decay=1.0)
    given = context(net)
    state = penalty.end_stage(given, penalty.init(given))
    old = copy(state)
    grown = network(5)
    with torch.no_grad():
        grown.weight[:3], grown.bias[:3] = net.weight, net.bias
    later = context(grown, 1)
    assert penalty.loss(later, state).item() == 0.0
    state = penalty.end_stage(later, state)
    fresh = brute_force(grown, later)["weight"]
    assert state["importance"]["weight"].shape == (5, 4)
    torch.testing.assert_close(state["importance"]["weight"][3:], fresh[3:], rtol=1e-5, atol=1e-8)
    torch.testing.assert_close(
        state["importance"]["weight"][:3], fresh[:3] + old["importance"]["weight"], rtol=1e-5, atol=1e-8
    )


def test_state_comes_back_from_disk_form():
    net, penalty = network(), Ewc()
    state = penalty.end_stage(context(net), penalty.init(context(net)))
    assert equal(join(*split(copy(state))), state)
    assert all(value.min() >= 0 for value in state["importance"].values())


def test_missing_examples_and_ranges_are_named():
    net = network()
    with pytest.raises(UserError, match="examples"):
        Ewc().end_stage(Context(params=dict(net.named_parameters())), Ewc().init(context(net)))
    for wrong in ({"strength": -1.0}, {"decay": 1.5}, {"fisher": "exact"}, {"num_examples": 0}):
        with pytest.raises(UserError, match=next(iter(wrong))):
            Ewc(**wrong)
