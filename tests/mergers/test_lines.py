"""LiNeS: the ratios of every layer, for every architecture, and the limits."""

import pytest
import tiny
import torch
from merging import merged, stage

from lifelong.mergers.lines import Lines
from lifelong.numerics.depth import Depth, depth
from lifelong.tuners.o_lora import OLora


def test_three_blocks_get_their_ratios():
    depths = Depth({f"layers.{i}": i for i in range(3)}, 3, {})
    shares = [0.2 + 0.8 * depths.share(f"layers.{i}.weight") for i in range(3)]
    assert shares == pytest.approx([0.2, 0.6, 1.0])


@pytest.mark.parametrize("architecture", tiny.ARCHITECTURES)
def test_every_weight_keeps_its_share(architecture):
    context, _ = stage(architecture)
    before, after, found, _ = merged(Lines(alpha=0.2, beta=0.8), context)
    depths, ratios = depth(context.model.network), set()
    for name, value in found.items():
        index = depths.of(name)
        ratio = 0.2 if index is None else 0.2 + 0.8 * index / (depths.count - 1)
        ratio = 1.0 if name.startswith("lifelong_head") else ratio
        ratios.add(round(ratio, 6))
        torch.testing.assert_close(
            value.detach(), before[name] + ratio * (after[name] - before[name]), atol=1e-6, rtol=1e-5
        )
    assert len(ratios) >= depths.count


def test_the_update_of_a_low_rank_pair_is_scaled_by_its_layer():
    context, _ = stage("llama", OLora(rank=2))
    state = Lines(alpha=0.2, beta=0.8).begin_stage(context, {"before": None})
    for name, p in context.params.items():
        if "lora_B" in name:
            p.data.normal_(generator=torch.Generator().manual_seed(3))
    trained = {n: u.up.clone() for n, u in context.tuner.low_rank(context.model, context.tuner_state).items()}
    Lines(alpha=0.2, beta=0.8).end_stage(context, state)
    for name, update in context.tuner.low_rank(context.model, context.tuner_state).items():
        assert torch.allclose(update.up[:, -2:], (0.2 if ".0." in name else 1.0) * trained[name][:, -2:])


@pytest.mark.parametrize(("alpha", "which"), [(1.0, 1), (0.0, 0)])
def test_limits_are_the_weights_after_and_before(alpha, which):
    context, _ = stage("gpt2")
    *ends, found, state = merged(Lines(alpha=alpha, beta=0.0), context)
    assert all(torch.equal(found[n].detach(), ends[which][n]) for n in found)
    assert not torch.equal(ends[0]["transformer.wte.weight"], ends[1]["transformer.wte.weight"])
    assert state == {"before": None}
