"""A-GEM: no step may raise the loss on the memory, to first order (averaged gradient memory).

    r = gradient of the mean loss of rows drawn from memory,  g = gradient of the step
    g <- g - (g . r) / (r . r) r   where g . r < 0;  else g stays

Chaudhry et al. 2019, arXiv:1812.00420; g and r are taken over all trained weights as one
vector. Nothing else is learned from the memory: its rows enter through r alone. g holds the
gradients of penalties too, so the promise covers the whole step; the optimiser's moments and
clipping come after it, as in the authors' code. Choices here: the memory is uniform over everything
seen (theirs: a ring of equal shares per class), and r is drawn from finished stages alone.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

import torch
from torch import Tensor

from lifelong.core.axes import Params, Replay
from lifelong.core.settings import Range
from lifelong.core.state import State
from lifelong.numerics.reservoir_sampling import offer, sample


@dataclass(frozen=True, kw_only=True)
class AGem(Replay):
    """Take the part out of every step that would raise the loss on remembered rows."""

    paper: ClassVar[str] = "Chaudhry et al. 2019, arXiv:1812.00420"
    cost: ClassVar[str] = "a forward and backward pass over `fraction` more rows per step; one more gradient"
    verified: ClassVar[tuple[str, ...]] = (
        "the corrected gradient is the nearest one with g . r >= 0 (compared with its dual problem)",
        "a step that does not raise the memory's loss is left as it was, bit for bit",
        "fraction 0 or size 0 equals no memory bit for bit",
    )
    joins: ClassVar[bool] = False
    projects: ClassVar[bool] = True

    size: Annotated[int, Range(0)] = 500  # rows kept
    fraction: Annotated[float, Range(0)] = 1.0  # rows of the reference gradient per new row in a step
    keep: Literal["tokens", "text"] = "tokens"  # encoded rows, or the rows as read

    def init(self, seed: int) -> State:
        return {"seed": seed, "seen": 0, "items": []}

    def add(self, state: State, items: Sequence[dict[str, Any]]) -> State:
        """The items list is changed in place."""
        return {**state, "seen": offer(state["items"], items, self.size, state["seed"], state["seen"])}

    def pick(self, state: State, num_rows: int, stage: int, step: int) -> list[dict[str, Any]]:
        """round(fraction * num_rows) distinct items of finished stages, drawn uniformly."""
        eligible = [item for item in state["items"] if item["stage"] != stage]
        return sample(eligible, round(self.fraction * num_rows), state["seed"], stage, step)

    def project(self, params: Params, reference: dict[str, Tensor]) -> None:
        shared = [
            (params[name].grad, value)
            for name, value in reference.items()
            if name in params and params[name].grad is not None
        ]
        if not shared:
            return
        # products of float32 sums in float64: the sign decides
        overlap = sum(torch.dot(g.flatten().double(), r.flatten().double()) for g, r in shared)
        if overlap >= 0:  # waits for the device once per step
            return
        share = overlap / sum(r.double().square().sum() for r in reference.values())
        for name, value in reference.items():
            if name not in params:
                continue
            correction = value * (-share).to(value.dtype)
            if params[name].grad is None:
                params[name].grad = correction
            else:
                params[name].grad.add_(correction)
