"""Maestro: weights factorised in full, trained by sampled widths so that columns fall into order.

    y = U[:, :b] V[:, :b]^T x        k = min(in, out) columns; U = P sqrt(S), V = Q sqrt(S) of W = P S Q^T
    term = shrink * sum over modules and i of |U[:, i:]| + |V[:, i:]|      hierarchical group lasso

Horvath et al. 2023, arXiv:2308.14929. Every step draws one pair (module, width b) among
all there are; that module uses its first b columns, all others use theirs in full. So the first b
columns learn to do without the rest: on a linear problem they become the best approximation of rank
b (SVD; on the identity map PCA). Columns from i on matter by |U[:, i:]| * |V[:, i:]|, a bound on
what dropping them changes in W; where that falls below `prune` they are dropped for good, every
`interval` steps and at the end of a stage. In evaluation a module uses all the columns it has left.

The weight itself is set to 0 and the product added to it, so biases, norms and embeddings stay as
they are (the authors train them too). Differences: pairs are drawn independently (theirs come in
shuffled rounds); pruned columns are kept as dead numbers, so that penalties on weights still know
every parameter; pruning always goes by what a whole tail holds, so that what remains is a prefix.
"""

from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
from torch import Tensor

from lifelong.core.axes import Context, Tuner
from lifelong.core.model import Model
from lifelong.core.settings import Range
from lifelong.core.state import State
from lifelong.numerics import factorised, low_rank


@dataclass(frozen=True, kw_only=True)
class Maestro(Tuner):
    """Factorised weights whose columns order themselves by importance and shrink."""

    paper: ClassVar[str] = "Horvath et al. 2023, arXiv:2308.14929"
    cost: ClassVar[str] = (
        "k (in + out) weights per module with their optimiser state; about two products for one"
    )
    verified: ClassVar[tuple[str, ...]] = (
        "recovers the SVD of a linear map: singular values as importances, best approximations as prefixes",
        "pruning changes no weight matrix by more than the threshold; without sampling no order comes about",
        "attaching keeps the function up to rounding; folds to a plain model; resumes bit for bit",
    )
    trains_base: ClassVar[bool] = True

    shrink: Annotated[float, Range(0)] = 1e-6  # lambda: weight of the group lasso; 0 is off
    prune: Annotated[float, Range(0)] = 1e-5  # importance below which a tail of columns is dropped
    interval: Annotated[int, Range(1)] = 100  # steps between prunings
    sample: bool = True  # draw widths; else every step uses all columns
    targets: tuple[str, ...] = ("all-linear",)  # ends of module names, or "all-linear"

    def attach(self, model: Model, state: State | None, seed: int) -> State:
        """State: {"kept": {module: columns}, "drawn": None or [module, width] of the coming step}."""
        model.network.requires_grad_(False)
        kept = {}
        for name, module in low_rank.select_modules(model.network, self.targets).items():
            kept[name] = factorised.attach(module, fresh=state is None)
        made = state or {"kept": kept, "drawn": None}
        _apply(model, made)
        return {"kept": dict(made["kept"]), "drawn": made["drawn"]}

    def begin_stage(self, context: Context, state: State) -> State:
        return self._drawn(context, state, step=0)

    def loss(self, context: Context, state: State) -> Tensor | None:
        if not self.shrink:
            return None
        tails = [
            torch.cat(factorised.tails(context.model.network.get_submodule(name), kept)).sum()
            for name, kept in state["kept"].items()
        ]
        return self.shrink * torch.stack(tails).sum()

    def after_update(self, context: Context, state: State) -> State:
        if (context.step + 1) % self.interval == 0:
            state = self._pruned(context.model, state)
        return self._drawn(context, state, context.step + 1)

    def end_stage(self, context: Context, state: State) -> State:
        state = {**self._pruned(context.model, state), "drawn": None}
        _apply(context.model, state)
        return state

    def fold(self, model: Model, state: State) -> None:
        for name, kept in state["kept"].items():
            module = model.network.get_submodule(name)
            down, up = module.lora_A.weight.detach()[:kept], module.lora_B.weight.detach()[:, :kept]
            factorised.detach(module)
            low_rank.add_to_weight(module, down, up, 1.0)

    def _drawn(self, context: Context, state: State, step: int) -> State:
        """Width of the step to come, uniform over all pairs of a module and one of its widths."""
        total, state = sum(state["kept"].values()), {**state, "drawn": None}
        if self.sample and total:
            generator = torch.Generator().manual_seed((context.seed + 1_000_003 * step) % 2**63)
            place = int(torch.randint(total, (), generator=generator))
            for name, kept in state["kept"].items():
                if place < kept:
                    state = {**state, "drawn": [name, place + 1]}
                    break
                place -= kept
        _apply(context.model, state)
        return state

    def _pruned(self, model: Model, state: State) -> State:
        kept = {}
        for name, columns in state["kept"].items():
            down, up = factorised.tails(model.network.get_submodule(name), columns)
            kept[name] = int((down.detach() * up.detach() >= self.prune).sum())  # tails only shrink
        return {**state, "kept": kept}


def _apply(model: Model, state: State) -> None:
    """Widths of every module, as the state has them."""
    drawn, width = state["drawn"] or (None, 0)
    for name, kept in state["kept"].items():
        module = model.network.get_submodule(name)
        module.lora_kept = kept
        module.lora_width = width if name == drawn else kept
