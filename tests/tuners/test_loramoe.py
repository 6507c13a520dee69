"""LoRAMoE: the explicit sum over experts, the balancing formula, pads, and what learning it does."""

import pytest
import tiny
import torch
from test_lora import inputs, output

from lifelong.core.axes import Context
from lifelong.errors import UserError
from lifelong.numerics import routing
from lifelong.objectives.classification import Classification
from lifelong.tuners.loramoe import Loramoe, imbalance


def attached(architecture="llama", seed=0, **settings):
    method, model = Loramoe(**{"experts": 4, "rank": 2, "dropout": 0.0} | settings), tiny.model(architecture)
    method.attach(model, None, seed=seed)
    return method, model


def disturb(model, seed=5):
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.params().items():
        if name.endswith(".up"):
            parameter.data = torch.randn(parameter.shape, generator=generator) * 0.1


@pytest.mark.parametrize("architecture", tiny.ARCHITECTURES)
def test_starts_as_the_base(architecture):
    base = tiny.model(architecture)
    base.network.requires_grad_(False)
    method, model = attached(architecture)
    batch = inputs(architecture)
    before = output(base.network, batch)
    assert torch.equal(output(model.network, batch), before)
    disturb(model)
    assert not torch.allclose(output(model.network, batch), before, atol=1e-3)
    output(model.network, batch).sum().backward()
    assert {n for n, p in model.network.named_parameters() if p.grad is not None} <= set(model.params())
    assert {n.rpartition(".")[2] for n in model.params()} == {"down", "up", "router"}


@pytest.mark.parametrize("name", ["model.layers.0.self_attn.k_proj", "model.layers.1.mlp.down_proj"])
def test_equals_the_explicit_sum_over_experts(name):
    method, model = attached(alpha=6.0)
    disturb(model)
    module = model.network.get_submodule(name)
    pool = routing.experts_of(model.network, name)
    x = torch.randn(2, 3, module.in_features, generator=torch.Generator().manual_seed(1))
    gates = (x @ pool.router.T).softmax(-1)
    expected = x @ module.weight.T
    for e in range(4):
        a, b = pool.down[2 * e : 2 * e + 2], pool.up[:, 2 * e : 2 * e + 2]
        expected = expected + 3.0 * gates[..., e, None] * (x @ a.T @ b.T)
    torch.testing.assert_close(module(x), expected, atol=1e-5, rtol=1e-5)
    with torch.no_grad():
        pool.router.zero_()  # even gates: the mean of the experts, as one low-rank pair
    torch.testing.assert_close(
        module(x), x @ (module.weight + 0.75 * pool.up @ pool.down).T, atol=1e-5, rtol=1e-5
    )


def test_balance_by_hand():
    """Three rows of one token, four experts; rows 0 and 2 belong to the first half."""
    gates = torch.tensor([[0.4, 0.3, 0.2, 0.1], [0.25, 0.25, 0.25, 0.25], [0.1, 0.1, 0.1, 0.7]])
    first = torch.tensor([True, False, True])
    use = [[0.4 * 1.2, 0.3 * 1.2, 0.2 * 0.8, 0.1 * 0.8], [0.2, 0.2, 0.3, 0.3], [0.12, 0.12, 0.08, 0.56]]
    flat = [value for row in use for value in row]
    mean = sum(flat) / 12
    variance = sum((value - mean) ** 2 for value in flat) / 11
    got = {d: float(imbalance(gates[:, None], None, first, 0.2, d)) for d in ("mean", "squared_mean")}
    assert got["mean"] == pytest.approx(variance / mean, rel=1e-5)
    assert got["squared_mean"] == pytest.approx(variance / mean**2, rel=1e-5)
    assert float(imbalance(gates, None, first, 0.2, "mean")) == pytest.approx(got["mean"], rel=1e-6)
    swapped = float(imbalance(gates[:, None], None, ~first, 0.2, "mean"))
    assert abs(swapped - got["mean"]) > 1e-3


