"""Analytic continual unlearning: a ridge head by recursive least squares, and its exact inverse.

    R = (X^T X + g I)^-1,   W = R X^T Y                          X (n, H) features, Y (n, C) one-hot
    learn:   R' = R - R X^T (I + X R X^T)^-1 X R;    W' = W + R' X^T (Y - X W)
    forget:  R' = R + R X^T (I - X R X^T)^-1 X R;    W' = W - R' X^T (Y - X W)

arXiv:2505.12239, after the recursive learners that it builds on. To forget needs the rows of the
request alone, and leaves what training without them would have left, up to rounding. A class that
is new is a zero column of W: no earlier row was of it. Float64 throughout; R is kept symmetric.

With an `expansion` of L, X are L random features of the network's, relu(f / |f| @ N(0, 1)), drawn by
the run's seed and kept with the head (as in McDonnell et al. 2023, arXiv:2307.02251): classes that no
plane parts in H dimensions are parted in L. Without, the head is linear in the network's features, and
small. For 25 or 100 rows of each of 150 classes L of some thousands and a `ridge` of 10 to 100 suit.

Differences: a constant feature stands for the bias (`intercept`), features have unit length before
they are expanded. A request with rows that were never learned is refused where it shows (a class
with too few rows, or a matrix that is not positive definite).
"""

from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
from torch import Tensor
from torch.nn import functional

from lifelong.core.axes import Analytic
from lifelong.core.settings import Range
from lifelong.core.state import State
from lifelong.errors import UserError
from lifelong.numerics import class_sums

BLOCK = 256  # rows of one recursion


@dataclass(frozen=True, kw_only=True)
class Acu(Analytic):
    """Learn and erase rows exactly, by recursive least squares."""

    paper: ClassVar[str] = "Analytic continual unlearning 2025, arXiv:2505.12239"
    cost: ClassVar[str] = "one forward pass per row; H^2 + H C float64 numbers, L for H if expanded"
    verified: ClassVar[tuple[str, ...]] = (
        "the head equals ridge regression on all rows at once to 1e-9",
        "forgetting equals retraining without the rows to 1e-8, also after 200 rounds",
        "the order of rows, batches and tasks changes rounding only",
        "rows that were never learned are refused",
        "expanded, it parts classes that no linear head can",
    )
    forgets: ClassVar[bool] = True

    ridge: Annotated[float, Range(0, open_low=True)] = 1.0  # g, added to the diagonal of X^T X
    expansion: Annotated[int, Range(0)] = 0  # L, random features to learn from; 0: the network's own
    intercept: bool = True  # a constant feature, which becomes the bias

    def init(self, num_features: int) -> State:
        size = num_features + self.intercept
        return {
            "inverse": torch.eye(size, dtype=torch.float64) / self.ridge,  # R
            "weight": torch.zeros(0, size, dtype=torch.float64),  # W^T
            "counts": torch.zeros(0, dtype=torch.float64),
        }

    def learn(self, state: State, features: Tensor, labels: Tensor) -> State:
        return self._recursion(state, features, labels, 1)

    def forget(self, state: State, features: Tensor, labels: Tensor) -> State:
        return self._recursion(state, features, labels, -1)

    def head(self, state: State, num_labels: int) -> tuple[Tensor, Tensor]:
        counts, weight = (class_sums.padded(state[name], num_labels) for name in ("counts", "weight"))
        bias = weight[:, -1] if self.intercept else torch.zeros_like(counts)
        weight = weight[:, :-1] if self.intercept else weight
        return weight, bias.masked_fill(counts == 0, class_sums.NEVER)

    def _recursion(self, state: State, features: Tensor, labels: Tensor, sign: int) -> State:
        inverse, weight = (state[name].to(features.device) for name in ("inverse", "weight"))
        rows = functional.pad(features.double(), (0, 1), value=1.0) if self.intercept else features.double()
        counts, _ = class_sums.add(
            state["counts"].to(rows.device), rows.new_zeros(0, 0), rows.new_zeros(len(rows), 0), labels, sign
        )
        if (counts < 0).any():
            raise UserError("acu: more rows of a class are to be forgotten than were learned of it.")
        weight = class_sums.padded(weight, len(counts))
        targets = functional.one_hot(labels, len(counts)).double()
        for part, wanted in zip(rows.split(BLOCK), targets.split(BLOCK), strict=True):
            reach = part @ inverse  # (B, H), X R
            inner = torch.eye(len(part), dtype=rows.dtype, device=rows.device) + sign * reach @ part.T
            factor, problem = torch.linalg.cholesky_ex(inner)
            if problem:
                raise UserError("acu: rows to be forgotten must have been learned; these were not all.")
            inverse = inverse - sign * reach.T @ torch.cholesky_solve(reach, factor)
            inverse = (inverse + inverse.T) / 2
            weight = weight + sign * (wanted - part @ weight.T).T @ part @ inverse
        return {"inverse": inverse, "weight": weight, "counts": counts}
