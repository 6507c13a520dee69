"""Gradients of each example's score from one backward pass over the whole batch.

For a linear module the gradient of example b is D_b^T X_b: X_b its input rows, D_b the gradient
at its output rows (Goodfellow 2015, arXiv:1510.01799, for one row per example; Rochette et al.
2019, arXiv:1912.06015, for many). Forward hooks catch X; one backward pass to the caught outputs
gives every D. An embedding scatters D; any other module with parameters of its own is
differentiated alone, example by example under vmap. What several calls contribute to one parameter
(tied weights) is added up per example before anything is squared.

Which rows belong to which example is inferred from shapes, and never believed: whenever a parameter
is met with a new pattern of calls, sum_b w_b G_b for random w is compared with the ordinary
gradient of sum_b w_b s_b, which fails also for rows booked on the wrong example. A parameter that
fails, or that no hook caught, is from then on computed by one backward pass per example.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.func import functional_call, vjp, vmap
from transformers.pytorch_utils import Conv1D

from lifelong.numerics.swap import differentiating, evaluating

MEMORY_BYTES = 2**28  # for the per-example gradients that exist at one time
CACHE_BYTES = 2**20  # on a CPU: smaller pieces stay in its cache, which is faster
KNOWN = (nn.Linear, Conv1D, nn.Embedding)


class Scores(NamedTuple):
    values: Tensor  # (B,) one score per example, with gradient
    owners: Tensor | None = None  # (N,) int64: the example of each row that a head is fed with


Score = Callable[[], Tensor | Scores]  # runs the forward pass of one batch


def squared_gradient_sum(
    network: nn.Module,
    params: Mapping[str, nn.Parameter],
    log_likelihoods: Score,
    memory_bytes: int = MEMORY_BYTES,
) -> dict[str, Tensor]:
    """sum_b (d l_b / d theta)^2 by parameter name, float32."""
    return PerExample(network, params, memory_bytes).squared_sum(log_likelihoods)


def per_example_gradients(
    network: nn.Module,
    params: Mapping[str, nn.Parameter],
    log_likelihoods: Score,
    memory_bytes: int = MEMORY_BYTES,
) -> dict[str, Tensor]:
    """d l_b / d theta by parameter name, (B, *shape) float32."""
    return PerExample(network, params, memory_bytes).gradients(log_likelihoods)


@dataclass
class _Call:
    """One call of a module that owns wanted parameters."""

    module: nn.Module
    names: dict[str, str]  # attribute of the module -> name of the parameter
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    output: Tensor
    versions: list[int]
    rule: str = ""  # how rows belong to examples; "" where that is unknown
    gradient: Tensor | None = None  # at the output, (B, ...); None where nothing flowed back
    places: Tensor | None = None  # (B, M) row numbers; only for the rule "owners"
    cache: dict[Any, Tensor] = field(default_factory=dict)

    def known(self) -> type | None:
        """The class whose closed form holds here: its own forward, not an override."""
        for kind in KNOWN:
            if type(self.module).forward is kind.forward and "forward" not in vars(self.module):
                return kind
        return None

    def intact(self) -> bool:
        """No tensor of the call was changed in place since."""
        return self.versions == _versions(self.args, self.kwargs, self.output)

    def belongs(self, tensor: Any) -> bool:
        """Whether rows of this argument are split by example as those of the output are."""
        if not isinstance(tensor, Tensor) or not tensor.dim() or self.rule == "broadcast":
            return False
        size = 2 if self.paired() else 1
        return tensor.shape[:size] == self.output.shape[:size]

    def paired(self) -> bool:
        """Rows stand in the second dimension, behind one of size 1."""
        return self.rule == "owners" and self.places.numel() > 0 and self.output.shape[0] != self.rows

    @property
    def rows(self) -> int:
        return self.cache["num_rows"]

    def align(self, tensor: Tensor, num: int) -> Tensor:
        """(B, ...) rows of each example; rows that only fill up are repeats of the first."""
        if self.rule == "owners":
            return (tensor[0] if self.paired() else tensor)[self.places]
        if self.rule == "blocks":
            return tensor.reshape(num, -1, *tensor.shape[1:])
        return tensor if self.rule == "rows" else tensor.expand(num, *tensor.shape[1:])
