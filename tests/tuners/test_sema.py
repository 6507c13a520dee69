"""SEMA: what expands and what does not, router columns, frozen adapters, the weighted sum."""

import random

import pytest
import tiny
import torch
from test_lora import inputs, output

from lifelong.core import state as states
from lifelong.core.axes import Context
from lifelong.numerics import routing
from lifelong.objectives.classification import Classification
from lifelong.tuners.sema import Sema

SMALL = {"width": 4, "descriptor_width": 8, "layers": 1, "descriptor_epochs": 100}
OLD, NEW = "sun moon star cloud rain", "#7 %9 @4 &2 $3"


def rows(words, seed, count=48):
    draw = random.Random(seed)
    return [{"text": " ".join(draw.choices(words.split(), k=6)), "label": "a"} for _ in range(count)]


def at(model, stage, data):
    objective = Classification()
    return Context(
        params=model.params(), model=model, objective=objective, stage=stage, seed=stage,
        examples=objective.encode(data, model, ["a", "b"]).examples,
        batches=lambda chosen: iter([objective.collate(chosen, model)]),
    )  # fmt: skip


def disturb(model, seed):
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.params().items():
        if name.endswith((".up", ".up_bias", ".route")):
            parameter.data = torch.randn(parameter.shape, generator=generator) * 0.1


def taught(method, model, state, stage, data):
    state = method.begin_stage(at(model, stage, data), state)
    disturb(model, stage)
    return method.end_stage(at(model, stage, data), state)


def begun(architecture, **settings):
    method, model = Sema(**SMALL | settings), tiny.model(architecture)
    return method, model, method.attach(model, None, seed=0)


def counts(model):
    found = {}
    for names in routing.blocks(model.network).values():
        found |= {name: len(routing.experts_of(model.network, name).members) for name in names}
    return list(found.values())


@pytest.mark.parametrize("architecture", tiny.ARCHITECTURES)
def test_starts_as_the_base_with_one_adapter_for_every_block(architecture):
    batch = inputs(architecture)
    plain = tiny.model(architecture)
    plain.network.requires_grad_(False)
    method, model, state = begun(architecture)
    assert torch.equal(output(model.network, batch), output(plain.network, batch))
    assert not model.params()
    state = method.begin_stage(
        at(model, 0, []) if architecture == "vit" else at(model, 0, rows(OLD, 0)), state
    )
    assert torch.equal(output(model.network, batch), output(plain.network, batch))
    assert counts(model) == [1] * (4 if architecture == "t5" else 2)
    disturb(model, 0)
    assert not torch.allclose(output(model.network, batch), output(plain.network, batch), atol=1e-3)


@pytest.mark.parametrize("architecture", ["llama", "bert", "t5"])
def test_like_rows_expand_nothing_and_shifted_rows_every_block_once(architecture):
    method, model, state = begun(architecture)
    state = taught(method, model, state, 0, rows(OLD, 0))
    stacks = 2 if architecture == "t5" else 1
    known = counts(model)
    state = taught(method, model, state, 1, rows(OLD, 1))
    assert counts(model) == known == [1, 1] * stacks
    state = taught(method, model, state, 2, rows(NEW, 2))
    assert counts(model) == [1, 2] * stacks  # the first block of a stack is outside `layers`
    if (
        architecture == "t5"
    ):  # the encoder's new adapter, here of random weights, moves what its decoder reads
        return
    for again in (rows(NEW, 3), rows(OLD, 4), rows(NEW, 5)):  # both kinds are known now
        state = taught(method, model, state, 3, again)
        assert counts(model) == [1, 2]


def test_the_threshold_decides():
    for threshold, expected in ((0.0, [1, 2]), (1e6, [1, 1])):
        method, model, state = begun("llama", threshold=threshold)
        state = taught(method, model, state, 0, rows(OLD, 0))
        taught(method, model, state, 1, rows(OLD, 1))
        assert counts(model) == expected


def test_a_descriptor_of_two_rows_flags_nothing():
    method, model, state = begun("llama", threshold=0.0)
    state = taught(method, model, state, 0, rows(OLD, 0, count=2))
    taught(method, model, state, 1, rows(NEW, 1))
    assert counts(model) == [1, 1]


