"""HFT: exact halves with grouped-query attention too, other halves each stage, and no drift."""

import pytest
import tiny
import torch
from plain_loop import loss_of, same, train, values

from lifelong.core.axes import Context
from lifelong.tuners.full import Full
from lifelong.tuners.hft import Hft


def drawn(architecture="llama", stage=0, **settings):
    """(model, names that are frozen)"""
    method, model = Hft(**settings), tiny.model(architecture)
    state = method.attach(model, None, seed=0)
    context = Context(params=model.params(), model=model, stage=stage, seed=stage + 1)
    return model, set(method.begin_stage(context, state)["frozen"])


def share(model, frozen, part):
    """Frozen share of the entries whose name has `part` in it."""
    sizes = {n: p.numel() for n, p in model.network.named_parameters() if part in n}
    return sum(size for name, size in sizes.items() if name in frozen) / sum(sizes.values())


@pytest.mark.parametrize("stage", range(6))
def test_grouped_query_attention_keeps_exact_halves(stage):
    model, frozen = drawn(stage=stage)
    assert model.network.config.num_key_value_heads < model.network.config.num_attention_heads
    for layer in range(2):
        assert share(model, frozen, f"layers.{layer}.self_attn") == 0.5
        assert share(model, frozen, f"layers.{layer}.mlp") in (pytest.approx(1 / 3), pytest.approx(2 / 3))
        assert share(model, frozen, f"layers.{layer}.") != 0 and share(model, frozen, "layernorm") == 0.5
    assert share(model, frozen, ".mlp.") == 0.5  # one layer has one of three, the other two
    assert not any("embed" in name or "lm_head" in name or name == "model.norm.weight" for name in frozen)


def test_two_of_four_would_not_be_a_half_there():
    """The control: the paper's draw under grouped-query attention."""
    model, _ = drawn()
    sizes = {n: p.numel() for n, p in model.network.named_parameters() if "layers.0.self_attn" in n}
    (q, k, v, o), total = sizes.values(), sum(sizes.values())
    assert {round((a + b) / total, 2) for a, b in [(k, v), (q, k), (q, o)]} == {0.33, 0.5, 0.67}


@pytest.mark.parametrize("architecture", tiny.ARCHITECTURES)
def test_half_of_the_blocks_in_every_architecture(architecture):
    model, frozen = drawn(architecture)
    inside = {n: p.numel() for n, p in model.network.named_parameters() if any(c.isdigit() for c in n)}
    inside = {n: size for n, size in inside.items() if "relative_attention_bias" not in n}
    matrices = {n: s for n, s in inside.items() if dict(model.network.named_parameters())[n].dim() > 1}
    assert sum(s for n, s in matrices.items() if n in frozen) / sum(matrices.values()) == 0.5


def test_other_stages_draw_other_halves_and_reach_everything():
    sets = [drawn(stage=stage)[1] for stage in range(12)]
    model = drawn()[0]
    assert len({frozenset(each) for each in sets}) > 8
    inside = {name for name, _ in model.network.named_parameters() if "layers." in name}
    assert set.union(*sets) == inside and not set.intersection(*sets)
    assert drawn(stage=3)[1] == sets[3]


def test_alternate_freezes_what_was_trained():
    method, model = Hft(alternate=True), tiny.model("llama")
    state, found = method.attach(model, None, seed=0), []
    for stage in range(2):
        context = Context(params=model.params(), model=model, stage=stage, seed=stage + 1)
        state = method.begin_stage(context, state)
        found.append(set(state["frozen"]))
    inside = {name for name, _ in model.network.named_parameters() if "layers." in name}
    assert found[0] | found[1] == inside and not found[0] & found[1]


@pytest.mark.parametrize("level", ["layer", "model"])
def test_coarser_halves(level):
    model, frozen = drawn(level=level)
    layers = [share(model, frozen, f"layers.{layer}.") for layer in range(2)]
    if level == "layer":
        assert sorted(layers) == [0, 1]
    else:
        units = {n for n, _ in model.network.named_parameters() if "layers." in n}
        assert len(frozen) == len(units) / 2


@pytest.mark.parametrize("architecture", ["llama", "t5"])
def test_frozen_weights_keep_every_bit_under_momentum_and_decay(architecture):
    method, model = Hft(), tiny.model(architecture)
    state = method.attach(model, None, seed=0)
    for stage in range(2):
        before = values(model)
        state, optimizer = train(method, model, state, architecture=architecture, stage=stage)
        assert same(before, values(model)) == set(state["frozen"])
        params = dict(model.network.named_parameters())
        assert not any(params[name] in optimizer.state for name in state["frozen"])
        assert all(p.requires_grad for p in params.values())


def test_a_zeroed_gradient_would_let_them_move():
    """The control: decay alone moves what has a gradient of zero."""
    model = tiny.model("llama")
    weight = model.network.model.layers[0].mlp.up_proj.weight
    before = weight.detach().clone()
    weight.grad = torch.zeros_like(weight)
    torch.optim.AdamW([weight], lr=1e-2, weight_decay=0.1).step()
    assert not torch.equal(weight, before)


def test_no_gradient_is_made_for_the_frozen_half():
    method, model = Hft(), tiny.model("llama")
    state = method.attach(model, None, seed=0)
    state = method.begin_stage(Context(params=model.params(), model=model, seed=1), state)
    model.network.train()
    loss_of(model.network, "llama", 0).backward()
    missing = {name for name, p in model.network.named_parameters() if p.grad is None}
    assert missing == set(state["frozen"])
    model.network.eval()  # importance is measured in evaluation mode, on every weight
    loss_of(model.network, "llama", 0).backward()
    assert all(p.grad is not None for p in model.network.parameters())


def test_fraction_zero_is_full_fine_tuning():
    results = []
    for method in (Hft(fraction=0.0), Full()):
        model = tiny.model("llama")
        train(method, model, method.attach(model, None, seed=0))
        results.append(values(model))
    assert same(*results) == set(results[0])


def test_fold_leaves_no_hook():
    method, model = Hft(), tiny.model("gpt2")
    state = method.attach(model, None, seed=0)
    method.fold(model, state)
    body = model.network.base_model
    assert not body._forward_hooks and not body._forward_pre_hooks
    assert not hasattr(model.network, "half_hooks")
