"""TriAdaptLoRA grows where the core changed most, within its budget, and as its scale promises."""

import pytest
import tiny
import tiny_stream
import torch
from test_lora import inputs, output

from lifelong import launch
from lifelong.core import state as states
from lifelong.core.axes import Context
from lifelong.core.composition import compose
from lifelong.models import restore
from lifelong.numerics import triangular
from lifelong.penalties.l2 import L2
from lifelong.penalties.lwf import Lwf
from lifelong.tuners.triadaptlora import Triadaptlora


def at(model, step, total=10, seed=4):
    return Context(params=model.params(), model=model, step=step, num_steps=total, seed=seed)


def attached(method, architecture="llama"):
    model = tiny.model(architecture)
    return model, method.attach(model, None, seed=0)


def fill(model, sizes):
    """A core of the given Frobenius norm in every module, as training would leave it."""
    for name, size in sizes.items():
        module = model.network.get_submodule(name)
        module.lora_lower.data.fill_(1.0)
        module.lora_lower.data *= size / triangular.core(module).detach().norm()


def sized(state, low=1.0):
    return {name: low + 0.1 * index for index, name in enumerate(state["ranks"])}


@pytest.mark.parametrize("architecture", tiny.ARCHITECTURES)
def test_it_starts_as_the_base_and_growth_keeps_the_function(architecture):
    method, batch = Triadaptlora(rank=4, growth=2, interval=1, warmup=0.0), inputs(architecture)
    base = tiny.model(architecture)
    base.network.requires_grad_(False)
    model, state = attached(method, architecture)
    assert torch.equal(output(model.network, batch), output(base.network, batch))
    fill(model, sized(state, 20.0))
    before = output(model.network, batch)
    assert not torch.allclose(before, output(base.network, batch), atol=1e-3)
    grown = method.after_update(at(model, 4), state)
    assert sum(grown["ranks"].values()) > sum(state["ranks"].values())
    torch.testing.assert_close(output(model.network, batch), before, atol=1e-5, rtol=1e-5)
    method.fold(model, grown)
    torch.testing.assert_close(output(model.network, batch), before, atol=2e-5, rtol=2e-5)
    assert not any("lora" in name for name, _ in model.network.named_parameters())


def test_the_papers_scale_shrinks_the_update_at_growth():
    method = Triadaptlora(rank=4, growth=2, interval=1, warmup=0.0, scaling="own", alpha=6.0)
    model, state = attached(method)
    fill(model, sized(state))
    old = method.low_rank(model, state)
    grown = method.after_update(at(model, 4), state)
    new, changed = method.low_rank(model, grown), 0
    for name, rank in grown["ranks"].items():
        assert new[name].scale == 6.0 / (rank + 1e-5)
        before, after = (each.scale * each.up @ each.down for each in (old[name], new[name]))
        ratio = state["ranks"][name] / rank
        torch.testing.assert_close(after, before * ratio, atol=1e-6, rtol=1e-4)
        changed += ratio == 0.5
    assert changed > 0


@pytest.mark.parametrize(
    "threshold, step, number", [("linear", 4, 14), ("linear", 0, 2), ("exponential", 4, 5)]
)
def test_the_most_important_modules_grow(threshold, step, number):
    """14 modules of rank 2, 28 ranks to go, m = (step + 1) / 10: int(28 m), or int(28 ** m)."""
    method = Triadaptlora(rank=4, growth=2, interval=1, warmup=0.0, threshold=threshold)
    model, state = attached(method)
    sizes = sized(state)
    fill(model, sizes)
    grown = method.after_update(at(model, step), state)
    wanted = set(sorted(sizes, key=sizes.get)[-number:])
    assert {n for n, rank in grown["ranks"].items() if rank == 4} == wanted
    assert all(abs(grown["norms"][n] - sizes[n]) < 1e-4 for n in sizes)


