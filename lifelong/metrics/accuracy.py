"""Accuracy: the share of rows answered with exactly the reference.

    score = 1 if prediction == references[0] else 0

Strings are compared as they are: case, blanks and punctuation count. For free text see exact_match.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from lifelong.core.axes import Answer, AnswerMetric
from lifelong.errors import UserError


@dataclass(frozen=True, kw_only=True)
class Accuracy(AnswerMetric):
    """Share of rows whose answer is exactly the (first) reference."""

    cost: ClassVar[str] = "none"
    verified: ClassVar[tuple[str, ...]] = ("equals hand counts; case and blanks count",)
    formula: ClassVar[str] = (
        "share of rows whose prediction equals the first reference, character by character"
    )

    def scores(self, answers: Sequence[Answer]) -> list[float]:
        if not answers:
            raise UserError("accuracy: no answers to judge; the evaluation set must have at least one row.")
        if any(answer.prediction is None for answer in answers):
            raise UserError("accuracy: a row has no prediction; for likelihoods alone use metric perplexity.")
        return [float(answer.prediction == answer.references[0]) for answer in answers]
