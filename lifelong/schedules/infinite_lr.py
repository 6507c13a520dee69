"""The infinite schedule: no horizon, no second warm-up; a branch is annealed on its own.

    n = steps made in all stages, W = warmup_steps, K = cooldown_steps, c = constant_fraction
    n < W:      (n + 1) / (W + 1)
    n < W + K:  c + (1 - c) h(x),  x = (n - W) / K
                cosine:       h = (1 + cos(pi x)) / 2
                inverse_sqrt: h = (q(x) - q(1)) / (1 - q(1)),  q(x) = 1 / sqrt(1 + s x)
    else:       c
    anneal:     r (f / r)^((t - a) / (N - a)) for the last steps of a stage, from t = a on
                r: the rate at a by the lines above; f = final_fraction; N: steps of the stage

Ibrahim et al. 2024, arXiv:2403.08763, and Janson et al. 2025, arXiv:2503.02844. New
data go on at the constant rate. `anneal_fraction` is set on the stage that is a branch (the one
whose model is handed out); in the others it stays 0 and no step depends on where the stream ends.
After an annealed stage the next one resumes at the constant rate, as a branch is not gone on from.

Open choices: warm-up and cool-down in steps, 100 and 1000 (the papers take shares of a first
data set); c and f are 0.55 and 0.1 of the peak rate; s = 10.
"""

import math
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

from lifelong.core.axes import Progress, Schedule
from lifelong.core.settings import Range


@dataclass(frozen=True, kw_only=True)
class InfiniteLr(Schedule):
    """Warm up once, cool down to a constant rate, anneal on a branch only."""

    paper: ClassVar[str] = "Ibrahim et al. 2024, arXiv:2403.08763; Janson et al. 2025, arXiv:2503.02844"
    cost: ClassVar[str] = "none"
    verified: ClassVar[tuple[str, ...]] = (
        "closed form; continuous at every joint",
        "horizon-free: without annealing no step depends on the number of steps",
        "a second stage goes on at the constant rate, also after a resume",
    )

    warmup_steps: Annotated[int, Range(0)] = 100  # of the whole stream, up to the peak rate
    cooldown_steps: Annotated[int, Range(0)] = 1000  # after the warm-up, down to the constant rate
    cooldown: Literal["cosine", "inverse_sqrt"] = "cosine"  # its shape
    steepness: Annotated[float, Range(0, open_low=True)] = 10.0  # s of the inverse root
    constant_fraction: Annotated[float, Range(0, 1, open_low=True)] = 0.55  # of the peak rate
    anneal_fraction: Annotated[float, Range(0, 1)] = 0.0  # of this stage's steps, at its end; 0 is no branch
    final_fraction: Annotated[float, Range(0, 1, open_low=True)] = 0.1  # of the peak rate, after annealing

    def scale(self, progress: Progress) -> float:
        begin = round((1 - self.anneal_fraction) * progress.num_steps)
        if progress.step <= begin or self.anneal_fraction == 0:
            return self._endless(progress.steps_before + progress.step)
        rate = self._endless(progress.steps_before + begin)
        done = (progress.step - begin) / (progress.num_steps - begin)
        return rate * (self.final_fraction / rate) ** done

    def _endless(self, step: int) -> float:
        if step < self.warmup_steps:
            return (step + 1) / (self.warmup_steps + 1)
        after = step - self.warmup_steps
        if after >= self.cooldown_steps:
            return self.constant_fraction
        done = after / self.cooldown_steps
        if self.cooldown == "cosine":
            height = (1 + math.cos(math.pi * done)) / 2
        else:
            end = self._root(1.0)
            height = (self._root(done) - end) / (1 - end)
        return self.constant_fraction + (1 - self.constant_fraction) * height

    def _root(self, done: float) -> float:
        return 1 / math.sqrt(1 + self.steepness * done)
