"""Erased accuracy: how much of what was to be forgotten the final model still answers.

    mean over i erased of  a[last, i]

Acc_f of continual forgetting (Zhao et al. 2024, arXiv:2403.11530). The aim is no zero, which a model
reaches that avoids the right answer on purpose, but what a model scores that never saw these rows: the
untrained model (see erasure_gap), or joint training, which leaves erased rows out. None where nothing
has been erased.
"""

from dataclasses import dataclass
from typing import ClassVar

from lifelong.core.axes import MatrixMetric
from lifelong.core.matrix import AccuracyMatrix, mean


@dataclass(frozen=True, kw_only=True)
class ErasedAccuracy(MatrixMetric):
    """Mean final score on what was erased."""

    paper: ClassVar[str] = "arXiv:2403.11530"
    cost: ClassVar[str] = "none"
    verified: ClassVar[tuple[str, ...]] = (
        "equals hand-computed means; no other metric depends on these cells",
        "None before the first erase stage has ended",
    )
    title: ClassVar[str] = "accuracy on what was erased"
    formula: ClassVar[str] = (
        "mean over erased sets of the score after the last stage; good where it is that of a model that "
        "never saw them"
    )
    better: ClassVar[str] = "lower"

    def value(self, matrix: AccuracyMatrix) -> float | None:
        return mean(matrix.values[-1][i] for i in matrix.gone(matrix.last))
