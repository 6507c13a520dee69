"""LIFT: the right entries, only those, AdamW on them, and their moments alone."""

import pytest
import tiny
import torch
from plain_loop import loss_of, train, values

from lifelong.core import state as states
from lifelong.core.axes import Context
from lifelong.numerics.low_rank import linear_modules
from lifelong.tuners.lift import Lift

SMALL = {"share": 0.05, "filter_rank": 4}


def attached(method, architecture="llama"):
    model = tiny.model(architecture)
    return model, method.attach(model, None, seed=0)


def context(model, step=0, rate=1e-2):
    return Context(params=model.params(), model=model, step=step, learning_rate=rate, seed=1)


def reduced(weight, rank):
    """By numpy's SVD in double precision."""
    import numpy as np

    up, sizes, down = np.linalg.svd(weight.detach().double().numpy(), full_matrices=False)
    return torch.from_numpy(np.abs((up[:, :rank] * sizes[:rank]) @ down[:rank])).flatten()


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "t5"])
def test_chosen_are_the_largest_after_rank_reduction(architecture):
    method = Lift(**SMALL)
    model, state = attached(method, architecture)
    state = method.begin_stage(context(model), state)
    wrong = Lift(**SMALL, choice="smallest").begin_stage(context(model), state)
    assert set(state["chosen"]) == set(linear_modules(model.network))
    for name, kept in state["chosen"].items():
        weight = model.network.get_submodule(name).weight
        sizes, places = reduced(weight, 4), kept["places"].long()
        number = round(0.05 * weight.numel())
        assert len(places) == number
        rest = torch.ones(weight.numel(), dtype=torch.bool).index_fill(0, places, False)
        assert sizes[places].min() >= sizes[rest].max() - 1e-6
        plain = weight.detach().abs().flatten().topk(number).indices  # the control: without reduction
        assert set(plain.tolist()) != set(places.tolist())
        inverted = wrong["chosen"][name]["places"].long()  # the mistake in the published scripts
        assert sizes[inverted].mean() < 0.1 * sizes.mean() < 0.2 * sizes[places].mean()


def test_budget_of_a_lora_rank():
    method = Lift(budget_rank=2, filter_rank=4)
    model, state = attached(method)
    for name, kept in method.begin_stage(context(model), state)["chosen"].items():
        shape = model.network.get_submodule(name).weight.shape
        assert len(kept["places"]) == 2 * sum(shape)
    everything = Lift(budget_rank=1000).begin_stage(context(model), state)["chosen"]
    for name, kept in everything.items():
        assert len(kept["places"]) == model.network.get_submodule(name).weight.numel()


@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_only_chosen_entries_change(architecture):
    method = Lift(**SMALL, interval=100, weight_decay=0.1)
    model, state = attached(method, architecture)
    before = values(model)
    state, optimizer = train(method, model, state, architecture=architecture)
    after = values(model)
    for name in before:
        changed = (after[name] != before[name]).flatten().nonzero()[:, 0]
        module = name.removesuffix(".weight")
        expected = state["chosen"][module]["places"].long() if module in state["chosen"] else changed[:0]
        assert torch.equal(changed, expected), name
    assert not any(optimizer.state.values())


def test_state_is_twelve_bytes_per_chosen_entry():
    method = Lift(**SMALL)
    model, state = attached(method)
    state, optimizer = train(method, model, state)
    tensors, _ = states.split(state)
    number = sum(len(kept["places"]) for kept in state["chosen"].values())
    assert sum(t.numel() * t.element_size() for t in tensors.values()) == 12 * number
    assert sum(t.numel() for each in optimizer.state.values() for t in each.values()) == 0
    entries = sum(model.network.get_submodule(name).weight.numel() for name in state["chosen"])
    assert 12 * number / entries == pytest.approx(0.6, abs=0.01)


def test_all_entries_chosen_equal_adamw():
    """Clipping off on both sides, with decay."""
    method = Lift(share=1.0, max_grad_norm=0.0, weight_decay=0.1, beta2=0.95)
    model, state = attached(method)
    train(method, model, state, steps=5)
    reference = tiny.model("llama")
    chosen = {n: m.weight for n, m in linear_modules(reference.network).items()}
    reference.network.requires_grad_(False)
    for weight in chosen.values():
        weight.requires_grad_(True)
    optimizer = torch.optim.AdamW(list(chosen.values()), lr=1e-2, betas=(0.9, 0.95), weight_decay=0.1)
    reference.network.train()
    start = values(reference)
    for step in range(5):
        loss_of(reference.network, "llama", step).backward()
        optimizer.step()
        optimizer.zero_grad()
    for name, expected in values(reference).items():
        torch.testing.assert_close(values(model)[name], expected, atol=1e-5, rtol=1e-4)
    moved = max(float((w.detach() - start[f"{n}.weight"]).abs().max()) for n, w in chosen.items())
    assert moved > 1e-2


def test_gradients_are_clipped_together():
    found = []
    for limit in (0.0, 1e-3):
        method = Lift(**SMALL, max_grad_norm=limit)
        model, state = attached(method)
        state = method.begin_stage(context(model), state)
        loss_of(model.network, "llama", 0).backward()
        found.append(method.before_update(context(model), state)["taken"])
    norm = torch.cat(list(found[0].values())).norm()
    assert norm > 1e-3
    for name, gradient in found[1].items():
        torch.testing.assert_close(gradient, found[0][name] * 1e-3 / (norm + 1e-6), atol=1e-9, rtol=1e-4)


def test_a_new_choice_carries_moments_of_entries_that_stay():
    method = Lift(**SMALL, interval=2)
    model, state = attached(method)
    state, _ = train(method, model, state, steps=2)
    name = "model.layers.0.mlp.up_proj"
    module, old = model.network.get_submodule(name), states.copy(state)["chosen"][name]
    with torch.no_grad():  # half of the rows become large: some entries stay, others come
        module.weight[:32] *= 10
    module.weight.grad = torch.zeros_like(module.weight)
    kept = method.before_update(context(model, 1), state)["chosen"][name]
    assert torch.equal(kept["places"], old["places"])
    new = method.before_update(context(model, 2), state)["chosen"][name]
    where = {place: i for i, place in enumerate(old["places"].tolist())}
    stayed = 0
    for i, place in enumerate(new["places"].tolist()):
        for moment in ("first", "second"):
            expected = old[moment][where[place]] if place in where else 0.0
            assert float(new[moment][i]) == float(expected)
        stayed += place in where
    assert 0 < stayed < len(new["places"]) == len(old["places"])
    assert new["count"] == 2 and old["first"].all()


def test_a_saved_state_goes_on_to_the_same_bits():
    """Also across a new choice of entries."""
    method, results = Lift(**SMALL, interval=2), []
    for interrupted in (False, True):
        model, state = attached(method)
        state = method.begin_stage(context(model), state)
        for step in range(4):
            if interrupted and step == 2:
                saved, kept = states.split(states.copy(state)), values(model)
                model, _ = attached(method)
                state = method.attach(model, states.join(*saved), seed=9)
                for name, p in model.network.named_parameters():
                    p.data.copy_(kept[name])
            loss_of(model.network, "llama", step).backward()
            state = method.before_update(context(model, step), state)
            state = method.after_update(context(model, step), state)
        results.append((values(model), state))
    assert states.equal(*map(list, results))
