"""Both forms against two separate networks, on networks as users have them."""

import json
from copy import deepcopy

import pytest
import tiny
import tiny_stream
import torch

from lifelong import launch
from lifelong.core.axes import Context
from lifelong.core.features import decision_features, forward_with_features
from lifelong.core.state import copy, equal, join, split
from lifelong.core.stream import Budget
from lifelong.errors import UserError
from lifelong.numerics.distillation import kl_divergence
from lifelong.objectives.classification import Classification
from lifelong.penalties.l2 import L2
from lifelong.penalties.rehearsal_free import RehearsalFree
from lifelong.tuners.full import Full
from lifelong.tuners.lora import Lora

LABELS = ["sky0", "sky1"]


def context(architecture, model=None, stage=1, **more):
    """A batch of the stage on `model`, dropout off."""
    model = model or tiny.model(architecture)
    objective = Classification()
    objective.begin_stage(model, LABELS, 0)
    rows = tiny_stream.rows("sky", 4, 0, vision=architecture == "vit")
    batch = objective.collate(objective.encode(rows, model, LABELS).examples, model)
    made = Context(params=model.params(), model=model, objective=objective, stage=stage, batch=batch, **more)
    made.outputs = objective.forward(model.network, batch)
    return made


def shift(network, amount=0.02):
    generator = torch.Generator().manual_seed(9)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter += amount * torch.randn(parameter.shape, generator=generator)


@pytest.mark.parametrize("form", ["feature", "prediction"])
@pytest.mark.parametrize("architecture", tiny.ARCHITECTURES)
def test_equals_two_separate_networks(architecture, form):
    penalty = RehearsalFree(strength=3.0, form=form)
    given = context(architecture)
    network = given.model.network
    state, teacher = penalty.begin_stage(given, penalty.init(given)), deepcopy(network)
    assert penalty.loss(given, state).item() < 1e-6  # copies of weights may round otherwise (T5)
    shift(network)
    given = context(architecture, given.model)
    loss = penalty.loss(given, state)
    if form == "feature":
        new, old = (decision_features(given.objective, net, given.batch) for net in (network, teacher))
        expected = 3.0 * (new - old.detach()).square().mean()
    else:
        old = given.objective.forward(teacher, given.batch).logits.detach()
        expected = 3.0 * kl_divergence(given.outputs.logits, old, 2.0).mean()
    assert loss.item() > 1e-5
    torch.testing.assert_close(loss, expected)
    chosen = list(given.params.values())
    for made, wanted in zip(
        torch.autograd.grad(loss, chosen, materialize_grads=True, retain_graph=True),
        torch.autograd.grad(expected, chosen, materialize_grads=True),
        strict=True,
    ):
        torch.testing.assert_close(made, wanted, atol=1e-6, rtol=1e-4)


def test_new_labels_of_a_grown_head_do_not_enter_predictions():
    penalty, given = RehearsalFree(form="prediction"), context("vit")
    state = penalty.begin_stage(given, penalty.init(given))
    head = given.model.network.lifelong_head
    head.grow(["farm0"], 0)
    with torch.no_grad():
        head.bias[2] += 3.0

    def again(old):
        made = Context(params=given.model.params(), model=given.model, objective=given.objective, stage=1,
                       batch=given.batch, num_old_labels=old)  # fmt: skip
        made.outputs = given.objective.forward(given.model.network, given.batch)
        return penalty.loss(made, state)

    assert again(2).item() == pytest.approx(0.0, abs=1e-7)
    assert again(0) is None
    with torch.no_grad():  # control: an old label enters
        head.bias[0] += 3.0
    assert again(2).item() > 1e-2


