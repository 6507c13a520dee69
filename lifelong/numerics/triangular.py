"""Low-rank updates with a triangular core, in blocks that are added one by one.

    update = scale(R) * B (L + U) A        A: R x in, B: out x R; L, U: R x R, blocks of `size`

L holds the blocks on and below the diagonal, U those on and above it, so a diagonal block counts
both. Adding a block leaves all earlier entries as they are. L and U are stored whole; entries on the
wrong side are never read, so they keep their zeros.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional

from lifelong.errors import UserError
from lifelong.numerics import low_rank

DEVIATION = 0.02  # of the entries that A and B start from


def attach(
    module: nn.Module,
    rank: int,
    size: int,
    scale: Callable[[int], float],
    dropout: float,
    generator: torch.Generator,
) -> None:
    """Give a linear module an update of zeros, A and B drawn; its own parameters are frozen."""
    inside, outside = low_rank.dimensions(module)
    if size > min(inside, outside):
        raise UserError(
            f"growth must be at most {min(inside, outside)} for a {outside} x {inside} module; got {size}."
        )
    device = module.weight.device
    for parameter in module.parameters(recurse=False):
        parameter.requires_grad_(False)
    module.lora_A = _holding(_drawn(rank, inside, generator, device))
    module.lora_B = _holding(_drawn(outside, rank, generator, device))
    module.lora_lower = nn.Parameter(torch.zeros(rank, rank, device=device))
    module.lora_upper = nn.Parameter(torch.zeros(rank, rank, device=device))
    module.lora_block = size

    def add_update(owner: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Tensor:
        inputs = functional.dropout(args[0], dropout, owner.training) if dropout else args[0]
        if not torch.is_autocast_enabled(inputs.device.type):
            inputs = inputs.to(owner.lora_A.weight.dtype)
        hidden = owner.lora_A(inputs) * scale(len(owner.lora_lower))
        return output + owner.lora_B(functional.linear(hidden, core(owner))).to(output.dtype)

    module.lora_hook = module.register_forward_hook(add_update)


def core(module: nn.Module) -> Tensor:
    """(R, R) L + U."""
    block = torch.arange(len(module.lora_lower), device=module.lora_lower.device) // module.lora_block
    below = block[:, None] >= block[None, :]
    return module.lora_lower * below + module.lora_upper * below.T


def _drawn(rows: int, columns: int, generator: torch.Generator, device: torch.device) -> Tensor:
    return (torch.randn(rows, columns, generator=generator) * DEVIATION).to(device)


@torch.no_grad()
def _holding(weight: Tensor) -> nn.Linear:
    made = low_rank.factor(*weight.shape, weight.device)
    made.weight.copy_(weight)
    return made


@torch.no_grad()
def grow(module: nn.Module, rank: int, generator: torch.Generator) -> None:
    """Raise the rank; new parameters replace the old ones. New rows of A and columns of B are drawn."""
    down, up = module.lora_A.weight, module.lora_B.weight
    more = rank - len(down)
    rows = _drawn(more, down.shape[1], generator, down.device)
    columns = _drawn(up.shape[0], more, generator, up.device)
    module.lora_A = _holding(torch.cat([down, rows]))
    module.lora_B = _holding(torch.cat([up, columns], dim=1))
    for name in ("lora_lower", "lora_upper"):
        padded = functional.pad(getattr(module, name).detach(), (0, more, 0, more))
        setattr(module, name, nn.Parameter(padded))


def detach(module: nn.Module) -> None:
    """Remove hook and factors."""
    module.lora_hook.remove()
    for name in ("lora_A", "lora_B", "lora_lower", "lora_upper", "lora_block", "lora_hook"):
        delattr(module, name)
