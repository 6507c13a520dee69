"""Continual pretraining: next-token prediction on plain text.

loss = - sum_t log p(x_t | x_<t) / number of predicted tokens

Rows become one long sequence, each (with the BOS that the tokenizer adds by itself) closed by the end
token, and are cut into blocks of `block_size`; the first token of a block is not predicted, and
attention crosses the rows inside a block, as in GPT-style pretraining (Brown et al. 2020,
arXiv:2005.14165, appendix B). Without packing each row is one example, cut at the window.

Judged by the likelihood of each row on its own: every token is predicted once, the first from BOS or
the end token. A row longer than the window is read in windows that advance by half their length, so
that later tokens see at least half a window (minus one token) of what came before.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Annotated, ClassVar

from torch import nn

from lifelong.core.axes import Answer, Batch, Encoded, Example, Objective, Outputs, Row
from lifelong.core.encoding import (
    IGNORED,
    check_columns,
    collate_text,
    end_token,
    frame,
    pair,
    start_token,
    tokenise,
)
from lifelong.core.labelled import labelled_outputs, log_likelihoods
from lifelong.core.model import Model
from lifelong.core.settings import Range


@dataclass(frozen=True, kw_only=True)
class CausalLm(Objective):
    """Go on with pretraining on plain text."""

    paper: ClassVar[str] = "Brown et al. 2020, arXiv:2005.14165, appendix B (packing)"
    cost: ClassVar[str] = "one forward and backward pass; no pads when packed"
    verified: ClassVar[tuple[str, ...]] = (
        "packing loses and repeats no token",
        "loss and gradients equal transformers' own",
        "every token of a long row is scored once, with at least half a window of context",
    )
    kinds: ClassVar[tuple[str, ...]] = ("decoder",)
    columns: ClassVar[tuple[tuple[str, ...], ...]] = (("text",),)
    metric: ClassVar[str] = "perplexity"

    block_size: Annotated[int, Range(2)] = 512  # tokens of a packed example; at most the window
    pack: bool = True  # join rows and cut into blocks; False: one row per example, cut at the window
    drop_last: bool = False  # leave out the last block where it is not full

    @property
    def packed_tokens(self) -> int | None:
        return self.block_size if self.pack else None

    def encode(self, rows: Sequence[Row], model: Model, labels: Sequence[str]) -> Encoded:
        check_columns(rows, self, "encoding")
        before, end = frame(model).before, end_token(model)
        found = [before + ids + [end] for ids in tokenise(model.processor, [row["text"] for row in rows])]
        if not self.pack:
            cut = sum(len(ids) > model.window for ids in found)
            return Encoded([_all(ids[: model.window]) for ids in found], cut)
        size = min(self.block_size, model.window)
        stream = list(chain.from_iterable(found))
        blocks = [stream[start : start + size] for start in range(0, len(stream), size)]
        least = size if self.drop_last else 2  # one token alone predicts nothing
        return Encoded([_all(block) for block in blocks if len(block) >= least], 0)

    def collate(self, examples: Sequence[Example], model: Model) -> Batch:
        return collate_text(examples, model)

    def forward(self, network: nn.Module, batch: Batch) -> Outputs:
        return labelled_outputs(network, batch)

    def answer(self, rows: Sequence[Row], model: Model, labels: Sequence[str]) -> list[Answer]:
        check_columns(rows, self, "evaluation")
        start = frame(model).before or [start_token(model)]
        owners, examples = [], []
        for index, ids in enumerate(tokenise(model.processor, [row["text"] for row in rows])):
            windows = _windows(start + ids, len(start), model)
            owners += [index] * len(windows)
            examples += windows
        totals, counts = [0.0] * len(rows), [0] * len(rows)
        for owner, total, count in zip(owners, *log_likelihoods(model, examples), strict=True):
            totals[owner] += total
            counts[owner] += count
        return [Answer(None, (row["text"],), totals[i], counts[i]) for i, row in enumerate(rows)]


def _all(ids: list[int]) -> Example:
    return {"input_ids": ids, "labels": [IGNORED, *ids[1:]]}


def _windows(ids: list[int], scored: int, model: Model) -> list[Example]:
    """Windows of `ids` that predict each token from index `scored` on exactly once."""
    found: list[Example] = []
    begin = 0
    while scored < len(ids):
        end = min(begin + model.window, len(ids))
        found.append(pair(ids[begin:scored], ids[scored:end], model))
        scored, begin = end, end - model.window // 2
    return found
