"""Schedules: closed forms, continuity, and agreement of the decay with transformers."""

import math
from itertools import pairwise

import pytest
import torch
from transformers import get_cosine_schedule_with_warmup, get_linear_schedule_with_warmup

from lifelong.core.axes import Progress
from lifelong.errors import UserError
from lifelong.schedules.constant import Constant
from lifelong.schedules.cosine import Cosine
from lifelong.schedules.linear import Linear

ALL = (Constant, Linear, Cosine)


def curve(schedule, num_steps):
    return [schedule.scale(Progress(t, num_steps)) for t in range(num_steps)]


def test_closed_forms():
    assert curve(Constant(), 3) == [1, 1, 1]
    assert curve(Linear(), 4) == pytest.approx([1, 0.75, 0.5, 0.25])
    assert curve(Linear(final_fraction=0.5), 4) == pytest.approx([1, 0.875, 0.75, 0.625])
    assert curve(Cosine(), 4) == pytest.approx(
        [1, (1 + math.cos(math.pi / 4)) / 2, 0.5, (1 - math.cos(math.pi / 4)) / 2]
    )
    assert Cosine(final_fraction=0.2).scale(Progress(5, 10)) == pytest.approx(0.6)
    for cls in ALL:
        assert curve(cls(warmup_fraction=0.5), 8)[:4] == pytest.approx([0.2, 0.4, 0.6, 0.8])


@pytest.mark.parametrize("cls", ALL)
@pytest.mark.parametrize("fraction", [0.0, 0.05, 0.3, 0.99])
@pytest.mark.parametrize("num_steps", [1, 2, 7, 1000])
def test_first_step_moves_and_no_step_exceeds_the_rate(cls, fraction, num_steps):
    values = curve(cls(warmup_fraction=fraction), num_steps)
    assert values[0] > 0
    assert all(0 < v <= 1 for v in values)


@pytest.mark.parametrize("cls", ALL)
def test_continuous_where_the_warm_up_ends(cls):
    # Steepest slope per step: 1 / 300 in the warm-up, pi / 2 / 700 after it.
    values = curve(cls(warmup_fraction=0.3), 1000)
    assert max(abs(b - a) for a, b in pairwise(values)) < 1 / 290
    assert values[300] == pytest.approx(1)


@pytest.mark.parametrize(
    "cls, reference", [(Linear, get_linear_schedule_with_warmup), (Cosine, get_cosine_schedule_with_warmup)]
)
def test_decay_equals_transformers(cls, reference):
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    theirs = reference(optimizer, num_warmup_steps=10, num_training_steps=100)
    expected = []
    for _ in range(100):
        expected.append(theirs.get_last_lr()[0])
        optimizer.step()
        theirs.step()
    ours = curve(cls(warmup_fraction=0.1), 100)
    assert ours[10:] == pytest.approx(expected[10:], abs=1e-12)
    assert expected[0] == 0 < ours[0]  # the difference that the docstring states


def test_ranges_are_checked():
    with pytest.raises(UserError, match=r"warmup_fraction must be in the range \[0, 1\)"):
        Linear(warmup_fraction=1.0)
    with pytest.raises(UserError, match="final_fraction"):
        Cosine(final_fraction=-0.1)
