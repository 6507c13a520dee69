"""How far weights are from where they were."""

from collections.abc import Mapping

import torch
from torch import Tensor

from lifelong.numerics.swap import leading


def copied(params: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Values that share no memory with the parameters."""
    return {name: parameter.detach().clone() for name, parameter in params.items()}


def pull(
    params: Mapping[str, Tensor], anchor: Mapping[str, Tensor], importance: Mapping[str, Tensor] | None = None
) -> Tensor | None:
    """sum_i importance_i * (theta_i - anchor_i)^2 over the parameters that are still there; None where
    none is. One that has grown is compared on its leading block.
    """
    terms = []
    for name, kept in anchor.items():
        if name in params:
            square = (leading(params[name], kept.shape, name).float() - kept.float()).square()
            terms.append((square if importance is None else importance[name] * square).sum())
    return torch.stack(terms).sum() if terms else None
