"""Skill-It: draw more from skills that help where the loss is still high (Chen et al. 2023).

    first round:   p_i proportional to exp(eta * sum_j A_ij)
    then:          p_i proportional to exp(eta * sum_j A_ij * sum over the last w rounds of L_j)

A_ij says how much rows of part i teach part j: 1 on the diagonal, `edge_weight` for every edge given,
0 elsewhere. L_j is the loss of part j on rows held out of its training rows, after each round of
`round_steps` steps (arXiv:2307.14430; the authors' code sums a window of rounds, not all). Parts
are the stages so far, or those of a joint stage.

Open choices: edges are given, not measured (measuring one takes two trainings); held-out rows come
from the training file, so that no test row steers the training; rounds begin afresh with a stage.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
from torch import Tensor

from lifelong.core.axes import Context, Mixing
from lifelong.core.settings import Range
from lifelong.core.state import State
from lifelong.errors import UserError


@dataclass(frozen=True, kw_only=True)
class SkillIt(Mixing):
    """Draw from each part by what it teaches, through a graph of skills, where loss is left."""

    paper: ClassVar[str] = "Chen et al. 2023, arXiv:2307.14430"
    cost: ClassVar[str] = "a pass over the held-out rows of all parts per round; all old rows at hand"
    verified: ClassVar[tuple[str, ...]] = (
        "closed form on a graph of two skills; without edges the softmax of the losses",
        "eta 0 is uniform; proportions sum to 1",
        "the window forgets rounds that are older; resumes bit for bit",
    )

    eta: Annotated[float, Range(0)] = 0.5  # how sharply proportions follow the losses; 0 is uniform
    round_steps: Annotated[int, Range(1)] = 1000  # optimiser steps between measurements
    window: Annotated[int, Range(1)] = 3  # rounds whose losses are summed
    edges: tuple[str, ...] = ()  # "i>j": part i teaches part j; numbers of the parts, from 0
    edge_weight: Annotated[float, Range(0)] = 0.5  # of the edges given; a part teaches itself with 1
    held_out: Annotated[float, Range(0, 1, open_low=True, open_high=True)] = 0.1  # share of rows that measure

    def __post_init__(self) -> None:
        super().__post_init__()
        for edge in self.edges:
            ends = edge.split(">")
            if len(ends) != 2 or not all(end.isdecimal() for end in ends):
                raise UserError(f'SkillIt.edges must be texts like "0>1"; got {edge!r}.')

    @property
    def held_fraction(self) -> float:
        return self.held_out

    def init(self, context: Context) -> State:
        return {"losses": []}

    def begin_stage(self, context: Context, state: State) -> State:
        return {**state, "losses": []}

    def asks(self, context: Context, state: State, num_parts: int) -> bool:
        return num_parts > 1 and context.step > 0 and context.step % self.round_steps == 0

    def observe(self, context: Context, state: State, losses: Sequence[float]) -> State:
        return {**state, "losses": [*state["losses"], list(losses)][-self.window :]}

    def proportions(self, context: Context, state: State, num_parts: int) -> Sequence[float]:
        summed = torch.ones(num_parts, dtype=torch.float64)
        if state["losses"]:
            summed = torch.tensor(state["losses"], dtype=torch.float64).sum(0)
        return torch.softmax(self.eta * self.graph(num_parts) @ summed, 0).tolist()

    def graph(self, num_parts: int) -> Tensor:
        """(k, k); edges to parts that are still to come are left out."""
        made = torch.eye(num_parts, dtype=torch.float64)
        for edge in self.edges:
            teacher, learner = map(int, edge.split(">"))
            if max(teacher, learner) < num_parts and teacher != learner:
                made[teacher, learner] = self.edge_weight
        return made
