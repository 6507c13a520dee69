"""What is labelled, what is cut, what is refused, and how answers are read."""

import copy

import pytest
import tiny
import torch
from core.test_scoring import by_steps, sharp

from lifelong.errors import UserError
from lifelong.objectives.sft import Sft

CHAT = (
    "{% for m in messages %}<{{ m['role'] }}>{{ m['content'] }}"
    "{% if m['role'] != 'user' %}<eos>{% endif %}{{ '\\n' }}"
    "{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}"
)
TALK = [
    {"role": "user", "content": "hi"},
    {"role": "assistant", "content": "yo"},
    {"role": "user", "content": "bye"},
    {"role": "assistant", "content": "ciao"},
    {"role": "user", "content": "unanswered"},
]


def ids(text: str) -> list[int]:
    return tiny.tokenizer()(text)["input_ids"]


def chatty(architecture: str = "llama", template: str = CHAT):
    model = sharp(architecture)
    model.processor = copy.deepcopy(tiny.tokenizer())
    model.processor.chat_template = template
    return model


def spans(example: dict) -> list[str]:
    """Runs of labelled tokens, as text."""
    found, run = [], []
    for token, label in [*zip(example["input_ids"], example["labels"], strict=True), (0, -100)]:
        if label != -100:
            assert label == token
            run.append(token)
        elif run:
            found.append(tiny.tokenizer().decode(run))
            run = []
    return found


def test_completion_and_end_are_labelled_and_texts_are_joined_as_they_are():
    model = tiny.model("llama")
    (example,), cut = Sft().encode([{"prompt": "2+2= ", "completion": "4"}], model, ())
    assert example["input_ids"] == [*ids("2+2= 4"), 1] and spans(example) == ["4<eos>"] and cut == 0
    (example,), _ = Sft(train_on_prompt=True).encode([{"prompt": "2+2= ", "completion": "4"}], model, ())
    assert spans(example) == ["+2= 4<eos>"]  # nothing predicts the first token
    (example,), _ = Sft().encode([{"prompt": "", "completion": "4"}], model, ())
    assert example["input_ids"] == [1, *ids("4"), 1]  # a prompt is never empty


def test_encoder_decoder_reads_the_prompt_and_learns_the_completion():
    (example,), _ = Sft().encode([{"prompt": "ab", "completion": "c"}], tiny.model("t5"), ())
    assert example == {"input_ids": ids("ab"), "labels": [*ids("c"), 1]}
    with pytest.raises(UserError, match="train_on_prompt"):
        Sft(train_on_prompt=True).encode([{"prompt": "a", "completion": "b"}], tiny.model("t5"), ())


@pytest.mark.parametrize("architecture", tiny.TEXT)
def test_loss_equals_that_of_transformers(architecture):
    model = tiny.model(architecture)
    rows = [{"prompt": "a" * n, "completion": "b" * (5 - n)} for n in range(1, 5)]
    batch = Sft().collate(Sft().encode(rows, model, ()).examples, model)
    outputs = Sft().forward(model.network, batch)
    assert Sft().labelled(batch) == len(outputs.targets) == 4 + 3 + 2 + 1 + 4
    assert abs(Sft().loss(outputs).mean().item() - model.network(**batch).loss.item()) < 1e-5


def test_the_completion_is_what_the_template_adds():
    model = chatty()
    row = {"prompt": TALK[:1], "completion": TALK[1:2]}
    (example,), _ = Sft().encode([row], model, ())
    assert tiny.tokenizer().decode(example["input_ids"]) == "<user>hi\n<assistant>yo<eos>\n"
    assert spans(example) == ["yo<eos>\n"]
    assert Sft().encode([{"prompt": TALK[:1], "completion": "yo"}], model, ()).examples == [example]
    plain = chatty(template=CHAT.replace("<eos>", ""))  # a template that writes no end
    assert spans(Sft().encode([row], plain, ()).examples[0]) == ["yo\n<eos>"]


def test_every_assistant_turn_is_labelled_and_nothing_else():
    (example,), _ = Sft(system="be brief").encode([{"messages": TALK}], chatty(), ())
    text = tiny.tokenizer().decode(example["input_ids"])
    assert text == "<system>be brief<eos>\n<user>hi\n<assistant>yo<eos>\n<user>bye\n<assistant>ciao<eos>\n"
    assert spans(example) == ["yo<eos>\n", "ciao<eos>\n"]
    own = [{"role": "system", "content": "mine"}, *TALK]
    (example,), _ = Sft(system="be brief").encode([{"messages": own}], chatty(), ())
    assert "mine" in tiny.tokenizer().decode(example["input_ids"]) and "brief" not in str(example)


