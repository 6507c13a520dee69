"""Linear discriminant analysis from sums: the head that follows from counts, sums and squares by class.

    Sigma = (A - sum_c s_c s_c^T / n_c) / (n - C),   A = sum f f^T
    Sigma_a = (1 - a) Sigma + a tr(Sigma) / H I                    a = shrinkage
    w_c = Sigma_a^-1 mu_c,   b_c = ln pi_c - mu_c^T Sigma_a^-1 mu_c / 2

A pseudo-inverse where the shrinkage is 0; the identity where no class has two rows.
"""

import torch
from torch import Tensor

from lifelong.numerics import class_sums


def head(
    counts: Tensor, sums: Tensor, squares: Tensor, shrinkage: float, equal_priors: bool = False
) -> tuple[Tensor, Tensor]:
    """Weight (C, H) and bias (C,) from counts (C,), sums (C, H) and squares (H, H), all float64."""
    seen, means = counts > 0, class_sums.means(counts, sums)
    weight = _solved(_covariance(counts, sums, squares, shrinkage), means.T, shrinkage).T
    shares = torch.where(seen, torch.ones_like(counts) if equal_priors else counts, 1.0)
    prior = (shares / shares[seen].sum()).log()
    bias = prior - (means * weight).sum(1) / 2
    return weight, bias.masked_fill(~seen, class_sums.NEVER)


def _covariance(counts: Tensor, sums: Tensor, squares: Tensor, shrinkage: float) -> Tensor:
    """(H, H), shrunk."""
    free = float(counts.sum()) - float((counts > 0).sum())
    identity = torch.eye(len(squares), dtype=squares.dtype, device=squares.device)
    if free <= 0:
        return identity
    within = (squares - sums.T @ class_sums.means(counts, sums)) / free
    size = within.trace() / len(within)
    if not size > 0:
        return identity
    return (1 - shrinkage) * within + shrinkage * size * identity


def _solved(covariance: Tensor, right: Tensor, shrinkage: float) -> Tensor:
    if shrinkage:
        return torch.linalg.solve(covariance, right)
    return torch.linalg.pinv(covariance, hermitian=True) @ right
