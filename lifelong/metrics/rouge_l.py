"""ROUGE-L: longest common subsequence of words between answer and reference.

    P = LCS / words(prediction)   R = LCS / words(reference)   F = 2 P R / (P + R)
    score = max over references of F

Lin 2004 (ROUGE: a package for automatic evaluation of summaries), section 3.1, with beta = 1, computed
by the rouge-score library. Deviation: that library's tokenizer keeps ASCII letters and digits only, so
that a perfect answer in Greek or Chinese scores 0; here a word is a run of letters and digits of any
script, and Han and Kana characters are one word each. On ASCII text both agree.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from lifelong.core.axes import Answer, AnswerMetric
from lifelong.errors import UserError

WORD = re.compile("[\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff]|[^\\W_\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff]+")


@dataclass(frozen=True, kw_only=True)
class RougeL(AnswerMetric):
    """Overlap of the answer with the closest reference, by longest common word sequence."""

    stem: bool = False  # strip English suffixes first (Porter), as the SuperNI script does

    paper: ClassVar[str] = "Lin 2004, aclanthology.org/W04-1013"
    cost: ClassVar[str] = "words(prediction) x words(reference) per row"
    verified: ClassVar[tuple[str, ...]] = (
        "equals rouge-score on ASCII text",
        "equals a brute-force longest common subsequence",
        "1 for a perfect answer in any script",
    )
    formula: ClassVar[str] = (
        "mean over rows of the best ROUGE-L F1 (longest common subsequence of words) over the references"
    )

    def scores(self, answers: Sequence[Answer]) -> list[float]:
        if not answers:
            raise UserError("rouge_l: no answers to judge; the evaluation set must have at least one row.")
        if any(answer.prediction is None for answer in answers):
            raise UserError("rouge_l: a row has no prediction; for likelihoods alone use metric perplexity.")
        try:
            from rouge_score.rouge_scorer import RougeScorer
        except ImportError:
            raise UserError("rouge_l needs the rouge-score library: pip install 'lifelong[rouge]'.") from None
        scorer = RougeScorer(["rougeL"], tokenizer=Words(self.stem))

        def best(answer: Answer) -> float:
            return max(scorer.score(r, answer.prediction)["rougeL"].fmeasure for r in answer.references)

        return [float(best(answer)) for answer in answers]


class Words:
    """Tokenizer in the form that rouge-score asks for."""

    def __init__(self, stem: bool) -> None:
        from nltk.stem.porter import PorterStemmer

        self.stemmer = PorterStemmer() if stem else None

    def tokenize(self, text: str) -> list[str]:
        words = WORD.findall(text.lower())
        if self.stemmer is None:
            return words
        return [self.stemmer.stem(word) if len(word) > 3 else word for word in words]
