"""Forgetting: how far tasks fell below their best.

    mean over i taught before the last stage of  max_{k < last} a[k, i] - a[last, i]

Chaudhry et al. 2018 (arXiv:1801.10112), forgetting measure F_k. The maximum runs over the stages
before the last, those before the task was taught included; the untrained model is no stage. It may
be negative: a task that is now better than ever. Differs from code that lets the last row into the
maximum, pads it with zeros (neither can go below zero), takes the first score instead of the best,
or divides by T.
"""

from dataclasses import dataclass
from typing import ClassVar

from lifelong.core.axes import MatrixMetric
from lifelong.core.matrix import AccuracyMatrix, mean


@dataclass(frozen=True, kw_only=True)
class Forgetting(MatrixMetric):
    """Mean drop from a task's best earlier score to its final score."""

    paper: ClassVar[str] = "arXiv:1801.10112"
    cost: ClassVar[str] = "none"
    verified: ClassVar[tuple[str, ...]] = (
        "equals hand-computed values, negative ones too; four wrong definitions give other numbers",
    )
    title: ClassVar[str] = "forgetting"
    formula: ClassVar[str] = (
        "mean over tasks taught before the last stage of (best score after an earlier stage - "
        "score after the last stage); negative where tasks became better"
    )
    better: ClassVar[str] = "lower"

    def value(self, matrix: AccuracyMatrix) -> float | None:
        return mean(matrix.drops())
