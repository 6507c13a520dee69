"""Rows to tokens and tokens to batches: what the text objectives share.

Prompt and completion are tokenised separately, so that no token spans their boundary and the prompt
of an evaluation is, token by token, the prompt that was trained. Right padding throughout.
"""

import string
from array import array
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from lifelong.core.axes import IGNORED, Batch, Example, Objective, Row
from lifelong.core.model import Model
from lifelong.errors import UserError, nearest


def place(row: Row, index: int) -> str:
    """Where a row stands, as a person looks for it: counted from 1, with the file where known."""
    source = row.get("__source__")
    return f"row {index + 1} ({source})" if source else f"row {index + 1}"


def check_columns(rows: Sequence[Row], objective: Objective, where: str) -> None:
    """Raise UserError at the first row that no accepted set of columns fits."""
    for index, row in enumerate(rows):
        absent = [[name for name in names if row.get(name) is None] for names in objective.columns]
        if not absent or [] in absent:
            continue
        missing = min(absent, key=len)
        present = [name for name in row if name != "__source__"]
        empty = [name for name in missing if name in row]
        problem = f"column `{missing[0]}` is " + ("empty (null)" if missing[0] in empty else "missing")
        guess = (get_close_matches(missing[0], present, n=1, cutoff=0.5) or ["your_column"])[0]
        sets = " or ".join("+".join(names) for names in objective.columns)
        raise UserError(
            f"{where}: {place(row, index)}: {problem}; this row has {', '.join(present) or 'no columns'}. "
            f"{type(objective).__name__} reads {sets}: use columns: {{...}} to map names, such as "
            f"columns: {{{missing[0]}: {guess}}}."
        )


def telling(rows: Sequence[Row]) -> Sequence[Row]:
    """Rows that show whether all can be encoded: of arrays that are alike in shape and type, which processors
    take alike, the first of each label; else all.
    """
    forms, first = set(), {}
    for row in rows:
        image = row.get("image")
        forms.add((image.shape, image.dtype) if isinstance(image, np.ndarray) else None)
        first.setdefault(row.get("label"), row)
        if None in forms or len(forms) > 1:
            return rows
    return list(first.values())


def tokenise(tokenizer: Any, texts: Sequence[str]) -> list[list[int]]:
    """Tokens of many texts in one call, no special tokens added."""
    if not texts:
        return []
    return tokenizer(
        list(texts), add_special_tokens=False, return_attention_mask=False, verbose=False
    )["input_ids"]  # fmt: skip


class Frame(NamedTuple):
    """Special tokens that stand around a prompt."""

    before: list[int]
    after: list[int]


def frame(model: Model) -> Frame:
    """What the tokenizer puts around a text by itself: for a decoder its BOS alone (an end would
    stop it), for an encoder-decoder everything.
    """
    tokenizer = model.processor
    bare, whole = tokenise(tokenizer, ["x"])[0], tokenizer("x")["input_ids"]
    start = next(i for i in range(len(whole)) if whole[i : i + len(bare)] == bare)
    before, after = whole[:start], whole[start + len(bare) :]
    if model.kind == "decoder":
        return Frame(before[:1] if before[:1] == [tokenizer.bos_token_id] else [], [])
    return Frame(before, after)


def end_token(model: Model) -> int:
    token = model.processor.eos_token_id
    if token is None:
        raise UserError(
            f"the tokenizer of {model.name or 'the model'} has no end token; set `eos_token` in it."
        )
    return token


def start_token(model: Model) -> int:
    """What a text without any context is predicted from: BOS, or EOS where there is none."""
    token = model.processor.bos_token_id
    return end_token(model) if token is None else token


class Fitted(NamedTuple):
    ids: list[int]
    kept: int  # how many of the prompt's own tokens, counted from its end
    cut: bool


def fit_prompt(body: list[int], around: Frame, room: int, model: Model) -> Fitted:
    """A prompt of at most `room` tokens: its end stays, and so do the special tokens around it. A
    decoder's prompt is never empty.
    """
    before, after = around
    if body and not before and body[0] == model.processor.bos_token_id:  # put there by a chat template
        before, body = body[:1], body[1:]
    if model.kind == "decoder" and not before and not body:
        before = [start_token(model)]
    kept = min(len(body), max(room - len(before) - len(after), 0))
    return Fitted(before + body[len(body) - kept :] + after, kept, kept < len(body))


def pair(prompt: list[int], completion: list[int], model: Model, on_prompt: bool = False) -> Example:
    """Example whose completion is labelled. Decoder: labels are aligned with input_ids (and shifted
    where they are used); the first token is never labelled, since nothing predicts it.
    Encoder-decoder: input_ids is the prompt, labels the completion.
    """
    if model.kind == "encoder_decoder":
        return {"input_ids": prompt, "labels": completion}
    ids = prompt + completion
    return {
        "input_ids": ids,
        "labels": [IGNORED] * (1 if on_prompt else len(prompt)) + ids[1 if on_prompt else len(prompt) :],
    }


