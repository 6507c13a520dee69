"""Full fine-tuning: every floating-point weight moves (or those that match `targets`).

The update lives in the weights themselves; there is nothing to fold.
"""

from dataclasses import dataclass
from typing import ClassVar

from lifelong.core.axes import Tuner
from lifelong.core.model import Model
from lifelong.core.state import State
from lifelong.errors import UserError


@dataclass(frozen=True, kw_only=True)
class Full(Tuner):
    """Train all weights."""

    paper: ClassVar[str] = "plain fine-tuning"
    cost: ClassVar[str] = "optimiser state for every weight (8 bytes each); a full checkpoint per stage"
    verified: ClassVar[tuple[str, ...]] = (
        "one stage equals a plain PyTorch loop bit for bit",
        "resumes bit for bit",
    )

    trains_base: ClassVar[bool] = True
    interpolates: ClassVar[bool] = True

    targets: tuple[str, ...] = ("",)  # parts of parameter names that are trained; "" is in every name

    def attach(self, model: Model, state: State | None, seed: int) -> State:
        chosen = 0
        for name, parameter in model.network.named_parameters():
            wanted = any(target in name for target in self.targets)
            parameter.requires_grad_(wanted and parameter.is_floating_point())
            chosen += parameter.requires_grad
        if not chosen:
            raise UserError(f"Full.targets must match a parameter name; {list(self.targets)} matches none.")
        return {}

    def fold(self, model: Model, state: State) -> None:
        return None
