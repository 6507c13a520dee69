"""Low-rank updates beside linear modules: y = W x + scale * B A x (Hu et al. 2022, arXiv:2106.09685).

The update is two child modules of the linear module itself, `lora_A` (r x in) and `lora_B`
(out x r), and a forward hook. The module is not replaced: names of base weights stay, so plain
checkpoints load and save unchanged, and removing hook and children leaves the model as it was.
Factors are float32; under autocast the products run in the compute type.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers.pytorch_utils import Conv1D

from lifelong.errors import UserError, nearest

ALL_LINEAR = "all-linear"


def linear_modules(network: nn.Module) -> dict[str, nn.Module]:
    """Linear modules of the network's body, without output heads and without low-rank factors."""
    head = network.get_output_embeddings()
    skip = ("lora_A", "lora_B")
    return {
        name: module
        for name, module in network.named_modules()
        if isinstance(module, (nn.Linear, Conv1D))
        and module is not head
        and name.rpartition(".")[2] not in skip
        and not name.startswith("lifelong_head")
    }


def select_modules(network: nn.Module, targets: Sequence[str]) -> dict[str, nn.Module]:
    """Linear modules whose name is or ends with one of `targets`; "all-linear" takes all."""
    found = linear_modules(network)
    if ALL_LINEAR in targets:
        return found
    chosen = {n: m for n, m in found.items() if any(n == t or n.endswith(f".{t}") for t in targets)}
    for target in targets:
        if not any(n == target or n.endswith(f".{target}") for n in chosen):
            ends = {n.rpartition(".")[2] for n in found}
            raise UserError(f"targets: no linear module is named `{target}`.{nearest(target, ends)}")
    return chosen


def dimensions(module: nn.Module) -> tuple[int, int]:
    """(in, out) of a linear module; transformers' Conv1D keeps its weight transposed."""
    rows, columns = module.weight.shape
    return (rows, columns) if isinstance(module, Conv1D) else (columns, rows)


class Up(nn.Linear):
    """From few to many, without bias. Two slopes of the product are two to three times as fast on a CPU
    where the few lie in rows; copying them so costs next to nothing.
    """

    def forward(self, inputs: Tensor) -> Tensor:  # (..., r) -> (..., out)
        return inputs @ self.weight.t().contiguous()


def factor(rows: int, columns: int, device: torch.device) -> nn.Linear:
    """A bias-free linear module of float32 zeros that maps `columns` to `rows`."""
    kind = Up if rows > columns else nn.Linear
    made = nn.utils.skip_init(kind, columns, rows, bias=False, device=device, dtype=torch.float32)
    nn.init.zeros_(made.weight)
    return made


def initialise(module: nn.Module, generator: torch.Generator) -> None:
    """A uniform in +-1/sqrt(in) (Kaiming with a = sqrt 5), B zero: the update starts at 0."""
    down = module.lora_A.weight
    bound = 1 / math.sqrt(down.shape[1])
    values = torch.empty(down.shape, dtype=torch.float32).uniform_(-bound, bound, generator=generator)
    with torch.no_grad():
        down.copy_(values)
        module.lora_B.weight.zero_()


