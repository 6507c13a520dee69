"""A-GEM's projection against its own optimality conditions, and in the engine."""

import json

import pytest
import tiny
import tiny_stream
import torch
from torch import nn

from lifelong import launch
from lifelong.core.engine import Settings
from lifelong.replay.a_gem import AGem
from lifelong.tuners.full import Full
from lifelong.tuners.lora import Lora


def params(*gradients):
    made = {}
    for i, gradient in enumerate(gradients):
        made[f"p{i}"] = nn.Parameter(torch.zeros(gradient.shape))
        made[f"p{i}"].grad = gradient.clone()
    return made


def flat(values):
    return torch.cat([v.flatten() for v in values])


def conflicting(seed):
    generator = torch.Generator().manual_seed(seed)
    g = [torch.randn(3, 4, generator=generator), torch.randn(5, generator=generator)]
    r = [torch.randn(3, 4, generator=generator), torch.randn(5, generator=generator)]
    sign = -torch.sign(flat(g) @ flat(r))
    return g, [sign * each for each in r]


@pytest.mark.parametrize("seed", range(4))
def test_result_is_the_nearest_gradient_that_does_not_raise_the_memory(seed):
    g, r = conflicting(seed)
    made = params(*g)
    assert flat(g) @ flat(r) < 0
    AGem().project(made, {"p0": r[0], "p1": r[1]})
    result = flat([p.grad for p in made.values()])
    expected = flat(g) - (flat(g) @ flat(r)) / (flat(r) @ flat(r)) * flat(r)
    torch.testing.assert_close(result, expected)
    assert abs(result @ flat(r)) < 1e-5 * flat(r).norm() * flat(g).norm()
    # dual: min over v >= 0 of |g + v r|^2, by a fine search
    found = min((flat(g) + v * flat(r) for v in torch.linspace(0, 3, 3001)), key=lambda x: x.norm())
    torch.testing.assert_close(result, found, atol=5e-3, rtol=0)
    alone = params(g[0], g[1])  # control: tensors one by one give another answer
    for name, value in zip(alone, r, strict=True):
        AGem().project({name: alone[name]}, {name: value})
    assert not torch.allclose(flat([p.grad for p in alone.values()]), expected, atol=1e-3)


def test_an_agreeing_step_keeps_every_bit():
    g, r = conflicting(0)
    made = params(*g)
    AGem().project(made, {"p0": -r[0], "p1": -r[1]})
    assert torch.equal(made["p0"].grad, g[0]) and torch.equal(made["p1"].grad, g[1])
    AGem().project(made, {"p0": r[0] * 0, "p1": r[1] * 0})  # a reference that says nothing
    assert torch.equal(made["p0"].grad, g[0])


def test_a_parameter_that_the_new_rows_did_not_touch_takes_part():
    g, r = conflicting(1)
    made = params(*g)
    made["p2"] = nn.Parameter(torch.zeros(2))
    extra = torch.tensor([1.0, -2.0])
    AGem().project(made, {"p0": r[0], "p1": r[1], "p2": extra})
    whole_g, whole_r = flat([*g, torch.zeros(2)]), flat([*r, extra])
    expected = whole_g - (whole_g @ whole_r) / (whole_r @ whole_r) * whole_r
    torch.testing.assert_close(flat([p.grad for p in made.values()]), expected)


def test_it_looks_at_finished_stages_alone():
    method = AGem(size=20, fraction=0.5)
    state = method.add(method.init(0), [{"stage": i % 2, "example": {"id": i}} for i in range(20)])
    picked = method.pick(state, 8, stage=1, step=0)
    assert len(picked) == 4 and {item["stage"] for item in picked} == {0}
    assert method.pick(state, 8, stage=1, step=0) == picked != method.pick(state, 8, stage=1, step=1)


def record(run):
    return [json.loads(line)["loss"] for line in (run.folder / "log.jsonl").read_text().splitlines()]


def test_in_the_engine_the_update_does_not_raise_the_memorys_loss(tmp_path, monkeypatch):
    """Every gradient that leaves `project` has no negative product with the reference; some had."""
    seen, original = [], AGem.project

    def watched(self, params, reference):
        def product():
            return sum((params[n].grad * r).sum().item() for n, r in reference.items() if n in params)

        before = product()
        original(self, params, reference)
        seen.append((before, product(), sum(r.square().sum().item() for r in reference.values())))

    monkeypatch.setattr(AGem, "project", watched)
    stream = tiny_stream.stream(learning_rate=1e-2, count=24, general=False)
    run = launch.run(
        tiny.model("bert"), stream, [Full(), AGem(size=8)], output=tmp_path / "run", settings=Settings()
    )
    assert len(seen) == 6 and len(record(run)) == 12  # six steps of the second stage
    assert any(before < 0 for before, _, _ in seen)
    for before, after, size in seen:
        assert after >= -1e-5 * size
        assert before < 0 or after == before


def test_micro_batches_change_only_rounding(tmp_path):
    losses = []
    for size in (None, 1):
        stream = tiny_stream.stream(micro_batch_size=size)
        run = launch.run(
            tiny.model("llama"), stream, [Lora(rank=2), AGem(size=6)], output=tmp_path / f"{size}"
        )
        losses.append(record(run))
    assert losses[0] == pytest.approx(losses[1], abs=1e-4)
