"""OSFT: the protected subspace holds under AdamW, nothing is reset, and the limits are exact."""

import pytest
import tiny
import tiny_stream
import torch
from plain_loop import loss_of, same, train, values
from test_lora import inputs, output

from lifelong.core import state as states
from lifelong.core.axes import Context
from lifelong.numerics.low_rank import dimensions, linear_modules
from lifelong.numerics.spectrum import Triples
from lifelong.numerics.split_weight import join, weight_of
from lifelong.objectives.classification import Classification
from lifelong.tuners.osft import Osft

FIXED = {"ranks": "fixed", "share": 0.5}


def attached(method, architecture="llama"):
    model = tiny.model(architecture)
    return model, method.attach(model, None, seed=0)


def weights(model, state):
    """The weights that the modules compute with, (out, in)."""
    found = {}
    for name, module in linear_modules(model.network).items():
        kept = state["high"].get(name)
        found[name] = join(module, Triples(**kept)) if kept else weight_of(module).clone()
    return found


def residuals(before, after, state):
    """Largest entries of change @ V_h^T, U_h^T @ change and U_h^T @ change @ V_h^T, and of the change."""
    found = [0.0] * 4
    for name, kept in state["high"].items():
        change = (after[name] - before[name]).double()
        up, down = kept["up"].double(), kept["down"].double()
        parts = (change @ down.T, up.T @ change, up.T @ change @ down.T, change)
        found = [max(a, float(b.abs().max())) for a, b in zip(found, parts, strict=True)]
    return found


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "t5"])
@pytest.mark.parametrize("kind", ["factors", "whole"])
def test_under_adamw_the_protected_subspace_stays(architecture, kind):
    for project_update in (True, False):
        method = Osft(**FIXED, train=kind, project_update=project_update)
        model, state = attached(method, architecture)
        before = weights(model, state)
        state, _ = train(method, model, state, architecture=architecture, steps=5)
        right, left, both, change = residuals(before, weights(model, state), state)
        assert change > 1e-2
        protected = max(right, left, both) if kind == "factors" else both
        if project_update:
            assert protected <= 1e-5
        else:  # the control, as published: projected gradients alone do not hold it
            assert protected > 1e-3
        if kind == "whole":  # the paper's equation lets either side move alone
            assert min(right, left) > 1e-3


def test_all_protected_nothing_trains():
    for kind in ("factors", "whole"):
        method = Osft(ranks="fixed", share=1.0, train=kind)
        model, state = attached(method)
        before = weights(model, state)
        state = method.begin_stage(Context(params={}, model=model), state)
        assert not model.params()
        for name, weight in weights(model, state).items():
            torch.testing.assert_close(weight, before[name], atol=1e-6, rtol=1e-5)


def reference(steps, factors):
    """Plain fine-tuning of the same matrices: whole, or as a product of three factors."""
    model = tiny.model("llama")
    model.network.requires_grad_(False)
    chosen, parts = linear_modules(model.network), {}
    for name, module in chosen.items():
        if factors:
            up, sizes, down = torch.linalg.svd(module.weight.detach(), full_matrices=False)
            parts[name] = [torch.nn.Parameter(p.clone()) for p in (up, sizes, down)]
        else:
            parts[name] = [module.weight.requires_grad_(True)]
    optimizer = torch.optim.AdamW([p for ps in parts.values() for p in ps], lr=1e-3, weight_decay=0.1)
    model.network.train()
    for step in range(steps):
        replaced = {f"{n}.weight": (p[0] * p[1]) @ p[2] for n, p in parts.items()} if factors else {}

        def call(replaced=replaced, **batch):
            return torch.func.functional_call(model.network, replaced, (), batch)

        loss_of(call, "llama", step).backward()
        optimizer.step()
        optimizer.zero_grad()
    return {n: ((p[0] * p[1]) @ p[2] if factors else p[0]).detach().clone() for n, p in parts.items()}


@pytest.mark.parametrize("kind", ["factors", "whole"])
def test_nothing_protected_is_plain_fine_tuning(kind):
    method = Osft(ranks="fixed", share=0.0, train=kind)
    model, state = attached(method)
    before = weights(model, state)
    state, _ = train(method, model, state, steps=3, rate=1e-3)
    after = weights(model, state)
    for name, expected in reference(3, kind == "factors").items():
        assert (after[name] - before[name]).abs().max() > 1e-3
        torch.testing.assert_close(after[name], expected, atol=1e-4, rtol=1e-3)
    half = Osft(**FIXED, train=kind)  # the control: with half protected it is not
    model, state = attached(half)
    state, _ = train(half, model, state, steps=3, rate=1e-3)
    name = "model.layers.0.mlp.up_proj"
    assert not torch.allclose(weights(model, state)[name], after[name], atol=5e-4)


@pytest.mark.parametrize("architecture", tiny.ARCHITECTURES)
def test_nothing_is_lost_between_stages(architecture):
    method = Osft(**FIXED)
    model, state = attached(method, architecture)
    batch, base = inputs(architecture), output(tiny.network(architecture), inputs(architecture))
    for stage in range(3):
        before = output(model.network, batch)
        context = Context(params=model.params(), model=model, stage=stage, seed=1)
        state = method.begin_stage(context, state)
        torch.testing.assert_close(output(model.network, batch), before, atol=2e-5, rtol=1e-4)
        state, _ = train(method, model, state, architecture=architecture, stage=stage, steps=2)
        trained = output(model.network, batch)
        assert (trained - before).abs().max() > 1e-2
        state = method.end_stage(context, state)
        assert torch.equal(output(model.network, batch), trained)
    names = {name for name, _ in tiny.network(architecture).named_parameters()}
    method.fold(model, state)
    assert {name for name, _ in model.network.named_parameters()} == names
    assert not any(m._forward_hooks for m in model.network.modules())
    torch.testing.assert_close(output(model.network, batch), trained, atol=2e-5, rtol=1e-4)
    assert (trained - base).abs().max() > 1e-2


