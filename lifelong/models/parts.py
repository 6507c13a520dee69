"""Single parts in a training loop of one's own: a network as the parts see it, and what they look at."""

from collections.abc import Sequence
from typing import Any

from torch import nn

from lifelong.core.axes import Context, Objective, Row
from lifelong.core.model import Model, kind_of
from lifelong.models.fingerprint import fingerprint
from lifelong.models.pretrained import ensure_pad, window_of


def wrap(network: nn.Module, processor: Any, name: str = "") -> Model:
    """A transformers network that is loaded already, with its tokenizer or image processor. The network
    stays the same object; `name` is where its weights can be loaded from, for an export.
    """
    kind = kind_of(network)
    notes = {} if kind == "vision" else ensure_pad(processor, name or type(network).__name__)
    window = 1 if kind == "vision" else window_of(network.config, processor)
    return Model(network, processor, kind, window, name, fingerprint(network), notes)


def context(
    model: Model, objective: Objective, rows: Sequence[Row], labels: Sequence[str] | None = None
) -> Context:
    """What a penalty looks at when a stage ends: the trainable weights, and `rows` encoded by `objective`.

    `labels` are all that are known so far; default: those of the rows, sorted. Make it once the tuner is
    attached, since it holds the parameters that are trainable then.
    """
    if labels is None:
        labels = sorted({row["label"] for row in rows if "label" in row})
    return Context(
        params=model.params(),
        model=model,
        objective=objective,
        examples=objective.encode(rows, model, labels).examples,
        batches=lambda chosen: iter([_on(model, objective.collate(chosen, model))]),
    )


def _on(model: Model, batch: dict[str, Any]) -> dict[str, Any]:
    return {key: value.to(model.device) for key, value in batch.items()}
