"""A linear module whose weight is divided into a protected and a trainable part.

    y = W_high x + b + L x,   W_high = U_h diag(S_h) V_h (frozen, k triples)
    L = U diag(S) V (three factors) or L = R (a whole matrix)

The protected part stands in the module's own weight, the trainable one in a child module `low` and a
forward hook, so names of base weights stay. Projections keep L out of the protected subspace:

    factors: U <- U - U_h U_h^T U,  V <- V - V V_h^T V_h      (then W V_h^T and U_h^T W stay as they were)
    whole:   R <- R - U_h (U_h^T R V_h^T) V_h                  (then U_h^T W V_h^T stays as it was)

(V and V_h hold directions as rows.) Both are linear and idempotent: they serve for gradients, and for
the weights after a step, which began in the allowed subspace.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers.pytorch_utils import Conv1D

from lifelong.numerics.low_rank import dimensions
from lifelong.numerics.spectrum import Triples


class Low(nn.Module):
    """The trainable part; float32. `rank` None is a whole matrix."""

    def __init__(self, rank: int | None, inside: int, outside: int, device: torch.device) -> None:
        super().__init__()
        made = {"whole": (outside, inside)}
        if rank is not None:
            made = {"up": (outside, rank), "sizes": (rank,), "down": (rank, inside)}
        for name, shape in made.items():
            self.register_parameter(name, nn.Parameter(torch.zeros(shape, device=device)))
        self.in_factors = rank is not None

    def forward(self, inputs: Tensor) -> Tensor:
        if not torch.is_autocast_enabled(inputs.device.type):
            inputs = inputs.float()
        if not self.in_factors:
            return functional.linear(inputs, self.whole)
        return functional.linear(functional.linear(inputs, self.down) * self.sizes, self.up)

    @torch.no_grad()
    def load(self, part: Triples) -> None:
        if self.in_factors:
            self.up.copy_(part.up)
            self.sizes.copy_(part.sizes)
            self.down.copy_(part.down)
        else:
            self.whole.copy_(part.product())

    @torch.no_grad()
    def matrix(self) -> Tensor:
        """(out, in)"""
        return (self.up * self.sizes) @ self.down if self.in_factors else self.whole.detach().clone()

    @torch.no_grad()
    def project(self, high: Triples, gradients: bool) -> None:
        """Take the protected part out of the weights, or out of their gradients, in place."""
        if not len(high.sizes):
            return
        if not self.in_factors:
            target = self.whole.grad if gradients else self.whole
            if target is not None:
                target.sub_(high.up @ (high.up.T @ target @ high.down.T) @ high.down)
            return
        up, down = (self.up.grad, self.down.grad) if gradients else (self.up, self.down)
        if up is not None:
            up.sub_(high.up @ (high.up.T @ up))
            down.sub_(down @ high.down.T @ high.down)


def weight_of(module: nn.Module) -> Tensor:
    """(out, in) view; transformers' Conv1D keeps its weight transposed."""
    return module.weight.detach().T if isinstance(module, Conv1D) else module.weight.detach()


def join(module: nn.Module, high: Triples) -> Tensor:
    """(out, in) float32: the weight that the module computes with."""
    return high.product() + module.low.matrix() if "low" in module._modules else high.product()


def split(module: nn.Module, high: Triples, whole: bool) -> None:
    """Put the protected part in the weight and a trainable part of zeros beside it (none where
    everything is protected).
    """
    remove(module)
    inside, outside = dimensions(module)
    rank = min(inside, outside) - len(high.sizes)
    weight_of(module).copy_(high.product())
    for parameter in module.parameters(recurse=False):
        parameter.requires_grad_(False)
    if rank:
        module.low = Low(None if whole else rank, inside, outside, module.weight.device)
        module.low_hook = module.register_forward_hook(_add)


def remove(module: nn.Module) -> None:
    """Leave the module with its protected weight alone."""
    if "low" in module._modules:
        module.low_hook.remove()
        del module.low, module.low_hook


def _add(owner: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Tensor:
    return output + owner.low(args[0]).to(output.dtype)
