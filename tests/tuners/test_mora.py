"""MoRA: limits in closed form, the budget, what old experts keep, and rank pruning."""

import pytest
import tiny
import torch
from test_lora import inputs, output

from lifelong.core import state as states
from lifelong.core.axes import Context
from lifelong.core.composition import Methods
from lifelong.errors import UserError
from lifelong.numerics import routing
from lifelong.objectives.classification import Classification
from lifelong.penalties.ewc import Ewc
from lifelong.tuners.mora import Mora

NAMES = ("q_proj", "down_proj")


def boundary(model, stage):
    return Context(params=model.params(), model=model, stage=stage, seed=stage)


def disturb(model, seed):
    """Values for every trained `up`, which starts at zero."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.params().items():
        if name.endswith(".up"):
            parameter.data = torch.randn(parameter.shape, generator=generator) * 0.1


def grown(method, architecture="llama", stages=2, seed=0):
    model = tiny.model(architecture)
    state = method.attach(model, None, seed=seed)
    for stage in range(stages):
        state = method.begin_stage(boundary(model, stage), state)
        disturb(model, stage)
        state = method.end_stage(boundary(model, stage), state)
    return model, state


@pytest.mark.parametrize("architecture", tiny.ARCHITECTURES)
def test_nothing_changes_before_the_first_stage_nor_when_a_stage_ends(architecture):
    method, batch, model = Mora(rank=2), inputs(architecture), tiny.model(architecture)
    model.network.requires_grad_(False)
    base = output(model.network, batch)
    state = method.attach(model, None, seed=0)
    assert torch.equal(output(model.network, batch), base)
    state = method.begin_stage(boundary(model, 0), state)
    assert torch.equal(output(model.network, batch), base)
    disturb(model, 0)
    trained = output(model.network, batch)
    method.end_stage(boundary(model, 0), state)
    torch.testing.assert_close(output(model.network, batch), trained, atol=1e-6, rtol=1e-6)
    assert not torch.allclose(trained, base, atol=1e-4)
    assert not model.params()


@pytest.mark.parametrize("temperature, same", [(1e7, True), (0.01, False)])
def test_room_for_all_and_endless_temperature_is_a_scaled_sum_of_pairs(temperature, same):
    model, state = grown(Mora(rank=3, budget=6, alpha=12.0, temperature=temperature, targets=NAMES))
    explicit = tiny.model("llama")
    for name, kept in state["pools"].items():
        weight = explicit.network.get_submodule(name).weight
        assert kept["down"].shape[0] == 6
        weight.data += 12.0 / 6 * kept["up"] @ kept["down"]
    batch = inputs("llama")
    ours, theirs = output(model.network, batch), output(explicit.network, batch)
    assert torch.allclose(ours, theirs, atol=1e-5) == same


@pytest.mark.parametrize("relevance", ["pool", "cosine", "activation"])
@pytest.mark.parametrize("budget", [1, 3, 9])
def test_gates_by_hand(relevance, budget):
    torch.manual_seed(0)
    down, x = torch.randn(7, 5), torch.randn(4, 5)
    gates = Mora(budget=budget, relevance=relevance, temperature=0.3).gates(x @ down.T, x, down)
    for row, got in zip(x, gates, strict=True):
        scores = [abs(float(a @ row)) for a in down]
        below = {
            "pool": sum(s * s for s in scores) ** 0.5,
            "cosine": None,
            "activation": 1.0,
        }[relevance]
        scores = [s / (below or float(a.norm() * row.norm())) for s, a in zip(scores, down, strict=True)]
        top = sorted(range(7), key=lambda i: -scores[i])[:budget]
        total = sum(torch.tensor(scores[i] / 0.3).exp() for i in top)
        expected = torch.tensor([float((torch.tensor(scores[i] / 0.3)).exp() / total) if i in top else 0.0
                                 for i in range(7)])  # fmt: skip
        torch.testing.assert_close(got, expected, atol=1e-5, rtol=1e-5)
    assert (gates > 0).sum(1).tolist() == [min(budget, 7)] * 4


@pytest.mark.parametrize("relevance, away", [("activation", True), ("cosine", True), ("cosine", False)])
def test_an_expert_that_is_never_chosen_changes_nothing(relevance, away):
    torch.manual_seed(0)
    down, x = torch.randn(6, 5), torch.randn(4, 5)
    extra = torch.zeros(1, 5) if away else 10 * x[:1]
    more = torch.cat([down, extra])
    method = Mora(budget=3, relevance=relevance)
    before, after = method.gates(x @ down.T, x, down), method.gates(x @ more.T, x, more)
    assert torch.equal(after[:, :6], before) == away
    assert bool(after[:, 6].any()) != away


def test_the_gate_multiplies_the_activation_or_takes_its_place():
    found = {}
    for gate in ("multiply", "replace"):
        method = Mora(rank=4, budget=2, gate=gate, alpha=3.0, targets=("q_proj",))
        model, _ = grown(method, stages=1)
        pool = routing.experts_of(model.network, "model.layers.0.self_attn.q_proj")
        x = torch.randn(2, 3, 32, generator=torch.Generator().manual_seed(0))
        activations = x @ pool.past_down.T
        gates = method.gates(activations, x, pool.past_down)
        weights = gates * activations if gate == "multiply" else gates
        found[gate] = pool(x)
        torch.testing.assert_close(found[gate], 3.0 * weights @ pool.past_up.T, atol=1e-5, rtol=1e-5)
    assert not torch.allclose(found["multiply"], found["replace"], atol=1e-3)


def test_old_experts_keep_every_bit_and_get_no_gradient():
    method = Mora(rank=2)
    model, state = grown(method, stages=2)
    before = states.copy(state)
    state = method.begin_stage(boundary(model, 2), state)
    disturb(model, 2)
    output(model.network, inputs("llama")).sum().backward()
    assert {n for n, p in model.network.named_parameters() if p.grad is not None} == set(model.params())
    assert all(name.endswith((".down", ".up")) for name in model.params())
    for parameter in model.params().values():
        parameter.data += 1
    state = method.end_stage(boundary(model, 2), state)
    for name, kept in before["pools"].items():
        assert torch.equal(state["pools"][name]["down"][:4], kept["down"])
        assert torch.equal(state["pools"][name]["up"][:, :4], kept["up"])
        assert state["pools"][name]["down"].shape[0] == 6


def test_new_experts_can_start_orthogonal_to_the_pool():
    overlaps = {}
    for start in ("uniform", "orthogonal"):
        method = Mora(rank=3, start=start)
        model, state = grown(method)
        method.begin_stage(boundary(model, 2), state)
        pool = routing.experts_of(model.network, "model.layers.1.mlp.up_proj")
        overlaps[start] = float((pool.past_down @ pool.down.detach().T).abs().max())
        length = pool.down.norm(dim=1)
        assert bool((length > 0.4).all() and (length < 0.8).all())  # about 1 / sqrt 3
    assert overlaps["orthogonal"] < 1e-6 < 0.01 < overlaps["uniform"]


def test_pruning_drops_the_new_experts_that_are_hardly_chosen():
    model = tiny.model("llama")
    objective = Classification()
    rows = [{"text": f"row {i} of the words", "label": "a"} for i in range(6)]
    examples = objective.encode(rows, model, ["a", "b"]).examples
    method = Mora(rank=4, budget=2, prune=0.1, targets=("up_proj",))
    state = method.attach(model, None, seed=0)

    def at(stage):
        return Context(params=model.params(), model=model, objective=objective, seed=stage, examples=examples,
                       batches=lambda chosen: iter([objective.collate(chosen, model)]))  # fmt: skip

    state = method.begin_stage(at(0), state)
    name = "model.layers.0.mlp.up_proj"
    pool = routing.experts_of(model.network, name)
    pool.down.data[1:3] *= 1e-4  # never among the two most active
    pool.up.data.normal_(generator=torch.Generator().manual_seed(0))
    kept_down, kept_up = pool.down.detach()[[0, 3]].clone(), pool.up.detach()[:, [0, 3]].clone()
    other = routing.experts_of(model.network, "model.layers.1.mlp.up_proj").down.detach().clone()
    state = method.end_stage(at(0), state)
    assert torch.equal(state["pools"][name]["down"], kept_down)
    assert torch.equal(state["pools"][name]["up"], kept_up)
    assert len(state["pools"]["model.layers.1.mlp.up_proj"]["down"]) == len(other)
    assert not routing.trace_of(model.network).listening and not model.network.training


def test_a_saved_state_rebuilds_the_same_model_inside_a_stage():
    method = Mora(rank=2, budget=3)
    model, state = grown(method, "gpt2")
    state = method.begin_stage(boundary(model, 2), state)
    disturb(model, 2)
    again = tiny.model("gpt2")
    method.attach(again, states.join(*states.split(state)), seed=9)
    for name, parameter in model.params().items():
        again.params()[name].data.copy_(parameter.data)
    batch = inputs("gpt2")
    assert torch.equal(output(again.network, batch), output(model.network, batch))


def test_small_gates_are_zero_outside_training_only():
    batch = inputs("llama")
    plain, _ = grown(Mora(rank=2, budget=4))
    cut, _ = grown(Mora(rank=2, budget=4, threshold=0.5))
    assert not torch.equal(output(cut.network, batch), output(plain.network, batch))
    cut.network.train()
    assert torch.equal(output(cut.network, batch), output(plain.network, batch))


def test_what_it_cannot_work_with_is_said():
    with pytest.raises(UserError, match="mora trains fresh weights in every stage"):
        Methods(tuner=Mora(), penalties=(Ewc(),))
    model, _ = grown(Mora(rank=2), stages=0)
    with pytest.raises(UserError, match="carries routed experts already"):
        Mora(rank=2).attach(model, None, seed=0)
    with pytest.raises(UserError, match="rank must be at most 32"):
        Mora(rank=40).attach(tiny.model("llama"), None, seed=0)
