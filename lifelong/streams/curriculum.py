"""Which order of stages? Ranks orders by how alike their neighbours are, before anything is trained.

    score(order) = mean over neighbours of s(order_t, order_t+1),  s = cosine of centred mean features
Specified from the abstract of "How to continuously teach humans and machines" (Curriculum Designer: ranks
curricula by similarities between features of classes); "similar" puts like beside like, which also is the
similar order of domains in "Investigating continual pretraining" (its counterpart: a random order).
Features here are counts of hashed words, or pixels; `rank` takes any others.
"""

import re
import zlib
from collections.abc import Sequence
from itertools import permutations
from typing import Literal, NamedTuple

import numpy as np

from lifelong.streams.scenarios import Rows, limited

Prefer = Literal["similar", "dissimilar"]
WORDS = 4096  # places that words are hashed to
EXACT = 8  # stages whose orders are all tried
DRAWN = 2000  # orders that are drawn beyond
ROWS = 300  # of a stage that are looked at


class Ranked(NamedTuple):
    order: tuple[int, ...]
    score: float  # mean similarity of neighbours, in [-1, 1]


def mean_features(rows: Rows) -> np.ndarray:
    """(D,) mean feature of at most ROWS rows."""
    return np.mean([_features(row) for row in limited(rows, ROWS, 0)], axis=0)


def _features(row: dict) -> np.ndarray:
    if "image" in row:
        return np.asarray(row["image"], dtype=np.float64).reshape(-1) / 255
    text = " ".join(str(row[key]) for key in ("text", "prompt", "completion") if key in row)
    found = np.zeros(WORDS)
    for word in re.findall(r"\w+", text.lower()):
        found[zlib.crc32(word.encode()) % WORDS] += 1
    return found / max(np.linalg.norm(found), 1e-12)


def similarity(means: Sequence[np.ndarray]) -> np.ndarray:
    """(T, T) cosines of the means, once their own mean is taken off."""
    centred = np.stack(means) - np.mean(means, axis=0)
    lengths = np.linalg.norm(centred, axis=1, keepdims=True)
    unit = centred / np.where(lengths > 0, lengths, 1)
    return unit @ unit.T


def rank(alike: np.ndarray, prefer: Prefer = "similar", seed: int = 0) -> list[Ranked]:
    """Orders with their scores, the preferred first. All orders of up to EXACT stages; of more, the
    nearest-neighbour order from every start and DRAWN random ones.
    """
    count = len(alike)
    if count == 1:
        return [Ranked((0,), 0.0)]
    sign = 1.0 if prefer == "similar" else -1.0
    if count <= EXACT:
        orders = np.array(list(permutations(range(count))))
    else:
        draw = np.random.default_rng([seed, count])
        greedy = [_nearest(sign * alike, start) for start in range(count)]
        orders = np.unique([*greedy, *(draw.permutation(count) for _ in range(DRAWN))], axis=0)
    scores = alike[orders[:, :-1], orders[:, 1:]].mean(axis=1)
    best = np.lexsort((np.arange(len(orders)), -sign * np.round(scores, 12)))
    return [Ranked(tuple(map(int, orders[i])), float(scores[i])) for i in best]


def _nearest(alike: np.ndarray, start: int) -> list[int]:
    order, left = [start], set(range(len(alike))) - {start}
    while left:
        order.append(max(sorted(left), key=lambda other: alike[order[-1], other]))
        left.remove(order[-1])
    return order
