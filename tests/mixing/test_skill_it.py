"""Skill-It: closed forms, the window, and held-out rows that are never trained on."""

import math

import numpy as np
import pytest
import tiny_stream
from mixed import at, drawn_rows, train

from lifelong.core.stream import Budget
from lifelong.errors import UserError
from lifelong.mixing.skill_it import SkillIt


def after(made, *rounds):
    state = made.begin_stage(at(0), made.init(at(0)))
    for losses in rounds:
        state = made.observe(at(made.round_steps), state, losses)
    return made.proportions(at(1), state, len(rounds[0]) if rounds else 2)


def softmax(values):
    weights = np.exp(np.array(values))
    return weights / weights.sum()


def test_a_graph_of_two_skills_has_its_closed_form():
    made = SkillIt(eta=0.7, edges=("0>1",), edge_weight=0.5)
    np.testing.assert_allclose(after(made), softmax([0.7 * 1.5, 0.7]), rtol=1e-12)
    l0, l1 = 2.0 + 1.5, 3.0 + 0.5
    found = after(made, [2.0, 3.0], [1.5, 0.5])
    np.testing.assert_allclose(found, softmax([0.7 * (l0 + 0.5 * l1), 0.7 * l1]), rtol=1e-12)


def test_without_edges_it_is_the_softmax_of_the_losses():
    np.testing.assert_allclose(after(SkillIt(eta=0.3), [1.0, 2.0, 4.0]), softmax([0.3, 0.6, 1.2]), rtol=1e-12)


def test_eta_0_is_uniform_and_shares_sum_to_1():
    assert after(SkillIt(eta=0.0, edges=("1>0",)), [1.0, 9.0]) == [0.5, 0.5]
    found = after(SkillIt(eta=50.0), [1.0, 90.0, 3.0])
    assert math.isclose(sum(found), 1) and found[1] > 0.99


def test_the_window_forgets():
    made = SkillIt(window=2)
    assert after(made, [9.0, 0.0], [1.0, 2.0], [2.0, 1.0]) == after(made, [1.0, 2.0], [2.0, 1.0])
    assert after(SkillIt(window=3), [9.0, 0.0], [1.0, 2.0]) != after(made, [1.0, 2.0])


def test_edges_to_parts_still_to_come_wait():
    made = SkillIt(edges=("0>2", "1>0"))
    assert made.graph(2).tolist() == [[1, 0], [0.5, 1]]
    assert made.graph(3).tolist() == [[1, 0, 0.5], [0.5, 1, 0], [0, 0, 1]]
    with pytest.raises(UserError, match='must be texts like "0>1"; got .0-1.'):
        SkillIt(edges=("0-1",))


@pytest.mark.parametrize("order", ["sequence", "joint"])
def test_a_run_measures_at_rounds_on_rows_that_it_never_trains_on(order, tmp_path, monkeypatch):
    seen, asked = drawn_rows(monkeypatch), []
    real = SkillIt.observe

    def observe(self, context, state, losses):
        asked.append((context.stage, context.step, list(losses)))
        return real(self, context, state, losses)

    monkeypatch.setattr(SkillIt, "observe", observe)
    stream = tiny_stream.stream(general=False, stages=("sky", "farm"), budget=Budget(steps=20))
    train(tmp_path / "run", SkillIt(round_steps=8, held_out=0.25), stream=stream, order=order)
    if order == "joint":
        assert [(stage, step) for stage, step, _ in asked] == [(0, 8), (0, 16), (0, 24), (0, 32)]
    else:
        assert [(stage, step) for stage, step, _ in asked] == [(1, 8), (1, 16)]
    assert all(len(losses) == 2 and min(losses) > 0 for *_, losses in asked)
    trained = {row for _, _, rows in seen for row in rows}
    assert len(trained) == 18  # of 24 rows a quarter is held out
