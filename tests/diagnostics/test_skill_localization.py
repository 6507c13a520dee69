"""Skill localization on trained tiny models: the ends, the share, and a network that stays as it was."""

from dataclasses import replace

import pytest
import tiny
import torch
from looking import context_of

from lifelong.core.evaluation import judge
from lifelong.diagnostics.skill_localization import SkillLocalization
from lifelong.metrics.perplexity import Perplexity
from lifelong.numerics import graft, low_rank
from lifelong.tuners.lora import Lora


def taught(architecture, tuner=None):
    """A context after some steps on the first stage."""
    model = tiny.model(architecture)
    context = context_of(architecture, model)
    if tuner is not None:
        tuner.attach(model, None, 0)
    context.params = model.params()
    optimizer = torch.optim.AdamW(model.params().values(), lr=5e-3)
    model.network.train()
    torch.manual_seed(0)
    for _ in range(12):
        (batch,) = context.batches(context.examples)
        context.objective.loss(context.objective.forward(model.network, batch)).mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    model.network.eval()
    return context


def by_likelihood(context):
    """A figure that moves with every weight."""
    stages = [
        replace(stage, evals=tuple(replace(each, metric=Perplexity()) for each in stage.evals))
        for stage in context.stream.stages
    ]
    context.stream = replace(context.stream, stages=tuple(stages))
    return context


def bits(network):
    return {name: value.clone() for name, value in network.state_dict().items()}


@pytest.mark.parametrize("architecture", tiny.ARCHITECTURES)
def test_both_models_are_untouched_and_the_ends_are_theirs(architecture):
    context = taught(architecture)
    sides = (context.model.network, context.base)
    before = [bits(network) for network in sides]
    flags = [[p.requires_grad for p in network.parameters()] for network in sides]
    found = SkillLocalization(share=0.05, passes=2).measure(context)
    for network, kept, wanted in zip(sides, before, flags, strict=True):
        assert all(torch.equal(value, kept[name]) for name, value in bits(network).items())
        assert [p.requires_grad for p in network.parameters()] == wanted
        assert all(p.grad is None for p in network.parameters())
    judged = context.stream.stages[0].evals[0]
    assert found["tuned"] == judge(context.model, judged, judged.labels)[0]["value"]
    assert 0 < found["share %"] < 10 and 0 <= found["graft"] <= 1
    first = SkillLocalization(share=0.05, passes=0).measure(context)
    assert 4.5 < first["share %"] <= 5


def test_all_weights_but_the_least_are_the_tuned_model():
    context = by_likelihood(taught("llama"))
    found = SkillLocalization(share=1.0, passes=0).measure(context)
    assert 99.9 < found["share %"] < 100
    assert found["tuned"] > found["pretrained"] and found["recovered"] == pytest.approx(1.0, abs=1e-3)
    none = SkillLocalization(share=1e-9, passes=0).measure(context)
    assert none["share %"] == 0.0 and none["graft"] == none["pretrained"] and none["recovered"] == 0.0


def test_steps_on_the_rows_lower_their_loss():
    context = taught("llama")

    def loss(passes):
        diagnostic = SkillLocalization(share=0.01, passes=passes, learning_rate=1e4, bias=4.0)
        params = dict(context.base.named_parameters())
        before = {name: p.detach() for name, p in params.items()}
        tuned = low_rank.computed_weights(context.model.network, before)
        ask = diagnostic._asked(context, context.base, params)
        mask = graft.learn(
            before, tuned, *ask, diagnostic.share, passes, diagnostic.bias, diagnostic.learning_rate
        )
        return ask[0](graft.grafted(before, tuned, mask)), sum(int(each.sum()) for each in mask.values())

    (first, few), (later, more) = loss(0), loss(8)
    assert later < first - 0.01 and more != few


def test_an_update_beside_the_weights_is_grafted_by_entry():
    context = by_likelihood(taught("llama", Lora(rank=4)))
    found = SkillLocalization(share=1.0, passes=0).measure(context)
    assert found["tuned"] > found["pretrained"] and found["recovered"] == pytest.approx(1.0, abs=1e-3)
    assert 10 < found["share %"] < 100  # of the linear modules alone


def test_nothing_moved_and_routed_modules_are_told():
    context = context_of("llama")
    found = SkillLocalization().measure(context)
    assert found["share %"] == 0.0 and found["pretrained"] == found["tuned"] and "graft" not in found
    module = context.model.network.model.layers[0].mlp.up_proj
    module.register_forward_hook(lambda owner, args, output: output * args[0].sum(-1, keepdim=True).sigmoid())
    assert SkillLocalization().measure(context) == {"left out": 1.0}


def test_a_stage_that_nothing_judges_has_no_figures():
    context = context_of("llama")
    stages = [replace(stage, evals=()) for stage in context.stream.stages]
    context.stream = replace(context.stream, stages=tuple(stages))
    assert SkillLocalization().measure(context) == {}
