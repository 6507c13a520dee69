"""Drift: 0 at rest, by hand elsewhere, the same beside the weights and inside them."""

import copy
import math
from dataclasses import replace

import pytest
import tiny
import torch
from looking import context_of

from lifelong.core import prompts
from lifelong.diagnostics.drift import Drift, moved
from lifelong.numerics.positions import layers
from lifelong.numerics.twin import twin
from lifelong.tuners.lora import Lora


@pytest.mark.parametrize("attached", [False, True])
@pytest.mark.parametrize("architecture", tiny.ARCHITECTURES)
def test_nothing_moved_is_exactly_zero(architecture, attached):
    context = context_of(architecture)
    if attached:
        Lora(rank=2).attach(context.model, None, 0)
    found = Drift().measure(context)
    names = list(layers(context.base))
    by_layer = [f"{kind} {name}" for kind in ("weights", "features") for name in names]
    assert list(found) == ["weights all", *by_layer, "left out"]
    assert set(found.values()) == {0.0}


@pytest.mark.parametrize("architecture", tiny.ARCHITECTURES)
def test_a_layer_that_is_scaled_moves_by_that_and_no_earlier_one_does(architecture):
    context = context_of(architecture)
    names = list(layers(context.base))
    last = names[-1]
    with torch.no_grad():
        for parameter in context.model.network.get_submodule(last).parameters():
            parameter.mul_(1.25)
    found = Drift().measure(context)
    assert found.pop(f"weights {last}") == pytest.approx(0.25, rel=1e-5)
    whole = math.hypot(*(float(p.detach().norm()) for p in context.base.parameters()))
    part = math.hypot(*(float(p.detach().norm()) for p in context.base.get_submodule(last).parameters()))
    assert found.pop("weights all") == pytest.approx(0.25 * part / whole, rel=1e-4)
    assert found.pop(f"features {last}") > 1e-5
    assert set(found.values()) == {0.0}


@torch.no_grad()
def test_features_equal_passes_by_hand():
    context = context_of("llama")
    torch.manual_seed(1)
    for parameter in context.model.network.parameters():
        parameter.add_(0.05 * torch.randn_like(parameter))
    each = context.stream.stages[0].evals[0]
    cosines = []
    for example in prompts.of_rows(each.objective, each.rows, context.model, each.labels):
        ids = torch.tensor([prompts.shown(example, context.model, 1)])
        states = [
            network(input_ids=ids, output_hidden_states=True).hidden_states[1][0, -1]  # leaves layer 0
            for network in (context.base, context.model.network)
        ]
        cosines.append(torch.nn.functional.cosine_similarity(*states, dim=0))
    found = Drift().measure(context)
    assert found["features model.layers.0"] == pytest.approx(1 - float(torch.stack(cosines).mean()), rel=1e-4)
    assert found["features model.layers.0"] > 1e-3


@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
@torch.no_grad()
def test_an_update_beside_the_weights_counts_as_one_inside_them(architecture):
    model = tiny.model(architecture)
    base, tuner = twin(model.network, share=True), Lora(rank=2)
    state = tuner.attach(model, None, 0)
    for name, parameter in model.params().items():
        if "lora_B" in name:
            parameter.normal_(generator=torch.Generator().manual_seed(3), std=0.05)
    beside, _ = moved(model.network, base)
    folded = replace(model, network=copy.deepcopy(model.network))
    tuner.fold(folded, state)
    base = twin(base, share=False)
    inside, _ = moved(folded.network, base)
    assert beside["total"]["norm"] > 0.1
    for left, right in zip(beside["layers"], inside["layers"], strict=True):
        assert left["norm"] == pytest.approx(right["norm"], rel=1e-4, abs=1e-6)


def test_a_routed_module_is_left_out():
    context = context_of("llama")
    module = context.model.network.model.layers[0].mlp.up_proj
    module.register_forward_hook(lambda owner, args, output: output * args[0].sum(-1, keepdim=True).sigmoid())
    assert Drift().measure(context)["left out"] == 1
