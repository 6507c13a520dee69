"""MIGU on LoRA: masks of both factors follow their own outputs, and nothing moves what they hold."""

import pytest
import tiny
import torch
from plain_loop import loss_of, same, train, values
from torch import nn

from lifelong.core.axes import Context
from lifelong.numerics.low_rank import linear_modules
from lifelong.objectives.sft import Sft
from lifelong.tuners.lora import Lora
from lifelong.tuners.migu_lora import MiguLora

FACTORS = ("lora_A", "lora_B")


def begun(architecture="llama", stage=1, **settings):
    method, model = MiguLora(**settings), tiny.model(architecture)
    state = method.attach(model, None, seed=0)
    disturb(model)
    context = Context(params=model.params(), model=model, stage=stage, seed=1)
    return method, model, context, method.begin_stage(context, state)


def disturb(model):
    """B starts at zero, where all its outputs are alike."""
    generator = torch.Generator().manual_seed(5)
    for name, parameter in model.params().items():
        if "lora_B" in name:
            parameter.data = torch.randn(parameter.shape, generator=generator) * 0.1


def factors(model):
    return {f"{n}.{f}": m.get_submodule(f) for n, m in linear_modules(model.network).items() for f in FACTORS}


@pytest.mark.parametrize(("width", "kept"), [(100, 30), (16, 5)])
@pytest.mark.parametrize("factor", FACTORS)
def test_kept_rows_at_the_papers_setting(factor, width, kept):
    method, model, context, state = begun()
    name = f"model.layers.0.self_attn.k_proj.{factor}"
    module = nn.Linear(8, width, bias=False)
    module.weight.grad = torch.ones(width, 8)
    model.network.set_submodule(name, module)
    sizes = torch.randperm(width, generator=torch.Generator().manual_seed(0)).float()
    model.network.output_sums[name] = sizes
    method.before_update(context, state)
    moved = module.weight.grad.any(1)
    assert int(moved.sum()) == kept
    assert sizes[moved].min() > sizes[~moved].max()


@pytest.mark.parametrize("architecture", tiny.ARCHITECTURES)
@pytest.mark.parametrize("normalise", ["total", "position"])
def test_masks_follow_the_outputs_of_the_factors(architecture, normalise):
    """Against outputs that plain hooks record in the same two passes; no row is padded."""
    method, model, context, state = begun(architecture, rank=4, normalise=normalise)
    network, seen = model.network.train(), {}
    for name, module in factors(model).items():
        module.register_forward_hook(
            lambda m, args, out, name=name: seen.setdefault(name, []).append(out.detach().flatten(0, -2))
        )
    for step in range(2):
        loss_of(network, architecture, step).backward()
    gradients = {n: m.weight.grad.clone() for n, m in factors(model).items() if m.weight.grad is not None}
    state = method.before_update(context, state)
    assert {name.rpartition(".")[2] for name in gradients} == set(FACTORS)
    for name, whole in gradients.items():
        sizes = torch.cat(seen[name]).abs()
        if normalise == "position":
            sizes = nn.functional.normalize(sizes, p=1, dim=1)
        sizes = sizes.double().sum(0)
        moved, gradient = sizes >= torch.quantile(sizes, 0.7), factors(model)[name].weight.grad
        assert torch.equal(gradient[moved], whole[moved]) and not gradient[~moved].any()
        assert 0 < int(moved.sum()) < len(moved)
    assert any(whole.any() for whole in gradients.values()) and not network.output_sums


@pytest.mark.parametrize("architecture", ["llama", "t5"])
def test_pads_do_not_count(architecture):
    method, model, context, state = begun(architecture, rank=4)
    objective, network = Sft(), model.network.eval()
    network.training = True  # counted, and without the dropout of its parts
    rows = [{"prompt": "sun", "completion": "a"}, {"prompt": "the moon and the star", "completion": "bcd"}]
    examples = objective.encode(rows, model, ()).examples
    alone = {}
    for group in ([examples[0]], [examples[1]], examples):
        objective.forward(network, objective.collate(group, model))
        if group is not examples:
            for name, sizes in network.output_sums.items():
                alone[name] = alone.get(name, 0) + sizes
            network.output_sums.clear()
    for name, sizes in network.output_sums.items():
        torch.testing.assert_close(sizes, alone[name], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("strict", [True, False])
def test_masked_rows_keep_every_bit_and_the_published_form_moves_them(strict, monkeypatch):
    method, model = MiguLora(rank=4, strict=strict, first_stage=0), tiny.model("llama")
    state = method.attach(model, None, seed=0)
    disturb(model)
    masks, moved, quantile, modules = [], [], torch.quantile, factors(model)

    def noted(sizes, q):
        masks.append(sizes < quantile(sizes, q))
        return quantile(sizes, q)

    before = [values(model)]

    def watch(step, model):
        now = values(model)
        assert len(masks) == len(modules)
        for name, mask in zip(modules, masks, strict=True):
            change = (now[f"{name}.weight"] - before[0][f"{name}.weight"]).abs()
            moved.append(float(change[mask].max()))
            assert change[~mask].max() > 1e-3
        before[0] = now
        masks.clear()

    monkeypatch.setattr(torch, "quantile", noted)
    train(method, model, state, watch=watch)
    assert (max(moved) == 0) == strict
    if not strict:
        assert max(moved) > 1e-3


def trained(method, stage):
    model = tiny.model("llama")
    state, _ = train(method, model, method.attach(model, None, seed=0), stage=stage)
    return values(model)


def test_masked_zero_and_the_first_stage_equal_lora():
    for stage in (0, 1):
        plain = trained(Lora(), stage)
        assert same(trained(MiguLora(masked=0.0, first_stage=0), stage), plain) == set(plain)
        assert (same(trained(MiguLora(), stage), plain) == set(plain)) == (stage == 0)


def test_outputs_that_are_all_alike_mask_nothing():
    method, model = MiguLora(first_stage=0), tiny.model("llama")
    state = method.attach(model, None, seed=0)
    context = Context(params=model.params(), model=model, seed=1)
    state = method.begin_stage(context, state)
    loss_of(model.network.train(), "llama", 0).backward()
    state = method.before_update(context, state)
    assert state["held"] and all(name.endswith("lora_A") for name in state["held"])


def test_a_teachers_pass_and_evaluation_do_not_count():
    method, model, context, state = begun()
    with torch.no_grad():
        loss_of(model.network.train(), "llama", 0)
    loss_of(model.network.eval(), "llama", 0)
    assert not model.network.output_sums
    loss_of(model.network.train(), "llama", 0)
    assert set(model.network.output_sums) == set(factors(model))


def test_fold_leaves_no_hook():
    method, model, context, state = begun("t5")
    method.fold(model, state)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.network.modules())
    assert not hasattr(model.network, "output_sums")
