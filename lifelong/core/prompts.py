"""What a row shows before it is answered: all that a choice among experts may depend on.

In a decoder's example these are the tokens before the first that is learned. Where that is a single
one (a text that is learned from its start on) its first tokens are shown, as many as are asked for: a
choice among T experts tells at most log T nats of them.
"""

from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor, nn

from lifelong.core.axes import Answer, Batch, Example, Objective, Row
from lifelong.core.encoding import IGNORED, inputs
from lifelong.core.model import Model, kind_of
from lifelong.errors import UserError
from lifelong.numerics import pairs

ROWS_AT_ONCE = 16


def shown(example: Example, model: Model, num_tokens: int) -> Tensor | list[int]:
    """Pixels, or tokens."""
    if "pixel_values" in example:
        return example["pixel_values"]
    ids, labels = example["input_ids"], example.get("labels")
    if model.kind != "decoder" or labels is None:
        return ids
    first = next((i for i, label in enumerate(labels) if label != IGNORED), len(ids))
    return ids[:first] if first > 1 else ids[:num_tokens]


def features(examples: Sequence[Example], model: Model, num_tokens: int) -> Tensor:
    """(n, H) float32 on the CPU: mean of the base's last hidden states over what each example shows."""
    found = batches(examples, model, num_tokens)
    return torch.cat([pairs.base_features(model.network, **batch).float().cpu() for batch in found])


def batches(examples: Sequence[Example], model: Model, num_tokens: int) -> Iterator[Batch]:
    """What the examples show, some rows at a time."""
    seen = [shown(example, model, num_tokens) for example in examples]
    for start in range(0, len(seen), ROWS_AT_ONCE):
        some = seen[start : start + ROWS_AT_ONCE]
        batch = {"pixel_values": torch.stack(some)} if model.kind == "vision" else inputs(some, model)
        yield {key: value.to(model.device) for key, value in batch.items()}


def read(network: nn.Module, batch: Batch) -> None:
    """One pass over what is shown, for hooks to look at; an encoder-decoder begins to answer."""
    kind = kind_of(network)
    if kind == "encoder_decoder":
        first = network.prepare_decoder_input_ids_from_labels(batch["input_ids"][:, :1])  # (B, 1)
        network(**batch, decoder_input_ids=first, use_cache=False)
    else:
        network.base_model(**batch, **({"use_cache": False} if kind == "decoder" else {}))


def of_rows(objective: Objective, rows: Sequence[Row], model: Model, labels: Sequence[str]) -> list[Example]:
    """One example of each row."""
    known = list(dict.fromkeys((*labels, *(str(row["label"]) for row in rows if "label" in row))))
    if objective.packed_tokens is None:
        return list(objective.encode(rows, model, known).examples)
    found = [objective.encode([row], model, known).examples[:1] for row in rows]
    if not all(found):
        raise UserError(
            f"{type(objective).__name__} makes no example of a short row alone, so nothing can be chosen for "
            "it. Set drop_last to false."
        )
    return [example for (example,) in found]


def answer_apart(
    objective: Objective,
    rows: Sequence[Row],
    model: Model,
    labels: Sequence[str],
    chosen: Sequence[int],
    labels_of: Mapping[str, Sequence[str]],
) -> list[Answer]:
    """Rows with the same `chosen` pair together, so that a prompt and all that goes on from it take it;
    among those of `labels` that are the pair's, or all where none is.
    """
    found: dict[int, Answer] = {}
    for number in sorted(set(chosen)):
        places = [place for place, each in enumerate(chosen) if each == number]
        own = [label for label in labels if label in labels_of[str(number)]]
        with pairs.pinned(model.network, str(number)):
            answers = objective.answer([rows[place] for place in places], model, own or labels)
        found |= zip(places, answers, strict=True)
    return [found[place] for place in range(len(rows))]
