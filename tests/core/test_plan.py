"""Which rows a step sees is a pure function of seed, stage and step."""

import numpy as np
import pytest

from lifelong.core.plan import Plan
from lifelong.core.stream import Budget, Optimization
from lifelong.errors import UserError
from lifelong.schedules.constant import Constant


def plan(lengths, seed=0, stage=0, budget=None, **settings):
    return Plan(
        lengths, Optimization(schedule=Constant(), **settings), budget or Budget(epochs=1), seed, stage
    )


LENGTHS = np.random.default_rng(0).integers(5, 80, size=203)


@pytest.mark.parametrize(
    "settings", [{}, {"sort_by_length": False}, {"batch_size": None, "batch_tokens": 400}]
)
def test_an_epoch_visits_every_row_once(settings):
    made = plan(LENGTHS, **settings)
    rows = np.concatenate([made[i].rows for i in range(made.num_steps)])
    assert sorted(rows) == list(range(len(LENGTHS)))


def test_two_epochs_visit_twice_and_know_the_first():
    made = plan(LENGTHS, budget=Budget(epochs=2))
    first = np.concatenate([made[i].rows for i in range(made.num_steps) if made[i].first_visit])
    assert sorted(first) == list(range(len(LENGTHS)))
    assert sum(len(made[i].rows) for i in range(made.num_steps)) == 2 * len(LENGTHS)


def test_order_differs_per_stage_epoch_and_seed():
    """Peers visit equal-length tasks in one order because every task shuffles with the same seed."""

    def order(seed, stage, epoch):
        made = plan([10] * 64, seed, stage, Budget(epochs=2), batch_size=64)
        return tuple(made[epoch].rows)

    orders = {order(s, t, e) for s in (0, 1) for t in (0, 1) for e in (0, 1)}
    assert len(orders) == 8
    assert order(0, 1, 1) == order(0, 1, 1)


def test_sorting_by_length_saves_most_pads():
    def padding(sort):
        made = plan(LENGTHS, sort_by_length=sort)
        batches = [LENGTHS[made[i].rows] for i in range(made.num_steps)]
        return sum(b.max() * len(b) - b.sum() for b in batches) / LENGTHS.sum()

    assert padding(True) < 0.1 < 0.5 < padding(False)


def test_batches_of_tokens_stay_below_their_limit():
    made = plan(LENGTHS, batch_size=None, batch_tokens=200)
    for i in range(made.num_steps):
        rows = made[i].rows
        assert len(rows) == 1 or LENGTHS[rows].max() * len(rows) <= 200


def test_budgets_end_a_stage():
    assert plan(LENGTHS, budget=Budget(steps=5)).num_steps == 5
    assert plan(LENGTHS, budget=Budget(steps=5000)).num_steps == 5000
    by_tokens = plan(LENGTHS, budget=Budget(tokens=1000), batch_size=4)
    seen = sum(int(LENGTHS[by_tokens[i].rows].sum()) for i in range(by_tokens.num_steps))
    assert 1000 <= seen < 1000 + 4 * 80
    assert plan([5] * 100, budget=Budget(epochs=0.5), batch_size=10).num_steps == 5


def test_a_budget_in_seconds_has_no_last_step():
    endless = plan([5] * 10, budget=Budget(seconds=1.0), batch_size=5)
    assert endless.num_steps is None
    assert sorted(np.concatenate([endless[6].rows, endless[7].rows])) == list(range(10))


def test_a_stage_needs_a_budget():
    with pytest.raises(UserError, match="epochs, steps, tokens or seconds"):
        Budget()


def test_exactly_one_batch_size():
    with pytest.raises(UserError, match="exactly one"):
        Optimization(schedule=Constant(), batch_size=4, batch_tokens=100)
