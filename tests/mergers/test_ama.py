"""AMA: the mean is kept, one group is plain averaging, and learned ratios are better than equal ones."""

import pytest
import torch
from merging import TUNERS, merged, moved, stage

from lifelong.mergers.ama import Ama
from lifelong.numerics.distillation import kl_divergence


def distance(context, wanted):
    """Mean divergence of the answers from `wanted`."""
    batch = next(iter(context.batches(context.examples)))
    with torch.no_grad():
        logits = context.objective.forward(context.model.network, batch).logits
    return logits if wanted is None else float(kl_divergence(logits, wanted, 1.0).mean())


@pytest.mark.parametrize("architecture", ["llama", "t5", "bert"])
def test_one_group_is_plain_averaging(architecture):
    context, _ = stage(architecture)
    before, after, found, state = merged(Ama(alpha=0.3, num_groups=1), context)
    assert state["ratios"] == [[0.3]]
    for name, value in found.items():
        ratio = 1.0 if name.startswith("lifelong_head") else 0.3
        torch.testing.assert_close(value.detach(), torch.lerp(before[name], after[name], ratio))


@pytest.mark.parametrize("tuner", TUNERS.values(), ids=TUNERS)
@pytest.mark.parametrize("alpha", [0.2, 0.5, 0.9])
def test_learned_ratios_keep_the_mean_and_answer_more_like_the_new_model(tuner, alpha):
    found = {}
    for steps in (0, 10):
        context, _ = stage("llama", tuner)
        method = Ama(alpha=alpha, num_groups=2, steps=steps)
        state = method.begin_stage(context, method.init(context))
        moved(context, size=0.3, only="lora_B" if tuner.has_subspaces else "")
        wanted = distance(context, None)
        state = method.end_stage(context, state)
        ratios = state["ratios"][0]
        assert sum(ratios) / 2 == pytest.approx(alpha, abs=1e-9) and 0 <= min(ratios) <= max(ratios) <= 1
        found[steps] = (ratios, distance(context, wanted))
    assert found[0][0] == [alpha, alpha]
    assert found[10][1] < 0.999 * found[0][1], found  # strictly better: the groups differ in effect


def test_a_group_that_does_nothing_gives_its_share_away():
    context, _ = stage("llama")
    method = Ama(alpha=0.5, num_groups=2)
    state = method.begin_stage(context, method.init(context))
    moved(context, size=0.3, only="layers.1.")
    assert method.end_stage(context, state)["ratios"][0] == pytest.approx([0.0, 1.0], abs=0.02)


def test_alpha_1_changes_no_bit():
    context, _ = stage("llama")
    _, after, found, state = merged(Ama(alpha=1.0), context)
    assert state["ratios"] == [[1.0] * 3] and all(torch.equal(found[n].detach(), after[n]) for n in found)


def test_the_growing_head_is_kept_while_ratios_are_learned():
    context, _ = stage("bert")
    _, after, found, state = merged(Ama(alpha=0.4, num_groups=2, steps=3), context)
    assert torch.equal(found["lifelong_head.weight"].detach(), after["lifelong_head.weight"])
    assert not torch.equal(found["pooler.dense.weight"].detach(), after["pooler.dense.weight"])
