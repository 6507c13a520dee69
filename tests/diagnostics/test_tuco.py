"""TuCo: 0 at rest, 1 without pretraining, and the decomposition done by hand."""

import copy
import math
from dataclasses import replace

import pytest
import tiny
import torch
from looking import context_of

from lifelong.diagnostics.tuco import Tuco, components, contribution
from lifelong.errors import UserError
from lifelong.numerics.positions import layers
from lifelong.numerics.twin import twin
from lifelong.tuners.lora import Lora


def tuned(architecture, size=0.05):
    """(model whose weights have moved, network before)"""
    model = tiny.model(architecture)
    base = twin(model.network, share=False)
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in model.network.parameters():
            parameter.add_(size * torch.randn_like(parameter))
    return model, base


def batch_of(architecture, lengths=(9, 5)):
    torch.manual_seed(2)
    if architecture == "vit":
        return {"pixel_values": torch.randn(len(lengths), 3, 16, 16)}
    ids, mask = (torch.zeros(len(lengths), max(lengths), dtype=torch.int64) for _ in range(2))
    for row, length in enumerate(lengths):
        ids[row, :length], mask[row, :length] = torch.randint(3, 250, (length,)), 1
    return {"input_ids": ids, "attention_mask": mask}


@pytest.mark.parametrize("architecture", tiny.ARCHITECTURES)
def test_identical_models_are_exactly_zero(architecture):
    model = tiny.model(architecture)
    found = Tuco().measure(context_of(architecture, model))
    assert found == {"sky": 0.0}
    model, base = tuned(architecture)
    with torch.no_grad():
        shares = contribution(model, base, batch_of(architecture))
    assert shares.shape == (2,) and (shares > 0.05).all() and (shares < 1).all()


def silent(base):
    """Blocks that add nothing: every projection back into the stream is zero."""
    with torch.no_grad():
        for layer in base.model.layers:
            layer.self_attn.o_proj.weight.zero_()
            layer.mlp.down_proj.weight.zero_()


@torch.no_grad()
def test_blocks_that_added_nothing_give_exactly_one():
    model, base = tuned("llama")
    silent(base)
    assert contribution(model, base, batch_of("llama")).tolist() == [1.0, 1.0]
    silent(model.network)  # nor do they now
    assert contribution(model, base, batch_of("llama")).tolist() == [0.0, 0.0]


@torch.no_grad()
@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_equals_the_decomposition_by_hand(architecture):
    """One row without pads, each pretrained block called by itself on the tuned model's stream."""
    model, base = tuned(architecture)
    batch = {"input_ids": batch_of(architecture)["input_ids"][:1]}
    length = batch["input_ids"].shape[1]
    captured = {}
    for name, layer in layers(model.network).items():
        layer.register_forward_pre_hook(
            lambda module, args, kwargs, name=name: captured.update({name: (args, kwargs)}), with_kwargs=True
        )
    last = []
    list(layers(model.network).values())[-1].register_forward_hook(lambda *given: last.append(given[2]))
    model.network(**batch, use_cache=False)
    pretraining, after = torch.zeros(32), []
    for block, (args, kwargs) in zip(layers(base).values(), captured.values(), strict=True):
        output = block(*args, **kwargs)
        stream = args[0] if args else kwargs["hidden_states"]
        given = output if isinstance(output, torch.Tensor) else output[0]
        pretraining += (given - stream)[0, length - 1]
        after.append(stream[0, length - 1])
    end = last[0] if isinstance(last[0], torch.Tensor) else last[0][0]
    fine_tuning = end[0, length - 1] - after[0] - pretraining
    expected = math.hypot(*fine_tuning.tolist())
    expected /= math.hypot(*pretraining.tolist()) + expected
    assert contribution(model, base, batch).item() == pytest.approx(expected, rel=1e-5)
    assert 0.05 < expected < 0.95


@torch.no_grad()
@pytest.mark.parametrize("architecture", tiny.ARCHITECTURES)
def test_pads_and_other_rows_change_nothing(architecture):
    model, base = tuned(architecture)
    both = batch_of(architecture)
    alone = {key: value[1:, :5] if key != "pixel_values" else value[1:] for key, value in both.items()}
    expected = contribution(model, base, alone)
    torch.testing.assert_close(contribution(model, base, both)[1:], expected, rtol=1e-4, atol=1e-6)


@torch.no_grad()
def test_an_update_beside_the_weights_counts_as_one_inside_them():
    model = tiny.model("llama")
    base, tuner = twin(model.network, share=True), Lora(rank=2)
    state = tuner.attach(model, None, 0)
    for name, parameter in model.params().items():
        if "lora_B" in name:
            parameter.normal_(generator=torch.Generator().manual_seed(3), std=0.05)
    beside = components(model, base, batch_of("llama"))
    folded = replace(model, network=copy.deepcopy(model.network))
    tuner.fold(folded, state)
    inside = components(folded, base, batch_of("llama"))
    for left, right in zip(beside, inside, strict=True):
        torch.testing.assert_close(left, right, rtol=1e-4, atol=1e-5)
    assert beside[1].norm() > 0.1


def test_says_where_there_is_no_stream():
    model, base = tuned("llama")
    model.network.model.layers = base.model.layers = torch.nn.Sequential(*model.network.model.layers)
    with pytest.raises(UserError, match="stack of blocks"):
        components(model, base, batch_of("llama"))
