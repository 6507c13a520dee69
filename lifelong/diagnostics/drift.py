"""Drift: how far each layer has moved from the pretrained model, in its weights and in what it computes.

    weights(layer)  = |W - W_pre| / |W_pre|                       Frobenius norms over all its weights
    features(layer) = 1 - mean over rows of cos(h(row), h_pre(row))

W is what a linear module computes with all that a tuner adds beside it (W = f(I) - f(0); a routed
module, which is not linear in its input, is left out and counted); other weights are taken as they
are. h is what leaves the layer for the prompts of evaluation rows, at the last token (decoders), where
the answer begins (the decoder of an encoder-decoder), the mean over tokens (encoders) or the first
token (vision). Rows are those of sets whose stage has begun and of the general ones, the same after
every stage, none of which is trained. 0: nothing moved. Both figures are against the model before the
first stage; the difference of two lines of the table tells of one stage.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

import torch
from torch import Tensor, nn

from lifelong.core import head, prompts
from lifelong.core.axes import Batch, Context, Diagnostic
from lifelong.core.matrix import mean
from lifelong.core.model import kind_of
from lifelong.core.settings import Range
from lifelong.numerics import change, low_rank
from lifelong.numerics.positions import layer_outputs, layers
from lifelong.numerics.twin import placed


@dataclass(frozen=True, kw_only=True)
class Drift(Diagnostic):
    """How far weights and features of every layer are from the pretrained model's."""

    cost: ClassVar[str] = (
        "a pass over all weights, and two forward passes over num_examples rows of every set so far, after "
        "each stage; base weights once more, on the CPU, where the tuner writes them"
    )
    verified: ClassVar[tuple[str, ...]] = (
        "exactly 0 where nothing moved; a weight scaled by 1 + x moves by x, and no other layer does",
        "an update beside the weights counts as one inside them",
        "features equal a forward pass by hand; those before the changed layer stand still",
        "changes no bit of a run",
    )
    title: ClassVar[str] = "Drift from the pretrained model"
    better: ClassVar[str] = "lower"
    needs_base: ClassVar[bool] = True

    num_examples: Annotated[int, Range(1)] = 32  # rows of each evaluation set, at most; always the same

    def measure(self, context: Context) -> dict[str, float]:
        told, skipped = moved(context.model.network, context.base, context.routed)
        by_layer = {each["name"]: each["relative"] for each in told["layers"]}
        blocks = list(layers(context.base))
        found = {"weights all": told["total"]["relative"] or 0.0}
        found |= {f"weights {name}": by_layer.get(name) or 0.0 for name in blocks}
        turned = self._turned(context, self._batches(context))
        found |= {f"features {name}": turned[name] for name in blocks if name in turned}
        return found | {"left out": float(skipped)}

    def brief(self, figures: dict[str, float]) -> dict[str, float]:
        """All weights; the mean over layers of what they compute."""
        turned = [value for name, value in figures.items() if name.startswith("features ")]
        features = {"features": mean(turned)} if turned else {}
        return {"weights": figures["weights all"], **features}

    def _batches(self, context: Context) -> list[Batch]:
        found: list[Batch] = []
        for each in context.stream.known(context.stage + 1):
            order = torch.randperm(len(each.rows), generator=torch.Generator().manual_seed(0))
            rows = [each.rows[i] for i in sorted(order[: self.num_examples].tolist())]
            examples = prompts.of_rows(each.objective, rows, context.model, each.labels)
            found += prompts.batches(examples, context.model, context.model.window)
        return found

    def _turned(self, context: Context, batches: Sequence[Batch]) -> dict[str, float]:
        """1 - mean cosine by layer."""
        with torch.no_grad(), context.autocast():
            after = features(context.model.network, batches)
            with placed(context.base, context.model.device) as base:
                before = features(base, batches)
        return {name: turn(before[name], after[name]) for name in before if name in after}


def turn(before: Tensor, after: Tensor) -> float:
    """1 - mean cosine of (N, H) rows; exactly 0 where they are equal."""
    if torch.equal(before, after):
        return 0.0
    return float(1 - torch.cosine_similarity(before.double(), after.double(), dim=-1).mean())


@torch.no_grad()
def moved(network: nn.Module, base: nn.Module, routed: bool = False) -> tuple[dict[str, Any], int]:
    """(figures of numerics.change, how many modules were left out)"""
    before = dict(base.named_parameters())
    now, sizes = low_rank.computed_weights(network, before, routed), change.sizes_of(before)
    found = [
        change.figures(name, value.float() - before[name].to(value.device).float(), sizes)
        for name, value in now.items()
        if value is not None
    ]
    return change.told(found, sizes), sum(value is None for value in now.values())


def features(network: nn.Module, batches: Sequence[Batch]) -> dict[str, Tensor]:
    """(N, H) float32 on the CPU that leave each layer."""
    found: dict[str, list[Tensor]] = {}
    for batch in batches:
        with layer_outputs(network) as states:
            prompts.read(network, batch)
        for name, hidden in states.items():
            found.setdefault(name, []).append(_pooled(hidden, batch, network).float().cpu())
    return {name: torch.cat(parts) for name, parts in found.items()}


def _pooled(hidden: Tensor, batch: Batch, network: nn.Module) -> Tensor:
    if hidden.shape[1] == 1:
        return hidden[:, 0]
    return head.pooled(hidden, batch.get("attention_mask"), kind_of(network))