def test_importance_is_what_changed_since_the_last_time():
    method = Triadaptlora(rank=4, growth=2, interval=1, warmup=0.0)
    model, state = attached(method)
    sizes = sized(state, 5.0)
    fill(model, sizes)
    changed = list(sizes)[3]
    state = {**state, "norms": {n: size - (1.0 if n == changed else 0.0) for n, size in sizes.items()}}
    method = Triadaptlora(rank=4, growth=2, interval=1, warmup=0.0, threshold="exponential")
    grown = method.after_update(at(model, 0, total=1000), state)
    assert {n for n, rank in grown["ranks"].items() if rank == 4} == {changed}
    again = method.after_update(at(model, 1, total=1000), grown)  # its norm is now divided by two blocks
    assert changed not in {n for n, rank in again["ranks"].items() if rank > grown["ranks"][n]}


def test_growth_waits_for_its_time_and_stops_at_the_budget():
    method = Triadaptlora(rank=5, growth=2, interval=3, warmup=0.5)
    model, state = attached(method)
    history = []
    for step in range(60):
        fill(model, sized(state, 1.0 + step))
        new = method.after_update(at(model, step, total=60), state)
        if new["ranks"] != state["ranks"]:
            history.append((step + 1, sum(new["ranks"].values()) - sum(state["ranks"].values())))
            assert sum(state["ranks"].values()) < 5 * 14  # nothing grows once the budget is spent
        state = new
    assert history and all(done > 30 and done % 3 == 0 for done, _ in history)
    total = sum(state["ranks"].values())
    assert 5 * 14 <= total < 5 * 14 + history[-1][1]
    assert max(state["ranks"].values()) <= 16


def test_the_orthogonality_term_is_the_mean_distance_of_the_grams():
    method = Triadaptlora(rank=4, growth=2, strength=3.0, targets=("q_proj",))
    model, state = attached(method)
    loss = method.loss(at(model, 0), state)
    distances = []
    for name in state["ranks"]:
        module = model.network.get_submodule(name)
        for factor in (module.lora_A.weight, module.lora_B.weight.T):
            distances.append(((factor @ factor.T - torch.eye(2)) ** 2).sum().sqrt())
    torch.testing.assert_close(loss, 3.0 * sum(distances) / len(distances))
    for name in state["ranks"]:
        module = model.network.get_submodule(name)
        module.lora_A.weight.data = torch.linalg.qr(module.lora_A.weight.data.T).Q.T
        module.lora_B.weight.data = torch.linalg.qr(module.lora_B.weight.data).Q
    assert method.loss(at(model, 0), state) < 1e-5
    assert Triadaptlora(strength=0.0).loss(at(model, 0), state) is None


def test_a_saved_state_rebuilds_the_grown_model():
    method = Triadaptlora(rank=4, growth=2, interval=1, warmup=0.0)
    model, state = attached(method, "gpt2")
    fill(model, sized(state))
    state = method.after_update(at(model, 4), state)
    again = tiny.model("gpt2")
    rebuilt = method.attach(again, states.join(*states.split(state)), seed=9)
    assert rebuilt == state and list(again.params()) == list(model.params())
    for name, parameter in model.params().items():
        again.params()[name].data.copy_(parameter.data)
    batch = inputs("gpt2")
    assert torch.equal(output(again.network, batch), output(model.network, batch))


@pytest.mark.parametrize("penalty", [L2(), Lwf()])
def test_it_grows_in_mid_stage_beside_penalties(penalty, tmp_path):
    """The optimiser learns the new entries from the next step on, and penalties meet them."""
    method = Triadaptlora(rank=3, growth=1, interval=1, warmup=0.0, targets=("q_proj", "v_proj"))
    model = tiny.model("llama")
    model.network.save_pretrained(tmp_path / "base")
    model.processor.save_pretrained(tmp_path / "base")
    stream = tiny_stream.stream(count=24, general=False)
    run = launch.run(
        restore.load(tmp_path / "base"), stream, compose([method, penalty], method), output=tmp_path / "run"
    )
    restored = restore.open_run(run.folder)
    assert sum(restored.tuner_state["ranks"].values()) >= 3 * 4
    for name, rank in restored.tuner_state["ranks"].items():
        module = restored.model.network.get_submodule(name)
        assert len(module.lora_lower) == rank
        last = triangular.core(module).detach()[rank - 1]
        assert last.abs().max() > 0  # entries of the newest block have been trained
