"""General ability kept: what is left of abilities that no stage trains.

    mean over general sets of  final / untrained   (untrained / final where less is better)

TRACE (Wang et al. 2023, arXiv:2310.06762) reports the difference, general ability delta; the ratio
here has no unit, so accuracies and perplexities can be averaged. 1 = nothing lost. Sets on which
the untrained model scores 0 have nothing to keep and are left out.
"""

from dataclasses import dataclass
from typing import ClassVar

from lifelong.core.axes import MatrixMetric
from lifelong.core.matrix import AccuracyMatrix, mean


@dataclass(frozen=True, kw_only=True)
class GeneralAbility(MatrixMetric):
    """Mean share of the untrained model's general ability that the final model has."""

    paper: ClassVar[str] = "arXiv:2310.06762"
    cost: ClassVar[str] = "none"
    verified: ClassVar[tuple[str, ...]] = (
        "equals hand-computed ratios for accuracy and perplexity; 1 for a model that never changes",
    )
    title: ClassVar[str] = "general ability kept"
    formula: ClassVar[str] = (
        "mean over general sets of (final figure / untrained figure), or untrained / final where "
        "less is better, as for perplexity; 100 % = nothing lost"
    )
    better: ClassVar[str] = "higher"

    def value(self, matrix: AccuracyMatrix) -> float | None:
        ends = [(each, each.values[0], each.values[-1]) for each in matrix.general]
        if not matrix.values or any(None in (first, final) for _, first, final in ends):
            return None
        kept = [e for e in ends if e[1] > 0]
        if any(s.better == "lower" and final <= 0 for s, _, final in kept):
            return None  # no ratio to a figure of zero
        return mean(first / final if s.better == "lower" else final / first for s, first, final in kept)
