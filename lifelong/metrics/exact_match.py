"""Exact match after normalisation, for short free text.

    score = max over references r of  [norm(prediction) == norm(r)]
    norm: lower case, punctuation dropped, blanks collapsed to one and cut at the ends

SQuAD (Rajpurkar et al. 2016, arXiv:1606.05250) also drops the English articles a, an, the; here they
count, so that no language is favoured. Punctuation is every character of a Unicode category P, not
only ASCII. An answer that is punctuation alone is compared as it stands, else "." would equal "!".
"""

import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from lifelong.core.axes import Answer, AnswerMetric
from lifelong.errors import UserError


@dataclass(frozen=True, kw_only=True)
class ExactMatch(AnswerMetric):
    """Share of rows whose answer equals a reference but for case, punctuation and blanks."""

    paper: ClassVar[str] = "arXiv:1606.05250"
    cost: ClassVar[str] = "none"
    verified: ClassVar[tuple[str, ...]] = ("equals hand counts; other words, order or articles do not match",)
    formula: ClassVar[str] = (
        "share of rows whose prediction equals one of the references, after lower-casing, dropping "
        "punctuation and collapsing blanks"
    )

    def scores(self, answers: Sequence[Answer]) -> list[float]:
        if not answers:
            raise UserError(
                "exact_match: no answers to judge; the evaluation set must have at least one row."
            )
        if any(answer.prediction is None for answer in answers):
            raise UserError(
                "exact_match: a row has no prediction; for likelihoods alone use metric perplexity."
            )
        wanted = [{_normal(each) for each in answer.references} for answer in answers]
        return [float(_normal(answer.prediction) in w) for answer, w in zip(answers, wanted, strict=True)]


def _normal(text: str) -> str:
    lower = " ".join(text.lower().split())
    bare = "".join(c for c in lower if not unicodedata.category(c).startswith("P"))
    return " ".join(bare.split()) or lower
