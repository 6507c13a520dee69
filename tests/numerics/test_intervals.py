"""Intervals against published values, the normal limit and measured coverage."""

import numpy as np
import pytest
from scipy.stats import binomtest, t, ttest_rel

from lifelong.errors import UserError
from lifelong.numerics.intervals import (
    Paired,
    bootstrap_interval,
    paired_interval,
    rows_to_decide,
    sign_test,
    student_quantile,
    wilson_interval,
)


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


def test_counting_equal_scores_is_drawing_them_one_by_one():
    scores = np.random.default_rng(0).random(3000) < 0.7  # shares: counted; a trifle apart: drawn
    apart = scores + np.linspace(0, 1e-9, 3000)
    counted, drawn = (np.array(bootstrap_interval(each.astype(float), seed=2)) for each in (scores, apart))
    assert np.abs(counted - drawn).max() < 0.1 * np.diff(drawn)[0] and (counted != drawn).all()
    wilson = wilson_interval(int(scores.sum()), 3000)
    assert counted == pytest.approx(wilson, abs=0.002)


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


# paired ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [1, 5, 188, 1000])
def test_rows_that_all_agree_reach_as_far_as_wilson(count):
    found = paired_interval([1.0] * count, [1.0] * count, bound=1.0)
    reach = wilson_interval(0, count)[1]
    assert (found.mean, found.low, found.high) == pytest.approx((0.0, -reach, reach), abs=1e-12)


def test_paired_interval_of_shares_is_its_formula():
    """100 rows, 10 lost and 2 won: worked by hand with z = 1.96."""
    left = [1.0] * 10 + [0.0] * 2 + [1.0] * 88
    right = [0.0] * 10 + [1.0] * 2 + [1.0] * 88
    total, z = 100 + 1.959964**2, 1.959964
    centre = 8 / total
    reach = z * np.sqrt(((12 + z**2) / total - centre**2) / total)
    found = paired_interval(left, right, bound=1.0)
    assert (found.low, found.high) == pytest.approx((centre - reach, centre + reach), abs=1e-6)
    assert found.mean == pytest.approx(0.08) and found.low < 0.08 < found.high
    alone = [bootstrap_interval(each, 0) for each in (left, right)]
    assert found.high - found.low < sum(high - low for low, high in alone)  # control: pairs tell more


@pytest.mark.parametrize(("lost", "won", "count"), [(0.03, 0.01, 60), (0.08, 0.04, 150), (0.5, 0.1, 40)])
def test_paired_interval_of_shares_covers_the_truth(lost, won, count):
    generator, hits, wrong, draws = np.random.default_rng(5), 0, 0, 2000
    for _ in range(draws):
        differences = generator.choice([1.0, -1.0, 0.0], size=count, p=[lost, won, 1 - lost - won])
        found = paired_interval(differences, np.zeros(count), bound=1.0)
        hits += found.low <= lost - won <= found.high
        wrong += found.low <= lost - won + 0.4 <= found.high
    assert hits / draws >= 0.94 and wrong / draws < 0.05  # few differences: it errs on the safe side


@pytest.mark.parametrize("count", [2, 3, 8, 50])
def test_without_a_bound_it_is_the_paired_t_interval(count):
    generator = np.random.default_rng(count)
    left, right = generator.normal(size=(2, count))
    expected = ttest_rel(left, right).confidence_interval(0.95)
    found = paired_interval(left, right)
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high), rel=0.02)


def test_one_row_without_a_bound_tells_nothing():
    assert paired_interval([1.0], [0.5])[1:3] == (-np.inf, np.inf)


def test_weighted_pairs_cover_the_weighted_mean():
    """Long rows lose more, so that the plain mean would be covered too rarely."""
    generator, hits, plain, draws = np.random.default_rng(7), 0, 0, 1000
    for _ in range(draws):
        weights = generator.integers(1, 60, size=80).astype(float)
        left = weights / 100 + generator.normal(0, 0.2, size=80)
        truth = 119 / 3 / 100  # sum of w^2 / sum of w over w = 1 ... 59, in hundredths
        found = paired_interval(left, np.zeros(80), weights=weights)
        hits += found.low <= truth <= found.high
        bare = paired_interval(left, np.zeros(80))
        plain += bare.low <= truth <= bare.high
    assert 0.92 <= hits / draws <= 0.98 and plain / draws < 0.5


@pytest.mark.parametrize("freedom", [1, 2, 3, 4, 10, 100])
@pytest.mark.parametrize("share", [0.9, 0.95, 0.975])
def test_student_quantile_equals_scipy(share, freedom):
    assert student_quantile(share, freedom) == pytest.approx(t.ppf(share, freedom), rel=0.01)


@pytest.mark.parametrize(
    ("lost", "won", "limit"), [(0.04, 0.02, 0.06), (0.02, 0.02, 0.02), (0.15, 0.03, 0.05)]
)
def test_as_many_rows_as_said_decide_with_the_power_said(lost, won, limit):
    """Simulated: with that many rows 80 % of all draws are decided, with a third of them far fewer."""
    seen = Paired(lost - won, 0.0, 0.0, 50, lost + won)
    count = rows_to_decide(seen, limit, bound=1.0)
    generator = np.random.default_rng(11)

    def decided(rows):
        hits = 0
        for _ in range(600):
            differences = generator.choice([1.0, -1.0, 0.0], size=rows, p=[lost, won, 1 - lost - won])
            found = paired_interval(differences, np.zeros(rows), bound=1.0)
            hits += found.high <= limit if seen.mean <= limit else found.low > limit
        return hits / 600

    assert 0.74 <= decided(count) <= 0.88
    assert decided(count // 3) < 0.5


def test_as_many_rows_as_said_decide_a_perplexity():
    seen = Paired(0.03, 0.0, 0.0, 20, 0.04)  # nats per token, spread 0.2
    count, generator = rows_to_decide(seen, 0.05), np.random.default_rng(13)
    hits = [paired_interval(generator.normal(0.03, 0.2, count), np.zeros(count)).high <= 0.05
            for _ in range(600)]  # fmt: skip
    assert 0.74 <= np.mean(hits) <= 0.88


def test_equal_answers_need_the_rows_of_wilson_and_a_mean_at_the_limit_never_ends():
    equal = Paired(0.0, 0.0, 0.0, 5, 0.0)
    count = rows_to_decide(equal, 0.02, bound=1.0)
    assert wilson_interval(0, count)[1] <= 0.02 < wilson_interval(0, count - 1)[1] and count == 189
    assert rows_to_decide(Paired(0.02, 0.0, 0.0, 50, 0.1), 0.02, bound=1.0) is None
