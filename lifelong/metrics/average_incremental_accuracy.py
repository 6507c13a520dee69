"""Average incremental accuracy: how good the model was throughout.

    (1 / T) sum_k  mean over i taught by stage k of  a[k, i]

iCaRL (Rebuffi et al. 2017, arXiv:1611.07725), with tasks counting the same within a row. A row
before which nothing that is evaluated has been taught has no mean and is left out.
"""

from dataclasses import dataclass
from typing import ClassVar

from lifelong.core.axes import MatrixMetric
from lifelong.core.matrix import AccuracyMatrix, mean


@dataclass(frozen=True, kw_only=True)
class AverageIncrementalAccuracy(MatrixMetric):
    """Mean over stages of the mean score on the tasks taught so far."""

    paper: ClassVar[str] = "arXiv:1611.07725"
    cost: ClassVar[str] = "none"
    verified: ClassVar[tuple[str, ...]] = ("equals hand-computed values; untaught cells have no influence",)
    title: ClassVar[str] = "average incremental accuracy"
    formula: ClassVar[str] = "mean over stages of (mean score after the stage over the tasks taught so far)"
    better: ClassVar[str] = "higher"

    def value(self, matrix: AccuracyMatrix) -> float | None:
        rows = [(row, matrix.known(k)) for k, row in enumerate(matrix.values)]
        return mean(mean(row[i] for i in known) for row, known in rows if known)
