"""The stability gap: how low old tasks fall in the midst of learning a new one.

    min-ACC  = mean over earlier tasks of the lowest figure since their own stage ended
    WC-ACC   = a(new task, now) / T + (1 - 1 / T) min-ACC
    WF^w     = mean over tasks of the largest fall within w successive evaluations
    WP^w     = mean over tasks of the largest rise within w successive evaluations

De Lange et al. 2023, arXiv:2205.13452. T: tasks so far. The paper evaluates after every
step; here as often as `evaluate_steps` of the run says, and at the end of every stage: without it
only what is left at stage ends is seen. Figures are on the scale of the accuracy matrix, where more
is better.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, ClassVar

from lifelong.core.axes import Context, Diagnostic
from lifelong.core.settings import Range


@dataclass(frozen=True, kw_only=True)
class StabilityGap(Diagnostic):
    """Lowest points of earlier tasks while new ones are learned."""

    paper: ClassVar[str] = "De Lange et al. 2023, arXiv:2205.13452"
    cost: ClassVar[str] = "none beside the evaluations inside stages (evaluate_steps)"
    verified: ClassVar[tuple[str, ...]] = (
        "the four figures of a hand-made curve",
        "a gap that has closed at the stage's end is seen only with evaluations inside it",
        "evaluations inside a stage change no bit of the training; a resumed run has the same curve",
    )
    title: ClassVar[str] = "Stability gap"

    window: Annotated[int, Range(2)] = 10  # w, successive evaluations

    def measure(self, context: Context) -> dict[str, float]:
        curves: dict[str, list[float]] = {}
        first: dict[str, int] = {}  # stage that teaches a task: the first in which it is evaluated
        lowest: dict[str, float] = {}
        for entry in context.history:
            for name, value in entry["values"].items():
                curves.setdefault(name, []).append(value)
                if entry["stage"] > first.setdefault(name, entry["stage"]):
                    lowest[name] = min(value, lowest.get(name, value))
        if not curves:
            return {}
        new = [values[-1] for name, values in curves.items() if first[name] == context.stage]
        moves = [_moves(values, self.window) for values in curves.values()]
        found = {
            "windowed_forgetting": _mean([fall for fall, _ in moves]),
            "windowed_plasticity": _mean([rise for _, rise in moves]),
        }
        share = len(new) / len(curves)
        low = _mean(list(lowest.values())) if lowest else 0.0
        if lowest:
            found["min_accuracy"] = low
        return found | {"worst_case_accuracy": share * (_mean(new) if new else 0.0) + (1 - share) * low}


def _moves(values: Sequence[float], window: int) -> tuple[float, float]:
    """(largest fall, largest rise) between two of any `window` successive values; 0 where there is none."""
    pairs = [(a, b) for i, a in enumerate(values) for b in values[i + 1 : i + window]]
    return max([0.0, *(a - b for a, b in pairs)]), max([0.0, *(b - a for a, b in pairs)])


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
