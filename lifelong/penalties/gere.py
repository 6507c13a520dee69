"""GeRe: a few fixed general texts, on which hidden states stay in the band that they began in.

    total = task + general * loss of next tokens on the texts + w * margin
    margin: mean over entries out of their band of the distance to it; bands of each dimension end at
            mean -+ deviation of the first model's states h* over all tokens of all texts
    l1, l2: mean |h - h*|, mean (h - h*)^2;  kl: KL(softmax(z* / 2) || softmax(z / 2)), z by the output head
    w = strength, or (dynamic) the rest of the loss / margin, so that both weigh the same

Zhang et al. 2025, arXiv:2508.04676, and the authors' code. h* is computed once, before the first
stage; for the margin one byte per entry is kept. Differences: (task + general) / 2 there, the plain
sum here, so twice their w weighs the same; `batch_size` texts join every step
(their insertion of a fixed number), drawn by seed, stage and step; dynamic weights end at
`max_weight` (theirs grow to 1e8 times the loss where h* is met up to rounding); the kl form reads h*
by the head as it stands instead of keeping logits. The texts' own loss needs a decoder.

The default texts are random tokens, which need no file; the paper's are real general texts: name a
file of your own, and not the one that judges general ability.
"""

from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

import torch
from torch import Tensor
from torch.nn import functional

from lifelong.core import reference
from lifelong.core.axes import Batch, Context, Penalty
from lifelong.core.model import Model
from lifelong.core.settings import Range
from lifelong.core.state import State
from lifelong.errors import UserError
from lifelong.numerics.distillation import kl_divergence
from lifelong.numerics.margin import bands, limits, margin_loss
from lifelong.numerics.swap import evaluating

TEMPERATURE = 2.0  # of the kl form, as in the authors' code


@dataclass(frozen=True, kw_only=True)
class Gere(Penalty):
    """Hold the hidden states of general texts where the first model had them."""

    paper: ClassVar[str] = "Zhang et al. 2025, arXiv:2508.04676"
    cost: ClassVar[str] = (
        "a forward and backward pass over batch_size texts per step; hidden size bytes per token of the "
        "texts (4 times as many but for the margin)"
    )
    verified: ClassVar[tuple[str, ...]] = (
        "margin 0 at the first step and never negative; entries inside their band get no gradient",
        "with a dynamic weight the term weighs as much as the rest of the loss",
        "l1, l2 and kl equal the distance to a separate first model; strength 0 changes no bit",
    )

    strength: Annotated[float, Range(0)] = 100.0  # w; 0 switches the method off, the texts' loss too
    form: Literal["margin", "l1", "l2", "kl"] = "margin"  # distance of hidden states
    dynamic: bool = False  # w = rest of the loss / distance, anew in every step; strength is then on or off
    max_weight: Annotated[float, Range(0, open_low=True)] = 10000.0  # end of a dynamic w
    general: Annotated[float, Range(0)] = 1.0  # weight of the texts' own loss; decoders alone
    layer: int = -1  # whose hidden states: 0 embeddings, 1 first layer, -1 last
    reference: str | tuple[str, ...] = "random"  # file, texts, or "random" token ids
    num_rows: Annotated[int, Range(1)] = 1000  # texts at most
    length: Annotated[int, Range(2)] = 563  # tokens of a text at most
    batch_size: Annotated[int, Range(1)] = 4  # texts per step

    def init(self, context: Context) -> State:
        if not self.strength:
            return {"rows": [], "kept": [], "low": None, "high": None}
        model = context.model
        if model is None:
            raise UserError("gere looks at general texts: give Context(model=...).")
        if self.form == "kl" and model.kind != "decoder":
            raise UserError(f"gere.form must be margin, l1 or l2 for a model of kind {model.kind}.")
        rows = reference.encode(
            self.reference, model, self.num_rows, self.length, context.seed, "gere.reference"
        )
        with evaluating(model.network), torch.no_grad(), context.autocast():
            batches = (reference.collate([row], model) for row in rows)  # one by one: no pads
            kept = [reference.hidden(model, batch, self.layer).float() for batch in batches]
        low, high = limits(torch.cat(kept))
        if self.form == "margin":
            kept = [bands(each, low, high) for each in kept]
        return {"rows": rows, "kept": kept, "low": low, "high": high}

    def loss(self, context: Context, state: State) -> Tensor | None:
        if not self.strength or not state["rows"]:
            return None
        model = context.model
        chosen = reference.draw(len(state["rows"]), self.batch_size, context)
        batch = reference.collate([state["rows"][i] for i in chosen], model)
        kept = torch.cat([state["kept"][i].to(model.device) for i in chosen])
        own, now = self._look(model, batch)
        distance = self._distance(model, now.float(), kept, state)
        weight = self.strength
        if self.dynamic:
            rest = (context.loss or 0.0) + (self.general * own.item() if own is not None else 0.0)
            weight = min(rest / max(distance.item(), 1e-12), self.max_weight)
        total = weight * distance
        return total if own is None else total + self.general * own

    def _look(self, model: Model, batch: Batch) -> tuple[Tensor | None, Tensor]:
        """(loss of next tokens, (N, H) hidden states) of the texts in one pass."""
        if model.kind != "decoder" or not self.general:
            return None, reference.hidden(model, batch, self.layer)
        made = model.network(**batch, use_cache=False, output_hidden_states=True)
        targets = batch["input_ids"]
        if "attention_mask" in batch:
            targets = targets.masked_fill(batch["attention_mask"] == 0, -100)
        targets = targets[:, 1:].flatten()
        losses = functional.cross_entropy(made.logits[:, :-1].flatten(0, 1).float(), targets, reduction="sum")
        own = losses / (targets != -100).sum().clamp(min=1)
        return own, reference.at_rows(reference.at_layer(made.hidden_states, self.layer), batch)

    def _distance(self, model: Model, now: Tensor, kept: Tensor, state: State) -> Tensor:
        if self.form == "margin":
            return margin_loss(now, kept, state["low"].to(now.device), state["high"].to(now.device))
        if self.form == "kl":
            head = model.network.get_output_embeddings()
            with torch.no_grad():
                old = head(kept.to(head.weight.dtype))
            return kl_divergence(head(now.to(head.weight.dtype)), old, TEMPERATURE).mean() / TEMPERATURE**2
        apart = now - kept
        return apart.abs().mean() if self.form == "l1" else apart.square().mean()
