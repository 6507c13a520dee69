"""Intervals for a mean score: percentile bootstrap (Efron 1979), Wilson's for a share (1927), and one
for the mean of paired differences; and the exact sign test for pairs.

All treat evaluation rows as drawn independently from what the user cares about. They say nothing
of the spread over training seeds.
"""

import math
from collections.abc import Sequence
from statistics import NormalDist
from typing import NamedTuple

import numpy as np

from lifelong.errors import UserError

RESAMPLES = 2000
CHUNK_CELLS = 2_000_000  # resampled indices held at once
MANY = 1000  # scores; of more, equal ones are counted instead of drawn one by one
MANY_ROWS = 2**30  # no evaluation set has more


def bootstrap_interval(
    scores: Sequence[float], seed: int, level: float = 0.95, weights: Sequence[float] | None = None
) -> tuple[float, float]:
    """(low, high) of sum(weights * scores) / sum(weights); equal weights give the mean.

    Rows are resampled with their weights, so with token counts as weights and log-likelihoods per
    token as scores, exp(-high) and exp(-low) bound a perplexity.
    """
    values = np.asarray(scores, dtype=np.float64)
    masses = np.ones_like(values) if weights is None else np.asarray(weights, dtype=np.float64)
    _check(len(values), level)
    if masses.shape != values.shape or not (masses > 0).all():
        raise UserError("bootstrap_interval: weights must be > 0, one for each score.")
    generator = np.random.default_rng(seed)
    size = len(values)
    if weights is None and size > MANY:
        unique, counts = np.unique(values, return_counts=True)
        if len(unique) <= MANY // 10:  # right or wrong, mostly: a resample is a draw of their counts
            drawn = generator.multinomial(size, counts / size, RESAMPLES)
            return _ends(drawn @ unique / size, level)
    rows = max(1, min(RESAMPLES, CHUNK_CELLS // size))
    means = []
    for start in range(0, RESAMPLES, rows):
        picks = generator.integers(size, size=(min(rows, RESAMPLES - start), size))
        means.append((values * masses)[picks].sum(axis=1) / masses[picks].sum(axis=1))
    return _ends(np.concatenate(means), level)


def _ends(means: np.ndarray, level: float) -> tuple[float, float]:
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


class Paired(NamedTuple):
    """Mean of left - right over rows that both judged, with its interval."""

    mean: float
    low: float
    high: float
    count: int  # rows
    square: float  # mean of the squared differences; with weights, of their residuals about the mean


def paired_interval(
    left: Sequence[float],
    right: Sequence[float],
    level: float = 0.95,
    bound: float | None = None,
    weights: Sequence[float] | None = None,
) -> Paired:
    """Interval for the mean of d = left - right, row by row. No resampling: the bootstrap is too narrow
    for few rows, and of width zero where no row differs.

    Scores in [0, bound]: d is bounded as well, and z^2 imagined rows are added, half of them at each
    end (for shares the paired form of Agresti and Coull 1998; where no row differs the reach is that of
    Wilson and of Tango 1998):
        N = n + z^2;  m = sum d / N;  m -+ z sqrt(((sum d^2 + z^2 bound^2) / N - m^2) / N)
    Else Student's, for a mean weighted by `weights` (by linearisation, as for a ratio):
        m = sum w d / sum w;  e = w (d - m) / mean w;  m -+ t_(n-1) sqrt(sum e^2 / (n (n - 1)))
    """
    differences = np.asarray(left, dtype=np.float64) - np.asarray(right, dtype=np.float64)
    _check(len(differences), level)
    if bound is not None:
        mean, square = float(differences.mean()), float((differences**2).mean())
    else:
        masses = np.ones_like(differences) if weights is None else np.asarray(weights, dtype=np.float64)
        mean = float((masses * differences).sum() / masses.sum())
        square = float(((masses * (differences - mean) / masses.mean()) ** 2).mean())
    low, high = _paired_ends(mean, square, len(differences), level, bound)
    return Paired(mean, low, high, len(differences), square)


def _paired_ends(
    mean: float, square: float, count: int, level: float, bound: float | None
) -> tuple[float, float]:
    if bound is None:
        if count == 1:
            return -math.inf, math.inf
        reach = student_quantile((1 + level) / 2, count - 1) * math.sqrt(square / (count - 1))
        return mean - reach, mean + reach
    z = NormalDist().inv_cdf((1 + level) / 2)
    total = count + z * z
    centre = count * mean / total
    reach = z * math.sqrt(((count * square + (z * bound) ** 2) / total - centre * centre) / total)
    return max(centre - reach, -bound), min(centre + reach, bound)


def rows_to_decide(
    found: Paired, limit: float, level: float = 0.95, bound: float | None = None, power: float = 0.8
) -> int | None:
    """Rows with which the interval would leave out `limit` with probability `power`, if more rows were
    like those found. None where no number is enough (a mean at the limit).
    """
    z = NormalDist().inv_cdf(power)
    spread = found.square if bound is None else found.square - found.mean**2

    def decided(count: int) -> bool:
        low, high = _paired_ends(found.mean, found.square, count, level, bound)
        slack = z * math.sqrt(max(spread, 0.0) / count)  # of the mean of other rows
        return high + slack <= limit if found.mean <= limit else low - slack > limit

    few, many = 1, 2
    while not decided(many):
        few, many = many, 2 * many
        if many > MANY_ROWS:
            return None
    while many - few > 1:
        middle = (few + many) // 2
        few, many = (few, middle) if decided(middle) else (middle, many)
    return many


def student_quantile(share: float, freedom: int) -> float:
    """Quantile of Student's t: exact for one degree of freedom, else by the expansion of Fisher and
    Cornish (Abramowitz and Stegun 26.7.5), to 1 % at two degrees and better above.
    """
    if freedom == 1:
        return math.tan(math.pi * (share - 0.5))
    z = NormalDist().inv_cdf(share)
    terms = (
        z,
        (z**3 + z) / 4,
        (5 * z**5 + 16 * z**3 + 3 * z) / 96,
        (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384,
        (79 * z**9 + 776 * z**7 + 1482 * z**5 - 1920 * z**3 - 945 * z) / 92160,
    )
    return sum(term / freedom**power for power, term in enumerate(terms))


def wilson_interval(successes: int, n: int, level: float = 0.95) -> tuple[float, float]:
    """(low, high) of the share successes / n. With z the normal quantile and p the share:

    (p + z^2/2n -+ z sqrt(p (1 - p) / n + z^2 / 4n^2)) / (1 + z^2/n)
    """
    _check(n, level)
    if not 0 <= successes <= n:
        raise UserError(f"wilson_interval: successes must be in [0, {n}]; got {successes}.")
    z = NormalDist().inv_cdf((1 + level) / 2)
    share = successes / n
    centre = share + z * z / (2 * n)
    reach = z * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    scale = 1 + z * z / n
    # the exact ends are 0 and 1 there; the formula misses them by a rounding error
    low = 0.0 if successes == 0 else (centre - reach) / scale
    high = 1.0 if successes == n else (centre + reach) / scale
    return low, high


def sign_test(better: int, worse: int) -> float:
    """Exact two-sided p-value of a fair coin for rows that became better or worse; ties do not count.

    p = min(1, 2 sum_{k <= min(b, w)} C(b + w, k) / 2^(b + w))

    For scores of 0 and 1 this is McNemar's exact test (1947).
    """
    total, term, tail = better + worse, 1, 0
    for k in range(min(better, worse) + 1):
        tail += term
        term = term * (total - k) // (k + 1)
    return min(1.0, 2 * tail / 2**total)


def _check(size: int, level: float) -> None:
    if size < 1:
        raise UserError("an interval needs at least one score; got none.")
    if not 0 < level < 1:
        raise UserError(f"level must be in (0, 1); got {level!r}.")
