"""TriAdaptLoRA: a low-rank update with a triangular core, whose rank grows where it matters.

    y = W x + scale(R) * B (L + U) A x      L, U: R x R, lower and upper block-triangular

Liang et al. 2025, arXiv:2501.08008. A module grows by `growth`: rows of A, columns of B, and one
more row block of L and column block of U, so that diagonal blocks receive both. Every `interval`
steps after `warmup`, the change of |L + U|_F / number of blocks since the last time is a module's
importance, and modules at least as important as the k-th largest grow, with
    linear: k = int(room * m)    exponential: k = int(exp(m * ln room))    at least 1
room = rank * modules - ranks so far, m = share of the remaining stage that has passed. There is one
budget for all stages: once the mean rank is `rank` nothing grows, so cost does not rise with tasks.

Differences. scale: `fixed` is alpha / rank, with which growth leaves the function as it is; `own` is
the published alpha / (R + 1e-5), which shrinks the whole update by R_old / R_new at every growth. A and
B are drawn from N(0, 0.02^2) for every block and the core starts at 0: with A alone drawn, as the
authors' code is catalogued, every gradient is 0. Warm-up is a share of the stage, not a number of
steps. The orthogonality term is strength * mean over all A and B of |Gram - I|_F.
"""

import math
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

import torch
from torch import Tensor

from lifelong.core.axes import Context, LowRank, Tuner
from lifelong.core.model import Model
from lifelong.core.settings import Range
from lifelong.core.state import State
from lifelong.numerics import low_rank, triangular


@dataclass(frozen=True, kw_only=True)
class Triadaptlora(Tuner):
    """A low-rank update with a triangular core that grows by importance, up to a budget."""

    paper: ClassVar[str] = "Liang et al. 2025, arXiv:2501.08008"
    cost: ClassVar[str] = "R (in + out) + 2 R^2 weights per module; one norm per module and interval"
    verified: ClassVar[tuple[str, ...]] = (
        "growth leaves the function as it is (fixed), or shrinks the update by R_old / R_new (own)",
        "the most important modules grow; the budget is exceeded by no more than one round",
        "the core equals its blocks written out; export loads as a peft adapter; resumes bit for bit",
    )
    grows: ClassVar[bool] = True

    rank: Annotated[int, Range(1)] = 8  # mean rank of a module when the budget is spent
    growth: Annotated[int, Range(1)] = 4  # rank of the first block and of each further one; half of `rank`
    alpha: Annotated[float, Range(0, open_low=True)] = 16.0  # of the scale
    scaling: Literal["fixed", "own"] = "fixed"  # alpha / rank, or as published alpha / the own rank
    dropout: Annotated[float, Range(0, 1, open_high=True)] = 0.0  # on the input of A, in training
    targets: tuple[str, ...] = ("all-linear",)  # ends of module names, or "all-linear"
    interval: Annotated[int, Range(1)] = 20  # steps between growths
    warmup: Annotated[float, Range(0, 1, open_high=True)] = 0.1  # share of a stage before the first growth
    threshold: Literal["linear", "exponential"] = "linear"  # how the number of growing modules rises
    strength: Annotated[float, Range(0)] = 0.5  # of the orthogonality term; 0 is off

    def scale(self, rank: int) -> float:
        return self.alpha / (self.rank if self.scaling == "fixed" else rank + 1e-5)

    def attach(self, model: Model, state: State | None, seed: int) -> State:
        """State: {"ranks": {module: R}, "norms": {module: normalised norm when last measured}}."""
        model.network.requires_grad_(False)
        generator = torch.Generator().manual_seed(seed)
        modules = low_rank.select_modules(model.network, self.targets)
        ranks = state["ranks"] if state else {name: self.growth for name in modules}
        for name, module in modules.items():
            triangular.attach(module, ranks[name], self.growth, self.scale, self.dropout, generator)
        return {"ranks": dict(ranks), "norms": state["norms"] if state else {name: 0.0 for name in modules}}

    def loss(self, context: Context, state: State) -> Tensor | None:
        if not self.strength:
            return None
        alike: dict[int, list[Tensor]] = {}  # Gram matrices by size: one call for many small ones
        for name in state["ranks"]:
            module = context.model.network.get_submodule(name)
            for factor in (module.lora_A.weight, module.lora_B.weight.T):
                alike.setdefault(len(factor), []).append(factor @ factor.T)
        gaps = [
            torch.linalg.matrix_norm(torch.stack(grams) - torch.eye(size, device=grams[0].device))
            for size, grams in alike.items()
        ]
        return self.strength * torch.cat(gaps).mean()

    def after_update(self, context: Context, state: State) -> State:
        done, total = context.step + 1, context.num_steps
        begin = self.warmup * total
        room = self.rank * len(state["ranks"]) - sum(state["ranks"].values())
        if room <= 0 or done % self.interval or not begin < done < total:
            return state
        modules = {name: context.model.network.get_submodule(name) for name in state["ranks"]}
        norms = {name: float(triangular.core(m).detach().norm()) / (state["ranks"][name] // self.growth)
                 for name, m in modules.items()}  # fmt: skip
        limits = {name: min(low_rank.dimensions(module)) for name, module in modules.items()}
        able = [name for name, rank in state["ranks"].items() if rank + self.growth <= limits[name]]
        importance = {name: norms[name] - state["norms"][name] for name in able}
        if not able:
            return state
        number = min(self.number(room, (done - begin) / (total - begin)), len(able))
        least = sorted(importance.values(), reverse=True)[number - 1]
        ranks, generator = dict(state["ranks"]), torch.Generator()
        generator.manual_seed((context.seed + 1_000_003 * done) % 2**63)
        for name in able:
            if importance[name] >= least:
                ranks[name] += self.growth
                triangular.grow(modules[name], ranks[name], generator)
        return {"ranks": ranks, "norms": norms}

    def number(self, room: int, passed: float) -> int:
        """Modules that grow, at least: `room` ranks are left, and the share `passed` of the stage is over."""
        if self.threshold == "linear":
            return max(int(room * passed), 1)
        return max(int(math.exp(passed * math.log(room))), 1)

    def fold(self, model: Model, state: State) -> None:
        for name, update in self.low_rank(model, state).items():
            module = model.network.get_submodule(name)
            triangular.detach(module)
            low_rank.add_to_weight(module, update.down, update.up, update.scale)

    def low_rank(self, model: Model, state: State) -> dict[str, LowRank]:
        found = {}
        for name, rank in state["ranks"].items():
            module = model.network.get_submodule(name)
            up = module.lora_B.weight.detach() @ triangular.core(module).detach()
            found[name] = LowRank(module.lora_A.weight.detach(), up, self.scale(rank))
        return found
