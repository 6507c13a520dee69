"""Bootstrap over two crossed sources of chance: runs (seeds, orders) and evaluation rows.

Every resample draws runs with replacement and, in each evaluation set, rows with replacement; all runs
see the same drawn rows. Two methods judged on the same rows are compared with the same draws, so the
interval of their difference is a paired one (Owen 2007, arXiv:0711.1718: the crossed bootstrap is
somewhat too wide, never too narrow, for a mean).
"""

from collections.abc import Sequence

import numpy as np

from lifelong.errors import UserError

RESAMPLES = 2000


def resampled_means(
    tables: Sequence[np.ndarray],
    seed: int,
    resamples: int = RESAMPLES,
    weights: Sequence[np.ndarray | None] | None = None,
) -> np.ndarray:
    """(B,) resampled means over sets of the mean score of a set. Each table is (S runs, R rows) of one
    evaluation set; S is the same for all. `weights` has for each set those of its rows, (R,) and > 0, or
    None where they weigh alike; rows are drawn with their weights. Equal shapes and seeds give equal draws.

    Of M methods at once, with tables (M, S, R): (M, B), the draws made once.
    """
    if not tables or any(table.ndim not in (2, 3) or 0 in table.shape for table in tables):
        raise UserError("resampled_means: give a table of runs and rows for at least one evaluation set.")
    *several, num_runs, _ = tables[0].shape
    if any(table.shape[:-1] != tables[0].shape[:-1] for table in tables):
        raise UserError("resampled_means: every evaluation set must be of the same runs.")
    draw = np.random.default_rng(seed)
    runs = draw.multinomial(num_runs, np.full(num_runs, 1 / num_runs), size=resamples) / num_runs  # (B, S)
    total = np.zeros((*several, resamples))
    for table, weight in zip(tables, weights or [None] * len(tables), strict=True):
        size = table.shape[-1]
        rows = draw.multinomial(size, np.full(size, 1 / size), size=resamples) / size  # (B, R)
        if weight is not None:
            rows = rows * weight / (rows @ weight)[:, None]
        total += np.einsum("bs,...sb->...b", runs, table @ rows.T)
    return total / len(tables)


def interval(means: np.ndarray, level: float = 0.95) -> tuple[float, float]:
    """Percentile interval of resampled means."""
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def ranks(values: Sequence[float]) -> list[float]:
    """Ranks from 1, the largest value first; equal values share the mean of their ranks."""
    found = np.asarray(values, dtype=np.float64)
    better = (found[None, :] > found[:, None]).sum(1)
    same = (found[None, :] == found[:, None]).sum(1)
    return [float(b + (s + 1) / 2) for b, s in zip(better, same, strict=True)]
