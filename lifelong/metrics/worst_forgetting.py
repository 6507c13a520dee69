"""Worst forgetting: the task that fell furthest below its best.

    max over i taught before the last stage of  max_{k < last} a[k, i] - a[last, i]

Forgetting (Chaudhry et al. 2018, arXiv:1801.10112) with the mean over tasks replaced by the
maximum: a mean hides one lost task behind many kept ones.
"""

from dataclasses import dataclass
from typing import ClassVar

from lifelong.core.axes import MatrixMetric
from lifelong.core.matrix import AccuracyMatrix


@dataclass(frozen=True, kw_only=True)
class WorstForgetting(MatrixMetric):
    """Largest drop of one task from its best earlier score to its final score."""

    paper: ClassVar[str] = "arXiv:1801.10112"
    cost: ClassVar[str] = "none"
    verified: ClassVar[tuple[str, ...]] = ("equals hand-computed values; never below forgetting",)
    title: ClassVar[str] = "worst forgetting"
    formula: ClassVar[str] = (
        "largest, over tasks taught before the last stage, of (best score after an earlier stage "
        "- score after the last stage)"
    )
    better: ClassVar[str] = "lower"

    def value(self, matrix: AccuracyMatrix) -> float | None:
        drops = matrix.drops()
        return None if not drops or None in drops else max(drops)
