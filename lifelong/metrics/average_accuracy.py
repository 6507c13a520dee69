"""Average accuracy: how good the final model is over all tasks.

    (1 / C) sum_i a[last, i]

GEM (Lopez-Paz and Ranzato 2017, arXiv:1706.08840, section 2), ACC. Every task counts the same,
however many rows judge it. In a run that has not ended, C counts the tasks taught so far.
"""

from dataclasses import dataclass
from typing import ClassVar

from lifelong.core.axes import MatrixMetric
from lifelong.core.matrix import AccuracyMatrix, mean


@dataclass(frozen=True, kw_only=True)
class AverageAccuracy(MatrixMetric):
    """Mean final score over the tasks, each counting the same."""

    paper: ClassVar[str] = "arXiv:1706.08840"
    cost: ClassVar[str] = "none"
    verified: ClassVar[tuple[str, ...]] = (
        "equals hand-computed means; ignores sizes; None with a missing cell",
    )
    title: ClassVar[str] = "average accuracy"
    formula: ClassVar[str] = "mean over tasks of the score after the last stage; each task counts the same"
    better: ClassVar[str] = "higher"

    def value(self, matrix: AccuracyMatrix) -> float | None:
        final = matrix.values[-1] if matrix.values else ()
        return mean(final[i] for i in matrix.known(matrix.last))
