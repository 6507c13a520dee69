"""A linear classifier that grows by rows as labels arrive, on pooled features of any network."""

import hashlib
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor, nn

from lifelong.core.axes import Answer, Batch, Encoded, Example, Outputs, Row
from lifelong.core.encoding import inputs, pad_token, place
from lifelong.core.labelled import BATCH_TOKENS, bare, batches_by_length, judging
from lifelong.core.model import Kind, Model, kind_of
from lifelong.errors import UserError, nearest

NAME = "lifelong_head"  # attribute of the network that holds it
IMAGES_AT_ONCE = 64

Pooling = Literal["auto", "cls", "mean"]


class LabelHead(nn.Module):
    """logits = features @ weight.T + bias, in float32 whatever the features are.

    With an `expansion` R (H, L) that is fixed, relu(features / |features| @ R) stand for the features.

    Not an nn.Linear, so that tuners which wrap linear layers leave it alone. Row i starts from
    N(0, 0.02^2) drawn with a generator keyed by (seed, i): the same however the head grew to it.
    """

    def __init__(
        self, num_features: int, device: torch.device | str = "cpu", expansion: Tensor | None = None
    ) -> None:
        super().__init__()
        self.labels: list[str] = []  # label of each row
        self.current: list[int] = []  # rows that were added last
        self.register_buffer("expansion", None if expansion is None else expansion.to(device))
        num_features = num_features if expansion is None else expansion.shape[1]
        self.weight = nn.Parameter(torch.empty(0, num_features, device=device))  # (C, H or L)
        self.bias = nn.Parameter(torch.empty(0, device=device))  # (C,)

    def grow(self, labels: Sequence[str], seed: int) -> None:
        """Add rows for the labels that are new; old rows keep every bit. New parameters replace the
        old ones then, so an optimiser must be made afterwards.
        """
        fresh = [label for label in dict.fromkeys(labels) if label not in self.labels]
        if not fresh:
            return
        first = len(self.labels)
        self.labels += fresh
        self.current = list(range(first, len(self.labels)))
        width = self.weight.shape[1]
        rows = torch.stack([_row(width, seed, first + i) for i in range(len(fresh))]).to(self.weight)
        weight = torch.cat([self.weight.detach(), rows])
        bias = torch.cat([self.bias.detach(), self.bias.new_zeros(len(fresh))])
        self.weight = nn.Parameter(weight, requires_grad=self.weight.requires_grad)
        self.bias = nn.Parameter(bias, requires_grad=self.bias.requires_grad)

    def expand(self, features: Tensor) -> Tensor:  # (B, H) -> (B, H or L)
        features = features.to(self.weight.dtype)
        if self.expansion is None:
            return features
        return nn.functional.relu(nn.functional.normalize(features, dim=-1) @ self.expansion)

    def forward(self, features: Tensor) -> Tensor:  # (B, H) -> (B, C)
        return nn.functional.linear(self.expand(features), self.weight, self.bias)


def _row(width: int, seed: int, index: int) -> Tensor:
    digest = hashlib.blake2b(f"{NAME}/{seed}/{index}".encode(), digest_size=8).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest, "big") >> 1)
    return torch.randn(width, generator=generator) * 0.02


def attach(model: Model, expansion: int = 0, seed: int = 0) -> LabelHead:
    """The network's head, made where there is none: on its features, or on `expansion` random ones of them,
    drawn from N(0, 1) by `seed`.
    """
    found = find(model.network)
    if found is None:
        generator = torch.Generator().manual_seed(seed)
        drawn = torch.randn(model.hidden_size, expansion, generator=generator) if expansion else None
        found = LabelHead(model.hidden_size, model.device, drawn)
        model.network.add_module(NAME, found)
    if expansion and (found.expansion is None or found.expansion.shape[1] != expansion):
        raise UserError(
            f"expansion: the model comes with a label head on {found.weight.shape[1]} features; got "
            f"{expansion}. Begin with a model without a head, or leave expansion at 0."
        )
    return found


