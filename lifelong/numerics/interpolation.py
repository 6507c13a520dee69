"""A share of what a stage changed, where the update is linear in the weights."""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from lifelong.numerics.swap import leading


@torch.no_grad()
def interpolate(
    params: Mapping[str, Tensor], before: Mapping[str, Tensor], ratio: Callable[[str], float]
) -> None:
    """parameter <- before + ratio(name) * (parameter - before), in place. Of a parameter that has
    grown since, the old block; what did not change keeps every bit.
    """
    for name, old in before.items():
        if name in params:
            block = leading(params[name], old.shape, name)
            block.copy_(torch.lerp(old.to(block.device), block, ratio(name)))
