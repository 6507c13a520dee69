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
    grown since, the old block; what did not change keeps every bit, and so do both ends. `before` is
    read one tensor at a time, so that it may lie on the disk.
    """
    for name, old in before.items():
        share = ratio(name)
        if name in params and share != 1:
            block, old = leading(params[name], old.shape, name), old.to(params[name].device)
            block.copy_(torch.lerp(old, block, share) if share else old)