def head_of(network: nn.Module) -> LabelHead:
    found = find(network)
    if found is None:
        raise UserError("the network has no label head yet: call begin_stage(model, labels, seed) first.")
    return found


def find(network: nn.Module) -> LabelHead | None:
    return next((module for module in network.modules() if isinstance(module, LabelHead)), None)


def features(network: nn.Module, batch: Batch, pooling: Pooling) -> Tensor:  # (B, H)
    """Encoder, encoder-decoder: mean over tokens, or the first. Vision: the first token (cls), or the
    mean over all. Decoder: always the last token, the only one that has seen the others.
    """
    kind = kind_of(network)
    given = {key: batch[key] for key in ("input_ids", "attention_mask", "pixel_values") if key in batch}
    mask = batch.get("attention_mask")  # (B, L), right padded
    if kind == "decoder":
        return pooled(network.base_model(**given, use_cache=False).last_hidden_state, mask, kind, pooling)
    body = network.get_encoder() if kind == "encoder_decoder" else network.base_model
    return pooled(body(**given).last_hidden_state, mask, kind, pooling)


def pooled(hidden: Tensor, mask: Tensor | None, kind: Kind, pooling: Pooling = "auto") -> Tensor:
    """(B, H) of (B, L, H); `mask` (B, L) where rows are padded."""
    if kind == "decoder":
        if mask is None:
            return hidden[:, -1]
        return hidden[torch.arange(len(hidden), device=hidden.device), mask.sum(1) - 1]
    if pooling == "cls" or (pooling == "auto" and kind == "vision"):
        return hidden[:, 0]
    if mask is None:
        return hidden.mean(1)
    weights = mask.unsqueeze(-1).to(hidden.dtype)
    return (hidden * weights).sum(1) / weights.sum(1)


def outputs(network: nn.Module, batch: Batch, pooling: Pooling, mask_old: bool) -> Outputs:
    """Logits over all labels known so far. With `mask_old` a row of a current label competes among the
    current labels only; a replayed row of an old label competes among all.
    """
    network = bare(network)
    head, targets = head_of(network), batch["labels"]  # (B,)
    logits = head(features(network, batch, pooling))
    if mask_old:
        current = torch.zeros(logits.shape[1], dtype=torch.bool, device=logits.device)
        current[head.current] = True
        shut = current[targets][:, None] & ~current
        logits = logits.masked_fill(shut, torch.finfo(logits.dtype).min)
    return Outputs(logits, targets, torch.arange(len(targets), device=targets.device))


def encode(rows: Sequence[Row], model: Model, labels: Sequence[str]) -> Encoded:
    index = {label: i for i, label in enumerate(labels)}
    targets = [index[known_label(row, i, index)] for i, row in enumerate(rows)]
    bodies, truncated = _bodies(rows, model)
    return Encoded([{**body, "label": t} for body, t in zip(bodies, targets, strict=True)], truncated)


def known_label(row: Row, index: int, labels: Any) -> str:
    """The row's label as text, which must be among `labels`."""
    label = str(row["label"])
    if label not in labels:
        raise UserError(
            f"{place(row, index)}: label {label!r} is not in the stage's labels.{nearest(label, labels)}"
        )
    return label


def collate(examples: Sequence[Example], model: Model) -> Batch:
    batch = _stack(examples, model)
    return batch | {"labels": torch.tensor([each["label"] for each in examples], dtype=torch.int64)}


