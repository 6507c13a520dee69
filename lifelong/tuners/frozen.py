"""Nothing of the network moves; only a head, where there is one, is trained.

The floor of every comparison of tuners, and the body under learners in closed form.
"""

from dataclasses import dataclass
from typing import ClassVar

from lifelong.core.axes import LowRank, Tuner
from lifelong.core.model import Model
from lifelong.core.state import State


@dataclass(frozen=True, kw_only=True)
class Frozen(Tuner):
    """Train no weight of the network."""

    paper: ClassVar[str] = "linear probing"
    cost: ClassVar[str] = "none: no gradient passes through the network"
    verified: ClassVar[tuple[str, ...]] = ("no weight of the network changes a bit",)
    keeps_body: ClassVar[bool] = True

    def attach(self, model: Model, state: State | None, seed: int) -> State:
        model.network.requires_grad_(False)
        return {}

    def fold(self, model: Model, state: State) -> None:
        return None

    def low_rank(self, model: Model, state: State) -> dict[str, LowRank]:
        return {}
