"""LoRAMoE: several low-rank experts per linear module, weighted by a router (arXiv:2312.09979).

    y = W x + alpha / rank * sum_e p_e(x) B_e A_e x        p = softmax(G x), per token, dense

Localised balancing: the experts are two halves, and every row belongs to one of two types,
here by the stage that it came from. With Q_{s,e} = sum over tokens of p_e, and I_{s,e} = 1 + delta where
the half of e is that of the type of s, else 1 - delta,

    balance * sum over modules of Var(I Q) / Mean(I Q)        unbiased, over rows and experts

The published code divides by the squared mean, which does not depend on the length of rows; both are
offered. It ships with balance = delta = 0; the paper's values are the defaults here. Pads are not
counted in Q (there they are), and an odd number of experts is refused. Note that the term is least
where I Q is even: taken literally, as here, it lets a row use the half of its own type less. The paper
places experts in feed-forward layers; give their names as `targets`, such as gate_proj, up_proj,
down_proj.
"""

from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from lifelong.core.axes import IGNORED, Context, Tuner
from lifelong.core.model import Model
from lifelong.core.settings import Range
from lifelong.core.state import State
from lifelong.errors import UserError
from lifelong.numerics import low_rank, routing


@dataclass(frozen=True, kw_only=True)
class Loramoe(Tuner):
    """Low-rank experts under a softmax router, balanced within two groups of stages."""

    paper: ClassVar[str] = "Dou et al. 2024, arXiv:2312.09979"
    cost: ClassVar[str] = "experts * rank * (in + out) + experts * in weights per module, in all"
    verified: ClassVar[tuple[str, ...]] = (
        "starts as the base; equals the explicit sum over experts",
        "balance equals the formula; it is 0 for even gates and delta 0",
        "pads change neither balance nor output",
        "exports to a base with experts beside it that gives the same logits; resumes bit for bit",
    )
    folds: ClassVar[bool] = False
    needs_outputs: ClassVar[bool] = True

    experts: Annotated[int, Range(2)] = 6  # per module; even, since they form two halves
    rank: Annotated[int, Range(1)] = 4  # of an expert
    alpha: Annotated[float, Range(0, open_low=True)] = 32.0  # update is scaled by alpha / rank
    dropout: Annotated[float, Range(0, 1, open_high=True)] = 0.05  # on the input of the experts
    balance: Annotated[float, Range(0)] = 0.1  # weight of the balancing term; 0 is off
    delta: Annotated[float, Range(0, 1)] = 0.1  # how much more a row should use the half of its type
    dispersion: Literal["mean", "squared_mean"] = "mean"  # what the variance is divided by: paper, code
    first_half: tuple[int, ...] = (0,)  # stages, from 0, whose rows belong to the first half
    targets: tuple[str, ...] = ("all-linear",)  # ends of module names, or "all-linear"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.experts % 2:
            raise UserError(f"Loramoe.experts must be even, for two halves; got {self.experts}.")

    def attach(self, model: Model, state: State | None, seed: int) -> State:
        network, generator = model.network, torch.Generator().manual_seed(seed)
        trace = routing.watch(network)
        network.requires_grad_(False)
        for name, module in low_rank.select_modules(network, self.targets).items():
            inside, outside = low_rank.dimensions(module)
            device = module.weight.device
            none = torch.zeros(0, inside, device=device), torch.zeros(outside, 0, device=device)
            pool = routing.Pool(name, *none, self.alpha / self.rank, self.dropout, self._mix, trace)
            routing.put_beside(module, pool)
            pool.open(routing.uniform(self.experts * self.rank, inside, generator))
            pool.router = nn.Parameter(routing.uniform(self.experts, inside, generator).to(device))
        return {}

    def loss(self, context: Context, state: State) -> Tensor | None:
        """Balance of the forward pass that has just been made, in training."""
        if not self.balance or not context.tasks:
            return None
        total = torch.zeros((), device=context.model.device)
        types = torch.tensor([task in self.first_half for task in context.tasks], device=total.device)
        for gates, place in routing.trace_of(context.model.network).seen.values():
            mask = place.mask
            if place.decodes:
                mask = context.batch["labels"] != IGNORED
            total = total + imbalance(gates, mask, types, self.delta, self.dispersion)
        return self.balance * total

    def fold(self, model: Model, state: State) -> None:
        return None

    def _mix(self, pool: routing.Pool, inputs: Tensor, activations: Tensor, place: routing.Place) -> Tensor:
        gates = functional.linear(inputs, pool.router).float().softmax(-1)  # (..., experts)
        if pool.training and torch.is_grad_enabled():
            pool.trace.seen[pool.name] = (gates, place)
        return activations * gates.repeat_interleave(self.rank, dim=-1)


def imbalance(gates: Tensor, mask: Tensor | None, first: Tensor, delta: float, dispersion: str) -> Tensor:
    """Dispersion of how much each row uses each expert. `gates` (B, L, E) or (B, E), `mask` (B, L),
    `first` (B,): does the row belong to the first half?
    """
    if mask is not None:
        gates = gates * mask.unsqueeze(-1)
    use = gates.sum(1) if gates.dim() == 3 else gates  # (B, E)
    in_first = torch.arange(use.shape[1], device=use.device) < use.shape[1] // 2
    wanted = torch.where(in_first == first[:, None], 1 + delta, 1 - delta)
    use = wanted * use
    mean = use.mean()
    return use.var() / (mean + 1e-10 if dispersion == "mean" else mean**2 + 1e-10)
