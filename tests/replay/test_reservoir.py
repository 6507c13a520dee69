"""The memory is uniform over everything seen, in mid-stream and after a resume."""

import numpy as np
import pytest

from lifelong.core import state as states
from lifelong.replay.reservoir import Reservoir


def fill(method, state, first, last, chunk=7):
    for start in range(first, last, chunk):
        rows = range(start, min(start + chunk, last))
        state = method.add(state, [{"stage": 0, "example": {"id": row}} for row in rows])
    return state


def kept(state):
    return [item["example"]["id"] for item in state["items"]]


def chi_square(counts, expected):
    return float(((counts - expected) ** 2 / expected).sum())


def test_inclusion_is_uniform_over_the_stream_also_across_a_resume():
    method, size, seen, trials = Reservoir(size=10), 10, 100, 1500
    counts, resumed = np.zeros(seen), np.zeros(seen)
    for seed in range(trials):
        state = fill(method, method.init(seed), 0, 50)
        tensors, tree = states.split(state)
        counts[kept(fill(method, state, 50, seen))] += 1
        resumed[kept(fill(method, states.join(tensors, tree), 50, seen))] += 1
    # 99 degrees of freedom less the fixed total: mean 90 (sampling without replacement), 99.9 % below 150
    assert chi_square(counts, trials * size / seen) < 150
    assert chi_square(resumed, trials * size / seen) < 150


def test_a_lost_counter_would_be_seen():
    """Control: forgetting the counter at the resume makes the memory favour late rows."""
    method, size, seen, trials = Reservoir(size=10), 10, 100, 300
    counts = np.zeros(seen)
    for seed in range(trials):
        state = fill(method, method.init(seed), 0, 50)
        counts[kept(fill(method, {**state, "seen": 10}, 50, seen))] += 1
    assert chi_square(counts, trials * size / seen) > 300


def test_resume_gives_the_same_memory():
    method = Reservoir(size=16)
    whole = fill(method, method.init(3), 0, 500)
    half = fill(method, method.init(3), 0, 203)
    tensors, tree = states.split(half)
    assert kept(fill(method, states.join(tensors, tree), 203, 500)) == kept(whole)


def test_chunking_changes_nothing():
    method = Reservoir(size=16)
    assert kept(fill(method, method.init(1), 0, 300, chunk=1)) == kept(
        fill(method, method.init(1), 0, 300, chunk=64)
    )


@pytest.mark.parametrize(
    ("fraction", "rows", "expected"), [(0.5, 16, 8), (0.25, 10, 2), (2.0, 3, 6), (0.0, 16, 0)]
)
def test_pick_takes_its_fraction_of_the_past_only(fraction, rows, expected):
    method = Reservoir(size=50, fraction=fraction)
    state = method.init(0)
    state = method.add(state, [{"stage": row % 2, "example": {"id": row}} for row in range(50)])
    picked = method.pick(state, rows, stage=1, step=4)
    assert len(picked) == expected
    assert all(item["stage"] == 0 for item in picked)
    assert len({item["example"]["id"] for item in picked}) == expected
    assert picked == method.pick(state, rows, stage=1, step=4)


def test_every_eligible_item_is_picked_equally_often():
    method = Reservoir(size=20, fraction=0.5, current=True)
    state = fill(method, method.init(0), 0, 20)
    counts = np.zeros(20)
    for step in range(2000):
        counts[[item["example"]["id"] for item in method.pick(state, 8, stage=1, step=step)]] += 1
    assert chi_square(counts, 2000 * 4 / 20) < 45


def test_size_zero_remembers_nothing():
    method = Reservoir(size=0)
    state = fill(method, method.init(0), 0, 30)
    assert state["items"] == [] and method.pick(state, 16, stage=1, step=0) == []
