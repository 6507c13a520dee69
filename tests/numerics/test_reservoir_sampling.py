"""Uniform inclusion and uniform draws; the memory's own tests cover resumes."""

import numpy as np

from lifelong.numerics.reservoir_sampling import offer, sample


def chi_square(counts, expected):
    return float(((counts - expected) ** 2 / expected).sum())


def test_inclusion_is_uniform_whatever_the_pieces():
    counts, trials = np.zeros(60), 1200
    for seed in range(trials):
        whole, parts = [], []
        assert offer(whole, range(60), 6, seed, 0) == 60
        offer(parts, range(25, 60), 6, seed, offer(parts, range(25), 6, seed, 0))
        assert whole == parts
        counts[whole] += 1
    assert chi_square(counts, trials * 6 / 60) < 100  # 59 degrees of freedom: 99.9 % below 98.3
    forgetful = np.zeros(60)  # control: a lost counter favours late items
    for seed in range(trials):
        kept = []
        offer(kept, range(25), 6, seed, 0)
        offer(kept, range(25, 60), 6, seed, 6)
        forgetful[kept] += 1
    assert chi_square(forgetful, trials * 6 / 60) > 300


def test_size_zero_keeps_nothing_and_a_short_list_is_taken_whole():
    kept = []
    assert offer(kept, range(5), 0, 1, 0) == 5 and kept == []
    assert sorted(sample([1, 2, 3], 9, 0, 0, 0)) == [1, 2, 3] and sample([], 3, 0, 0, 0) == []


def test_draws_depend_on_seed_stage_and_step_alone():
    made = [
        tuple(sample(range(50), 5, *key)) for key in [(0, 1, 2), (0, 1, 2), (1, 1, 2), (0, 2, 2), (0, 1, 3)]
    ]
    assert made[0] == made[1] and len(set(made)) == 4
