"""Rows of instructions as segments of text, each learned or only read."""

from collections.abc import Sequence
from typing import Any, NamedTuple

from jinja2 import TemplateError

from lifelong.core.axes import Row
from lifelong.errors import UserError

Message = dict[str, str]


class Segment(NamedTuple):
    text: str
    learned: bool


class Dialogue(NamedTuple):
    """`segments` ends with the completion that is judged; `references` are all answers that count."""

    segments: list[Segment]
    references: tuple[str, ...]
    templated: bool  # special tokens are the template's business


def read_dialogue(row: Row, tokenizer: Any, system: str | None, where: str) -> Dialogue:
    if row.get("messages") is not None:
        return _conversation(_messages(row["messages"], "messages", where), tokenizer, system, where)
    prompt, completion = row["prompt"], row["completion"]
    if not isinstance(prompt, str):
        prompt = _messages(prompt, "prompt", where)
    answers = _answers(completion, where)
    if isinstance(prompt, str):
        if system is not None:
            raise UserError(f"{where}: `system` needs a prompt of messages, and this prompt is a text.")
        if isinstance(answers[0], list):
            raise UserError(f"{where}: prompt is a text and completion a list of messages; give both alike.")
        return Dialogue([Segment(prompt, False), Segment(answers[0], True)], tuple(answers), False)
    prompt = _with_system(prompt, system)
    first = answers[0] if isinstance(answers[0], list) else [{"role": "assistant", "content": answers[0]}]
    opening = _render(tokenizer, prompt, True, where)
    whole = _render(tokenizer, [*prompt, *first], False, where)
    references = tuple(each if isinstance(each, str) else each[-1]["content"] for each in answers)
    segments = [Segment(opening, False), Segment(_rest(opening, whole, where), True)]
    return Dialogue(segments, references, True)


def _conversation(messages: list[Message], tokenizer: Any, system: str | None, where: str) -> Dialogue:
    messages = _with_system(messages, system)
    turns = [i for i, each in enumerate(messages) if each["role"] == "assistant"]
    if not turns:
        raise UserError(f"{where}: no message has the role `assistant`, so there is nothing to learn.")
    segments, done = [], ""
    for turn in turns:
        opening = _render(tokenizer, messages[:turn], True, where)
        closed = _render(tokenizer, messages[: turn + 1], False, where)
        segments.append(Segment(_rest(done, opening, where), False))
        segments.append(Segment(_rest(opening, closed, where), True))
        done = closed
    return Dialogue(segments, (messages[turns[-1]]["content"],), True)


def _rest(beginning: str, whole: str, where: str) -> str:
    if not whole.startswith(beginning):
        raise UserError(
            f"{where}: the chat template writes earlier messages differently once later ones follow, so the "
            "assistant's words cannot be told from the rest. Give prompt and completion as texts, or "
            "another chat template."
        )
    return whole[len(beginning) :]


def _render(tokenizer: Any, messages: Sequence[Message], opening: bool, where: str) -> str:
    if tokenizer.chat_template is None:
        raise UserError(f"{where}: the tokenizer has no chat template; give prompt and completion as texts.")
    try:
        return tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=opening)
    except TemplateError as error:
        raise UserError(f"{where}: the chat template refuses these messages: {error}") from None


def _with_system(messages: list[Message], system: str | None) -> list[Message]:
    if system is None or (messages and messages[0]["role"] == "system"):
        return messages
    return [{"role": "system", "content": system}, *messages]


def _answers(completion: Any, where: str) -> list[str] | list[list[Message]]:
    """Completions that count as right; the first is learned."""
    if isinstance(completion, str):
        return [completion]
    if isinstance(completion, (list, tuple)) and completion:
        if all(isinstance(each, str) for each in completion):
            return list(completion)
        return [_messages(completion, "completion", where)]
    raise UserError(f"{where}: completion must be a text, a list of texts or a list of messages.")


def _messages(value: Any, column: str, where: str) -> list[Message]:
    good = isinstance(value, (list, tuple)) and all(
        isinstance(each, dict) and isinstance(each.get("role"), str) and isinstance(each.get("content"), str)
        for each in value
    )
    if not good or not value:
        raise UserError(
            f"{where}: {column} must be a list of {{role, content}} with texts; got {value!r:.80}."
        )
    return list(value)
