"""Which rows every optimiser step of a stage sees: a pure function of seed, stage and lengths.

Because nothing is drawn while training, the state of the data stream is one integer, the step.
Every stage and epoch has its own order. Rows of like length share a batch, so that few pads are
computed: rows are shuffled, sorted by length inside windows of many batches, cut into batches, and
the batches are shuffled again.
"""

from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np

from lifelong.core.stream import Budget, Optimization

WINDOW = 50  # batches per sorted window: longer wastes fewer pads, shorter mixes better


class Step(NamedTuple):
    rows: np.ndarray  # (rows of the batch,) indices into the stage's examples
    first_visit: bool  # is this the first pass over the data?


class Plan:
    """The steps of one stage.

    `num_steps` is None only where the budget is in seconds alone.
    """

    def __init__(
        self, lengths: Sequence[int], optimization: Optimization, budget: Budget, seed: int, stage: int
    ) -> None:
        self.lengths = np.asarray(lengths, dtype=np.int64)
        self.optimization = optimization
        self.budget = budget
        self.seed = seed
        self.stage = stage
        self._steps: list[Step] = []
        self._source = self._generate()
        bounded = (budget.epochs, budget.steps, budget.tokens) != (None, None, None)
        if bounded:
            self._steps = list(self._source)
        self.num_steps = len(self._steps) if bounded else None

    def __getitem__(self, step: int) -> Step:
        while len(self._steps) <= step:
            self._steps.append(next(self._source))
        return self._steps[step]

    def _generate(self) -> Iterator[Step]:
        budget, made, tokens = self.budget, 0, 0
        left = np.inf if budget.epochs is None else round(budget.epochs * len(self.lengths))
        epoch = 0
        while left > 0:
            order = np.random.default_rng([self.seed, self.stage, epoch]).permutation(len(self.lengths))
            if left < len(order):
                order = order[: int(left)]
            left -= len(order)
            for rows in self._batches(order, epoch):
                yield Step(rows, epoch == 0)
                made += 1
                tokens += int(self.lengths[rows].sum())
                if made == budget.steps or (budget.tokens is not None and tokens >= budget.tokens):
                    return
            epoch += 1

    def _batches(self, order: np.ndarray, epoch: int) -> list[np.ndarray]:
        settings = self.optimization
        if not settings.sort_by_length:
            return self._cut(order)
        size = settings.batch_size or max(1, settings.batch_tokens // max(1, int(self.lengths.mean())))
        batches = []
        for start in range(0, len(order), size * WINDOW):
            window = order[start : start + size * WINDOW]
            batches += self._cut(window[np.argsort(self.lengths[window], kind="stable")])
        shuffle = np.random.default_rng([self.seed, self.stage, epoch, 1]).permutation(len(batches))
        return [batches[i] for i in shuffle]

    def _cut(self, order: np.ndarray) -> list[np.ndarray]:
        """Batches of `batch_size` rows, or of at most `batch_tokens` positions including pads (a
        longer single row is a batch of its own)."""
        settings = self.optimization
        if settings.batch_size is not None:
            return [order[i : i + settings.batch_size] for i in range(0, len(order), settings.batch_size)]
        batches, start, longest = [], 0, 0
        for i, row in enumerate(order):
            longest_with = max(longest, int(self.lengths[row]))
            if i > start and longest_with * (i - start + 1) > settings.batch_tokens:
                batches.append(order[start:i])
                start, longest_with = i, int(self.lengths[row])
            longest = longest_with
        return [*batches, order[start:]] if len(order) else batches


def draw(
    parts: Sequence[range], shares: Sequence[float], drawn: Sequence[int], num_rows: int, seed: int, step: int
) -> tuple[np.ndarray, list[int]]:
    """(rows of one step, rows taken so far from each part): every row comes from part i with
    probability `shares[i]`, and within a part rows come in a shuffled order that is used up before a
    new one begins. A pure function of its arguments.
    """
    choice = np.random.default_rng([seed, step])
    wanted = choice.multinomial(num_rows, np.asarray(shares, dtype=np.float64))
    rows, after = [], list(drawn)
    for index, (part, count) in enumerate(zip(parts, wanted, strict=True)):
        for place in range(after[index], after[index] + int(count)):
            epoch, offset = divmod(place, len(part))
            rows.append(part[int(_order(seed, index, epoch, len(part))[offset])])
        after[index] += int(count)
    return np.asarray(rows), after


@lru_cache(maxsize=64)
def _order(seed: int, part: int, epoch: int, length: int) -> np.ndarray:
    return np.random.default_rng([seed, part, epoch, 2]).permutation(length)
