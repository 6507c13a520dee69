"""Retained accuracy: how much of what was taught before an erasure the final model still answers.

    mean over i taught before the last erase stage, and not erased, of  a[last, i]

Acc_r of continual forgetting (Zhao et al. 2024, arXiv:2403.11530). In joint training, which leaves
erased rows out, every set that is not erased counts. None where nothing has been erased.
"""

from dataclasses import dataclass
from typing import ClassVar

from lifelong.core.axes import MatrixMetric
from lifelong.core.matrix import AccuracyMatrix, mean


@dataclass(frozen=True, kw_only=True)
class RetainedAccuracy(MatrixMetric):
    """Mean final score on what an erase stage was to leave as it was."""

    paper: ClassVar[str] = "arXiv:2403.11530"
    cost: ClassVar[str] = "none"
    verified: ClassVar[tuple[str, ...]] = (
        "equals hand-computed means; tasks taught after the last erase stage do not enter",
    )
    title: ClassVar[str] = "accuracy on what was retained"
    formula: ClassVar[str] = (
        "mean over sets taught before the last erase stage, and not erased, of the score after the last stage"
    )
    better: ClassVar[str] = "higher"

    def value(self, matrix: AccuracyMatrix) -> float | None:
        gone = matrix.gone(matrix.last)
        if not gone:
            return None
        latest = max(matrix.erased[i] for i in gone)
        return mean(matrix.values[-1][i] for i in matrix.known(matrix.last) if matrix.taught[i] <= latest)
