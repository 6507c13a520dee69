"""O-LoRA: one low-rank pair per stage, earlier pairs frozen (Wang et al. 2023, arXiv:2310.14152).

    y = W x + s * (B_old A_old + B_new A_new) x        s = alpha / rank

A_old (R x in) and B_old (out x R) hold the pairs of all finished stages one under the other, so R
grows by `rank` per stage. The penalty that keeps A_new orthogonal to A_old is a method of its own,
`orthogonal`; the recipe `o_lora_replay` composes both with a memory.

Differences from the authors' code: the frozen pairs are summed into the weight (from a pristine
copy, in float32, rounded once), so that a step costs the same in stage 50 as in stage 2, and
dropout acts on the new pair only. Export writes one adapter of rank R + rank.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
from torch import Tensor

from lifelong.core.axes import Context, LowRank, Subspace, Tuner
from lifelong.core.model import Model
from lifelong.core.settings import Range
from lifelong.core.state import State
from lifelong.numerics import low_rank


@dataclass(frozen=True, kw_only=True)
class OLora(Tuner):
    """A fresh low-rank pair for every stage, beside the frozen sum of the earlier ones."""

    paper: ClassVar[str] = "Wang et al. 2023, arXiv:2310.14152"
    cost: ClassVar[str] = "rank * (in + out) weights kept per module and stage; step time does not grow"
    verified: ClassVar[tuple[str, ...]] = (
        "the function does not change where a stage begins or ends",
        "earlier pairs keep every bit",
        "export loads as one peft adapter of summed rank with the same logits",
        "resumes bit for bit",
    )
    persistent: ClassVar[bool] = False
    rewrites_base: ClassVar[bool] = True  # the weight holds the sum of finished updates
    has_subspaces: ClassVar[bool] = True
    interpolates: ClassVar[bool] = True
    starts_at_zero: ClassVar[bool] = True

    rank: Annotated[int, Range(1)] = 8  # of the pair of one stage
    alpha: Annotated[float, Range(0, open_low=True)] = 16.0  # update is scaled by alpha / rank
    dropout: Annotated[float, Range(0, 1, open_high=True)] = 0.0  # on the input of the new A
    targets: tuple[str, ...] = ("all-linear",)  # ends of module names, or "all-linear"

    @property
    def scale(self) -> float:
        return self.alpha / self.rank

    def attach(self, model: Model, state: State | None, seed: int) -> State:
        """State: {"past": {module: {"down": (R, in), "up": (out, R), "base": pristine weight}}}."""
        model.network.requires_grad_(False)
        modules = low_rank.select_modules(model.network, self.targets)
        past = {}
        for name, module in modules.items():
            low_rank.attach(module, self.rank, self.scale, self.dropout)
            inside, outside = low_rank.dimensions(module)
            kept = state["past"][name] if state else {}
            device = module.weight.device
            past[name] = {
                "down": kept.get("down", torch.zeros(0, inside)).to(device),
                "up": kept.get("up", torch.zeros(outside, 0)).to(device),
            }
        made = {"past": past}
        self._sum_into_weights(model, made)
        return made

    def begin_stage(self, context: Context, state: State) -> State:
        generator = torch.Generator().manual_seed(context.seed)
        for name in state["past"]:
            low_rank.initialise(context.model.network.get_submodule(name), generator)
        return state

    def end_stage(self, context: Context, state: State) -> State:
        model, past = context.model, {}
        for name, kept in state["past"].items():
            module = model.network.get_submodule(name)
            past[name] = {
                "down": torch.cat([kept["down"], module.lora_A.weight.detach()]),
                "up": torch.cat([kept["up"], module.lora_B.weight.detach()], dim=1),
            }
            with torch.no_grad():
                module.lora_B.weight.zero_()
        self._sum_into_weights(model, {"past": past})
        return {"past": past}

    def fold(self, model: Model, state: State) -> None:
        for name, update in self.low_rank(model, state).items():
            module = model.network.get_submodule(name)
            base = module.pristine_weight
            low_rank.detach(module)
            del module.pristine_weight
            low_rank.add_to_weight(module, update.down, update.up, update.scale, base)

    def low_rank(self, model: Model, state: State) -> dict[str, LowRank]:
        found = {}
        for name, kept in state["past"].items():
            module = model.network.get_submodule(name)
            down, up = module.lora_A.weight.detach(), module.lora_B.weight.detach()
            if up.any():
                down, up = torch.cat([kept["down"], down]), torch.cat([kept["up"], up], dim=1)
            else:
                down, up = kept["down"], kept["up"]
            found[name] = LowRank(down, up, self.scale)
        return found

    def interpolate(
        self, context: Context, state: State, before: Mapping[str, Tensor], ratio: Callable[[str], float]
    ) -> State:
        """The stage's update is scale * B A with a fresh pair, so a share of it is a share of B."""
        with torch.no_grad():
            for name, parameter in context.params.items():
                if name.endswith(".lora_B.weight"):
                    parameter.mul_(ratio(name))
                elif not name.endswith(".lora_A.weight"):
                    parameter.copy_(torch.lerp(before[name].to(parameter.device), parameter, ratio(name)))
        return state

    def subspaces(self, model: Model, state: State) -> dict[str, Subspace]:
        return {
            name: Subspace(kept["down"], model.network.get_submodule(name).lora_A.weight)
            for name, kept in state["past"].items()
        }

    def _sum_into_weights(self, model: Model, state: State) -> None:
        """weight = pristine + scale * B_old A_old; the pristine copy is made at the first call."""
        for name, kept in state["past"].items():
            module = model.network.get_submodule(name)
            if "pristine_weight" not in module.__dict__:
                module.__dict__["pristine_weight"] = module.weight.detach().clone()
            if kept["down"].shape[0]:
                low_rank.add_to_weight(module, kept["down"], kept["up"], self.scale, module.pristine_weight)
