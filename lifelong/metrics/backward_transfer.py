"""Backward transfer: what later stages did to tasks already taught.

    mean over i taught before the last stage of  a[last, i] - a[taught(i), i]

GEM (Lopez-Paz and Ranzato 2017, arXiv:1706.08840, section 2), BWT: with one task per stage the mean
is 1 / (T - 1) times the sum. Code that divides by T (GEM's own, SAPT's) gives (T - 1) / T of it.
"""

from dataclasses import dataclass
from typing import ClassVar

from lifelong.core.axes import MatrixMetric
from lifelong.core.matrix import AccuracyMatrix, mean


@dataclass(frozen=True, kw_only=True)
class BackwardTransfer(MatrixMetric):
    """Mean change of a task from right after its own stage to the end."""

    paper: ClassVar[str] = "arXiv:1706.08840"
    cost: ClassVar[str] = "none"
    verified: ClassVar[tuple[str, ...]] = (
        "equals hand-computed values; minus forgetting where every task was best when taught",
    )
    title: ClassVar[str] = "backward transfer"
    formula: ClassVar[str] = (
        "mean over tasks taught before the last stage of (score after the last stage - score "
        "right after the task's own stage)"
    )
    better: ClassVar[str] = "higher"

    def value(self, matrix: AccuracyMatrix) -> float | None:
        return mean(matrix.changes())
