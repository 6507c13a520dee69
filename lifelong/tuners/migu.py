"""MIGU: of every linear layer only the rows with the largest outputs are updated.

    n_j = sum over positions of |h_j|,   h = W x + b   (accumulated over the passes of a step)
    row j of W moves  iff  n_j >= quantile(n, masked)

Du et al. 2024, arXiv:2406.17245, section 3.2: the magnitudes normalised to sum 1 decide; the sum is
one number per layer and so changes no rank, unless every position is normalised by itself
(`normalise: position`). Biases, embeddings, norms and heads always move. The first stage is trained
in full. The authors' code zeroes gradients and leaves the rest to AdamW, which goes on to move masked
rows by momentum and decay; here they stand still (`strict`), and False gives the published form.

Choices here: positions that are padding do not count (the authors' count); forward passes in
training mode with gradients count, replayed rows included, a teacher's do not; output heads are not
masked. The paper's second form, masks on the factors of LoRA, is left out: its code cannot be run
and the text leaves open how the outputs of B are clustered.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

import torch
from torch import Tensor, nn
from torch import distributed as dist
from transformers.pytorch_utils import Conv1D

from lifelong.core.axes import Context, Tuner
from lifelong.core.model import Model
from lifelong.core.settings import Range
from lifelong.core.state import State
from lifelong.numerics.interpolation import interpolate
from lifelong.numerics.low_rank import linear_modules
from lifelong.numerics.observing import observe


@dataclass(frozen=True, kw_only=True)
class Migu(Tuner):
    """Update only the weights whose outputs are largest on the step's rows."""

    paper: ClassVar[str] = "Du et al. 2024, arXiv:2406.17245"
    cost: ClassVar[str] = (
        "as full fine-tuning; one sum over the outputs of linear layers, a copy of masked rows in a step"
    )
    verified: ClassVar[tuple[str, ...]] = (
        "magnitudes equal those of each row alone without padding",
        "30 of 100 and 5 of 16 rows move at the paper's setting",
        "masked rows keep every bit under momentum and decay; the published form moves them",
        "masked 0 equals full fine-tuning bit for bit",
    )
    trains_base: ClassVar[bool] = True
    interpolates: ClassVar[bool] = True

    masked: Annotated[float, Range(0, 1)] = 0.7  # quantile of a layer's outputs below which rows stand still
    first_stage: Annotated[int, Range(0)] = 1  # index of the first stage with masks; 0 is from the start
    normalise: Literal["total", "position"] = "total"  # outputs count as they are, or each position alike
    strict: bool = True  # masked rows do not move at all; False: their gradient is zero, as published

    def attach(self, model: Model, state: State | None, seed: int) -> State:
        """State: {"active": whether this stage has masks}; within an update also the masked rows."""
        network = model.network
        for parameter in network.parameters():
            parameter.requires_grad_(parameter.is_floating_point())
        network.output_sums = {}  # by module, (out,) float32; empty between steps
        self._watch(network, bool(state and state["active"]))
        return {"active": network.counts_outputs}

    def begin_stage(self, context: Context, state: State) -> State:
        network = context.model.network
        network.output_sums.clear()
        network.counts_outputs = context.stage >= self.first_stage
        return {"active": network.counts_outputs}

    def before_update(self, context: Context, state: State) -> State:
        """Zero the gradients of masked rows; keep their values until the optimiser has stepped."""
        sums, held = context.model.network.output_sums, {}
        for name, sizes in sums.items():
            module = context.model.network.get_submodule(name)
            if module.weight.grad is None:
                continue
            if dist.is_available() and dist.is_initialized():
                dist.all_reduce(sizes)
            rows = (sizes < torch.quantile(sizes, self.masked)).nonzero()[:, 0]
            _rows(module, module.weight.grad).index_fill_(0, rows, 0.0)
            if self.strict and len(rows):
                held[name] = {"rows": rows, "values": _rows(module, module.weight.detach())[rows]}
        sums.clear()
        return {**state, "held": held}

    def after_update(self, context: Context, state: State) -> State:
        for name, kept in state["held"].items():
            module = context.model.network.get_submodule(name)
            _rows(module, module.weight.detach()).index_copy_(0, kept["rows"], kept["values"])
        return {"active": state["active"]}

    def fold(self, model: Model, state: State) -> None:
        network = model.network
        for handle in network.output_hooks:
            handle.remove()
        del network.output_hooks, network.output_sums, network.counts_outputs

    def interpolate(
        self, context: Context, state: State, before: Mapping[str, Tensor], ratio: Callable[[str], float]
    ) -> State:
        interpolate(context.params, before, ratio)
        return state

    def _watch(self, network: nn.Module, active: bool) -> None:
        sums: dict[str, Tensor] = network.output_sums
        network.counts_outputs = active

        def count(name: str, inputs: Tensor, output: Tensor, real: Tensor | None) -> None:
            if not (network.counts_outputs and network.training and torch.is_grad_enabled()):
                return
            sizes = output.detach().abs().float()
            if self.normalise == "position":
                sizes = sizes / sizes.sum(-1, keepdim=True).clamp_min(torch.finfo(sizes.dtype).tiny)
            if real is not None:
                sizes = sizes * real.unsqueeze(-1)
            total = sizes.flatten(0, -2).sum(0)
            sums[name] = sums[name] + total if name in sums else total

        network.output_hooks = observe(network, linear_modules(network), count)


def _rows(module: nn.Module, tensor: Tensor) -> Tensor:
    """View with one row per output unit."""
    return tensor.T if isinstance(module, Conv1D) else tensor
