"""Elastic weight consolidation (EWC), online, with a diagonal Fisher information.

    strength / 2 * sum_i importance_i * (theta_i - anchor_i)^2
    importance <- decay * importance + F,   F_i = mean over examples of (d log p(y|x) / d theta_i)^2

Kirkpatrick et al. 2017, arXiv:1612.00796; one running importance for all stages as in
Schwarz et al. 2018 (arXiv:1805.06370), so that memory does not grow. y is the given label
(`empirical`) or drawn from the model (`true`). Widespread implementations square the gradient of a
batch mean, which shrinks the importance about as the batch grows; here every example's is squared.
A parameter that has grown since is compared on its old rows; a parameter that is new is free.
"""

from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

from torch import Tensor

from lifelong.core.axes import Context, Penalty
from lifelong.core.settings import Range
from lifelong.core.state import State
from lifelong.numerics.anchor import copied, pull
from lifelong.numerics.fisher import diagonal_fisher
from lifelong.numerics.swap import leading


@dataclass(frozen=True, kw_only=True)
class Ewc(Penalty):
    """Hold weights that mattered for earlier stages near their old values."""

    paper: ClassVar[str] = "Kirkpatrick et al. 2017, arXiv:1612.00796; Schwarz et al. 2018, arXiv:1805.06370"
    cost: ClassVar[str] = (
        "two copies of the trainable weights (float32); one pass over num_examples per stage"
    )
    verified: ClassVar[tuple[str, ...]] = (
        "importance equals one backward pass per example, whatever the batch size",
        "value and gradient equal the closed form; exactly 0 at the anchor",
        "with the exact Hessian of a separable quadratic the optimum is that of joint training",
        "strength 0 changes no bit and measures no importance",
    )
    needs_persistent: ClassVar[bool] = True

    strength: Annotated[float, Range(0)] = 1.0  # loss per importance and squared weight, halved; 0 is off
    decay: Annotated[float, Range(0, 1)] = 1.0  # factor on the old importance at the end of a stage
    fisher: Literal["empirical", "true"] = "empirical"  # labels as given, or drawn from the model
    num_examples: Annotated[int, Range(1)] = 512  # rows of the stage that importance is measured on
    batch_size: Annotated[int, Range(1)] = 16  # rows per pass of the measurement; changes nothing but speed

    def init(self, context: Context) -> State:
        return {"anchor": None, "importance": None}

    def loss(self, context: Context, state: State) -> Tensor | None:
        if not self.strength or not state["anchor"]:
            return None
        found = pull(context.params, state["anchor"], state["importance"])
        return None if found is None else self.strength / 2 * found

    def end_stage(self, context: Context, state: State) -> State:
        if not self.strength:
            return state
        importance = diagonal_fisher(context, self.fisher, self.num_examples, self.batch_size, context.seed)
        for name, old in (state["importance"] or {}).items():
            if name in importance:
                block = leading(importance[name], old.shape, name)
                block.add_(old.to(block.device), alpha=self.decay)
        return {"anchor": copied(context.params), "importance": importance}
