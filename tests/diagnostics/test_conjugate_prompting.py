"""Conjugate prompting: a hidden ability is found, the plain template changes nothing."""

from dataclasses import replace

import pytest
import tiny
from looking import context_of

from lifelong.core.axes import Answer
from lifelong.core.encoding import parse_template
from lifelong.core.evaluation import judge
from lifelong.diagnostics.conjugate_prompting import ConjugatePrompting, moved
from lifelong.errors import UserError
from lifelong.objectives.causal_lm import CausalLm


def after_second(model, **more):
    return replace(context_of("llama", model), stage=1, **more)


def test_an_ability_that_one_template_brings_back_is_found():
    model = tiny.model("llama")
    asked = []

    def answering(objective, rows, labels):
        asked.extend(row["text"] for row in rows)
        right = [row["text"].startswith("Voici") for row in rows]
        return [Answer(row["label"] if ok else "?", (row["label"],), -1.0, 1)
                for row, ok in zip(rows, right, strict=True)]  # fmt: skip

    model.answering = answering
    found = ConjugatePrompting(templates=("Voici {prompt}", "{prompt}!")).measure(after_second(model))
    assert found == {"sky plain": 0.0, "sky mean": 0.5, "sky best": 1.0}
    assert len(asked) == 18 and sum(text.endswith("!") for text in asked) == 6
    few = ConjugatePrompting(templates=("Voici {prompt}",), num_examples=2).measure(after_second(model))
    assert few == {"sky plain": 0.0, "sky mean": 1.0, "sky best": 1.0} and len(asked) == 22


def test_the_bare_template_gives_the_plain_figure():
    model = tiny.model("llama")
    context = after_second(model)
    found = ConjugatePrompting(templates=("{prompt}", "{prompt}")).measure(context)
    judged = context.stream.stages[0].evals[0]
    plain = judge(model, judged, judged.labels)[0]["value"]
    assert found == {"sky plain": plain, "sky mean": plain, "sky best": plain}


def test_judges_what_was_taught_before_and_general_sets_that_ask():
    model = tiny.model("llama")
    assert ConjugatePrompting().measure(context_of("llama", model)) == {}  # the first stage: nothing earlier
    context = after_second(model)
    asking = replace(context.stream.stages[1].evals[0], name="held")
    prose = replace(asking, name="prose", rows=asking.rows, objective=CausalLm())
    context.stream = replace(context.stream, general=(asking, prose))
    names = {name.split()[0] for name in ConjugatePrompting(num_examples=2).measure(context)}
    assert names == {"sky", "held"}


def test_only_what_a_row_asks_is_wrapped():
    around = parse_template("<{prompt}>", "templates")
    assert moved({"text": "a {b}", "label": "c"}, around) == {"text": "<a {b}>", "label": "c"}
    assert moved({"prompt": "a", "completion": "b"}, around) == {"prompt": "<a>", "completion": "b"}
    turns = [("system", "s"), ("user", "a"), ("assistant", "b"), ("user", "c"), ("assistant", "d")]
    row = {"messages": [{"role": role, "content": text} for role, text in turns]}
    told = [turn["content"] for turn in moved(row, around)["messages"]]
    assert told == ["s", "a", "b", "<c>", "d"] and row["messages"][3]["content"] == "c"


@pytest.mark.parametrize("templates", [("no place",), ("{text}",), ("{prompt}{prompt}",), ()])
def test_a_template_without_its_place_is_told(templates):
    with pytest.raises(UserError, match="ConjugatePrompting.templates.*prompt|must name a column"):
        ConjugatePrompting(templates=templates)
