"""Packing, truncation, and the likelihood of long rows."""

import pytest
import tiny
import torch

from lifelong.errors import UserError
from lifelong.objectives.causal_lm import CausalLm

ROWS = [{"text": "abc"}, {"text": ""}, {"text": "defghij"}, {"text": "k" * 20}]


def ids(text: str) -> list[int]:
    return tiny.tokenizer()(text)["input_ids"]


def test_packing_loses_and_repeats_no_token():
    model = tiny.model("llama")
    examples, truncated = CausalLm(block_size=8).encode(ROWS, model, ())
    stream = [token for each in examples for token in each["input_ids"]]
    expected = [token for row in ROWS for token in [*ids(row["text"]), 1]]
    assert stream == expected and truncated == 0
    assert [len(each["input_ids"]) for each in examples] == [8, 8, 8, 8, 2]
    for each in examples:
        assert each["labels"] == [-100, *each["input_ids"][1:]]


def test_last_block_and_window():
    model = tiny.model("llama")
    assert all(
        len(each["input_ids"]) == 8
        for each in CausalLm(block_size=8, drop_last=True).encode(ROWS, model, ())[0]
    )
    long = CausalLm(block_size=512).encode([{"text": "x" * 200}], model, ()).examples
    assert [len(each["input_ids"]) for each in long] == [128, 73]
    lonely = CausalLm(block_size=4).encode([{"text": "abcd"}], model, ()).examples  # 4 + the end token
    assert [len(each["input_ids"]) for each in lonely] == [4]
    assert CausalLm(block_size=8, drop_last=True).encode([{"text": "a"}], model, ()).examples == []
    with pytest.raises(UserError, match="block_size"):
        CausalLm(block_size=1)


def test_without_packing_a_row_is_an_example_and_cuts_are_counted():
    model = tiny.model("llama")
    examples, truncated = CausalLm(pack=False).encode([*ROWS, {"text": "y" * 300}], model, ())
    assert [len(each["input_ids"]) for each in examples] == [4, 1, 8, 21, 128] and truncated == 1


def test_begins_rows_with_the_bos_that_the_tokenizer_adds():
    from core.test_encoding import framed

    model = framed("llama", "[CLS]", "")
    (example,), _ = CausalLm().encode(ROWS[:1] * 2, model, ())
    assert example["input_ids"] == [2, *ids("abc"), 1] * 2


def test_loss_equals_that_of_transformers():
    model = tiny.model("llama")
    method = CausalLm(block_size=8)
    batch = method.collate(method.encode(ROWS, model, ()).examples, model)
    outputs = method.forward(model.network, batch)
    assert method.labelled(batch) == len(outputs.targets) == 7 * 4 + 1
    full = model.network(**batch).loss
    assert abs(method.loss(outputs).mean().item() - full.item()) < 1e-5


def sequence(model, row: str) -> tuple[float, int]:
    """Every token predicted from all before it, the first from the end token; no windows."""
    tokens = torch.tensor([[1, *ids(row)]])
    with torch.no_grad():
        scores = model.network(input_ids=tokens).logits[0, :-1].log_softmax(-1)
    return scores.gather(1, tokens[0, 1:, None]).sum().item(), tokens.shape[1] - 1


def test_likelihood_of_rows_within_the_window():
    model = tiny.model("llama")
    answers = CausalLm().answer(ROWS, model, ())
    for row, answer in zip(ROWS, answers, strict=True):
        total, count = sequence(model, row["text"])
        assert answer.prediction is None and answer.references == (row["text"],)
        assert answer.tokens == count == len(row["text"])
        assert abs(answer.log_likelihood - total) < 1e-4


def test_long_rows_score_each_token_once_with_half_a_window_of_context():
    model = tiny.model("llama")
    model.window = 16
    text = "the quick brown fox jumps over the lazy dog again"
    tokens = [1, *ids(text)]
    expected, position = 0.0, 1
    with torch.no_grad():
        while position < len(tokens):  # by hand, one window after the other
            begin = 0 if position == 1 else position - 8
            part = torch.tensor([tokens[begin : begin + 16]])
            scores = model.network(input_ids=part).logits[0].log_softmax(-1)
            for at in range(position, begin + part.shape[1]):
                expected += scores[at - begin - 1, tokens[at]].item()
            position = begin + part.shape[1]
    (answer,) = CausalLm().answer([{"text": text}], model, ())
    assert answer.tokens == len(text)
    assert abs(answer.log_likelihood - expected) < 1e-4
    assert abs(answer.log_likelihood - sequence(model, text)[0]) > 1e-4  # control: context was limited


def test_a_missing_column_is_named():
    with pytest.raises(UserError, match="`text` is missing"):
        CausalLm().encode([{"prompt": "a"}], tiny.model("llama"), ())
