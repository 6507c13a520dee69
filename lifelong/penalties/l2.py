"""L2: pull every trainable weight towards where it was when the last stage ended.

    strength / 2 * sum_i (theta_i - anchor_i)^2

The uniform-importance case of elastic weight consolidation (Kirkpatrick et al. 2017,
arXiv:1612.00796, with F = 1); with pretraining it holds the past far better than without
(Smith et al. 2023, arXiv:2203.17269). A parameter that has grown since (a head that met new labels)
is compared on its old rows; a parameter that is new is free.
"""

from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

from torch import Tensor

from lifelong.core.axes import Context, Penalty
from lifelong.core.settings import Range
from lifelong.core.state import State
from lifelong.numerics.anchor import copied, pull


@dataclass(frozen=True, kw_only=True)
class L2(Penalty):
    """Hold all weights near those of the last stage."""

    paper: ClassVar[str] = "Smith et al. 2023, arXiv:2203.17269"
    cost: ClassVar[str] = "one copy of the trainable weights; one pass over them per step"
    verified: ClassVar[tuple[str, ...]] = (
        "value and gradient equal the closed form; exactly 0 at the anchor",
        "strength 0 changes no bit; the anchor shares no memory with the weights",
        "the minimum on a quadratic loss is the weighted mean of optimum and anchor",
    )
    needs_persistent: ClassVar[bool] = True

    strength: Annotated[float, Range(0)] = 1.0  # loss per squared weight, halved; 0 is off
    anchor: Literal["last", "initial"] = "last"  # weights at the end of the last stage, or before all stages

    def init(self, context: Context) -> State:
        return {"anchor": self._copied(context) if self.anchor == "initial" else None}

    def begin_stage(self, context: Context, state: State) -> State:
        if self.anchor == "initial" and self.strength:
            known = state["anchor"] or {}
            return {"anchor": self._copied(context) | known}  # those born since are added
        return state

    def loss(self, context: Context, state: State) -> Tensor | None:
        if not self.strength or not state["anchor"]:
            return None
        found = pull(context.params, state["anchor"])
        return None if found is None else self.strength / 2 * found

    def end_stage(self, context: Context, state: State) -> State:
        return {"anchor": self._copied(context)} if self.anchor == "last" else state

    def _copied(self, context: Context) -> dict[str, Tensor] | None:
        if not self.strength:
            return None
        return copied(context.params)
