"""Power-law rehearsal: the law, its limits, and ages that grow."""

import numpy as np
import pytest
import tiny_stream
from mixed import at, drawn_rows, log_of, train

from lifelong.core.plan import draw
from lifelong.core.stream import Budget
from lifelong.mixing.power_law_replay import PowerLawReplay


def test_proportions_are_the_law():
    made = PowerLawReplay(alpha=2.0, scale=0.5)
    found = made.proportions(at(0), made.init(at(0)), 4)
    law = np.array([(1 + age / 0.5) ** -2.0 for age in (3, 2, 1, 0)])
    np.testing.assert_allclose(found, law / law.sum(), rtol=1e-12)


def test_alpha_0_is_uniform_and_a_large_alpha_sequential():
    found = PowerLawReplay(alpha=0.0).proportions(at(0), {"steps": []}, 4)
    assert found == [0.25] * 4
    assert PowerLawReplay(alpha=2000.0).proportions(at(0), {"steps": []}, 4) == [0, 0, 0, 1]


def test_drawn_frequencies_follow_the_law():
    made, parts = PowerLawReplay(alpha=1.5), [range(0, 50), range(50, 60), range(60, 200)]
    shares = np.array(made.proportions(at(0), made.init(at(0)), 3))
    counts, drawn, steps = np.zeros(3), [0, 0, 0], 2000
    for step in range(steps):
        rows, drawn = draw(parts, shares, drawn, 8, seed=1, step=step)
        counts += [sum(r in part for r in rows) for part in parts]
    expected = 8 * steps * shares
    assert ((counts - expected) ** 2 / expected).sum() < 13.8  # 2 degrees of freedom, 99.9 %
    uniform = 8 * steps * np.ones(3) / 3
    assert ((counts - uniform) ** 2 / uniform).sum() > 1000  # control


def test_ages_in_steps_count_from_the_end_of_a_stage():
    made = PowerLawReplay(alpha=1.0, scale=10.0, unit="steps")
    state = made.end_stage(at(30, stage=1), made.end_stage(at(20), made.init(at(0))))
    found = made.proportions(at(5, stage=2), state, 3)
    law = np.array([1 / (1 + age / 10) for age in (35, 5, 0)])
    np.testing.assert_allclose(found, law / law.sum(), rtol=1e-12)
    assert made.proportions(at(0), made.init(at(0)), 1) == [1.0]


@pytest.mark.parametrize("unit", ["stages", "steps"])
def test_a_large_alpha_is_plain_training_bit_for_bit(unit, tmp_path):
    made = PowerLawReplay(alpha=4000.0, scale=1e-9, unit=unit)
    plain = log_of(train(tmp_path / "plain"))
    if unit == "steps":  # at the first step after its end a stage has age 0: as likely as the new one
        assert log_of(train(tmp_path / "on", made))[:3] == plain[:3]
        return
    assert log_of(train(tmp_path / "off", made)) == plain
    assert log_of(train(tmp_path / "on", PowerLawReplay(alpha=1.0))) != plain


def test_a_run_draws_from_all_stages_so_far(tmp_path, monkeypatch):
    seen = drawn_rows(monkeypatch)
    names = ("sky", "farm", "city")
    stream = tiny_stream.stream(general=False, stages=names, budget=Budget(steps=25), batch_size=12)
    train(tmp_path / "run", PowerLawReplay(alpha=0.0), stream=stream)
    for stage in range(3):
        tasks = [task for s, _, rows in seen for task, _ in rows if s == stage]
        shares = np.bincount(tasks, minlength=3) / len(tasks)
        expected = np.array([1 / (stage + 1)] * (stage + 1) + [0] * (2 - stage))
        assert np.abs(shares - expected).max() < 0.12  # 300 draws: four standard deviations are 0.1
