"""GeRe against a separate first model, its bands, and its dynamic weight."""

import json
from copy import deepcopy

import pytest
import tiny
import tiny_stream
import torch
from torch.nn import functional

from lifelong import launch
from lifelong.core import reference
from lifelong.core.axes import Context
from lifelong.core.composition import compose
from lifelong.core.state import copy, equal, join, split
from lifelong.errors import UserError
from lifelong.penalties.gere import Gere
from lifelong.tuners.full import Full
from lifelong.tuners.lora import Lora
from lifelong.tuners.o_lora import OLora

TEXTS = ("the sea and the sand", "rain", "a star over the tower", "fish")


def begun(architecture="llama", **settings):
    source = "random" if architecture == "vit" else TEXTS
    penalty = Gere(**{"reference": source, "num_rows": 4, "batch_size": 2, "general": 0.0} | settings)
    model = tiny.model(architecture)
    given = Context(params=model.params(), model=model)
    return penalty, given, penalty.init(given)


def shift(network, amount=0.03):
    generator = torch.Generator().manual_seed(9)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter += amount * torch.randn(parameter.shape, generator=generator)


def both(given, state, first, layer=-1):
    """(now, before) hidden states of the texts of this step."""
    chosen = reference.draw(4, 2, given)
    batch = reference.collate([state["rows"][i] for i in chosen], given.model)
    return reference.hidden(given.model, batch, layer), reference.hidden(first, batch, layer).detach()


@pytest.mark.parametrize("layer", [-1, 1])
@pytest.mark.parametrize("architecture", tiny.ARCHITECTURES)
def test_margin_is_zero_at_first_and_then_that_of_the_first_models_bands(architecture, layer):
    penalty, given, state = begun(architecture, strength=10.0, layer=layer)
    first = deepcopy(given.model)
    assert penalty.loss(given, state).item() < 1e-4  # rounding of padded batches
    batches = [reference.collate([row], first) for row in state["rows"]]
    every = torch.cat([reference.hidden(first, batch, layer).detach() for batch in batches])
    low, high = (every.mean(0) + sign * every.std(0, correction=0) for sign in (-1, 1))
    torch.testing.assert_close(torch.stack([state["low"], state["high"]]), torch.stack([low, high]))
    shift(given.model.network)
    now, before = both(given, state, first, layer)
    below, above = (before <= low).float(), (before >= high).float()
    terms = (
        below * (now - low).relu() + above * (high - now).relu()
        + (1 - below) * (1 - above) * ((now - high).relu() + (low - now).relu())
    )  # fmt: skip
    loss = penalty.loss(given, state)
    assert loss.item() > 0.01
    torch.testing.assert_close(loss, 10.0 * terms.sum() / (terms != 0).sum(), rtol=1e-3, atol=1e-6)


def test_margin_without_pads_is_exactly_zero_at_first():
    penalty, given, state = begun(batch_size=1)
    for step in range(6):
        given.step = step
        assert penalty.loss(given, state).item() == 0.0
    assert all(each.dtype == torch.int8 for each in state["kept"])


@pytest.mark.parametrize("form", ["l1", "l2", "kl"])
def test_other_forms_equal_the_distance_to_a_separate_first_model(form):
    penalty, given, state = begun(form=form, strength=2.0, batch_size=1)
    first = deepcopy(given.model)
    assert penalty.loss(given, state).item() == pytest.approx(0.0, abs=1e-6)
    with torch.no_grad():  # the head stays: the kl form reads both states by it
        for parameter in given.model.network.model.parameters():
            parameter += 0.02
    chosen = reference.draw(4, 1, given)
    batch = reference.collate([state["rows"][chosen[0]]], given.model)
    now, before = reference.hidden(given.model, batch), reference.hidden(first, batch).detach()
    if form == "kl":
        new, old = reference.answers(given.model, batch), reference.answers(first, batch).detach()
        logs = functional.log_softmax(new / 2, -1), functional.log_softmax(old / 2, -1)
        expected = functional.kl_div(*logs, reduction="batchmean", log_target=True)
    else:
        expected = (now - before).abs().mean() if form == "l1" else (now - before).square().mean()
    loss = penalty.loss(given, state)
    assert loss.item() > 1e-5
    torch.testing.assert_close(loss, 2.0 * expected, rtol=1e-4, atol=1e-7)


