"""A linear module whose weight is a product of two factors, of which a prefix of columns is used.

    y = U[:, :b] V[:, :b]^T x + bias        U: out x k, V: in x k, k = min(in, out)

The module and its name stay. Its weight is set to 0 and not multiplied with: the instance has a forward
pass of its own. `lora_A` is V^T and `lora_B` is U; b is `lora_width` in training and `lora_kept` otherwise.
"""

from types import MethodType

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers.pytorch_utils import Conv1D

from lifelong.numerics import low_rank

FLOOR = 1e-30  # under a root, so that its gradient at 0 is 0


def attach(module: nn.Module, fresh: bool) -> int:
    """Factorise the weight, the root of its singular values on either side, and return k. Unless
    `fresh` the factors are left at 0, for values that are loaded later.
    """
    inside, outside = low_rank.dimensions(module)
    columns = min(inside, outside)
    weight = module.weight.detach().float()
    for parameter in module.parameters(recurse=False):
        parameter.requires_grad_(False)
    module.lora_A = low_rank.factor(columns, inside, weight.device)
    module.lora_B = low_rank.factor(outside, columns, weight.device)
    with torch.no_grad():
        if fresh:
            weight = weight.T if isinstance(module, Conv1D) else weight
            left, values, right = torch.linalg.svd(weight, full_matrices=False)
            module.lora_A.weight.copy_(values.sqrt()[:, None] * right)
            module.lora_B.weight.copy_(left * values.sqrt())
        module.weight.zero_()
    module.lora_kept = module.lora_width = columns
    module.forward = MethodType(_product, module)
    return columns


def _product(owner: nn.Module, inputs: Tensor) -> Tensor:
    width = owner.lora_width if owner.training else owner.lora_kept
    wide = inputs
    if not torch.is_autocast_enabled(inputs.device.type):
        wide = inputs.to(owner.lora_A.weight.dtype)
    hidden = functional.linear(wide, owner.lora_A.weight[:width])
    made = functional.linear(hidden, owner.lora_B.weight[:, :width])
    if not torch.is_autocast_enabled(inputs.device.type):
        made = made.to(inputs.dtype)
    return made if owner.bias is None else made + owner.bias.to(made.dtype)


def tails(module: nn.Module, kept: int) -> tuple[Tensor, Tensor]:
    """(kept,) Frobenius norms of V[:, i:kept] and of U[:, i:kept]."""
    down = module.lora_A.weight[:kept].square().sum(1)
    up = module.lora_B.weight[:, :kept].square().sum(0)
    return tuple((each.flip(0).cumsum(0).flip(0) + FLOOR).sqrt() for each in (down, up))


def detach(module: nn.Module) -> None:
    """Remove the factors; the weight stays 0."""
    del module.forward, module.lora_A, module.lora_B, module.lora_kept, module.lora_width
