"""ZSCL against separate networks, and its average against the plain mean."""

from copy import deepcopy

import pytest
import tiny
import tiny_stream
import torch
from torch import nn

from lifelong import launch
from lifelong.core import reference
from lifelong.core.axes import Context
from lifelong.core.composition import compose
from lifelong.core.state import copy, equal, join, split
from lifelong.errors import UserError
from lifelong.numerics.distillation import kl_divergence
from lifelong.penalties.zscl import Zscl
from lifelong.tuners.full import Full
from lifelong.tuners.lora import Lora
from lifelong.tuners.o_lora import OLora

TEXTS = ("the sea and the sand", "rain", "a star over the tower")


def begun(architecture, **settings):
    """(penalty, context, state) at the first step; vision looks at random images."""
    source = "random" if architecture == "vit" else TEXTS
    penalty = Zscl(**{"reference": source, "num_rows": 3, "batch_size": 2, "average_every": 0} | settings)
    model = tiny.model(architecture)
    given = Context(params=model.params(), model=model)
    state = penalty.init(given)
    return penalty, given, penalty.begin_stage(given, state)


def shift(network, amount=0.02):
    generator = torch.Generator().manual_seed(9)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter += amount * torch.randn(parameter.shape, generator=generator)


@pytest.mark.parametrize("form", ["auto", "feature", "prediction"])
@pytest.mark.parametrize("architecture", tiny.ARCHITECTURES)
def test_distance_is_that_to_a_copy_of_the_initial_network(architecture, form):
    if form == "prediction" and architecture not in tiny.TEXT:
        with pytest.raises(UserError, match="form must be feature"):
            begun(architecture, form=form)
        return
    penalty, given, state = begun(architecture, strength=3.0, form=form, consolidation=0.0)
    model, first = given.model, deepcopy(given.model)
    assert penalty.loss(given, state).item() < 1e-6  # rounding
    shift(model.network)
    loss = penalty.loss(given, state)
    batch = reference.collate([state["rows"][i] for i in reference.draw(3, 2, given)], model)
    if form == "feature" or architecture not in tiny.TEXT:
        expected = (
            3.0 * (reference.hidden(model, batch) - reference.hidden(first, batch).detach()).square().mean()
        )
    else:
        old = reference.answers(first, batch).detach()
        expected = 3.0 * kl_divergence(reference.answers(model, batch), old, 2.0).mean()
    assert loss.item() > 1e-4
    torch.testing.assert_close(loss, expected)
    chosen = list(given.params.values())
    for made, wanted in zip(
        torch.autograd.grad(loss, chosen, materialize_grads=True),
        torch.autograd.grad(expected, chosen, materialize_grads=True),
        strict=True,
    ):
        torch.testing.assert_close(made, wanted, atol=1e-6, rtol=1e-4)
    found = set()
    for given.step in range(6):  # control: other steps look at other rows
        found.add(round(penalty.loss(given, state).item(), 5))
    assert len(found) > 1


def test_the_teacher_stays_the_initial_model_and_consolidation_starts_anew_with_a_stage():
    penalty, given, state = begun("llama", strength=1e-9, consolidation=2.0)
    size = sum(p.numel() for p in given.params.values())
    with torch.no_grad():
        for parameter in given.params.values():
            parameter += 0.01
    assert penalty.loss(given, state).item() == pytest.approx(2.0 * size * 1e-4, rel=1e-3)
    kept = copy(state["initial"])
    state = penalty.begin_stage(given, penalty.end_stage(given, state))
    assert equal(state["initial"], kept)
    assert penalty.loss(given, state).item() < 1e-6
    own = {p.data_ptr() for p in given.params.values()}
    assert own.isdisjoint(t.data_ptr() for part in ("initial", "start") for t in state[part].values())


@pytest.mark.parametrize(("every", "taken"), [(1, [0, 1, 2, 3, 4, 5]), (2, [0, 2, 4]), (4, [0, 4])])
def test_average_is_the_plain_mean_of_all_snapshots(every, taken):
    """With the weights at the start of the stage; the first snapshot is that of step 0."""
    penalty, given, state = begun("llama", average_every=every)
    seen = [{n: p.detach().clone() for n, p in given.params.items()}]
    for step in range(6):
        shift(given.model.network, 0.1 * (step + 1))
        given.step = step
        state = penalty.after_update(given, state)
        if step in taken:
            seen.append({n: p.detach().clone() for n, p in given.params.items()})
    assert equal(join(*split(copy(state))), state)
    last = {n: p.detach().clone() for n, p in given.params.items()}
    state = penalty.end_stage(given, state)
    assert state["average"] == {}
    for name, parameter in given.params.items():
        mean = torch.stack([each[name] for each in seen]).mean(0)
        torch.testing.assert_close(parameter.detach(), mean, atol=1e-6, rtol=1e-5)
    assert not torch.allclose(last["lm_head.weight"], given.params["lm_head.weight"], atol=1e-3)  # control


