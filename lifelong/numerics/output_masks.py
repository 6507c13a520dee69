"""How large the outputs of linear maps are in a step, and weights of small ones that stand still.

    n_j = sum over positions of |h_j|     (accumulated over the passes of a step)
    row j of the weight moves  iff  n_j >= quantile(n, share)

Positions that are padding do not count; passes in training mode with gradients do, a teacher's do not.
The sums lie on the network as `output_sums`, by module, (out,) float32, empty between steps.
"""

from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch import distributed as dist
from transformers.pytorch_utils import Conv1D

from lifelong.numerics.observing import observe

FACTORS = ("lora_A", "lora_B")


def watch(
    network: nn.Module, modules: Mapping[str, nn.Module], active: bool, by_position: bool, factors: bool
) -> None:
    """Sum up the outputs of `modules`, or with `factors` those of their low-rank factors. `by_position`
    divides each position's outputs by their sum.
    """
    sums: dict[str, Tensor] = {}
    network.output_sums, network.counts_outputs = sums, active
    last: dict[str, Tensor] = {}  # what a factor gave in the call that is running
    handles = []

    def add(name: str, output: Tensor, real: Tensor | None) -> None:
        sizes = output.detach().abs().float()
        if by_position:
            sizes = sizes / sizes.sum(-1, keepdim=True).clamp_min(torch.finfo(sizes.dtype).tiny)
        if real is not None:
            sizes = sizes * real.unsqueeze(-1)
        total = sizes.flatten(0, -2).sum(0)
        sums[name] = sums[name] + total if name in sums else total

    def see(name: str, inputs: Tensor, output: Tensor, real: Tensor | None) -> None:
        outputs = dict(last) if factors else {name: output}
        last.clear()
        if network.counts_outputs and network.training and torch.is_grad_enabled():
            for each, values in outputs.items():
                add(each, values, real)

    for name, module in modules.items() if factors else ():
        for factor in FACTORS:
            keep = partial(_keep, last, f"{name}.{factor}")
            handles.append(module.get_submodule(factor).register_forward_hook(keep))
    network.output_hooks = handles + observe(network, modules, see)


def _keep(last: dict[str, Tensor], name: str, module: nn.Module, args: Any, output: Tensor) -> None:
    last[name] = output.detach()


def unwatch(network: nn.Module) -> None:
    for handle in network.output_hooks:
        handle.remove()
    del network.output_hooks, network.output_sums, network.counts_outputs


def restart(network: nn.Module, active: bool) -> None:
    """No sums; from now on they are taken, or not."""
    network.output_sums.clear()
    network.counts_outputs = active


def mask(network: nn.Module, share: float, strict: bool) -> dict[str, Any]:
    """Zero the gradients of rows below the quantile and forget the sums. With `strict` returns these
    rows and their values, for `put_back` once the optimiser has stepped.
    """
    sums, held = network.output_sums, {}
    for name, sizes in sums.items():
        module = network.get_submodule(name)
        if module.weight.grad is None:
            continue
        if dist.is_available() and dist.is_initialized():
            dist.all_reduce(sizes)
        rows = (sizes < torch.quantile(sizes, share)).nonzero()[:, 0]
        _rows(module, module.weight.grad).index_fill_(0, rows, 0.0)
        if strict and len(rows):
            held[name] = {"rows": rows, "values": _rows(module, module.weight.detach())[rows]}
    sums.clear()
    return held


def put_back(network: nn.Module, held: dict[str, Any]) -> None:
    for name, kept in held.items():
        module = network.get_submodule(name)
        _rows(module, module.weight.detach()).index_copy_(0, kept["rows"], kept["values"])


def _rows(module: nn.Module, tensor: Tensor) -> Tensor:
    """View with one row per output unit."""
    return tensor.T if isinstance(module, Conv1D) else tensor