def test_frozen_adapters_keep_every_bit_and_get_no_gradient():
    method, model, state = begun("llama", threshold=0.0, layers=2)
    state = taught(method, model, state, 0, rows(OLD, 0))
    before = states.copy(state)
    state = method.begin_stage(at(model, 1, rows(NEW, 1)), state)
    assert counts(model) == [2, 2]
    assert {n.split("members.")[1][0] for n in model.params()} == {"1"}
    output(model.network, inputs("llama")).sum().backward()
    assert {n for n, p in model.network.named_parameters() if p.grad is not None} == set(model.params())
    for parameter in model.params().values():
        parameter.data += 1
    state = method.end_stage(at(model, 1, rows(NEW, 1)), state)
    for name, kept in before["blocks"].items():
        assert states.equal(state["blocks"][name]["past"]["0"], kept["past"]["0"])
        assert not states.equal(state["blocks"][name]["past"]["1"], kept["past"]["0"])
        assert list(state["blocks"][name]["descriptors"]) == ["0", "1"]
    assert not model.params()


def test_a_stage_without_expansion_continues_or_freezes():
    for same, trained in (("continue", {"0"}), ("freeze", set())):
        method, model, state = begun("llama", threshold=1e6, same=same)
        state = taught(method, model, state, 0, rows(OLD, 0))
        state = method.begin_stage(at(model, 1, rows(NEW, 1)), state)
        assert {n.split("members.")[1][0] for n in model.params()} == trained
        state = method.end_stage(at(model, 1, rows(NEW, 1)), state)
        assert all(list(kept["past"]) == ["0"] for kept in state["blocks"].values())


@pytest.mark.parametrize("architecture, by_row", [("llama", False), ("bert", True), ("vit", True)])
def test_equals_the_explicit_weighted_sum(architecture, by_row):
    method, model, state = begun(architecture, scale=0.5, threshold=0.0)
    block = next(names[-1] for names in routing.blocks(model.network).values())
    experts = routing.experts_of(model.network, block)
    for number in ("0", "1", "2"):
        method._add(model, block, number, seed=int(number))
    disturb(model, 3)
    hidden = torch.randn(2, 5, 32, generator=torch.Generator().manual_seed(0))
    mask = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 0, 0, 0]])
    routing.trace_of(model.network).mask = mask
    expected = torch.zeros_like(hidden)
    for b in range(2):
        mean = hidden[b, : int(mask[b].sum())].mean(0)
        for t in range(5):
            x = mean if by_row else hidden[b, t]
            members = list(experts.members.values())
            p = torch.stack([x @ m.route + m.offset for m in members]).softmax(0)
            for weight, m in zip(p, members, strict=True):
                inner = (m.down @ hidden[b, t] + m.down_bias).relu()
                expected[b, t] += 0.5 * weight * (m.up @ inner + m.up_bias)
    torch.testing.assert_close(experts(hidden), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("share", [0.1, 0.5])
def test_a_new_column_begins_with_its_share(share):
    method, model, state = begun("llama", threshold=0.0, first_weight=share)
    state = method.begin_stage(at(model, 0, rows(OLD, 0)), state)
    state = method.end_stage(at(model, 0, rows(OLD, 0)), state)
    method.begin_stage(at(model, 1, rows(NEW, 1)), state)
    experts = routing.experts_of(model.network, "model.layers.1")
    weights = experts.weigh(experts, torch.randn(1, 3, 32), routing.Place(None, False))
    assert list(weights) == ["0", "1"]
    for number, expected in (("0", 1 - share), ("1", share)):
        torch.testing.assert_close(weights[number], torch.full((1, 3), expected))


def test_a_saved_state_rebuilds_the_same_model_across_an_expansion():
    method, model, state = begun("bert", threshold=0.0)
    state = taught(method, model, state, 0, rows(OLD, 0))
    state = method.begin_stage(at(model, 1, rows(NEW, 1)), state)
    disturb(model, 1)
    again = tiny.model("bert")
    method.attach(again, states.join(*states.split(state)), seed=9)
    assert again.params().keys() == model.params().keys()
    for name, parameter in model.params().items():
        again.params()[name].data.copy_(parameter.data)
    batch = inputs("bert")
    assert torch.equal(output(again.network, batch), output(model.network, batch))


def test_descriptors_are_of_the_mean_input_of_a_block_without_pads():
    method, model, state = begun("bert")
    state = method.begin_stage(at(model, 0, rows(OLD, 0)), state)
    data = [{"text": "sun", "label": "a"}, {"text": "moon star cloud", "label": "a"}]
    found = routing.gathered(at(model, 0, data), 2)["encoder.layer.1"]
    alone = routing.gathered(at(model, 0, data[:1]), 2)["encoder.layer.1"]
    torch.testing.assert_close(found[:1], alone, atol=1e-5, rtol=1e-5)
    assert found.shape == (2, 32)
