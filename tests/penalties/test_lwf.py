"""LwF against two separate networks."""

from copy import deepcopy

import pytest
import tiny
import torch
from torch import nn

from lifelong.core.axes import Context, Objective, Outputs
from lifelong.core.model import Model
from lifelong.core.state import copy, equal, join, split
from lifelong.errors import UserError
from lifelong.numerics.distillation import kl_divergence
from lifelong.penalties.lwf import Lwf


class Rows(Objective):
    def encode(self, rows, model, labels): ...

    def answer(self, rows, model, labels): ...

    def collate(self, examples, model): ...

    def forward(self, net, batch):
        if "input_ids" in batch:
            made = net(input_ids=batch["input_ids"]).logits[:, :-1].flatten(0, 1)
            return Outputs(made, batch["input_ids"][:, 1:].flatten(), torch.arange(len(made)) // 5)
        rows = batch["rows"]
        return Outputs(net(rows), torch.zeros(len(rows), dtype=torch.int64), torch.arange(len(rows)))


def network(rows=4):
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Dropout(0.5), nn.Linear(8, rows))


def context(net, stage=1, **more):
    model = Model(network=net, processor=None, kind="encoder", window=1)
    made = Context(params=model.params(), model=model, objective=Rows(), stage=stage, **more)
    made.batch = {"rows": torch.randn(6, 3, generator=torch.Generator().manual_seed(5))}
    made.outputs = made.objective.forward(net, made.batch)
    return made


def shift(net):
    generator = torch.Generator().manual_seed(9)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter += 0.3 * torch.randn(parameter.shape, generator=generator)


def begun(net, penalty, **more):
    given = context(net, **more)
    return penalty.begin_stage(given, penalty.init(given))


@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_equals_two_separate_networks(temperature):
    net, penalty = network().eval(), Lwf(strength=3.0, temperature=temperature)
    teacher, state = deepcopy(net), begun(net, penalty)
    shift(net)
    given = context(net)
    loss = penalty.loss(given, state)
    other = kl_divergence(net(given.batch["rows"]), teacher(given.batch["rows"]), temperature)
    expected = 3.0 * other.mean()
    torch.testing.assert_close(loss, expected)
    for made, wanted in zip(
        torch.autograd.grad(loss, list(net.parameters())),
        torch.autograd.grad(expected, list(net.parameters())),
        strict=True,
    ):
        torch.testing.assert_close(made, wanted)
    assert loss > 1e-3


def test_exactly_zero_at_the_first_step_on_a_language_model():
    net, penalty = tiny.network("llama"), Lwf()
    given = context(network())
    given.model = Model(network=net, processor=None, kind="decoder", window=128)
    given.params = given.model.params()
    given.batch = {"input_ids": torch.randint(3, 259, (2, 6), generator=torch.Generator().manual_seed(0))}
    state = penalty.begin_stage(given, penalty.init(given))
    given.outputs = given.objective.forward(net, given.batch)
    loss = penalty.loss(given, state)
    assert loss.item() == 0.0
    gradients = torch.autograd.grad(loss, list(given.params.values()), materialize_grads=True)
    assert all(g.abs().max() < 1e-6 for g in gradients)
    shift(net)  # control
    given.outputs = given.objective.forward(net, given.batch)
    assert penalty.loss(given, state) > 0


def test_teacher_answers_without_dropout_and_the_network_is_left_as_it_was():
    net, penalty = network().train(), Lwf()
    state = begun(net, penalty)
    shift(net)
    given, before = context(net), copy(dict(net.named_parameters()))
    random = torch.get_rng_state()
    made = [penalty.loss(given, state).item() for _ in range(3)]
    assert made[0] == made[1] == made[2]  # with dropout they would differ
    assert torch.equal(random, torch.get_rng_state())
    assert all(module.training for module in net.modules())
    assert equal(before, dict(net.named_parameters()))
    assert all(p.grad is None and p.requires_grad for p in net.parameters())


def test_first_stage_and_zero_strength_and_no_old_labels_give_none():
    net = network().eval()
    assert Lwf().loss(context(net, 0), begun(net, Lwf(), stage=0)) is None
    off = Lwf(strength=0)
    assert off.loss(context(net), begun(net, off)) is None and not begun(net, off)["teacher"]
    state = begun(net, Lwf())
    assert Lwf().loss(context(net, num_old_labels=0), state) is None
    assert Lwf().loss(context(net), state) is not None


@pytest.mark.parametrize("grown_before", [True, False])
def test_new_labels_do_not_enter(grown_before):
    """Whether the teacher's weights were kept before or after the head grew by two labels."""
    net, penalty = network(4).eval(), Lwf()
    wide = network(6).eval()
    with torch.no_grad():
        wide[0].weight.copy_(net[0].weight), wide[0].bias.copy_(net[0].bias)
        wide[3].weight[:4], wide[3].bias[:4] = net[3].weight, net[3].bias
    state = begun(wide if grown_before else net, penalty)
    given = context(wide, num_old_labels=4)
    assert penalty.loss(given, state).item() == pytest.approx(0.0, abs=1e-7)
    with torch.no_grad():
        wide[3].weight[4:] += 1
        wide[3].bias[4:] -= 2
    assert penalty.loss(context(wide, num_old_labels=4), state).item() == pytest.approx(0.0, abs=1e-7)
    if grown_before:  # control: without the cut they do
        assert penalty.loss(context(wide), state) > 1e-2


def test_teacher_shares_no_memory_and_is_dropped_at_the_end():
    net, penalty = network(), Lwf()
    state = begun(net, penalty)
    own = {p.data_ptr() for p in net.parameters()}
    assert own.isdisjoint(t.data_ptr() for t in state["teacher"].values())
    assert equal(join(*split(copy(state))), state)
    assert penalty.end_stage(context(net), state) == {"teacher": None}


def test_plain_loop_forgets_less():
    drift = []
    for strength in (0.0, 10.0):
        net, penalty = network().eval(), Lwf(strength=strength)
        old, state = deepcopy(net), begun(net, penalty)
        optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
        for _ in range(30):
            given = context(net)
            loss = torch.nn.functional.cross_entropy(given.outputs.logits, given.outputs.targets)
            extra = penalty.loss(given, state)
            loss = loss if extra is None else loss + extra
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        rows = given.batch["rows"]
        drift.append(kl_divergence(net(rows), old(rows), 1.0).mean().item())
    assert drift[1] < 0.2 * drift[0]


def test_missing_parts_and_ranges_are_named():
    net = network()
    state = begun(net, Lwf())
    with pytest.raises(UserError, match="outputs"):
        Lwf().loss(Context(params=dict(net.named_parameters()), stage=1), state)
    with pytest.raises(UserError, match="temperature"):
        Lwf(temperature=0.0)