def test_the_texts_own_loss_is_that_of_their_next_tokens():
    penalty, given, state = begun(general=0.5)
    chosen = reference.draw(4, 2, given)
    total = count = 0
    for row in (state["rows"][i] for i in chosen):
        ids = row.long()[None]
        logits = given.model.network(input_ids=ids).logits[0, :-1]
        total, count = (
            total + functional.cross_entropy(logits, ids[0, 1:], reduction="sum"),
            count + len(logits),
        )
    torch.testing.assert_close(penalty.loss(given, state), 0.5 * total / count, rtol=1e-4, atol=1e-4)
    encoder = begun("t5", general=0.5)
    assert encoder[0].loss(*encoder[1:]).item() < 1e-3  # decoders alone


@pytest.mark.parametrize("general", [0.0, 1.0])
def test_a_dynamic_weight_makes_the_distance_weigh_as_much_as_the_rest(general):
    penalty, given, state = begun(dynamic=True, general=general)
    given.loss = 1.5
    shift(given.model.network)
    own = Gere(strength=1e-30, general=general, batch_size=2).loss(given, state).item()
    rest = 1.5 + own  # the texts' own loss, weighed
    assert penalty.loss(given, state).item() == pytest.approx(rest + own, rel=1e-5)
    capped = Gere(dynamic=True, general=0.0, max_weight=0.5, batch_size=2)
    margin = Gere(strength=1.0, general=0.0, batch_size=2).loss(given, state).item()
    assert capped.loss(given, state).item() == pytest.approx(0.5 * margin, rel=1e-5)


def test_strength_zero_keeps_nothing_state_comes_back_and_mistakes_are_named():
    penalty, given, state = begun(strength=0.0, general=1.0)
    assert state["rows"] == [] and penalty.loss(given, state) is None
    penalty, given, state = begun()
    back = join(*split(copy(state)))
    assert equal(back, state)
    shift(given.model.network)
    assert torch.equal(penalty.loss(given, back), penalty.loss(given, state))
    with pytest.raises(UserError, match="layer must be in the range"):
        begun(layer=7)
    with pytest.raises(UserError, match="form must be margin, l1 or l2"):
        begun("bert", form="kl")
    with pytest.raises(UserError, match="has no `image`"):
        texts = Gere(reference="embedded:general_prose.test.jsonl")
        texts.init(Context(params={}, model=tiny.model("vit")))


def train(path, *methods, **settings):
    stream = tiny_stream.stream(general=False, learning_rate=1e-2, **settings)
    run = launch.run(tiny.model("llama"), stream, list(methods), output=path)
    return [json.loads(line) for line in (run.folder / "log.jsonl").read_text().splitlines()]


def test_in_the_engine_the_default_texts_hold_and_the_dynamic_weight_sees_the_tasks_loss(tmp_path):
    few = {"num_rows": 6, "length": 24}
    log = train(tmp_path / "a", Full(), Gere(general=0.0, dynamic=True, max_weight=1e12, **few))
    for entry in log[1:]:
        assert entry["penalties"]["gere"] == pytest.approx(entry["loss"], rel=1e-4)
    split_log = train(tmp_path / "b", Full(), Gere(general=0.0, dynamic=True, **few), micro_batch_size=1)
    whole_log = train(tmp_path / "c", Full(), Gere(general=0.0, dynamic=True, **few))
    assert [e["loss"] for e in split_log] == pytest.approx([e["loss"] for e in whole_log], rel=0.05)

    def apart(strength):
        made = train(tmp_path / f"{strength}", Full(), Gere(general=0.0, form="l2", strength=strength, **few))
        return sum(e["penalties"]["gere"] for e in made[3:]) / strength

    assert apart(10.0) < 0.7 * apart(1e-6)


def test_it_works_with_tuners_that_renew_their_weights(tmp_path):
    compose([OLora(rank=2), Gere()], Lora())
    log = train(tmp_path / "a", OLora(rank=2), Gere(num_rows=4, length=16))
    assert all(entry["penalties"]["gere"] > 0 for entry in log)


def test_the_first_states_are_measured_without_dropout():
    model, modes = tiny.model("bert"), []
    model.network.train()
    model.network.register_forward_pre_hook(lambda module, args: modes.append(module.training))
    Gere(reference=TEXTS).init(Context(params=model.params(), model=model))
    assert modes == [False] * 4 and model.network.training
