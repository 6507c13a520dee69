"""Aioli: the matrix is recovered where losses are linear, and rounds spend what they promise."""

import math

import numpy as np
import pytest
import tiny_stream
import torch
from mixed import at, train

from lifelong.core.stream import Budget
from lifelong.mixing.aioli import Aioli

TRUE = np.array([[0.5, 0.1, 0.0], [-0.2, 0.8, 0.05], [0.3, 0.0, 0.4]])  # drop per probe and share


def simulate(made, matrix, steps, seed=3):
    """Losses fall by `matrix` @ mixture per probe; returns (state, mixtures drawn from, asked at)."""
    parts = len(matrix)
    losses, state = np.full(parts, 50.0), made.begin_stage(at(0), made.init(at(0)))
    mixtures, asked = [], []
    for step in range(steps):
        if made.asks(at(step, seed=seed), state, parts):
            asked.append(step)
            state = made.observe(at(step, seed=seed), state, losses.tolist())
        shares = np.array(made.proportions(at(step, seed=seed), state, parts))
        mixtures.append(shares)
        losses = losses - matrix @ shares / made.probe_steps
    return state, np.array(mixtures), asked


@pytest.mark.parametrize("share", [1.0, 0.5, 0.1])
@pytest.mark.parametrize("repeats", [1, 4])
def test_linear_losses_give_the_matrix_back(share, repeats):
    made = Aioli(probe_share=share, repeats=repeats)
    state, _, _ = simulate(made, TRUE, 100)
    np.testing.assert_allclose(state["estimate"].numpy(), TRUE, atol=1e-9)
    expected = torch.softmax(0.1 * torch.tensor(TRUE).sum(0), 0)
    torch.testing.assert_close(state["shares"], expected, atol=1e-9, rtol=0)


def test_the_diagonal_form_judges_a_part_by_its_own_loss():
    state, _, _ = simulate(Aioli(probe_share=1.0, diagonal=True), TRUE, 100)
    np.testing.assert_allclose(state["estimate"].numpy(), np.diag(np.diag(TRUE)), atol=1e-9)


def test_a_round_spends_its_probes_and_draws_the_rest_by_the_estimate():
    made = Aioli(round_steps=200, repeats=2, probe_steps=5)
    state, mixtures, asked = simulate(made, TRUE, 200)
    assert asked == list(range(0, 31, 5))  # 2 * 5 * 3 = 30 steps
    near = np.abs(mixtures[:30] - (0.5 / 3)).min(1) < 1e-12
    assert near.all() and np.allclose(mixtures[:30].sum(1), 1)
    counts = np.bincount(mixtures[:30].argmax(1), minlength=3)
    assert counts.tolist() == [10, 10, 10]
    assert np.allclose(mixtures[30:], state["shares"].numpy())
    assert mixtures[30].argmax() == TRUE.sum(0).argmax() and mixtures[30].std() > 1e-3


def test_eta_0_draws_the_rest_uniformly():
    made = Aioli(eta=0.0, probe_steps=2, repeats=1)
    _, mixtures, _ = simulate(made, TRUE, 250)
    assert np.allclose(mixtures[6:], 1 / 3) and not np.allclose(mixtures[:6], 1 / 3)


def test_smoothing_averages_estimates_and_without_it_shares_multiply():
    other = TRUE[::-1].copy()

    def two_rounds(**settings):
        made = Aioli(round_steps=60, probe_steps=2, repeats=1, **settings)
        state, _, _ = simulate(made, TRUE, 60)
        losses = np.full(3, 50.0)
        for step in range(60, 120):
            if made.asks(at(step, seed=3), state, 3):
                state = made.observe(at(step, seed=3), state, losses.tolist())
            shares = np.array(made.proportions(at(step, seed=3), state, 3))
            losses = losses - other @ shares / 2
        return state["shares"].numpy()

    def softmax(power):
        return np.exp(power) / np.exp(power).sum()

    smooth = 0.1 * (0.75 * TRUE + 0.25 * other).sum(0)
    np.testing.assert_allclose(two_rounds(smoothing=0.75), softmax(smooth), atol=1e-9)
    np.testing.assert_allclose(two_rounds(smoothing=0.0), softmax(0.1 * (TRUE + other).sum(0)), atol=1e-9)


def test_normalising_keeps_the_order_and_sums_to_1():
    state, _, _ = simulate(Aioli(normalise=True), TRUE, 100)
    found = state["estimate"].numpy()
    np.testing.assert_allclose(found, (TRUE - TRUE.min()) / (TRUE - TRUE.min()).sum(), atol=1e-9)
    assert math.isclose(found.sum(), 1)


def test_a_round_is_at_least_twice_its_probes_and_one_part_needs_none():
    made = Aioli(round_steps=10, probe_steps=5, repeats=1)
    _, mixtures, asked = simulate(made, TRUE, 60)
    assert asked == [0, 5, 10, 15, 30, 35, 40, 45]
    assert made.proportions(at(3), made.init(at(0)), 1) == [1.0] and not made.asks(at(0), {}, 1)


def test_a_run_asks_for_losses_and_ends(tmp_path):
    stream = tiny_stream.stream(general=False, stages=("sky", "farm"), budget=Budget(steps=30))
    made = Aioli(round_steps=20, repeats=1, probe_steps=3, held_out=0.25)
    run = train(tmp_path / "run", made, stream=stream)
    from lifelong.core import state as states
    from lifelong.store.run import Position, load_checkpoint

    there = run.folder / "stages" / "002-farm" / "checkpoint"
    saved = states.join(*load_checkpoint(Position(1, None, there)))
    kept = saved["states"]["mixing"]
    assert kept["shares"].shape == (2,) and torch.isfinite(kept["estimate"]).all()
    assert sum(kept["drawn"]["1"]) == 90  # ten epochs of the nine rows that are not held out
