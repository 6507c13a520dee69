"""Temporary changes of a network, undone whatever happens inside.

`swapped` runs a network with other weights (a teacher, say) without a second network: each
parameter's `.data` points elsewhere for a while, so nothing is copied and the graph of an earlier
forward pass stays valid once the block is left. Casts that autocast kept are dropped: they would answer
for the weights of before.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Size, Tensor, nn

from lifelong.errors import UserError, nearest


def fits(shape: Size, whole: Size) -> bool:
    """Whether `shape` is that of a leading block of `whole` (a head before it grew)."""
    return len(shape) == len(whole) and all(part <= full for part, full in zip(shape, whole, strict=True))


def leading(tensor: Tensor, shape: Size, name: str) -> Tensor:
    """View of the leading block; the tensor itself where the shapes agree."""
    if tensor.shape == shape:
        return tensor
    if not fits(shape, tensor.shape):
        raise UserError(
            f"parameter `{name}` has shape {tuple(tensor.shape)}, but {tuple(shape)} is kept of it: a "
            "parameter may grow at the end of a dimension, not shrink; start from the state of this model."
        )
    return tensor[tuple(slice(size) for size in shape)]


@contextmanager
def taught(
    network: nn.Module, params: Mapping[str, nn.Parameter], values: Mapping[str, Tensor]
) -> Iterator[None]:
    """Inside, the network is a teacher: other weights, no dropout, no gradients."""
    with swapped(params, values), evaluating(network), torch.no_grad():
        yield


@contextmanager
def swapped(params: Mapping[str, nn.Parameter], values: Mapping[str, Tensor]) -> Iterator[None]:
    """Inside, each parameter named in `values` is that tensor (or a leading block of its own shape)."""
    for name, value in values.items():
        if name not in params:
            raise UserError(f"swapped: no parameter `{name}`.{nearest(name, params)}")
        leading(params[name], value.shape, name)
        if (value.dtype, value.device) != (params[name].dtype, params[name].device):
            raise UserError(
                f"swapped: parameter `{name}` is {params[name].dtype} on {params[name].device}, its value "
                f"{value.dtype} on {value.device}; convert the value first."
            )
    own = {name: params[name].data for name in values}
    try:
        for name, value in values.items():
            params[name].data = value.detach()
        torch.clear_autocast_cache()  # it goes by the parameter, whatever its values are
        yield
    finally:
        for name, tensor in own.items():
            params[name].data = tensor
        torch.clear_autocast_cache()


@contextmanager
def evaluating(network: nn.Module) -> Iterator[None]:
    """Dropout off inside; afterwards every module is in the mode that it was in."""
    modes = [(module, module.training) for module in network.modules()]
    try:
        network.eval()
        yield
    finally:
        for module, mode in modes:
            module.training = mode


@contextmanager
def differentiating(network: nn.Module, params: Mapping[str, nn.Parameter]) -> Iterator[None]:
    """Gradients flow to `params` and to no other parameter of the network inside."""
    chosen = {id(p) for p in params.values()}
    flags = [(p, p.requires_grad) for p in (*network.parameters(), *params.values())]
    try:
        for parameter, _ in flags:
            parameter.requires_grad_(id(parameter) in chosen)
        yield
    finally:
        for parameter, flag in flags:
            parameter.requires_grad_(flag)
