"""Nearest mean classifier: a class is the mean of its features (Janson et al. 2022, arXiv:2210.04428).

    euclidean: argmin_c ||f - mu_c||^2   = argmax_c  2 mu_c . f - ||mu_c||^2
    cosine:    argmax_c cos(f, mu_c)     = argmax_c  mu_c / ||mu_c|| . f

Both are a linear head, so nothing but the head is written. State: a count and a sum per class, in
float64. What was seen earlier does not matter to it, nor the order of anything: there is no
forgetting but that more classes compete. Under `frozen` the body stays as it was pretrained, which
is the paper's method; under another tuner too, since no step is made.

Open choice: the cosine's mean is the mean of the features as they are, normalised once.
"""

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from lifelong.core.axes import Analytic
from lifelong.core.state import State
from lifelong.errors import UserError
from lifelong.numerics import class_sums


@dataclass(frozen=True, kw_only=True)
class Nmc(Analytic):
    """Answer with the class whose mean feature is nearest."""

    paper: ClassVar[str] = "Janson et al. 2022, arXiv:2210.04428"
    cost: ClassVar[str] = "one forward pass per row, no step; one float64 vector kept per class"
    verified: ClassVar[tuple[str, ...]] = (
        "decides as the nearest of the means of all rows, computed at once",
        "the order of rows, batches and tasks changes rounding only; forgotten rows leave no trace",
        "the body keeps every bit; a class that was never seen is never answered",
    )
    forgets: ClassVar[bool] = True

    distance: Literal["euclidean", "cosine"] = "euclidean"  # between a feature and a class mean

    def init(self, num_features: int) -> State:
        return {
            "counts": torch.zeros(0, dtype=torch.float64),
            "sums": torch.zeros(0, num_features, dtype=torch.float64),
        }

    def learn(self, state: State, features: Tensor, labels: Tensor) -> State:
        return self._added(state, features, labels, 1)

    def forget(self, state: State, features: Tensor, labels: Tensor) -> State:
        found = self._added(state, features, labels, -1)
        if (found["counts"] < 0).any():
            raise UserError("nmc: rows to forget must have been learned; a class has fewer. Check the rows.")
        empty = found["counts"] == 0
        found["sums"][empty] = 0  # what rounding left
        return found

    def head(self, state: State, num_labels: int) -> tuple[Tensor, Tensor]:
        counts, sums = (class_sums.padded(state[name], num_labels) for name in ("counts", "sums"))
        means = class_sums.means(counts, sums)
        if self.distance == "cosine":
            weight = means / means.norm(dim=1, keepdim=True).clamp(min=torch.finfo(means.dtype).tiny)
            bias = torch.zeros_like(counts)
        else:
            weight, bias = 2 * means, -means.square().sum(1)
        return weight, bias.masked_fill(counts == 0, class_sums.NEVER)

    def _added(self, state: State, features: Tensor, labels: Tensor, sign: int) -> State:
        counts, sums = (state[name].to(features.device) for name in ("counts", "sums"))
        counts, sums = class_sums.add(counts, sums, features.double(), labels, sign)
        return {"counts": counts, "sums": sums}