def test_unloading_between_stages_would_lose_everything():
    """The control: the recipe of peft's guide, the untouched base wrapped anew."""
    method = Osft(**FIXED)
    model, state = attached(method)
    state, _ = train(method, model, state)
    trained = weights(model, state)
    unloaded, fresh = attached(method)
    fresh = method.begin_stage(Context(params={}, model=unloaded, stage=1), fresh)
    state = method.begin_stage(Context(params=model.params(), model=model, stage=1), state)
    base = {name: weight_of(m) for name, m in linear_modules(tiny.network("llama")).items()}
    for name, weight in trained.items():
        torch.testing.assert_close(weights(unloaded, fresh)[name], base[name], atol=1e-6, rtol=1e-5)
        torch.testing.assert_close(weights(model, state)[name], weight, atol=1e-6, rtol=1e-5)
        assert (weight - base[name]).abs().max() > 1e-3


def test_every_factor_gets_a_gradient_and_nothing_else_does():
    """In the paper's T5 script none of the factors does."""
    method = Osft(**FIXED)
    model, state = attached(method, "t5")
    method.begin_stage(Context(params={}, model=model), state)
    loss_of(model.network, "t5", 0).backward()
    reached = {name for name, p in model.network.named_parameters() if p.grad is not None and p.grad.any()}
    assert reached == {f"{n}.low.{f}" for n in linear_modules(model.network) for f in ("up", "sizes", "down")}


def test_ranks():
    model, _ = attached(Osft())
    sides = {name: dimensions(module) for name, module in linear_modules(model.network).items()}

    def counts(stage=0, importance=None, **settings):
        method, (model, state) = Osft(**settings), attached(Osft())
        state = {**state, "importance": importance or {}}
        high = method.begin_stage(Context(params={}, model=model, stage=stage), state)["high"]
        return {name: len(kept["sizes"]) for name, kept in high.items()}

    for name, number in counts(ranks="fixed", share=0.25).items():
        assert number == min(sides[name]) // 4
    for name, number in counts().items():  # no rows before the first stage: importance 1
        assert number == int(0.8 * min(sides[name]))
    scores = {name: i / 4 for i, name in enumerate(sides)}
    for name, number in counts(stage=1, importance=scores).items():
        assert number == int(min(0.1 + 0.7 * scores[name], 1) * min(sides[name]) + 1e-9)
    growing = [counts(stage=stage, ranks="growing", share=0.07) for stage in (0, 1, 2, 8)]
    assert set(growing[0].values()) == {0}
    for name, (inside, outside) in sides.items():
        assert growing[1][name] == int(0.07 * max(inside, outside))
        assert growing[3][name] == min(int(0.56 * max(inside, outside)), inside, outside)
    assert growing[3]["model.layers.0.mlp.up_proj"] == 32  # of 32: frozen, since its longer side is 64


def test_importance_is_measured_on_the_finished_stage():
    method, rows = Osft(num_examples=6), tiny_stream.rows("sky", 8, 0)
    model, state = attached(method)
    objective = Classification()
    examples = objective.encode(rows, model, ("sky0", "sky1")).examples
    context = Context(
        params=model.params(), model=model, objective=objective, examples=examples, seed=4,
        batches=lambda chosen: iter([objective.collate(chosen, model)]),
    )  # fmt: skip
    state = method.begin_stage(context, state)
    found = method.end_stage(context, state)["importance"]
    assert set(found) == set(linear_modules(model.network))
    assert sum(found.values()) / len(found) == pytest.approx(1)
    assert max(found.values()) > 1.2 * min(found.values()) > 0
    alone = Osft(num_examples=6, batch_size=1).end_stage(context, state)["importance"]
    assert alone == pytest.approx(found, rel=1e-4)
    assert Osft(num_examples=2).end_stage(context, state)["importance"] != pytest.approx(found, rel=1e-4)


def test_kept_bytes():
    method = Osft(ranks="fixed", share=0.25)
    model, state = attached(method)
    state = method.begin_stage(Context(params={}, model=model), state)
    tensors, _ = states.split(state)
    sides = [dimensions(module) for module in linear_modules(model.network).values()]
    expected = sum(4 * (min(each) // 4) * (sum(each) + 1) for each in sides)
    assert sum(t.numel() * t.element_size() for t in tensors.values()) == expected


def misaligned(tensor):
    """The same values where a file might put them, not at a multiple of 64 bytes."""
    room = torch.empty(tensor.numel() + 1)
    room[1:] = tensor.flatten()
    return room[1:].view(tensor.shape)


@pytest.mark.parametrize("kind", ["factors", "whole"])
def test_a_saved_state_rebuilds_the_same_bits(kind):
    method = Osft(train=kind)  # 25 of 32 triples: a width that is no multiple of 16
    model, state = attached(method)
    state, _ = train(method, model, state)
    tensors, tree = states.split(state)
    again = tiny.model("llama")
    rebuilt = method.attach(
        again, states.join({name: misaligned(tensor) for name, tensor in tensors.items()}, tree), seed=9
    )
    for name, parameter in model.params().items():
        again.params()[name].data.copy_(parameter.data)
    assert same(values(model), values(again)) == set(values(model)) == set(values(again))
    batch = inputs("llama")
    assert torch.equal(output(again.network, batch), output(model.network, batch))
    train(method, model, state, stage=1)  # projections and the next division, too
    train(method, again, rebuilt, stage=1)
    assert same(values(model), values(again)) == set(values(model))
