"""Reservoir sampling with draws that need no generator of their own (Vitter 1985, algorithm R).

The k-th item offered (from 1) enters with probability size / k and takes a uniform place:
    j ~ Uniform{0, ..., k - 1};  k <= size: append;  else replace item j if j < size.
Every item offered so far is then kept with probability size / k. Draws are a function of (seed, k)
and of (seed, stage, step), so one counter is all that must be remembered. An item that was taken out
leaves an empty place, which is drawn like any other: those that stay and those that come are then kept
with probability size / k as before.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np


def offer(
    kept: list[Any],
    items: Sequence[Any],
    size: int,
    seed: int,
    seen: int,
    packed: Callable[[Any], Any] = lambda item: item,
) -> int:
    """Offer `items` to `kept`, which is changed in place and takes them `packed`; returns how many were
    seen in all.
    """
    for item in items:
        seen += 1
        place = seen - 1 if seen <= size else int(np.random.Philox(key=[seed, seen]).random_raw() % seen)
        if len(kept) <= place < size:  # an empty place; which one makes no difference
            kept.append(packed(item))
        elif place < size:
            kept[place] = packed(item)
    return seen


def sample(eligible: Sequence[Any], wanted: int, seed: int, stage: int, step: int) -> list[Any]:
    """`wanted` distinct items (all there are, if fewer), drawn uniformly."""
    wanted = min(wanted, len(eligible))
    if wanted == 0:
        return []
    draw = np.random.default_rng([seed, stage, step])
    return [eligible[i] for i in draw.choice(len(eligible), size=wanted, replace=False)]