def test_a_template_that_rewrites_the_past_is_refused_with_the_row():
    fickle = chatty(template="{{ messages | length }}" + CHAT)
    with pytest.raises(UserError, match=r"row 2 \(c.jsonl:7\).*differently"):
        Sft().encode(
            [{"prompt": "a", "completion": "b"}, {"messages": TALK, "__source__": "c.jsonl:7"}], fickle, ()
        )


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ({"messages": TALK[:1]}, "no message has the role `assistant`"),
        ({"messages": [{"role": "user"}]}, "messages must be a list of"),
        ({"prompt": "a", "completion": TALK[1:2]}, "give both alike"),
        ({"prompt": "a", "completion": 5}, "completion must be"),
        ({"prompt": "a", "completion": []}, "completion must be"),
        ({"prompt": 5, "completion": "a"}, "prompt must be a list of"),
    ],
)
def test_bad_rows_are_refused(row, words):
    with pytest.raises(UserError, match=f"row 1: .*{words}"):
        Sft().encode([row], chatty(), ())


def test_settings_that_cannot_apply_are_refused():
    with pytest.raises(UserError, match="no chat template"):
        Sft().encode([{"messages": TALK}], tiny.model("llama"), ())
    with pytest.raises(UserError, match="`system` needs"):
        Sft(system="x").encode([{"prompt": "a", "completion": "b"}], tiny.model("llama"), ())
    with pytest.raises(UserError, match=r"max_new_tokens must be below the window \(128\)"):
        Sft(max_new_tokens=128).answer([{"prompt": "a", "completion": "b"}], tiny.model("llama"), ())


def test_a_long_prompt_loses_its_beginning_and_is_counted():
    model = tiny.model("llama")
    rows = [{"prompt": "x" * 100 + "END" * 20, "completion": "y" * 27}, {"prompt": "a", "completion": "b"}]
    (example, _), cut = Sft().encode(rows, model, ())
    assert cut == 1 and len(example["input_ids"]) == 128
    assert tiny.tokenizer().decode(example["input_ids"]) == "x" * 40 + "END" * 20 + "y" * 27 + "<eos>"
    (example,), cut = Sft().encode([{"prompt": "x" * 200, "completion": "y"}], tiny.model("t5"), ())
    assert cut == 1 and len(example["input_ids"]) == 128 and len(example["labels"]) == 2


def test_what_a_cut_leaves_of_a_turn_is_not_learned():
    model = chatty()
    model.window = len(ids("yo\n<user>bye\n<assistant>ciao\n")) + 2 - 1  # all but the first of "yo"
    (example,), cut = Sft().encode([{"messages": TALK}], model, ())
    assert cut == 1 and tiny.tokenizer().decode(example["input_ids"]).startswith("o<eos>\n<user>bye")
    assert spans(example) == ["ciao<eos>\n"]
    model.window += 2  # one token before the turn is there: the turn is whole
    assert spans(Sft().encode([{"messages": TALK}], model, ()).examples[0]) == ["yo<eos>\n", "ciao<eos>\n"]


@pytest.mark.parametrize(("architecture", "limit"), [("llama", 127), ("t5", 128)])
def test_a_completion_is_never_cut(architecture, limit):
    model = tiny.model(architecture)
    fits = {"prompt": "p", "completion": "c" * (limit - 1), "__source__": "d.jsonl:4"}
    (example,), _ = Sft().encode([fits], model, ())
    assert sum(label != -100 for label in example["labels"]) == limit
    with pytest.raises(
        UserError, match=rf"row 1 \(d.jsonl:4\): the completion has {limit + 1} tokens.*window 128"
    ):
        Sft().encode([fits | {"completion": "c" * limit}], model, ())


@pytest.mark.parametrize("architecture", tiny.TEXT)
def test_answers_are_greedy_and_likelihoods_are_those_of_the_first_reference(architecture):
    model = sharp(architecture)
    rows = [{"prompt": each, "completion": ["xy", "z"]} for each in ("abcabcab", "q", "ttttttttt 77", "-=-=")]
    answers = Sft(max_new_tokens=5).answer(rows, model, ())
    for row, answer in zip(rows, answers, strict=True):
        said = tiny.tokenizer().decode(by_steps(model, ids(row["prompt"]), 5), skip_special_tokens=True)
        assert answer.prediction == said and answer.references == ("xy", "z") and answer.tokens == 3
        batch = Sft().collate(Sft().encode([row], model, ()).examples, model)
        with torch.no_grad():
            loss = model.network(**batch).loss.item()
        assert abs(answer.log_likelihood + 3 * loss) < 1e-3
    assert len({answer.prediction for answer in answers}) > 1  # control


def test_judging_looks_at_the_last_turn_only():
    model = chatty()
    method = Sft(generate=False, train_on_prompt=True)
    (whole,) = method.answer([{"messages": TALK}], model, ())
    (last,) = method.answer([{"prompt": TALK[:3], "completion": TALK[3:4]}], model, ())
    assert whole == last and whole.prediction is None and whole.references == ("ciao",)
    assert whole.tokens == len(ids("ciao")) + 2