def test_even_gates_without_delta_are_balanced_and_pads_do_not_count():
    even = torch.full((3, 5, 4), 0.25)
    first = torch.tensor([True, True, False])
    assert float(imbalance(even, None, first, 0.0, "mean")) == 0.0
    assert float(imbalance(even, None, first, 0.1, "mean")) > 1e-3
    torch.manual_seed(0)
    gates, mask = torch.rand(3, 5, 4).softmax(-1), torch.tensor([[1] * 5, [1] * 3 + [0] * 2, [1] * 5])
    other = gates.clone()
    other[1, 3:] = torch.tensor([1.0, 0.0, 0.0, 0.0])
    counted = [float(imbalance(g, mask, first, 0.1, "mean")) for g in (gates, other)]
    assert counted[0] == counted[1] != float(imbalance(other, None, first, 0.1, "mean"))


def step(method, model, rows, tasks, objective=None):
    """(balance, batch) of one training pass over rows."""
    objective = objective or Classification()
    objective.begin_stage(model, ["a", "b"], 0)
    batch = objective.collate(objective.encode(rows, model, ["a", "b"]).examples, model)
    for module in model.network.eval().modules():  # the dropout of the base stays off
        if isinstance(module, routing.Pool):
            module.train()
    outputs = objective.forward(model.network, batch)
    context = Context(params=model.params(), model=model, batch=batch, outputs=outputs, tasks=tasks)
    return method.loss(context, {}), batch


ROWS = [{"text": "one two three", "label": "a"}, {"text": "four", "label": "b"}]


@pytest.mark.parametrize("architecture", ["llama", "t5", "bert"])
def test_the_term_is_the_sum_over_modules_and_pads_change_nothing(architecture):
    """A row alone and the same row padded beside another: the same use of experts."""
    method, model = attached(architecture, delta=0.2, balance=0.5)
    if architecture == "bert":
        method, model = attached(architecture, delta=0.2, balance=0.5, targets=("query", "output.dense"))
    disturb(model)
    term, batch = step(method, model, ROWS, (0, 1))
    assert "attention_mask" in batch
    kept = dict(routing.trace_of(model.network).seen)
    uses = []
    for row in ROWS:
        step(method, model, [row], (0,))
        alone = routing.trace_of(model.network).seen
        uses.append({name: gates.sum(1).detach() for name, (gates, _) in alone.items()})
    expected = 0.0
    for name in kept:
        use = torch.cat([uses[0][name], uses[1][name]])
        weight = torch.tensor([[1.2, 1.2, 0.8, 0.8], [0.8, 0.8, 1.2, 1.2]])
        expected += float((weight * use).var() / (weight * use).mean())
    assert term.item() == pytest.approx(0.5 * expected, rel=2e-4)
    term.backward()
    assert any(p.grad.abs().sum() > 0 for n, p in model.params().items() if n.endswith("router"))


def test_the_term_is_absent_without_weight_or_types_and_after_evaluation():
    method, model = attached(balance=0.0)
    assert step(method, model, ROWS, (0, 1))[0] is None
    method, model = attached()
    assert step(method, model, ROWS, ())[0] is None
    term, batch = step(method, model, ROWS, (0, 1))
    assert term.item() > 0
    model.network.eval()
    Classification().forward(model.network, batch)
    assert not routing.trace_of(model.network).seen


def test_training_the_term_evens_out_the_weighted_use():
    """The term is least where I * Q is even, so a row uses the half of its own type less."""
    shares = {}
    for balance in (0.0, 5.0):
        method, model = attached(targets=("up_proj",), balance=balance, delta=0.8, dispersion="squared_mean")
        optimizer = torch.optim.AdamW(model.params().values(), lr=0.01)
        for _ in range(40):
            term, _ = step(method, model, ROWS[:1], (0,))
            if term is not None:
                term.backward()
                optimizer.step()
                optimizer.zero_grad()
        step(method, model, ROWS[:1], (0,))
        gates = [gates for gates, _ in routing.trace_of(model.network).seen.values()]
        shares[balance] = torch.cat(gates)[..., :2].sum(-1).mean().item()
    assert abs(shares[0.0] - 0.5) < 0.1
    assert shares[5.0] < 0.25


def test_odd_numbers_of_experts_are_refused():
    with pytest.raises(UserError, match="must be even.*got 5"):
        Loramoe(experts=5)