def answer(rows: Sequence[Row], model: Model, labels: Sequence[str], pooling: Pooling) -> list[Answer]:
    """The likeliest of the candidates that the head knows ("" where it knows none); log-likelihood of
    the row's label among them, -inf where it is unknown or no candidate.
    """
    head, found = find(model.network), []
    known = {} if head is None else {label: i for i, label in enumerate(head.labels)}
    names = [label for label in labels or known if label in known]
    if not names:  # nothing of this was taught yet
        return [Answer("", (str(row["label"]),), -math.inf, 1) for row in rows]
    columns = torch.tensor([known[name] for name in names], dtype=torch.int64, device=model.device)
    with judging(model.network):
        for start in range(0, len(rows), 4 * IMAGES_AT_ONCE):
            part = rows[start : start + 4 * IMAGES_AT_ONCE]
            found += _answers(part, model, names, columns, pooling)
    return found


def _answers(
    rows: Sequence[Row], model: Model, names: Sequence[str], columns: Tensor, pooling: Pooling
) -> list[Answer]:
    """`columns` are the places of the candidates `names` in the head."""
    head, (bodies, _) = head_of(model.network), _bodies(rows, model)
    place = {name: i for i, name in enumerate(names)}
    found: list[Answer] = [Answer("", (), -math.inf, 1)] * len(rows)
    lengths = [
        len(body["input_ids"]) if "input_ids" in body else BATCH_TOKENS // IMAGES_AT_ONCE for body in bodies
    ]
    for chosen in batches_by_length(lengths, BATCH_TOKENS):
        batch = _stack([bodies[i] for i in chosen], model)
        logits = head(_features(model, head, batch, pooling))[:, columns].float()
        scores = logits.log_softmax(1).cpu()
        references = [str(rows[i]["label"]) for i in chosen]
        asked = torch.tensor([place.get(name, 0) for name in references])
        likelihoods = scores[torch.arange(len(chosen)), asked].tolist()
        for i, best, own, score in zip(
            chosen, scores.argmax(1).tolist(), references, likelihoods, strict=True
        ):
            found[i] = Answer(names[best], (own,), score if own in place else -math.inf, 1)
    return found


def _features(model: Model, head: LabelHead, batch: Batch, pooling: Pooling) -> Tensor:
    """(B, H), contiguous whether they are computed or were kept: a head may round by the layout."""

    def compute() -> Tensor:
        moved = {key: value.to(model.device) for key, value in batch.items()}
        return features(model.network, moved, pooling).contiguous()

    return model.kept.recall(model.network, head, batch, pooling, compute) if model.still else compute()


def _bodies(rows: Sequence[Row], model: Model) -> tuple[list[Example], int]:
    if model.kind == "vision":
        images = [_image(row, i) for i, row in enumerate(rows)]
        groups = [images[i : i + IMAGES_AT_ONCE] for i in range(0, len(images), IMAGES_AT_ONCE)]
        pixels = [model.processor(images=each, return_tensors="pt")["pixel_values"] for each in groups]
        return [{"pixel_values": image} for group in pixels for image in group], 0
    texts, tokenizer = [str(row["text"]) for row in rows], model.processor
    found = tokenizer(texts, return_attention_mask=False, verbose=False)["input_ids"] if texts else []
    long = [i for i, ids in enumerate(found) if len(ids) > model.window]
    for i in long:  # again, so that the closing special token stays
        found[i] = tokenizer(texts[i], truncation=True, max_length=model.window)["input_ids"]
    return [{"input_ids": list(ids) or [pad_token(model)]} for ids in found], len(long)


def _image(row: Row, index: int) -> Any:
    image = row["image"]
    if isinstance(image, (str, Path)):
        try:
            with Image.open(image) as opened:
                return opened.convert("RGB")
        except (OSError, UnidentifiedImageError) as error:
            raise UserError(f"{place(row, index)}: cannot read image {str(image)!r}: {error}") from None
    return image.convert("RGB") if isinstance(image, Image.Image) else image


def _stack(bodies: Sequence[Example], model: Model) -> Batch:
    if model.kind == "vision":
        return {"pixel_values": torch.stack([each["pixel_values"] for each in bodies])}
    return inputs([each["input_ids"] for each in bodies], model)
