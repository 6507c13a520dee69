"""Reservoir sampling: a memory of fixed size, uniform over everything seen (Vitter 1985, algorithm R).

The k-th row offered (from 1) enters with probability size / k and takes a uniform place:
    j ~ Uniform{0, ..., k - 1};  k <= size: append;  else replace item j if j < size.
Every row seen so far is then in memory with probability size / k, in mid-stream as well.

Draws are a function of (seed, k) and of (seed, stage, step): the state is the items and one
counter, and a resumed run goes on exactly. (Two peers lose the counter or draw from k - 2.)
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

from lifelong.core.axes import Replay
from lifelong.core.settings import Range
from lifelong.core.state import State
from lifelong.numerics.reservoir_sampling import offer, sample


@dataclass(frozen=True, kw_only=True)
class Reservoir(Replay):
    """Replay from a small memory that is uniform over everything seen."""

    paper: ClassVar[str] = "Vitter 1985, doi:10.1145/3147.3165"
    cost: ClassVar[str] = "fraction more rows per step; `size` rows in memory, whatever the number of stages"
    verified: ClassVar[tuple[str, ...]] = (
        "inclusion is uniform over the stream (chi-square), before and after a resume or an erasure",
        "fraction 0 or size 0 equals no memory bit for bit",
        "resumes bit for bit",
    )

    size: Annotated[int, Range(0)] = 500  # rows kept
    fraction: Annotated[float, Range(0)] = 0.5  # replayed rows per new row in a step
    keep: Literal["tokens", "text"] = "tokens"  # encoded rows, or the rows as read
    current: bool = False  # may rows of the stage in training be replayed?

    def init(self, seed: int) -> State:
        return {"seed": seed, "seen": 0, "items": []}

    def add(self, state: State, items: Sequence[dict[str, Any]]) -> State:
        """The items list is changed in place."""
        return {**state, "seen": offer(state["items"], items, self.size, state["seed"], state["seen"])}

    def pick(self, state: State, num_rows: int, stage: int, step: int) -> list[dict[str, Any]]:
        """round(fraction * num_rows) distinct items (all there are, if fewer), drawn uniformly."""
        eligible = [item for item in state["items"] if self.current or item["stage"] != stage]
        return sample(eligible, round(self.fraction * num_rows), state["seed"], stage, step)