def pad(sequences: Sequence[Sequence[int]], value: int, left: bool = False) -> Tensor:
    """(B, longest) int64. An array of machine words is filled three times as fast as a tensor."""
    longest, words = max(map(len, sequences)), array("q")
    if not longest:  # no buffer is empty
        return torch.zeros(len(sequences), 0, dtype=torch.int64)
    for each in sequences:
        fill = [value] * (longest - len(each))
        for part in (fill, list(each)) if left else (list(each), fill):
            words.fromlist(part)
    return torch.frombuffer(words, dtype=torch.int64).view(len(sequences), longest)


def pad_token(model: Model) -> int:
    """Any token does, since pads are masked; a tokenizer may have none."""
    token = model.processor.pad_token_id
    return 0 if token is None else token


def inputs(sequences: Sequence[Sequence[int]], model: Model, left: bool = False) -> Batch:
    """input_ids, and attention_mask only where something is padded: a mask costs time."""
    batch = {"input_ids": pad(sequences, pad_token(model), left)}
    if len({len(each) for each in sequences}) > 1:
        batch["attention_mask"] = pad([[1] * len(each) for each in sequences], 0, left)
    return batch


def collate_text(examples: Sequence[Example], model: Model) -> Batch:
    batch = inputs([each["input_ids"] for each in examples], model)
    return batch | {"labels": pad([each["labels"] for each in examples], IGNORED)}


@dataclass(frozen=True)
class Template:
    """Literal texts and columns in turn. Values are inserted as they are, braces included."""

    parts: tuple[tuple[str, str | None], ...]  # (literal, column that follows it)

    @property
    def columns(self) -> list[str]:
        return [column for _, column in self.parts if column is not None]

    def fill(self, row: Mapping[str, Any], where: str) -> str:
        for column in self.columns:
            if row.get(column) is None:
                present = [name for name in row if name != "__source__"]
                raise UserError(
                    f"{where}: the template names column `{column}`, which the row lacks."
                    f"{nearest(column, present)}"
                )
        return "".join(text + ("" if column is None else str(row[column])) for text, column in self.parts)


def parse_template(template: str, setting: str) -> Template:
    """`{column}` is a placeholder, `{{` and `}}` are braces."""
    try:
        found = list(string.Formatter().parse(template))
    except ValueError as error:
        raise UserError(f"{setting}: {error} in {template!r}; write {{{{ and }}}} for braces.") from None
    for _, column, spec, conversion in found:
        if column is not None and (not column.isidentifier() or spec or conversion):
            raise UserError(f"{setting}: placeholder {{{column}}} must be the plain name of a column.")
    parsed = Template(tuple((text, column) for text, column, _, _ in found))
    if not parsed.columns:
        raise UserError(f"{setting} must name a column, such as {{text}}; got {template!r}.")
    return parsed


def fill_prompts(
    rows: Sequence[Row], template: Template, model: Model, room: int
) -> tuple[list[list[int]], int]:
    """(prompt tokens of each row, how many had to be cut). Only a value is cut, at its right end:
    the column `text`, or the longest where the template does not name it.
    """
    tokenizer, around = model.processor, frame(model)
    room -= len(around.before) + len(around.after)
    found = tokenise(tokenizer, [template.fill(row, place(row, i)) for i, row in enumerate(rows)])
    cut = [index for index, ids in enumerate(found) if len(ids) > room]
    for index in cut:
        found[index] = _shorten(rows[index], template, model, room, place(rows[index], index))
    empty = model.kind == "decoder" and not around.before
    prompts = [around.before + (ids or [start_token(model)] * empty) + around.after for ids in found]
    return prompts, len(cut)


def _shorten(row: Row, template: Template, model: Model, room: int, where: str) -> list[int]:
    tokenizer = model.processor
    names = template.columns
    column = "text" if "text" in names else max(names, key=lambda name: len(str(row[name])))
    value = str(row[column])
    fast = tokenizer.is_fast
    pieces = tokenizer(value, add_special_tokens=False, return_offsets_mapping=fast, verbose=False)
    keep = len(pieces["input_ids"])
    ids = tokenise(tokenizer, [template.fill(row, where)])[0]
    while len(ids) > room:
        if keep == 0:
            raise UserError(
                f"{where}: without its `{column}` the prompt still has {len(ids)} tokens, and the window "
                f"({model.window}) leaves room for {room}. Shorten the template or the labels."
            )
        keep = max(keep - (len(ids) - room), 0)
        if fast:
            kept = value[: pieces["offset_mapping"][keep - 1][1]] if keep else ""
        else:
            kept = tokenizer.decode(pieces["input_ids"][:keep])
        ids = tokenise(tokenizer, [template.fill({**row, column: kept}, where)])[0]
    return ids
