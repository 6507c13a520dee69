"""Cumulative accuracy: how good the final model is over all evaluation rows.

    sum_i size[i] a[last, i] / sum_i size[i]

The accuracy on the union of all evaluation sets, as class-incremental work reports it (iCaRL,
Rebuffi et al. 2017, arXiv:1611.07725). In a run that has not ended, the union of the tasks taught
so far.
"""

import math
from dataclasses import dataclass
from typing import ClassVar

from lifelong.core.axes import MatrixMetric
from lifelong.core.matrix import AccuracyMatrix


@dataclass(frozen=True, kw_only=True)
class CumulativeAccuracy(MatrixMetric):
    """Final score over all evaluation rows, each row counting the same."""

    paper: ClassVar[str] = "arXiv:1611.07725"
    cost: ClassVar[str] = "none"
    verified: ClassVar[tuple[str, ...]] = (
        "equals the accuracy on the pooled rows; equals average accuracy where sizes are equal",
    )
    title: ClassVar[str] = "cumulative accuracy"
    formula: ClassVar[str] = "score after the last stage, averaged over all evaluation rows of all tasks"
    better: ClassVar[str] = "higher"

    def value(self, matrix: AccuracyMatrix) -> float | None:
        known = matrix.known(matrix.last)
        final = [matrix.values[-1][i] for i in known]
        if not final or None in final:
            return None
        rows = sum(matrix.sizes[i] for i in known)
        return math.fsum(a * matrix.sizes[i] for a, i in zip(final, known, strict=True)) / rows