def test_first_stage_and_strength_zero_hold_nothing_and_the_network_is_left_as_it_was():
    given, off = context("llama", stage=0), RehearsalFree(strength=0)
    assert RehearsalFree().begin_stage(given, {})["teacher"] is None
    later, penalty = context("llama"), RehearsalFree()
    assert off.begin_stage(later, off.init(later))["teacher"] is None
    state = penalty.begin_stage(later, penalty.init(later))
    network = later.model.network
    own = {p.data_ptr() for p in network.parameters()}
    assert own.isdisjoint(t.data_ptr() for t in state["teacher"].values())
    assert equal(join(*split(copy(state))), state)
    network.train()
    shift(network)
    before = copy(dict(network.named_parameters()))
    assert penalty.loss(later, state).item() > 0
    assert equal(before, dict(network.named_parameters())) and network.training
    assert not network.lm_head._forward_hooks
    assert penalty.end_stage(later, state) == {"teacher": None}
    with pytest.raises(UserError, match="outputs"):
        penalty.loss(Context(params=later.params), state)


def train(path, *methods, **settings):
    stream = tiny_stream.stream(vision=True, budget=Budget(epochs=5), **settings)
    run = launch.run(tiny.model("vit"), stream, [Lora(rank=2), *methods], output=path)
    return [json.loads(line) for line in (run.folder / "log.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("form", ["feature", "prediction"])
def test_composes_with_l2_holds_and_does_not_depend_on_micro_batches(form, tmp_path):
    strong, loose = (RehearsalFree(form=form, strength=s) for s in (300.0, 1e-6))
    whole = train(tmp_path / "a", strong, L2(strength=0.01))
    parts = train(tmp_path / "b", strong, L2(strength=0.01), micro_batch_size=1)
    free = train(tmp_path / "c", loose, L2(strength=0.01))
    assert all(not entry["penalties"] for entry in whole[:15])
    assert set(whole[-1]["penalties"]) == {"rehearsal_free", "l2"}
    drift = [log[-1]["penalties"]["rehearsal_free"] for log in (whole, parts, free)]
    assert drift[0] == pytest.approx(drift[1], rel=1e-2)
    assert drift[0] / 300.0 < 0.7 * drift[2] / 1e-6


@pytest.mark.parametrize("architecture", tiny.ARCHITECTURES)
def test_features_of_the_step_itself_serve_as_well_as_a_pass_of_their_own(architecture):
    penalty, given = RehearsalFree(), context(architecture)
    state = penalty.begin_stage(given, penalty.init(given))
    shift(given.model.network)
    given.outputs, features = forward_with_features(given.objective, given.model.network, given.batch)
    chosen, losses, slopes = list(given.params.values()), [], []
    for given.features in (None, features):
        losses.append(penalty.loss(given, state))
        slopes.append(torch.autograd.grad(losses[-1], chosen, materialize_grads=True, retain_graph=True))
    assert losses[0].item() > 1e-5
    torch.testing.assert_close(*losses)
    for own, read in zip(*slopes, strict=True):
        torch.testing.assert_close(own, read, atol=1e-7, rtol=1e-5)


@pytest.mark.parametrize("form", ["feature", "prediction"])
def test_a_step_makes_one_pass_more_than_plain_training(form, tmp_path):
    def passes(folder, *methods):
        model, stream = tiny.model("vit"), tiny_stream.stream(vision=True, budget=Budget(epochs=2))
        count = []
        model.network.base_model.register_forward_pre_hook(lambda module, args: count.append(module.training))
        launch.run(model, stream, [Full(), *methods], output=folder)
        return count

    plain, held = passes(tmp_path / "a"), passes(tmp_path / "b", RehearsalFree(form=form))
    later = sum(plain) // 2  # the first of two stages has no past
    assert later == 6 and sum(held) == sum(plain)
    assert held.count(False) - plain.count(False) == later


@pytest.mark.parametrize(("form", "wanted"), [("feature", [False]), ("prediction", [False])])
def test_the_teacher_answers_without_dropout(form, wanted):
    given, penalty, modes = context("llama"), RehearsalFree(form=form), []
    state = penalty.begin_stage(given, penalty.init(given))
    given.model.network.train()
    given.outputs, given.features = forward_with_features(given.objective, given.model.network, given.batch)
    given.model.network.register_forward_pre_hook(lambda module, args: modes.append(module.training))
    penalty.loss(given, state)
    assert modes == wanted
