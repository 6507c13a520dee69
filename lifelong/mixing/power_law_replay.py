"""Power-law rehearsal: the chance to meet a task again falls as a power of its age.

    p_i proportional to (1 + d_i / d_0)^-alpha,   d_i = age of stage i, 0 for the one in training

(arXiv:2401.10393; the abstract gives the law, not the details.) One law covers old and new: with
alpha = 0 all stages so far are met equally often, and as alpha grows training becomes sequential.
Ages count stages, or optimiser steps since the stage ended.

Open choices: the age runs from the end of the stage's own training, not from its last rehearsal,
so that the share of a stage does not depend on luck; rows are the whole past, not a memory (for a
memory take a method of that axis).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

from lifelong.core.axes import Context, Mixing
from lifelong.core.settings import Range
from lifelong.core.state import State


@dataclass(frozen=True, kw_only=True)
class PowerLawReplay(Mixing):
    """Rehearse each earlier stage with a chance that falls as a power of its age."""

    paper: ClassVar[str] = "Power-law learning environments 2024, arXiv:2401.10393"
    cost: ClassVar[str] = "none per step: old rows take the places of new ones; all old rows at hand"
    verified: ClassVar[tuple[str, ...]] = (
        "drawn frequencies follow the law (chi-square)",
        "alpha 0 is uniform over all stages so far; a large alpha equals plain training bit for bit",
        "ages in steps grow with every step and stage, also after a resume",
    )

    alpha: Annotated[float, Range(0)] = 1.0  # exponent; 0 is uniform
    scale: Annotated[float, Range(0, open_low=True)] = 1.0  # d_0, in the unit of the age
    unit: Literal["stages", "steps"] = "stages"  # what ages count

    def init(self, context: Context) -> State:
        return {"steps": []}  # made in each finished stage

    def proportions(self, context: Context, state: State, num_parts: int) -> Sequence[float]:
        ages = [float(num_parts - 1 - i) for i in range(num_parts)]
        if self.unit == "steps":
            since = [context.step + sum(state["steps"][i + 1 :]) for i in range(len(state["steps"]))]
            ages = [*since, *[0] * num_parts][:num_parts]
        weights = [(1 + age / self.scale) ** -self.alpha for age in ages]
        total = sum(weights)
        return [weight / total for weight in weights]

    def end_stage(self, context: Context, state: State) -> State:
        return {**state, "steps": [*state["steps"], context.step]}
