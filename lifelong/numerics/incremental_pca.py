"""Principal components of rows that arrive in batches.

The leading components so far, the new rows around their own mean, and the shift between the two
means are stacked and decomposed again (Ross et al. 2008, doi:10.1007/s11263-007-0075-7):

    SVD of [S V; X - mean(X); sqrt(n m / (n + m)) (mean - mean(X))]      n rows before, m new ones

Exact while nothing is cut off, that is for one batch, or where the rows have no more than
`num_components` directions.
"""

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any
from weakref import ref

import torch
from torch import Tensor, nn


class IncrementalPca:
    """Leading components of all rows added so far, in float32."""

    def __init__(self, num_components: int) -> None:
        self.num_components = num_components
        self.count = 0  # rows so far
        self.total = 0.0  # their squared distance from the mean, summed over rows and features
        self.mean: Tensor | None = None  # (D,)
        self.components: Tensor | None = None  # (K, D) orthonormal; the largest entry is positive
        self.values: Tensor | None = None  # (K,) singular values of the centred rows
        self.agreement: Tensor | None = None  # (K,) |cosine| with the component before the last batch

    @torch.no_grad()
    def add(self, rows: Tensor) -> None:
        """Take in rows (m, D); K = min(num_components, rows and components to go by)."""
        if not len(rows):
            return
        rows, new, old = rows.float(), len(rows), self.components
        middle = rows.mean(0)
        stack = [rows - middle]
        if old is None:
            self.mean = middle
        else:
            shift = math.sqrt(self.count * new / (self.count + new)) * (self.mean - middle)
            self.total += float(shift.square().sum())
            stack = [self.values[:, None] * old, *stack, shift[None]]
            self.mean = torch.lerp(self.mean, middle, new / (self.count + new))
        self.total += float((rows - middle).square().sum())
        self.count += new
        _, values, directions = torch.linalg.svd(torch.cat(stack), full_matrices=False)
        values, directions = values[: self.num_components], directions[: self.num_components]
        largest = directions.gather(1, directions.abs().argmax(1, keepdim=True))
        self.values, self.components = values, directions * largest.sign()
        self.agreement = torch.zeros_like(values)
        if old is not None:
            both = min(len(old), len(values))
            self.agreement[:both] = (old[:both] * self.components[:both]).sum(1).abs()

    @property
    def explained(self) -> Tensor:
        """(K,) share of the whole variance that each component explains."""
        return self.values.square() / max(self.total, torch.finfo(torch.float32).tiny)


@contextmanager
def watched_inputs(
    modules: Mapping[str, nn.Module], num_components: int, rows: Callable[[Tensor], Tensor]
) -> Iterator[dict[str, IncrementalPca]]:
    """Components of what each module is given inside, by name. `rows` takes the rows (m, D) that
    count out of an input. Modules that are first given the same tensor share one decomposition.
    """
    found: dict[str, IncrementalPca] = {}
    leaders: dict[str, str] = {}
    seen: dict[int, tuple[Any, str]] = {}  # by address: the tensor, if it is still there, and its module

    def look(name: str, inputs: Tensor) -> None:
        if name not in leaders:
            known, first = seen.get(id(inputs), (None, name))
            leaders[name] = first if known is not None and known() is inputs else name
            seen[id(inputs)] = (ref(inputs), leaders[name])
        if leaders[name] != name:
            found[name] = found[leaders[name]]
            return
        if name not in found:
            found[name] = IncrementalPca(min(num_components, inputs.shape[-1]))
        found[name].add(rows(inputs))

    def hook(name: str) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
        return lambda module, args: look(name, args[0])

    handles = [module.register_forward_pre_hook(hook(name)) for name, module in modules.items()]
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()
