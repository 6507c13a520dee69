"""Erasure gap: how far what was erased still stands above what the untrained model could do.

    mean over i erased of  a[last, i] - a[untrained, i]

Erased accuracy (Acc_f of Zhao et al. 2024, arXiv:2403.11530) less that of this very model before any
training. 0: as if never learned, as far as scores tell; below 0 the model does worse than before it
learned, which can itself tell what was erased.
"""

from dataclasses import dataclass
from typing import ClassVar

from lifelong.core.axes import MatrixMetric
from lifelong.core.matrix import AccuracyMatrix, difference, mean


@dataclass(frozen=True, kw_only=True)
class ErasureGap(MatrixMetric):
    """Mean final score on what was erased, above that of the untrained model."""

    paper: ClassVar[str] = "arXiv:2403.11530"
    cost: ClassVar[str] = "none"
    verified: ClassVar[tuple[str, ...]] = (
        "equals hand-computed differences; None without the untrained row or where nothing was erased",
    )
    title: ClassVar[str] = "erasure gap"
    formula: ClassVar[str] = (
        "mean over erased sets of (score after the last stage - score of the untrained model); 0 = as if "
        "never learned"
    )
    better: ClassVar[str] = "lower"

    def value(self, matrix: AccuracyMatrix) -> float | None:
        if matrix.untrained is None:
            return None
        gone = matrix.gone(matrix.last)
        return mean(difference(matrix.values[-1][i], matrix.untrained[i]) for i in gone)