@pytest.mark.parametrize(("num_steps", "interval"), [(0, 4), (1000, 4), (40, 4), (30, 3), (12, 1), (3, 1)])
def test_a_short_stage_is_averaged_over_its_whole_length(num_steps, interval):
    penalty, given, state = begun("llama", average_every=4)
    given.num_steps = num_steps
    for step in range(12):
        given.step = step
        state = penalty.after_update(given, state)
    assert state["merged"] == 1 + -(-12 // interval)


def test_in_the_engine_a_stage_shorter_than_the_interval_is_learned(tmp_path):
    """With the paper's 100 steps between snapshots it ended where it began."""

    def moved(every):
        model, stream = tiny.model("llama"), tiny_stream.stream(stages=("sky",), count=40, general=False)
        before = {name: p.detach().clone() for name, p in model.params().items()}
        penalty = Zscl(strength=1e-6, consolidation=0.0, average_every=every, num_rows=4, length=8)
        launch.run(model, stream, methods=[Full(), penalty], output=tmp_path / str(every))
        return sum(float((p.detach() - before[name]).norm()) for name, p in model.params().items())

    assert 0.3 * moved(0) < moved(100) < moved(0)


def test_a_label_head_that_was_born_since_is_free():
    penalty, given, state = begun("bert", consolidation=5.0, average_every=1)
    given.model.network.add_module("extra", nn.Linear(2, 2))
    given.params = given.model.params()
    state = penalty.begin_stage(given, state)
    with torch.no_grad():
        given.params["extra.weight"] += 1.0
    assert penalty.loss(given, state).item() == 0.0
    assert "extra.weight" in state["average"] and "extra.weight" not in state["start"]


def test_strength_zero_is_off_altogether_and_the_network_is_left_as_it_was():
    penalty, given, state = begun("llama", strength=0, average_every=1)
    assert not any(state.values()) and penalty.loss(given, state) is None
    assert penalty.after_update(given, state) == penalty.end_stage(given, state) == state
    penalty, given, state = begun("llama")
    given.model.network.train()
    before = copy(dict(given.model.network.named_parameters()))
    penalty.loss(given, state)
    assert equal(before, dict(given.model.network.named_parameters())) and given.model.network.training


def test_tuners_that_renew_their_weights_are_refused():
    with pytest.raises(UserError, match="fresh weights in every stage"):
        compose([OLora(rank=2), Zscl()], Lora())


class Averaging(Full.__bases__[0]):
    """A tuner that answers with other weights than it trains."""

    def attach(self, model, state, seed): ...

    def fold(self, model, state): ...

    def serving(self, model, state): ...


def test_tuners_that_average_themselves_are_refused():
    with pytest.raises(UserError, match="averaged weights of its own"):
        compose([Averaging(), Zscl()], Lora())


@pytest.mark.parametrize("architecture", ["llama", "t5", "bert"])
def test_in_the_engine_answers_on_the_default_reference_drift_less(architecture, tmp_path):
    def drift(strength):
        model = tiny.model(architecture)
        penalty = Zscl(strength=strength, consolidation=0.0, average_every=0, num_rows=6, length=24)
        stream = tiny_stream.stream(general=False, learning_rate=1e-2)
        run = launch.run(model, stream, [Lora(rank=2), penalty], output=tmp_path / f"{strength}")
        first = tiny.model(architecture)
        rows = reference.encode(penalty.reference, first, 6, 24, 0, "x")
        look = reference.answers if architecture in tiny.TEXT else reference.hidden
        with torch.no_grad():
            batch = reference.collate(rows, first)
            model.network.eval()
            return (look(run.model, batch) - look(first, batch)).square().mean().item()

    assert drift(100.0) < 0.7 * drift(1e-9)


def test_the_teacher_answers_without_dropout_and_the_student_as_it_trains():
    penalty, given, state = begun("llama")
    given.model.network.train()
    modes = []
    given.model.network.register_forward_pre_hook(lambda module, args: modes.append(module.training))
    penalty.loss(given, state)
    assert modes == [False, True]
