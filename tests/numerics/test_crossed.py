import numpy as np
import pytest

from lifelong.errors import UserError
from lifelong.numerics.crossed import interval, ranks, resampled_means


def test_spread_is_that_of_both_sources():
    """Scores a_s + b_r: the variance of the mean is var(a)/S + var(b)/R, as resamples see it."""
    draw = np.random.default_rng(0)
    runs, rows = draw.normal(0, 1.0, 12), draw.normal(0, 2.0, 50)
    means = resampled_means([runs[:, None] + rows[None, :]], seed=1, resamples=20_000)
    assert means.mean() == pytest.approx(runs.mean() + rows.mean(), abs=0.01)
    assert means.var() == pytest.approx(runs.var() / 12 + rows.var() / 50, rel=0.05)


def test_a_difference_is_paired():
    """A method that is better by 0.1 on every row is better for sure, however noisy the rows are."""
    draw = np.random.default_rng(0)
    table = draw.normal(0, 5.0, (3, 40))
    apart = resampled_means([table + 0.1], seed=2) - resampled_means([table], seed=2)
    assert apart == pytest.approx(0.1)
    unpaired = resampled_means([table + 0.1], seed=2) - resampled_means([table], seed=3)
    low, high = interval(unpaired)
    assert low < 0 < high


def test_sets_weigh_alike_and_cover():
    """The mean over sets is of set means; its 95 % interval covers the truth about 95 times of 100."""
    draw, hits = np.random.default_rng(3), 0
    for trial in range(200):
        tables = [draw.normal(1.0, 1.0, (1, 30)), draw.normal(3.0, 1.0, (1, 60))]
        low, high = interval(resampled_means(tables, seed=trial, resamples=500))
        hits += low <= 2.0 <= high
    assert 180 <= hits <= 199


def test_rows_are_drawn_with_their_weights():
    draw = np.random.default_rng(3)
    scores, tokens = draw.normal(size=(3, 40)), draw.integers(1, 9, 40).astype(float)
    alike = resampled_means([scores], 0)
    assert np.array_equal(alike, resampled_means([scores], 0, weights=[None]))
    assert np.allclose(alike, resampled_means([scores], 0, weights=[np.full(40, 7.0)]))
    found = resampled_means([scores], 0, weights=[tokens])
    assert found.mean() == pytest.approx(np.average(scores.mean(0), weights=tokens), abs=0.02)
    # a row of 3 tokens stands for three of one
    apart = resampled_means([np.repeat([[1.0, 0.0]], 2, 0)], 0, weights=[np.array([3.0, 1.0])])
    assert set(np.round(apart, 9)) == {0.0, 0.75, 1.0}


def test_methods_at_once_equal_those_alone():
    draw = np.random.default_rng(4)
    every = [draw.normal(size=(5, 3, 20)), draw.normal(size=(5, 3, 30))]
    weights = [None, draw.uniform(1, 2, 30)]
    found = resampled_means(every, 7, weights=weights)
    assert found.shape[0] == 5
    for each in range(5):
        alone = resampled_means([table[each] for table in every], 7, weights=weights)
        assert np.allclose(found[each], alone, rtol=0, atol=1e-12)


def test_ranks_share_ties():
    assert ranks([0.5, 0.9, 0.5, 0.1]) == [2.5, 1.0, 2.5, 4.0]


@pytest.mark.parametrize("tables", [[], [np.zeros((2, 0))], [np.zeros((2, 3)), np.zeros((1, 3))]])
def test_what_cannot_be_resampled_is_refused(tables):
    with pytest.raises(UserError, match="resampled_means"):
        resampled_means(tables, seed=0)
