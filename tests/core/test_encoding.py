"""Columns, templates, cutting and padding."""

import copy

import numpy as np
import pytest
import tiny
from tokenizers.processors import TemplateProcessing

from lifelong.core import encoding
from lifelong.core.model import Model
from lifelong.errors import UserError
from lifelong.objectives.classification import Classification
from lifelong.objectives.sft import Sft


def framed(architecture: str, before: str, after: str) -> Model:
    """A tiny model whose tokenizer puts special tokens around a text by itself."""
    model = tiny.model(architecture)
    tokenizer = copy.deepcopy(tiny.tokenizer())
    tokenizer.bos_token = "[CLS]"
    ids = [(name, tokenizer.convert_tokens_to_ids(name)) for name in ("[CLS]", "<eos>")]
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single=f"{before} $A {after}".strip(), special_tokens=ids
    )
    model.processor = tokenizer
    return model


def test_missing_column_names_column_row_source_and_remedy():
    rows = [{"text": "a", "label": "x"}, {"txt": "b", "label": "y", "__source__": "train.jsonl:12"}]
    with pytest.raises(UserError) as error:
        encoding.check_columns(rows, Classification(), "stage spam")
    for part in ("stage spam", "row 2", "train.jsonl:12", "`text` is missing", "txt, label", "columns: {"):
        assert part in str(error.value), part
    assert "__source__" not in str(error.value)
    encoding.check_columns(rows[:1], Classification(), "stage spam")
    encoding.check_columns([{"image": "a.png", "label": 0}, rows[0]], Classification(), "mixed sets pass")


def test_null_counts_as_missing_but_false_and_empty_do_not():
    with pytest.raises(UserError, match=r"`label` is empty \(null\)"):
        encoding.check_columns([{"text": "a", "label": None}], Classification(), "s")
    encoding.check_columns([{"text": "", "label": 0}], Classification(), "s")
    with pytest.raises(UserError, match=r"prompt\+completion or messages"):
        encoding.check_columns([{"prompt": "a"}], Sft(), "s")


@pytest.mark.parametrize(
    ("kind", "before", "after", "expected"),
    [
        ("llama", "", "", ([], [])),
        ("llama", "[CLS]", "", ([2], [])),
        ("llama", "[CLS]", "<eos>", ([2], [])),  # an end would stop a decoder
        ("t5", "", "<eos>", ([], [1])),
        ("t5", "[CLS]", "<eos>", ([2], [1])),
    ],
)
def test_special_tokens_that_the_tokenizer_adds_by_itself(kind, before, after, expected):
    assert tuple(encoding.frame(framed(kind, before, after))) == expected


def test_a_prompt_that_is_too_long_keeps_its_end_and_its_special_tokens():
    model = framed("llama", "[CLS]", "")
    frame = encoding.frame(model)
    body = list(range(10, 20))
    assert encoding.fit_prompt(body, frame, 11, model) == ([2, *body], 10, False)
    assert encoding.fit_prompt(body, frame, 5, model) == ([2, 16, 17, 18, 19], 4, True)
    # a BOS that a chat template wrote is kept as well
    assert encoding.fit_prompt([2, *body], encoding.Frame([], []), 5, model).ids == [2, 16, 17, 18, 19]
    assert encoding.fit_prompt([], encoding.Frame([], []), 5, model).ids == [2]  # never empty


def test_template_keeps_braces_of_texts_and_of_itself():
    template = encoding.parse_template("{{x}} {text} / {other}", "t")
    assert template.columns == ["text", "other"]
    assert template.fill({"text": "{label} {0} {{", "other": 5}, "row 1") == "{x} {label} {0} {{ / 5"


@pytest.mark.parametrize("bad", ["{text", "{}", "{0}", "{text!r}", "{text:>5}", "{a.b}", "no column"])
def test_bad_templates_are_refused(bad):
    with pytest.raises(UserError, match="t"):
        encoding.parse_template(bad, "t")


def test_unknown_placeholder_names_row_and_nearest_column():
    template = encoding.parse_template("{text} {premisse}", "t")
    with pytest.raises(UserError, match=r"row 3 \(f:9\).*`premisse`.*`premise`"):
        template.fill({"text": "a", "premise": "b", "__source__": "f:9"}, "row 3 (f:9)")


@pytest.mark.parametrize("text", ["0123456789" * 3, "{" * 30, "\u00e9\u4e16" * 8])
def test_only_the_text_is_cut_at_its_right_end(text):
    model = tiny.model("llama")
    template = encoding.parse_template("<<{text}\n{note}>>", "t")
    rows = [{"text": text, "note": "n" * 4}, {"text": "ab", "note": "n"}]
    (long, short), cut = encoding.fill_prompts(rows, template, model, 20)
    assert cut == 1
    decoded = model.processor.decode(long)
    assert decoded.startswith("<<" + text[:2]) and decoded.endswith("\nnnnn>>") and len(long) <= 20
    kept = decoded[2:-7]
    assert text.startswith(kept) and len((text[: len(kept) + 1]).encode()) > 20 - 9  # no more would fit
    assert model.processor.decode(short) == "<<ab\nn>>"


def test_a_template_longer_than_the_window_is_an_error():
    with pytest.raises(
        UserError, match=r"row 1: without its `text` the prompt still has 26 tokens.*room for 20"
    ):
        encoding.fill_prompts(
            [{"text": "abc"}], encoding.parse_template("z" * 26 + "{text}", "t"), tiny.model("llama"), 20
        )


def test_collate_pads_right_and_omits_the_mask_where_nothing_is_padded():
    model = tiny.model("llama")
    pairs = [encoding.pair([5, 6], [7], model), encoding.pair([5], [8], model)]
    batch = encoding.collate_text(pairs, model)
    assert batch["input_ids"].tolist() == [[5, 6, 7], [5, 8, 0]]
    assert batch["labels"].tolist() == [[-100, -100, 7], [-100, 8, -100]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1], [1, 1, 0]]
    assert {each.dtype for each in batch.values()} == {encoding.torch.int64}
    assert "attention_mask" not in encoding.collate_text(pairs[:1] * 2, model)


def test_arrays_that_are_alike_are_told_by_one_of_each_label():
    def row(label, shape=(4, 4), kind=np.uint8):
        return {"image": np.zeros(shape, kind), "label": label}

    rows = [row("a"), row("b"), row("a"), row("c")]
    assert [each["label"] for each in encoding.telling(rows)] == ["a", "b", "c"]
    odd = (row("a", (4, 5)), row("a", kind=np.float32), {"image": "a.png", "label": "a"}, {"text": "a"})
    for each in odd:
        assert encoding.telling([*rows, each]) == [*rows, each]
    assert encoding.telling([row("a"), {**row("a"), "label": None}])[1]["label"] is None
