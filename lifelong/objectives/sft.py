"""Supervised fine-tuning on instructions: learn the completion of a prompt, or every assistant turn.

loss = - sum_t log p(completion_t | prompt, completion_<t) / number of labelled tokens

Texts are joined as they are: prompt + completion + end token. Lists of {role, content} go through the
tokenizer's chat template: the completion is what the template adds to the rendered prompt, and the
end token is added only where the template wrote none. Only answers are learned (Touvron et al. 2023,
arXiv:2307.09288, section 3.1). Prompt and completion are tokenised separately, so that no token spans
their boundary. A prompt that is too long loses its beginning and is counted; what it loses of earlier
assistant turns is not learned. The last completion is never cut. An encoder-decoder learns the last
assistant turn only.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Annotated, ClassVar, NamedTuple

from torch import nn

from lifelong.core.axes import Answer, Batch, Encoded, Example, Objective, Outputs, Row
from lifelong.core.chat import read_dialogue
from lifelong.core.encoding import (
    IGNORED,
    Frame,
    check_columns,
    collate_text,
    end_token,
    fit_prompt,
    frame,
    pair,
    place,
    tokenise,
)
from lifelong.core.labelled import labelled_outputs, log_likelihoods
from lifelong.core.model import Model
from lifelong.core.scoring import generate
from lifelong.core.settings import Range
from lifelong.errors import UserError


class Parts(NamedTuple):
    """A row in tokens; `labels` are the body's, IGNORED where a token is only read."""

    body: list[int]
    labels: list[int]
    turns: list[int]  # where segments of the body begin
    around: Frame
    completion: list[int]
    references: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Sft(Objective):
    """Learn to answer from prompts with completions, or from conversations."""

    paper: ClassVar[str] = "Touvron et al. 2023, arXiv:2307.09288, section 3.1 (loss on answers only)"
    cost: ClassVar[str] = "one forward and backward pass; the output head at labelled positions only"
    verified: ClassVar[tuple[str, ...]] = (
        "loss and gradients equal transformers' own on the full logits",
        "exactly the assistant's words are labelled",
        "a cut prompt keeps its end, a completion is never cut",
    )
    kinds: ClassVar[tuple[str, ...]] = ("decoder", "encoder_decoder")
    columns: ClassVar[tuple[tuple[str, ...], ...]] = (("prompt", "completion"), ("messages",))
    metric: ClassVar[str] = "exact_match"

    train_on_prompt: bool = False  # learn the prompt's tokens too (decoders)
    system: str | None = None  # system message for conversations that have none
    generate: bool = True  # judge by greedy generation; False: by likelihood only
    max_new_tokens: Annotated[int, Range(1)] = 50  # longest generated answer, in tokens

    def encode(self, rows: Sequence[Row], model: Model, labels: Sequence[str]) -> Encoded:
        if self.train_on_prompt and model.kind == "encoder_decoder":
            raise UserError(
                "Sft.train_on_prompt must be false for an encoder-decoder, which only reads prompts."
            )
        found = [_example(parts, model, self.train_on_prompt) for parts in self._parts(rows, model)]
        return Encoded([example for example, _ in found], sum(cut for _, cut in found))

    def collate(self, examples: Sequence[Example], model: Model) -> Batch:
        return collate_text(examples, model)

    def forward(self, network: nn.Module, batch: Batch) -> Outputs:
        return labelled_outputs(network, batch)

    def answer(self, rows: Sequence[Row], model: Model, labels: Sequence[str]) -> list[Answer]:
        room = model.window - (self.max_new_tokens if model.kind == "decoder" else 0)
        if self.generate and room < 1:
            raise UserError(
                f"Sft.max_new_tokens must be below the window ({model.window}); got {self.max_new_tokens}."
            )
        found = self._parts(rows, model)
        silent = [parts._replace(labels=[IGNORED] * len(parts.body)) for parts in found]
        judged = [_example(parts, model, on_prompt=False)[0] for parts in silent]
        totals, counts = log_likelihoods(model, judged)
        said: list[str | None] = [None] * len(rows)
        if self.generate:
            prompts = [fit_prompt(parts.body, parts.around, room, model).ids for parts in found]
            tokens = generate(model, prompts, self.max_new_tokens)
            said = [model.processor.decode(ids, skip_special_tokens=True) for ids in tokens]
        return [Answer(said[i], parts.references, totals[i], counts[i]) for i, parts in enumerate(found)]

    def _parts(self, rows: Sequence[Row], model: Model) -> list[Parts]:
        check_columns(rows, self, "Sft")
        around, end = frame(model), end_token(model)
        dialogues = [
            read_dialogue(row, model.processor, self.system, place(row, i)) for i, row in enumerate(rows)
        ]
        tokens = iter(tokenise(model.processor, [text for each in dialogues for text, _ in each.segments]))
        found = []
        for index, (segments, references, templated) in enumerate(dialogues):
            *pieces, completion = [next(tokens) for _ in segments]
            if not (templated and end in completion):
                completion = [*completion, end]
            least = 1 if model.kind == "decoder" else 0  # tokens of prompt
            if len(completion) + least > model.window:
                raise UserError(
                    f"{place(rows[index], index)}: the completion has {len(completion)} tokens (end token "
                    f"included) and the window {model.window}, of which {least} for the prompt. Shorten it, "
                    "split the row or leave it out; completions are never cut."
                )
            labels = [
                ids if learned else [IGNORED] * len(ids)
                for ids, (_, learned) in zip(pieces, segments, strict=False)
            ]
            turns = [sum(map(len, pieces[:i])) for i in range(len(pieces) + 1)]
            specials = Frame([], around.after) if templated else around
            body = list(chain.from_iterable(pieces))
            flat = list(chain.from_iterable(labels))
            found.append(Parts(body, flat, turns, specials, completion, references))
        return found


def _example(parts: Parts, model: Model, on_prompt: bool) -> tuple[Example, bool]:
    room = model.window - (len(parts.completion) if model.kind == "decoder" else 0)
    ids, kept, cut = fit_prompt(parts.body, parts.around, room, model)
    example = pair(ids, parts.completion, model, on_prompt)
    if model.kind == "decoder" and not on_prompt:
        first = len(parts.body) - kept
        whole = next(turn for turn in parts.turns if turn >= first)  # a turn that lost its start is read only
        labels = [IGNORED] * (whole - first) + parts.labels[whole:]
        example["labels"][len(ids) - kept : len(ids)] = labels
        example["labels"][0] = IGNORED
    return example, cut
