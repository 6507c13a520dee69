"""Learning accuracy: how well tasks are learned at the moment they are taught.

    (1 / C) sum_i a[taught(i), i]

MER (Riemer et al. 2019, arXiv:1810.11910), LA. High with high forgetting: learns and loses; low
with low forgetting: held too tightly. In a run that has not ended, C counts the tasks taught so
far.
"""

from dataclasses import dataclass
from typing import ClassVar

from lifelong.core.axes import MatrixMetric
from lifelong.core.matrix import AccuracyMatrix, mean


@dataclass(frozen=True, kw_only=True)
class LearningAccuracy(MatrixMetric):
    """Mean score of a task right after its own stage."""

    paper: ClassVar[str] = "arXiv:1810.11910"
    cost: ClassVar[str] = "none"
    verified: ClassVar[tuple[str, ...]] = (
        "equals hand-computed values; average accuracy for joint training",
    )
    title: ClassVar[str] = "learning accuracy"
    formula: ClassVar[str] = "mean over tasks of the score right after the task's own stage"
    better: ClassVar[str] = "higher"

    def value(self, matrix: AccuracyMatrix) -> float | None:
        return mean(matrix.when_taught(i) for i in matrix.known(matrix.last))
