"""Linear decay after a linear warm-up.

    scale(t) = (t + 1) / (W + 1)                                 for t < W = warmup_fraction * N
               1 - (1 - final_fraction) * (t - W) / (N - W)      after
    t = optimiser steps already made, N = steps of the stage

Differs from transformers' schedule of that name in the warm-up, whose first step has rate 0 there.
"""

from dataclasses import dataclass
from typing import Annotated, ClassVar

from lifelong.core.axes import Progress, Schedule
from lifelong.core.settings import Range


@dataclass(frozen=True, kw_only=True)
class Linear(Schedule):
    """Warm up, then fall in a straight line."""

    cost: ClassVar[str] = "none"
    verified: ClassVar[tuple[str, ...]] = (
        "closed form",
        "the decay equals transformers' linear schedule",
        "the first step is not 0",
        "continuous at the warm-up's end",
    )

    warmup_fraction: Annotated[float, Range(0, 1, open_high=True)] = 0.0  # of the stage's steps
    final_fraction: Annotated[float, Range(0, 1)] = 0.0  # of the peak rate, reached after the last step

    def scale(self, progress: Progress) -> float:
        warmup = self.warmup_fraction * progress.num_steps
        if progress.step < warmup:
            return (progress.step + 1) / (warmup + 1)
        done = (progress.step - warmup) / (progress.num_steps - warmup)
        return 1 - (1 - self.final_fraction) * done
