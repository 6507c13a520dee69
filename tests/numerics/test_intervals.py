"""Intervals against published values, the normal limit and measured coverage."""

import numpy as np
import pytest
from scipy.stats import binomtest

from lifelong.errors import UserError
from lifelong.numerics.intervals import bootstrap_interval, sign_test, wilson_interval


@pytest.mark.parametrize(("successes", "n"), [(0, 10), (1, 10), (5, 10), (81, 263), (15, 148), (10, 10)])
@pytest.mark.parametrize("level", [0.9, 0.95])
def test_wilson_equals_scipy(successes, n, level):
    reference = binomtest(successes, n).proportion_ci(confidence_level=level, method="wilson")
    assert wilson_interval(successes, n, level) == pytest.approx(tuple(reference), abs=1e-12)


def test_wilson_equals_newcombe_1998():
    # Newcombe 1998, table I, method 3: 81/263 and 15/148
    assert wilson_interval(81, 263) == pytest.approx((0.2553, 0.3662), abs=5e-5)
    assert wilson_interval(15, 148) == pytest.approx((0.0624, 0.1605), abs=5e-5)


def test_bootstrap_has_the_width_of_the_normal_interval():
    scores = np.random.default_rng(0).normal(0.3, 2.0, size=4000)
    low, high = bootstrap_interval(scores, seed=1)
    width = 2 * 1.959964 * scores.std() / np.sqrt(len(scores))
    assert high - low == pytest.approx(width, rel=0.08)
    assert (low + high) / 2 == pytest.approx(scores.mean(), abs=0.05 * width)
    assert np.diff(bootstrap_interval(scores, seed=1, level=0.5))[0] < 0.5 * (high - low)  # control


def test_bootstrap_covers_the_truth_as_often_as_it_says():
    generator = np.random.default_rng(3)
    hits = [low <= 0.7 <= high for low, high in (_interval(generator, 0.7, i) for i in range(200))]
    assert 0.90 <= np.mean(hits) <= 0.99
    misses = [low <= 0.5 <= high for low, high in (_interval(generator, 0.7, i) for i in range(50))]
    assert np.mean(misses) < 0.1  # control: a wrong value is not covered


def _interval(generator, share, seed):
    return bootstrap_interval((generator.random(120) < share).astype(float), seed)


def test_bootstrap_is_a_function_of_its_seed():
    scores = [0.0, 1.0, 1.0, 0.0, 1.0, 0.5, 0.2]
    assert bootstrap_interval(scores, 5) == bootstrap_interval(scores, 5) != bootstrap_interval(scores, 6)
    assert bootstrap_interval([0.25], 0) == (0.25, 0.25)


def test_weights_are_those_of_repeated_tokens():
    # every score 1 except one row that holds half of all tokens
    scores, weights = [1.0] * 100 + [0.0], [1.0] * 100 + [100.0]
    low, high = bootstrap_interval(scores, 0, weights=weights)
    assert low < 0.5 < high and bootstrap_interval(scores, 0)[0] > 0.9
    assert bootstrap_interval(scores, 0, weights=[3.0] * 101) == pytest.approx(bootstrap_interval(scores, 0))


@pytest.mark.parametrize(
    "call",
    [
        lambda: bootstrap_interval([], 0),
        lambda: bootstrap_interval([1.0], 0, level=1.0),
        lambda: bootstrap_interval([1.0, 0.0], 0, weights=[1.0, 0.0]),
        lambda: wilson_interval(0, 0),
        lambda: wilson_interval(4, 3),
    ],
)
def test_bad_input_is_refused(call):
    with pytest.raises(UserError):
        call()


@pytest.mark.parametrize(("better", "worse"), [(0, 0), (0, 5), (5, 1), (6, 6), (60, 35), (900, 1000)])
def test_sign_test_equals_scipy(better, worse):
    expected = binomtest(better, better + worse).pvalue if better + worse else 1.0
    assert sign_test(better, worse) == sign_test(worse, better) == pytest.approx(expected, rel=1e-9)


def test_sign_test_by_hand():
    assert sign_test(0, 3) == 2 / 8 and sign_test(1, 3) == 2 * (1 + 4) / 16
    assert sign_test(10, 10) == 1.0 and sign_test(1, 9) < 0.05 < sign_test(2, 8)
