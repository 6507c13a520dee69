"""Intervals for a mean score: percentile bootstrap (Efron 1979) and Wilson's for a share (1927); and
the exact sign test for pairs.

All treat evaluation rows as drawn independently from what the user cares about. They say nothing
of the spread over training seeds. Two models on the same rows are compared by their differences: the
bootstrap of differences is the paired one.
"""

import math
from collections.abc import Sequence
from statistics import NormalDist

import numpy as np

from lifelong.errors import UserError

RESAMPLES = 2000
CHUNK_CELLS = 2_000_000  # resampled indices held at once


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
    rows = max(1, min(RESAMPLES, CHUNK_CELLS // size))
    means = []
    for start in range(0, RESAMPLES, rows):
        picks = generator.integers(size, size=(min(rows, RESAMPLES - start), size))
        means.append((values * masses)[picks].sum(axis=1) / masses[picks].sum(axis=1))
    low, high = np.quantile(np.concatenate(means), [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


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
