"""Metrics of answers: hand counts, an independent reference, pooled likelihoods, refusals."""

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lifelong.core.axes import Answer, AnswerMetric
from lifelong.core.discover import describe, load
from lifelong.errors import UserError

IDS = ("accuracy", "exact_match", "rouge_l", "perplexity")


def metric(name, **settings):
    return load(name, "metrics")(**settings)


def said(prediction, *references):
    return Answer(prediction, references, 0.0, 1)


def text(log_likelihood, tokens):
    return Answer(None, ("",), log_likelihood, tokens)


def test_accuracy_is_exact():
    answers = [said("yes", "yes"), said("Yes", "yes"), said("yes ", "yes"), said("no", "yes", "no")]
    assert metric("accuracy").scores(answers) == [1.0, 0.0, 0.0, 0.0]
    assert metric("accuracy").value(answers) == 0.25
    assert metric("accuracy").benefit(0.25) == 0.25


@pytest.mark.parametrize(
    ("prediction", "references", "score"),
    [
        ("  The Answer,\n is: 42! ", ("the answer is 42",), 1.0),
        ("\u00abParis\u00bb", ("London", "paris"), 1.0),
        ("the cat", ("cat",), 0.0),
        ("cat the", ("the cat",), 0.0),
        ("a  b", ("ab",), 0.0),
        ("", ("cat",), 0.0),
        (".", ("!",), 0.0),
        (".", (".",), 1.0),
        ("\u00c9T\u00c9", ("\u00e9t\u00e9",), 1.0),
    ],
)
def test_exact_match(prediction, references, score):
    assert metric("exact_match").scores([said(prediction, *references)]) == [score]


def test_rouge_l_by_hand():
    # LCS of "the cat sat on the mat" and "the cat lay on a mat": the cat on mat = 4 of 6 and 6
    answers = [said("the cat sat on the mat", "the cat lay on a mat", "dogs bark")]
    assert metric("rouge_l").value(answers) == pytest.approx(4 / 6)
    assert metric("rouge_l").scores([said("", "x"), said("A-b!", "a b"), said("b a", "a b")]) == [
        0.0,
        1.0,
        0.5,
    ]


def test_rouge_l_in_any_script():
    greek, han = "\u03ba\u03b1\u03bb\u03b7 \u03bc\u03ad\u03c1\u03b1", "\u4f60\u597d\u4e16\u754c"
    assert metric("rouge_l").scores([said(greek, greek), said(han, han)]) == [1.0, 1.0]
    assert metric("rouge_l").scores([said(han[:2], han)]) == [pytest.approx(2 * 1 * 0.5 / 1.5)]
    from rouge_score.rouge_scorer import RougeScorer

    plain = RougeScorer(["rougeL"])
    assert plain.score(greek, greek)["rougeL"].fmeasure == 0.0  # control: the library alone


words = st.lists(st.sampled_from(["a", "b", "runs", "running", "Cat's", "x1"]), max_size=8).map(" ".join)


@given(words, words, st.booleans())
@settings(max_examples=60, deadline=None, derandomize=True)
def test_rouge_l_equals_the_library_and_brute_force(prediction, reference, stem):
    from rouge_score.rouge_scorer import RougeScorer

    score = metric("rouge_l", stem=stem).scores([said(prediction, reference)])[0]
    library = RougeScorer(["rougeL"], use_stemmer=stem).score(reference, prediction)["rougeL"].fmeasure
    assert score == pytest.approx(library, abs=1e-12)
    if not stem:
        left, right = ([w for w in t.lower().replace("'", " ").split()] for t in (prediction, reference))
        common = _lcs(tuple(left), tuple(right))
        assert score == pytest.approx(2 * common / (len(left) + len(right)) if common else 0.0, abs=1e-12)


def _lcs(left, right):
    if not left or not right:
        return 0
    if left[0] == right[0]:
        return 1 + _lcs(left[1:], right[1:])
    return max(_lcs(left[1:], right), _lcs(left, right[1:]))


def test_perplexity_pools_tokens():
    answers = [text(-6.0, 3), text(-1.0, 7)]
    pooled = metric("perplexity").value(answers)
    assert pooled == pytest.approx(math.exp(0.7))
    assert metric("perplexity").scores(answers) == [-2.0, pytest.approx(-1 / 7)]
    assert metric("perplexity").benefit(pooled) == pytest.approx(-0.7)
    mean_of_rows = (math.exp(2.0) + math.exp(1 / 7)) / 2
    assert abs(mean_of_rows - pooled) > 1  # control: the other definition
    assert metric("perplexity").value([text(-7.0, 10)]) == pytest.approx(pooled)


def test_perplexity_of_a_uniform_model_is_its_vocabulary():
    assert metric("perplexity").value([text(-n * math.log(50), n) for n in (1, 5, 9)]) == pytest.approx(50)
    assert metric("perplexity").unit == "" and metric("accuracy").unit == "%"


@pytest.mark.parametrize("name", IDS)
def test_empty_and_unanswered_are_refused(name):
    judge = metric(name)
    assert isinstance(judge, AnswerMetric) and judge.formula and describe("metrics", name).verified
    for ask in (judge.scores, judge.value):
        with pytest.raises(UserError, match=f"{name}: no answers"):
            ask([])
    if name != "perplexity":
        with pytest.raises(UserError, match="no prediction; .* perplexity"):
            judge.scores([said("x", "x"), text(-1.0, 1)])


@pytest.mark.parametrize(
    "answer", [text(float("nan"), 2), text(-math.inf, 2), text(-5000.0, 2), text(0.0, 0)]
)
def test_perplexity_refuses_broken_likelihoods(answer):
    for ask in (metric("perplexity").value, metric("perplexity").scores):
        with pytest.raises(UserError, match="row 1"):
            ask([text(-1.0, 1), answer])