def attach(module: nn.Module, rank: int, scale: float, dropout: float) -> None:
    """Give a linear module a trainable update of zeros; its own parameters are frozen."""
    inside, outside = dimensions(module)
    limit = min(inside, outside)
    if rank > limit:
        raise UserError(f"rank must be at most {limit} for a {outside} x {inside} module; got {rank}.")
    device = module.weight.device
    for parameter in module.parameters(recurse=False):
        parameter.requires_grad_(False)
    module.lora_A = factor(rank, inside, device)
    module.lora_B = factor(outside, rank, device)

    def add_update(owner: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Tensor:
        inputs = functional.dropout(args[0], dropout, owner.training) if dropout else args[0]
        if not torch.is_autocast_enabled(inputs.device.type):
            inputs = inputs.to(owner.lora_A.weight.dtype)
        update = owner.lora_B(owner.lora_A(inputs) * scale)
        return output + update.to(output.dtype)

    module.lora_hook = module.register_forward_hook(add_update)


def attach_all(
    network: nn.Module, targets: Sequence[str], rank: int, scale: float, dropout: float, seed: int
) -> dict[str, nn.Module]:
    """Freeze the network and give every target an update that starts at 0; returns the targets."""
    network.requires_grad_(False)
    generator = torch.Generator().manual_seed(seed)
    modules = select_modules(network, targets)
    for module in modules.values():
        attach(module, rank, scale, dropout)
        initialise(module, generator)
    return modules


class Update(Protocol):
    """scale * up @ down"""

    down: Tensor
    up: Tensor
    scale: float


def fold_all(network: nn.Module, updates: Mapping[str, Update]) -> None:
    """Remove hooks and factors, and add the updates to the weights."""
    for name, update in updates.items():
        module = network.get_submodule(name)
        detach(module)
        add_to_weight(module, update.down, update.up, update.scale)


def detach(module: nn.Module) -> None:
    """Remove hook and factors."""
    module.lora_hook.remove()
    del module.lora_A, module.lora_B, module.lora_hook


@torch.no_grad()
def add_to_weight(
    module: nn.Module, down: Tensor, up: Tensor, scale: float, base: Tensor | None = None
) -> None:
    """weight <- base + scale * up @ down, summed in float32 and rounded once. `base` defaults to
    the weight itself; pass a pristine copy where updates follow each other.
    """
    update = scale * (up.float() @ down.float())
    update = update.T if isinstance(module, Conv1D) else update
    start = module.weight if base is None else base
    module.weight.copy_((start.float() + update.to(start.device)).to(module.weight.dtype))


@torch.no_grad()
def matrix_of(module: nn.Module, routed: bool = False) -> Tensor | None:
    """(out, in) float32 of what a linear module computes with its hooks; None where that is not linear, or
    where hooks are `routed`, so that they cannot be asked about single rows. The weight itself, to the
    bit, where they add nothing.
    """
    if routed and module._forward_hooks:
        return None
    inside, _ = dimensions(module)
    weight = (module.weight if isinstance(module, Conv1D) else module.weight.T).detach().float()  # (in, out)
    identity = torch.eye(inside, dtype=module.weight.dtype, device=module.weight.device)
    at_zero = _added(module, torch.zeros_like(identity[:1]))
    found = weight + (_added(module, identity) - at_zero)
    generator = torch.Generator().manual_seed(0)
    probe = torch.randn(4, inside, generator=generator).to(identity)
    given = probe.float() @ weight + _added(module, probe) - at_zero
    expected = probe.float() @ found
    limit = 1e-3 if module.weight.dtype == torch.float32 else 3e-2
    if (given - expected).norm() > limit * expected.norm().clamp(min=1e-30):
        return None
    return found.T


def computed_weights(
    network: nn.Module, names: Iterable[str], routed: bool = False
) -> dict[str, Tensor | None]:
    """Those weights of the network, laid out as they are stored; of a linear module what it computes with
    its hooks, None where that is not linear. A name that the network lacks is left out.
    """
    modules, now = linear_modules(network), dict(network.named_parameters())
    found: dict[str, Tensor | None] = {}
    for name in names:
        owner, _, kind = name.rpartition(".")
        if owner in modules and kind == "weight":
            matrix = matrix_of(modules[owner], routed)
            found[name] = matrix.T if matrix is not None and isinstance(modules[owner], Conv1D) else matrix
        elif name in now:
            found[name] = now[name].detach()
    return found


def _added(module: nn.Module, inputs: Tensor) -> Tensor:
    """What hooks add to the module's own output."""
    return module(inputs).float() - module.forward(inputs).float()
