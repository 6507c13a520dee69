"""Half a cosine after a linear warm-up (Loshchilov and Hutter 2017, arXiv:1608.03983, one period).

    scale(t) = (t + 1) / (W + 1)                                      for t < W = warmup_fraction * N
               f + (1 - f) * (1 + cos(pi * (t - W) / (N - W))) / 2    after; f = final_fraction
    t = optimiser steps already made, N = steps of the stage

The paper has no warm-up; ours never gives a rate of 0 at the first step.
"""

import math
from dataclasses import dataclass
from typing import Annotated, ClassVar

from lifelong.core.axes import Progress, Schedule
from lifelong.core.settings import Range


@dataclass(frozen=True, kw_only=True)
class Cosine(Schedule):
    """Warm up, then fall along half a cosine."""

    paper: ClassVar[str] = "Loshchilov and Hutter 2017, arXiv:1608.03983"
    cost: ClassVar[str] = "none"
    verified: ClassVar[tuple[str, ...]] = (
        "closed form",
        "the decay equals transformers' cosine schedule",
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
        return self.final_fraction + (1 - self.final_fraction) * (1 + math.cos(math.pi * done)) / 2
