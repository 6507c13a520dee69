"""Classification, by the likelihood of label words or by a linear head that grows.

Likelihood (decoders, encoder-decoders): the template's text is the prompt, " " + label the completion,
    loss = - sum_t log p(label_t | prompt, label_<t) / number of labelled tokens (end token included)
    answer = argmax over candidate labels of sum_t log p(label_t | prompt, label_<t)
(Brown et al. 2020, arXiv:2005.14165, section 2.4; sums, where that divides by length, since the sum
is what was trained and with its end token a probability of the label.)
Linear (encoders, vision; others if asked): softmax over all labels known so far, on pooled features of
the text without a template. Text too long for the window is cut at its right end, the template never.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

from torch import Tensor, nn

from lifelong.core import head as linear
from lifelong.core.axes import Answer, Batch, Encoded, Example, Objective, Outputs, Row
from lifelong.core.encoding import check_columns, collate_text, fill_prompts, pair, parse_template, tokenise
from lifelong.core.encoding import end_token as end_token_of
from lifelong.core.labelled import labelled_outputs, log_likelihoods
from lifelong.core.model import Model
from lifelong.core.scoring import generate, label_log_likelihoods
from lifelong.errors import UserError


@dataclass(frozen=True, kw_only=True)
class Classification(Objective):
    """Learn to name the label of a text or an image."""

    paper: ClassVar[str] = "Brown et al. 2020, arXiv:2005.14165, section 2.4 (labels judged by likelihood)"
    cost: ClassVar[str] = "one pass; judging: the prompt once, then a tree of label tokens"
    verified: ClassVar[tuple[str, ...]] = (
        "label likelihoods equal one plain sequence per prompt and label",
        "a growing head keeps old rows bit for bit and does not depend on how it grew",
        "only the text is cut, never the template",
    )
    kinds: ClassVar[tuple[str, ...]] = ("decoder", "encoder_decoder", "encoder", "vision")
    columns: ClassVar[tuple[tuple[str, ...], ...]] = (("text", "label"), ("image", "label"))
    metric: ClassVar[str] = "accuracy"

    head: Literal["auto", "linear", "likelihood"] = "auto"  # likelihood where the network generates
    template: str = "{text}\nAnswer:"  # prompt of the likelihood head; {column} of the row
    end_token: bool = True  # a label's likelihood includes the end token
    generate: bool = False  # judge by greedy generation instead of likelihood
    pooling: Literal["auto", "cls", "mean"] = "auto"  # linear; mean for text, cls for vision
    mask_old: bool = False  # linear: rows of new labels compete among the newest labels only

    def __post_init__(self) -> None:
        super().__post_init__()
        if "label" in parse_template(self.template, "Classification.template").columns:
            raise UserError("Classification.template must not name {label}: it would give the answer away.")

    @property
    def hides_old_labels(self) -> bool:
        return self.mask_old

    def begin_stage(self, model: Model, labels: Sequence[str], seed: int) -> None:
        if self.has_linear_head(model):
            linear.attach(model).grow(labels, seed)

    def encode(self, rows: Sequence[Row], model: Model, labels: Sequence[str]) -> Encoded:
        rows = self._checked(list(rows), model)  # an image may be made at every look
        if self.has_linear_head(model):
            return linear.encode(rows, model, labels)
        names = [linear.known_label(row, i, labels or [str(row["label"])]) for i, row in enumerate(rows)]
        tokens = _label_tokens([*labels, *names], model)
        prompts, truncated = self._prompts(rows, model, tokens)
        pairs = [pair(p, tokens[name], model) for p, name in zip(prompts, names, strict=True)]
        return Encoded(pairs, truncated)

    def collate(self, examples: Sequence[Example], model: Model) -> Batch:
        return (linear.collate if self.has_linear_head(model) else collate_text)(examples, model)

    def forward(self, network: nn.Module, batch: Batch) -> Outputs:
        if batch["labels"].dim() == 1:
            return linear.outputs(network, batch, self.pooling, self.mask_old)
        return labelled_outputs(network, batch)

    def features(self, network: nn.Module, batch: Batch) -> Tensor:
        return linear.features(network, batch, self.pooling)

    def answer(self, rows: Sequence[Row], model: Model, labels: Sequence[str]) -> list[Answer]:
        rows = self._checked(list(rows), model)
        if self.has_linear_head(model):
            return linear.answer(rows, model, labels, self.pooling)
        if not labels:
            raise UserError("evaluation needs the candidate labels; give the stage `labels`.")
        names = [str(row["label"]) for row in rows]
        tokens = _label_tokens([*labels, *names], model)
        prompts, _ = self._prompts(rows, model, tokens)
        longest = max(map(len, tokens.values()))
        if not self.end_token:
            tokens = {name: ids[:-1] for name, ids in tokens.items()}
        if self.generate:
            made = model.processor.batch_decode(generate(model, prompts, longest), skip_special_tokens=True)
            said, totals = [text.strip() for text in made], _totals(prompts, names, tokens, model)
        else:
            said, totals = _likeliest(prompts, names, tokens, model, list(labels))
        return [Answer(said[i], (name,), totals[i], len(tokens[name])) for i, name in enumerate(names)]

    def _prompts(self, rows: Sequence[Row], model: Model, tokens: "Tokens") -> tuple[list[list[int]], int]:
        longest = max(map(len, tokens.values()), default=0)
        room = model.window - (longest if model.kind == "decoder" else 0)
        return fill_prompts(rows, parse_template(self.template, "Classification.template"), model, room)

    def has_linear_head(self, model: Model) -> bool:
        generative = model.kind in ("decoder", "encoder_decoder")
        if self.head == "likelihood" and not generative:
            raise UserError(
                "Classification.head must be linear or auto for a network that does not generate."
            )
        return self.head == "linear" or not generative

    def _checked(self, rows: list[Row], model: Model) -> list[Row]:
        check_columns(rows, self, "Classification")
        column = "image" if model.kind == "vision" else "text"
        if any(row.get(column) is None for row in rows):
            raise UserError(f"a model of kind {model.kind} reads the column `{column}`, which a row lacks.")
        return rows


Tokens = dict[str, list[int]]  # of a label, its end token included


def _label_tokens(labels: Sequence[str], model: Model) -> Tokens:
    names = list(dict.fromkeys(labels))
    tokens = tokenise(model.processor, [" " + name for name in names])
    return {name: [*ids, end_token_of(model)] for name, ids in zip(names, tokens, strict=True)}


def _totals(prompts: list[list[int]], names: list[str], tokens: Tokens, model: Model) -> list[float]:
    examples = [pair(prompt, tokens[name], model) for prompt, name in zip(prompts, names, strict=True)]
    return log_likelihoods(model, examples)[0]


def _likeliest(
    prompts: list[list[int]], names: list[str], tokens: Tokens, model: Model, labels: list[str]
) -> tuple[list[str], list[float]]:
    """Best candidate and log-likelihood of the reference, which need not be a candidate."""
    index = {label: i for i, label in enumerate(labels)}
    asked = [index.get(name, 0) for name in names]
    scores = label_log_likelihoods(model, prompts, [tokens[label] for label in labels], asked)
    totals = scores[range(len(names)), asked].tolist()
    odd = [i for i, name in enumerate(names) if name not in index]
    others = _totals([prompts[i] for i in odd], [names[i] for i in odd], tokens, model)
    for i, total in zip(odd, others, strict=True):
        totals[i] = total
    return [labels[best] for best in scores.argmax(1).tolist()], totals
