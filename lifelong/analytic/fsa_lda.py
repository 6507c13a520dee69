"""First session adaptation, then streaming linear discriminant analysis (Panos et al. 2023).

    n_c, s_c = sum f, A = sum f f^T                                kept, float64
    Sigma = (A - sum_c s_c s_c^T / n_c) / (n - C)
    Sigma_a = (1 - a) Sigma + a tr(Sigma) / H I                    a = shrinkage
    w_c = Sigma_a^-1 mu_c,   b_c = ln pi_c - mu_c^T Sigma_a^-1 mu_c / 2

The body is adapted by gradient in the first stage alone, with the tuner of the run and a linear head
that is dropped afterwards (arXiv:2303.13199 adapts all weights, or scales and shifts; `full` with
`targets` does either). From then on the body stands still, so that the sums of all stages belong to
one space. Take `frozen` for discriminant analysis on pretrained features.

Open choices: shrinkage towards a multiple of the identity (Ledoit and Wolf's target) with a given
share, so that its meaning does not depend on the scale of the features; a pseudo-inverse where it is
0; the identity where no class has two rows.
"""

from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

import torch
from torch import Tensor

from lifelong.core.axes import Analytic
from lifelong.core.settings import Range
from lifelong.core.state import State
from lifelong.numerics import class_sums, discriminant


@dataclass(frozen=True, kw_only=True)
class FsaLda(Analytic):
    """Adapt the body in the first stage, then learn heads in closed form."""

    paper: ClassVar[str] = "Panos et al. 2023, arXiv:2303.13199"
    cost: ClassVar[str] = "first stage as plain training; then one forward pass per row; H^2 float64 numbers"
    verified: ClassVar[tuple[str, ...]] = (
        "weights and biases equal scikit-learn's discriminant analysis on all rows at once",
        "the order of rows, batches and tasks changes rounding only",
        "shrinkage 1 with equal priors decides as the nearest class mean",
        "the body keeps every bit after the first stage",
    )
    gradient_stages: ClassVar[int] = 1

    shrinkage: Annotated[float, Range(0, 1)] = 0.1  # share of the identity in the covariance; 0 is none
    priors: Literal["counts", "equal"] = "counts"  # of the classes: their share of all rows, or all alike

    def init(self, num_features: int) -> State:
        return {
            "counts": torch.zeros(0, dtype=torch.float64),
            "sums": torch.zeros(0, num_features, dtype=torch.float64),
            "squares": torch.zeros(num_features, num_features, dtype=torch.float64),
        }

    def learn(self, state: State, features: Tensor, labels: Tensor) -> State:
        features = features.double()
        counts, sums, squares = (state[n].to(features.device) for n in ("counts", "sums", "squares"))
        counts, sums = class_sums.add(counts, sums, features, labels)
        return {"counts": counts, "sums": sums, "squares": squares + features.T @ features}

    def head(self, state: State, num_labels: int) -> tuple[Tensor, Tensor]:
        counts, sums = (class_sums.padded(state[name], num_labels) for name in ("counts", "sums"))
        return discriminant.head(counts, sums, state["squares"], self.shrinkage, self.priors == "equal")
