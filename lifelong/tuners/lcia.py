"""LCIA: LoRA whose weights follow training with a balance weight that is solved at every step.

    average <- (1 - a) * average + a * theta
    a = factor * (1 + |g|) / (|theta - average| * |g - g_before|)    if in (0, 1), else fallback

Qiao et al. 2025, arXiv:2410.10868, in the form of the authors' code; |.| is the sum of absolute
values over one parameter tensor, g its gradient at this step (as clipped) and g_before at the last
one, so that their difference stands for the curvature of the Taylor expansion behind the rule. The
derivation has factor 1, the code 2. At the end of a stage theta <- average; the model answers with
the average throughout. The first stage, which has nothing to keep, is trained plainly.

The denominator is 0 where nothing moved, and the first step of a stage has no gradient before it:
both take `fallback`. (Under engines that free gradients early the authors' code takes it for ever,
unseen; here gradients are always there.) Not part of this method: to choose among several groups of
parameters by the likeness of instructions; here all stages use one group. Every trained parameter
is averaged, a head included; rows that a head has grown start from where they are.
"""

from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
from torch import Tensor

from lifelong.core.axes import Context, LowRank, Tuner
from lifelong.core.model import Model
from lifelong.core.settings import Range
from lifelong.core.state import State
from lifelong.numerics import low_rank
from lifelong.numerics.swap import swapped


@dataclass(frozen=True, kw_only=True)
class Lcia(Tuner):
    """LoRA that ends every stage at a moving average, balanced by the gradients."""

    paper: ClassVar[str] = "Qiao et al. 2025, arXiv:2410.10868"
    cost: ClassVar[str] = "two copies of the trainable weights; a few norms per parameter and step"
    verified: ClassVar[tuple[str, ...]] = (
        "the balance weight equals the closed form; the fallback holds where it has no solution in (0, 1)",
        "constant weights are a fixed point, bit for bit; every stage ends at the average",
        "the first stage is plain LoRA bit for bit; resumes bit for bit",
    )

    rank: Annotated[int, Range(1)] = 128  # columns of B
    alpha: Annotated[float, Range(0, open_low=True)] = 256.0  # update is scaled by alpha / rank
    dropout: Annotated[float, Range(0, 1, open_high=True)] = 0.0  # on the input of A, in training
    targets: tuple[str, ...] = ("all-linear",)  # ends of module names, or "all-linear"
    factor: Annotated[float, Range(0, open_low=True)] = 2.0  # of the solved weight; 1 as derived
    fallback: Annotated[float, Range(0, 1)] = 0.01  # weight where the solution is not inside (0, 1)
    first: bool = False  # average in the first stage too

    @property
    def scale(self) -> float:
        return self.alpha / self.rank

    def attach(self, model: Model, state: State | None, seed: int) -> State:
        """State: {"average": {name: tensor}, "gradient": {name: of the last step}}, empty between stages."""
        low_rank.attach_all(model.network, self.targets, self.rank, self.scale, self.dropout, seed)
        kept = state or {"average": {}, "gradient": {}}
        return {part: {n: t.to(model.device) for n, t in tensors.items()} for part, tensors in kept.items()}

    def before_update(self, context: Context, state: State) -> State:
        """The average of a stage begins where the weights are before its first step."""
        if state["average"] or not (context.stage or self.first):
            return state
        return {**state, "average": {name: p.detach().clone() for name, p in context.params.items()}}

    def after_update(self, context: Context, state: State) -> State:
        """The tensors of `average` are changed in place."""
        if not state["average"]:
            return state
        gradients = {}
        with torch.no_grad():
            for name, average in state["average"].items():
                parameter = context.params[name]
                if parameter.grad is not None:
                    gradients[name] = parameter.grad.detach().clone()
                weight = self._weight(parameter, average, gradients.get(name), state["gradient"].get(name))
                average.copy_(torch.lerp(average, parameter, weight))
        return {"average": state["average"], "gradient": gradients}

    def end_stage(self, context: Context, state: State) -> State:
        with torch.no_grad():
            for name, average in state["average"].items():
                context.params[name].copy_(average)
        return {"average": {}, "gradient": {}}

    def serving(self, model: Model, state: State) -> AbstractContextManager[None]:
        return swapped(model.params(), state["average"])

    def fold(self, model: Model, state: State) -> None:
        with torch.no_grad():
            for name, average in state["average"].items():
                model.network.get_parameter(name).copy_(average)
        low_rank.fold_all(model.network, self.low_rank(model, {"average": {}}))

    def low_rank(self, model: Model, state: State) -> dict[str, LowRank]:
        found, average = {}, state["average"]
        for name, module in low_rank.select_modules(model.network, self.targets).items():
            down = average.get(f"{name}.lora_A.weight", module.lora_A.weight.detach())
            up = average.get(f"{name}.lora_B.weight", module.lora_B.weight.detach())
            found[name] = LowRank(down, up, self.scale)
        return found

    def _weight(
        self, theta: Tensor, average: Tensor, gradient: Tensor | None, before: Tensor | None
    ) -> Tensor:
        """Scalar in [0, 1] on the device, without waiting for it."""
        fallback = torch.full((), self.fallback, dtype=theta.dtype, device=theta.device)
        if gradient is None or before is None:
            return fallback
        drift = (theta - average).abs().sum()
        curvature = (gradient - before).abs().sum()
        solved = self.factor * (1 + gradient.abs().sum()) / (drift * curvature)
        return torch.where((solved > 0) & (solved < 1), solved, fallback)
