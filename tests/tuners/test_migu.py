"""MIGU: the right rows, exactly as many as the quantile says, and nothing moves the others."""

import pytest
import tiny
import torch
from plain_loop import loss_of, same, train, values
from torch import nn

from lifelong.core.axes import Context
from lifelong.numerics.low_rank import linear_modules
from lifelong.tuners.full import Full
from lifelong.tuners.migu import Migu


def begun(architecture="llama", stage=1, **settings):
    method, model = Migu(**settings), tiny.model(architecture)
    state = method.attach(model, None, seed=0)
    context = Context(params=model.params(), model=model, stage=stage, seed=1)
    return method, model, context, method.begin_stage(context, state)


def by_unit(module, tensor):
    return tensor if isinstance(module, nn.Linear) else tensor.T


@pytest.mark.parametrize(("width", "kept"), [(100, 30), (16, 5)])
def test_kept_rows_at_the_papers_setting(width, kept):
    method, model, context, state = begun()
    name = "model.layers.0.self_attn.k_proj"
    module = nn.Linear(8, width, bias=False)
    module.weight.grad = torch.ones(width, 8)
    model.network.set_submodule(name, module)
    sizes = torch.randperm(width, generator=torch.Generator().manual_seed(0)).float()
    model.network.output_sums[name] = sizes
    method.before_update(context, state)
    moved = module.weight.grad.any(1)
    assert int(moved.sum()) == kept
    assert sizes[moved].min() > sizes[~moved].max()


@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
@pytest.mark.parametrize("normalise", ["total", "position"])
def test_masks_follow_the_outputs_of_the_step(architecture, normalise):
    """Against outputs that plain hooks record in the same two passes."""
    method, model, context, state = begun(architecture, normalise=normalise)
    network, seen = model.network.train(), {}
    for name, module in linear_modules(network).items():
        module.register_forward_hook(
            lambda m, args, out, name=name: seen.setdefault(name, []).append(out.detach().flatten(0, -2))
        )
    for step in range(2):
        loss_of(network, architecture, step).backward()
    gradients = {name: m.weight.grad.clone() for name, m in linear_modules(network).items()}
    others = {n: p.grad.clone() for n, p in model.params().items() if n[: -len(".weight")] not in gradients}
    state = method.before_update(context, state)
    for name, module in linear_modules(network).items():
        sizes = torch.cat(seen[name]).abs()
        if normalise == "position":
            sizes = nn.functional.normalize(sizes, p=1, dim=1)
        sizes = sizes.double().sum(0)
        moved = sizes >= torch.quantile(sizes, 0.7)
        gradient, whole = by_unit(module, module.weight.grad), by_unit(module, gradients[name])
        assert torch.equal(gradient[moved], whole[moved]) and not gradient[~moved].any()
        assert whole[~moved].any()
    for name, gradient in others.items():
        assert torch.equal(model.params()[name].grad, gradient)
    assert not network.output_sums


@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_masked_rows_keep_every_bit_and_the_published_form_moves_them(architecture):
    for strict in (True, False):
        method, model = Migu(strict=strict, first_stage=0), tiny.model(architecture)
        state, masks = method.attach(model, None, seed=0), []
        quantile, modules = torch.quantile, linear_modules(model.network)

        def noted(sizes, q, masks=masks, quantile=quantile):
            masks.append(sizes < quantile(sizes, q))
            return quantile(sizes, q)

        before, moved = [values(model)], []

        def watch(step, model, before=before, masks=masks, moved=moved, modules=modules):
            now = values(model)
            assert len(masks) == len(modules)
            for (name, module), mask in zip(modules.items(), masks, strict=True):
                old, new = (by_unit(module, v[f"{name}.weight"]) for v in (before[0], now))
                moved.append(float((new - old)[mask].abs().max()))
                assert (new - old)[~mask].abs().max() > 1e-3
            before[0] = now
            masks.clear()

        torch.quantile = noted
        try:
            train(method, model, state, architecture=architecture, watch=watch)
        finally:
            torch.quantile = quantile
        assert (max(moved) == 0) == strict
        if not strict:
            assert max(moved) > 1e-3


@pytest.mark.parametrize(("strict", "moved"), [(True, 0.0), (False, 0.0670)])
def test_how_far_one_step_of_adam_carries_a_masked_row(strict, moved):
    """A gradient g, then 0: 0.1 * (0.09 / 0.19) / sqrt(0.000999 / 0.001999) = 0.067."""
    method, model, context, state = begun(strict=strict)
    name, module = "model.layers.0.self_attn.k_proj", nn.Linear(8, 16, bias=False)
    model.network.set_submodule(name, module)
    optimizer = torch.optim.AdamW([module.weight], lr=0.1, weight_decay=0.0)
    module.weight.grad = torch.ones(16, 8)
    optimizer.step()
    before = module.weight.detach().clone()
    module.weight.grad = torch.ones(16, 8)
    model.network.output_sums[name] = torch.arange(16.0)
    state = method.before_update(context, state)
    optimizer.step()
    method.after_update(context, state)
    change = (module.weight.detach() - before).abs()
    torch.testing.assert_close(change[:11], torch.full((11, 8), moved), atol=5e-5, rtol=0)
    torch.testing.assert_close(change[11:], torch.full((5, 8), 0.1), atol=5e-5, rtol=0)


def trained(method, stage):
    model = tiny.model("llama")
    state, _ = train(method, model, method.attach(model, None, seed=0), stage=stage)
    return values(model)


def test_masked_zero_and_the_first_stage_equal_full_fine_tuning():
    full = trained(Full(), 1)
    assert same(trained(Migu(masked=0.0), 1), full) == set(full)
    assert same(trained(Migu(), 1), full) != set(full)
    first = trained(Full(), 0)
    assert same(trained(Migu(), 0), first) == set(first)
    assert same(trained(Migu(first_stage=0), 0), first) != set(first)


def test_a_teachers_pass_and_evaluation_do_not_count():
    method, model, context, state = begun()
    with torch.no_grad():
        loss_of(model.network.train(), "llama", 0)
    loss_of(model.network.eval(), "llama", 0)
    assert not model.network.output_sums
    loss_of(model.network.train(), "llama", 0)
    assert set(model.network.output_sums) == set(linear_modules(model.network))


def test_fold_leaves_no_hook():
    method, model, context, state = begun("t5")
    method.fold(model, state)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.network.modules())
    assert not hasattr(model.network, "output_sums")
