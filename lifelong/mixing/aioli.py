"""Aioli: learn online what each part does to every loss, and draw by it (Chen et al. 2024, arXiv:2411.05735).

A round of `round_steps` steps begins with probes. `repeats` times, in a random order, S = `probe_steps`
steps are drawn from each mixture m_j = q e_j + (1 - q) / k, and the drops of all held-out losses
are added up in column j of G. Then, with M = (m_1 ... m_k) and G divided by `repeats`,

    A = G M^-1                       A_ij: drop of loss i per share of part j
    p_j proportional to exp(eta * sum_i A_ij)

and the rest of the round is drawn from p. With `smoothing` s, A is averaged over rounds (s times the
old one) and p computed from the average; without, p multiplies the p before, as in the code.

Choices: m_j has q on top of a uniform rest, so that M can be inverted for every q > 0; the loss is
that of rows held out of the training rows; a round is at least twice as long as its probes; before
the first probes are through p is uniform; a stage that ends amid the probes ends there.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, ClassVar

import numpy as np
import torch
from torch import Tensor

from lifelong.core.axes import Context, Mixing
from lifelong.core.settings import Range
from lifelong.core.state import State


@dataclass(frozen=True, kw_only=True)
class Aioli(Mixing):
    """Estimate online how parts lower each other's losses, and draw by it."""

    paper: ClassVar[str] = "Chen et al. 2024, arXiv:2411.05735"
    cost: ClassVar[str] = "k * repeats + 1 passes over the held-out rows per round; all old rows at hand"
    verified: ClassVar[tuple[str, ...]] = (
        "on losses that are linear in the mixture the matrix is recovered to 1e-9",
        "proportions are the softmax of the column sums; eta 0 is uniform",
        "repeats * probe_steps * k steps of a round are probes; resumes bit for bit",
    )

    eta: Annotated[float, Range(0)] = 0.1  # how sharply proportions follow the estimate; 0 is uniform
    round_steps: Annotated[int, Range(1)] = 250  # optimiser steps of a round, probes included
    repeats: Annotated[int, Range(1)] = 4  # probes of each part in a round
    probe_steps: Annotated[int, Range(1)] = 6  # optimiser steps of one probe
    probe_share: Annotated[float, Range(0, 1, open_low=True)] = 0.5  # q, of the probed part beyond uniform
    diagonal: bool = False  # A = G_jj / q alone: a part is judged by its own loss
    smoothing: Annotated[float, Range(0, 1, open_high=True)] = 0.5  # share of the old estimate; 0 is off
    normalise: bool = False  # shift the estimate to a minimum of 0 and scale it to a sum of 1
    held_out: Annotated[float, Range(0, 1, open_low=True, open_high=True)] = 0.1  # share of rows that measure

    @property
    def held_fraction(self) -> float:
        return self.held_out

    def init(self, context: Context) -> State:
        return {"gains": None, "last": None, "estimate": None, "shares": None}

    def begin_stage(self, context: Context, state: State) -> State:
        return state | self.init(context)

    def asks(self, context: Context, state: State, num_parts: int) -> bool:
        place = self._place(context.step, num_parts)
        return num_parts > 1 and place <= self._probing(num_parts) and place % self.probe_steps == 0

    def observe(self, context: Context, state: State, losses: Sequence[float]) -> State:
        """At the begin of the probes, between them, and after the last."""
        kept = {name: state[name] for name in ("gains", "last", "estimate", "shares")}
        state = state | {name: each.cpu() for name, each in kept.items() if each is not None}
        now, parts = torch.tensor(losses, dtype=torch.float64), len(losses)
        place = self._place(context.step, parts)
        gains = torch.zeros(parts, parts, dtype=torch.float64)
        if place:
            gains = state["gains"].clone()
            gains[:, self._probed(context, place - 1, parts)] += state["last"] - now
        state = state | {"gains": gains, "last": now}
        return state if place < self._probing(parts) else state | self._updated(state, gains / self.repeats)

    def proportions(self, context: Context, state: State, num_parts: int) -> Sequence[float]:
        place = self._place(context.step, num_parts)
        if num_parts > 1 and place < self._probing(num_parts):
            return self._mixtures(num_parts)[self._probed(context, place, num_parts)].tolist()
        shares = state["shares"]
        return [1 / num_parts] * num_parts if shares is None else shares.tolist()

    def _updated(self, state: State, gains: Tensor) -> State:
        """New estimate and shares."""
        if self.diagonal:
            estimate = torch.diag(gains.diagonal() / self.probe_share)
        else:
            estimate = torch.linalg.solve(self._mixtures(len(gains)), gains.T).T  # M is symmetric
        if self.normalise:
            estimate = estimate - estimate.min()
            estimate = estimate / estimate.sum().clamp(min=torch.finfo(estimate.dtype).tiny)
        old, power = state["estimate"], self.eta * estimate.sum(0)
        if self.smoothing and old is not None:
            estimate = self.smoothing * old + (1 - self.smoothing) * estimate
            power = self.eta * estimate.sum(0)
        if not self.smoothing and state["shares"] is not None:
            power = power + state["shares"].log()
        return {"estimate": estimate, "shares": torch.softmax(power, 0)}

    def _mixtures(self, num_parts: int) -> Tensor:
        """(k, k), row j the mixture that probes part j."""
        rest = torch.full((num_parts, num_parts), (1 - self.probe_share) / num_parts, dtype=torch.float64)
        return rest + self.probe_share * torch.eye(num_parts, dtype=torch.float64)

    def _probing(self, num_parts: int) -> int:
        return self.repeats * self.probe_steps * num_parts

    def _place(self, step: int, num_parts: int) -> int:
        """Steps made in the round."""
        return step % max(self.round_steps, 2 * self._probing(num_parts))

    def _probed(self, context: Context, place: int, num_parts: int) -> int:
        """The part whose probe the step at `place` of the round belongs to."""
        begun = context.step - self._place(context.step, num_parts)
        repeat, index = divmod(place // self.probe_steps, num_parts)
        order = np.random.default_rng([context.seed, begun, repeat, 4]).permutation(num_parts)
        return int(order[index])
