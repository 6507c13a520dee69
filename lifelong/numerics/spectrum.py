"""Singular value decomposition of a weight, divided into its strong and its weak directions."""

from typing import NamedTuple

import torch
from torch import Tensor


class Triples(NamedTuple):
    """k singular triples, the largest first; float32."""

    up: Tensor  # (out, k) orthonormal columns
    sizes: Tensor  # (k,) >= 0
    down: Tensor  # (k, in) orthonormal rows

    def part(self, start: int, end: int | None = None) -> "Triples":
        """Triples [start, end), in memory of their own and row-major (as they come back from a file, so
        that products round alike).
        """
        cut = slice(start, end)
        made = (self.up[:, cut], self.sizes[cut], self.down[cut])
        return Triples(*(tensor.clone(memory_format=torch.contiguous_format) for tensor in made))

    def product(self) -> Tensor:
        """(out, in)"""
        return (self.up * self.sizes) @ self.down


@torch.no_grad()
def triples(matrix: Tensor) -> Triples:
    """All min(out, in) triples; `product` gives the matrix back up to rounding."""
    return Triples(*torch.linalg.svd(matrix.float(), full_matrices=False))


@torch.no_grad()
def rank_reduced(matrix: Tensor, rank: int) -> Tensor:
    """The nearest matrix of that rank (Eckart and Young 1936); the matrix itself where its rank cannot
    be higher.
    """
    if rank >= min(matrix.shape):
        return matrix.float()
    return triples(matrix).part(0, rank).product()


def effective_rank(sizes: Tensor) -> float:
    """exp(-sum p ln p) with p = sizes / sum of sizes (Roy and Vetterli 2007); 0 where all are 0."""
    shares = sizes.double() / sizes.double().sum().clamp_min(torch.finfo(torch.float64).tiny)
    return float(torch.exp(-torch.special.xlogy(shares, shares).sum())) if shares.any() else 0.0
