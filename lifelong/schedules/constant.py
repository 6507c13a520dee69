"""A constant learning rate after a linear warm-up.

scale(t) = (t + 1) / (W + 1) for t < W = warmup_fraction * N, else 1
t = optimiser steps already made, N = steps of the stage
"""

from dataclasses import dataclass
from typing import Annotated, ClassVar

from lifelong.core.axes import Progress, Schedule
from lifelong.core.settings import Range


@dataclass(frozen=True, kw_only=True)
class Constant(Schedule):
    """Warm up, then keep the rate."""

    cost: ClassVar[str] = "none"
    verified: ClassVar[tuple[str, ...]] = ("closed form", "the first step is not 0")

    warmup_fraction: Annotated[float, Range(0, 1, open_high=True)] = 0.0  # of the stage's steps

    def scale(self, progress: Progress) -> float:
        warmup = self.warmup_fraction * progress.num_steps
        return (progress.step + 1) / (warmup + 1) if progress.step < warmup else 1.0
