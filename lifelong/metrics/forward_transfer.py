"""Forward transfer: what a task gains from the stages before its own.

    mean over i taught after the first stage of  a[taught(i) - 1, i] - a[untrained, i]

GEM (Lopez-Paz and Ranzato 2017, arXiv:1706.08840, section 2), FWT. The baseline is measured on this
very model before any training, never on a model already trained and never taken as zero.
"""

from dataclasses import dataclass
from typing import ClassVar

from lifelong.core.axes import MatrixMetric
from lifelong.core.matrix import AccuracyMatrix, difference, mean


@dataclass(frozen=True, kw_only=True)
class ForwardTransfer(MatrixMetric):
    """Mean gain of a task over the untrained model just before its own stage begins."""

    paper: ClassVar[str] = "arXiv:1706.08840"
    cost: ClassVar[str] = "none"
    verified: ClassVar[tuple[str, ...]] = (
        "equals hand-computed values; None without the untrained row; zero for a model that never changes",
    )
    title: ClassVar[str] = "forward transfer"
    formula: ClassVar[str] = (
        "mean over tasks taught after the first stage of (score just before the task's own stage "
        "- score of the untrained model)"
    )
    better: ClassVar[str] = "higher"

    def value(self, matrix: AccuracyMatrix) -> float | None:
        if matrix.untrained is None:
            return None
        later = [i for i in matrix.known(matrix.last) if matrix.taught[i] > 0]
        before = {i: matrix.values[matrix.taught[i] - 1][i] for i in later}
        return mean(difference(before[i], matrix.untrained[i]) for i in later)
