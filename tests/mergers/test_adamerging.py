"""AdaMerging: task arithmetic at the start, slopes, clipping, and entropy that falls."""

import math

import pytest
import tiny
import torch
from merging import TUNERS, merged, moved, stage

from lifelong.mergers.adamerging import Adamerging, entropy
from lifelong.numerics.depth import depth
from lifelong.numerics.segment import Segment

SMALL = {"num_examples": 8, "batch_size": 8}


@pytest.mark.parametrize("architecture", tiny.ARCHITECTURES)
def test_without_learning_it_is_task_arithmetic(architecture):
    context, _ = stage(architecture)
    before, after, found, state = merged(Adamerging(iterations=0), context)
    assert set(state["ratios"][0]) == {0.3}
    for name, value in found.items():
        ratio = 1.0 if name.startswith("lifelong_head") else 0.3
        torch.testing.assert_close(value.detach(), torch.lerp(before[name], after[name], ratio))


def test_init_1_without_learning_changes_no_bit():
    context, _ = stage("llama")
    _, after, found, _ = merged(Adamerging(init_ratio=1.0, iterations=0), context)
    assert all(torch.equal(found[n].detach(), after[n]) for n in found)


def test_the_entropy_of_a_uniform_answer_is_ln_c():
    context, _ = stage("bert")
    for name in ("weight", "bias"):
        context.model.network.lifelong_head.get_parameter(name).data.zero_()
    assert float(entropy(context, 0, context.examples).detach()) == pytest.approx(math.log(2), abs=1e-6)
    context.model.network.lifelong_head.bias.data[0] = 50.0
    assert float(entropy(context, 0, context.examples).detach()) < 1e-6


def made_segment(method, context):
    before, after = moved(context, size=0.3)
    depths = depth(context.model.network)
    group = lambda name: method.group(name, depths)  # noqa: E731 - one expression
    return Segment(context.model.network, context.params, before, after, group), method.count(depths)


def test_a_clipped_coefficient_does_not_move():
    method, (context, _) = Adamerging(iterations=5, learning_rate=0.05, **SMALL), stage("llama")
    segment, count = made_segment(method, context)
    rows = [{"stage": 0, "examples": context.examples}]
    start = torch.tensor([-0.5, 1.5, 0.4], dtype=torch.float64)
    assert count == 3
    found = method.learned(context, segment, rows, start, torch.Generator().manual_seed(0))
    assert torch.equal(found[:2], start[:2]) and found[2] != start[2]


@pytest.mark.parametrize("granularity", ["layer", "task"])
@pytest.mark.parametrize("tuner", TUNERS.values(), ids=TUNERS)
def test_learning_lowers_the_entropy(granularity, tuner):
    found = {}
    for iterations in (0, 20):
        context, _ = stage("llama", tuner)
        method = Adamerging(
            granularity=granularity, iterations=iterations, learning_rate=0.03, num_examples=12, batch_size=12
        )
        state = method.begin_stage(context, method.init(context))
        moved(context, size=0.3, only="lora_B" if tuner.has_subspaces else "")
        state = method.end_stage(context, state)
        with torch.no_grad():
            found[iterations] = float(entropy(context, 0, context.examples).detach()), state["ratios"][0]
    assert found[20][0] < found[0][0] - 1e-4
    assert len(found[20][1]) == (1 if granularity == "task" else 3) and found[20][1] != found[0][1]
    assert all(0 <= ratio <= 1 for ratio in found[20][1])


def test_rows_of_earlier_stages_are_kept_and_count():
    method, (context, _) = Adamerging(iterations=1, **SMALL), stage("llama")
    state = method.end_stage(context, method.begin_stage(context, method.init(context)))
    context.stage, context.objectives = 1, [context.objective] * 2
    state = method.end_stage(context, method.begin_stage(context, state))
    assert [(each["stage"], len(each["examples"])) for each in state["rows"]] == [(0, 8), (1, 8)]
    assert len(state["ratios"]) == 2 and state["before"] is None
