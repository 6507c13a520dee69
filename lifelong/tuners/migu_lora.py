"""MIGU on LoRA: of a low-rank pair only the rows with the largest outputs are updated.

    y = W x + (alpha / rank) * B A x
    row j of A moves  iff  n_j >= quantile(n, masked),  n_j = sum over positions of |(A x)_j|, j < rank
    row j of B moves  iff  the same holds of |(B A x)_j|, j < out

Du et al. 2024, arXiv:2406.17245: the second form of the method `migu`, which masks full weights and
explains the rest. The authors' code for it cannot be run: its entry script imports what is not there,
and the mask is asked for under a name that no script gives. So this follows the description. Choices
here: the outputs of B are compared one by one (the authors cluster them, how is not said); where all
outputs are alike, as those of B before its first step, every row moves.
"""

from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

from lifelong.core.axes import Context, LowRank, Tuner
from lifelong.core.model import Model
from lifelong.core.settings import Range
from lifelong.core.state import State
from lifelong.numerics import low_rank, output_masks


@dataclass(frozen=True, kw_only=True)
class MiguLora(Tuner):
    """One low-rank update, of which only what gives the largest outputs moves."""

    paper: ClassVar[str] = "Du et al. 2024, arXiv:2406.17245"
    cost: ClassVar[str] = "as lora; one sum over the outputs of both factors, a copy of masked rows in a step"
    verified: ClassVar[tuple[str, ...]] = (
        "masks are those of the factors' own outputs, pads left out; masked gradients are exactly 0",
        "30 of 100 and 5 of 16 rows move at the paper's setting",
        "masked rows keep every bit under momentum and decay; the published form moves them",
        "masked 0 and the first stage equal lora bit for bit; resumes bit for bit",
    )
    interpolates: ClassVar[bool] = True  # as lora

    rank: Annotated[int, Range(1)] = 8  # columns of B
    alpha: Annotated[float, Range(0, open_low=True)] = 16.0  # update is scaled by alpha / rank
    dropout: Annotated[float, Range(0, 1, open_high=True)] = 0.0  # on the input of A, in training
    targets: tuple[str, ...] = ("all-linear",)  # ends of module names, or "all-linear"
    masked: Annotated[float, Range(0, 1)] = 0.7  # quantile of a factor's outputs below which rows stand still
    first_stage: Annotated[int, Range(0)] = 1  # index of the first stage with masks; 0 is from the start
    normalise: Literal["total", "position"] = "total"  # outputs count as they are, or each position alike
    strict: bool = True  # masked rows do not move at all; False: their gradient is zero, as published

    def attach(self, model: Model, state: State | None, seed: int) -> State:
        """State: {"active": whether this stage has masks}; within an update also the masked rows."""
        network, scale = model.network, self.alpha / self.rank
        modules = low_rank.attach_all(network, self.targets, self.rank, scale, self.dropout, seed)
        active, by_position = bool(state and state["active"]), self.normalise == "position"
        output_masks.watch(network, modules, active, by_position, factors=True)
        return {"active": active}

    def begin_stage(self, context: Context, state: State) -> State:
        active = context.stage >= self.first_stage
        output_masks.restart(context.model.network, active)
        return {"active": active}

    def before_update(self, context: Context, state: State) -> State:
        return {**state, "held": output_masks.mask(context.model.network, self.masked, self.strict)}

    def after_update(self, context: Context, state: State) -> State:
        output_masks.put_back(context.model.network, state["held"])
        return {"active": state["active"]}

    def fold(self, model: Model, state: State) -> None:
        output_masks.unwatch(model.network)
        low_rank.fold_all(model.network, self.low_rank(model, state))

    def low_rank(self, model: Model, state: State) -> dict[str, LowRank]:
        modules = low_rank.select_modules(model.network, self.targets)
        return {
            name: LowRank(m.lora_A.weight.detach(), m.lora_B.weight.detach(), self.alpha / self.rank)
            for name, m in modules.items()
        }
