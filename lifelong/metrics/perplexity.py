"""Perplexity: how surprised the model is by a text, per token.

    value = exp(- sum_r log p(text_r) / sum_r tokens_r)

Pooled over rows (Jelinek et al. 1977): a long row weighs by its tokens, as if all rows were one text.
The mean of per-row perplexities, which some evaluation code reports, is larger and is ruled by the
shortest rows. In the accuracy matrix the cell is -log(value), the mean log-likelihood per token.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from lifelong.core.axes import Answer, AnswerMetric
from lifelong.errors import UserError


@dataclass(frozen=True, kw_only=True)
class Perplexity(AnswerMetric):
    """Effective number of equally likely next tokens; 1 is certainty, less is better."""

    cost: ClassVar[str] = "none"
    verified: ClassVar[tuple[str, ...]] = (
        "C for a uniform model over C tokens",
        "splitting a text into rows changes nothing",
    )
    formula: ClassVar[str] = "exp(-(sum of log-likelihoods) / (number of tokens)); less is better"
    unit: ClassVar[str] = ""

    def scores(self, answers: Sequence[Answer]) -> list[float]:
        """Mean log-likelihood per token of each row; rows weigh by `tokens` in `value`."""
        _check(answers)
        return [answer.log_likelihood / answer.tokens for answer in answers]

    def value(self, answers: Sequence[Answer]) -> float:
        _check(answers)
        total = math.fsum(answer.log_likelihood for answer in answers)
        return math.exp(-total / sum(answer.tokens for answer in answers))

    def benefit(self, value: float) -> float:
        return -math.log(value)


def _check(answers: Sequence[Answer]) -> None:
    if not answers:
        raise UserError("perplexity: no answers to judge; the evaluation set must have at least one row.")
    for index, answer in enumerate(answers):
        if answer.tokens < 1:
            raise UserError(f"perplexity: row {index} has no labelled token; drop empty texts from the set.")
        # exp overflows beyond 709 nats per token
        if not -700 * answer.tokens <= answer.log_likelihood < math.inf:
            raise UserError(
                f"perplexity: row {index} has log-likelihood {answer.log_likelihood} over {answer.tokens} "
                "tokens, which must be finite and above -700 per token; the model has diverged: lower the "
                "learning rate, or go back to the last good checkpoint."
            )
