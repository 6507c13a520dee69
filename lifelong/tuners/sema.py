"""SEMA: adapters that appear where the features shift (Wang et al. 2025, arXiv:2403.18886).

    h' = block(h) + scale * sum_m p_m adapter_m(h)         p = softmax_m(route_m . mean(h) + offset_m)

In the first stage every block gets one bottleneck adapter. The last `layers` blocks may expand: each of
their adapters owns a descriptor, an autoencoder of the block's mean input. When a stage begins its
first rows are scanned in batches; where in one of them every descriptor finds the rows strange,
min_m mean_x z_m(x) > threshold with z = |error - mean| / std, the block gets one adapter and router
column more. All earlier ones are frozen.

Differences from paper and code: adapters stand beside whole blocks, not beside their feed-forward part.
All blocks that need it expand together as a stage begins, where the authors expand from the lowest on,
train and scan again. A descriptor is trained when its stage has ended; mean and std are of its final
errors on up to 500 rows, theirs of the last 500 training losses, early ones included; features are
standardised per row. Where a network decodes, router weights are per token, since a mean over a text
would see what comes later. A stage that expands nothing goes on with the newest adapter of the last
block (`same`: "continue"): without a head nothing else could learn it, and no descriptor sees that
block's output; "freeze" is the paper. A new column takes `first_weight` from the others as it begins.
"""

import math
from dataclasses import dataclass
from functools import partial
from typing import Annotated, ClassVar, Literal

import torch
from torch import Tensor, nn

from lifelong.core.axes import Context, Tuner
from lifelong.core.model import Model
from lifelong.core.settings import Range
from lifelong.core.state import State
from lifelong.numerics import novelty, routing


@dataclass(frozen=True, kw_only=True)
class Sema(Tuner):
    """A mixture of adapters that expands by itself where a stage's features are new."""

    paper: ClassVar[str] = "Wang et al. 2025, arXiv:2403.18886"
    cost: ClassVar[str] = "at most one adapter and one autoencoder per block and stage; two scans of 500 rows"
    verified: ClassVar[tuple[str, ...]] = (
        "rows as before expand nothing; shifted rows expand every block once",
        "as many router columns as adapters; frozen adapters keep every bit",
        "equals the explicit weighted sum of adapters",
        "resumes bit for bit across an expansion",
    )
    persistent: ClassVar[bool] = False
    folds: ClassVar[bool] = False

    width: Annotated[int, Range(1)] = 16  # of an adapter's bottleneck
    scale: Annotated[float, Range(0, open_low=True)] = 1.0  # on the sum of adapters
    layers: Annotated[int, Range(1)] = 3  # last blocks of a stack that may expand
    threshold: Annotated[float, Range(0)] = 2.0  # standard deviations of error that make rows new
    scan_batch: Annotated[int, Range(1)] = 128  # rows that are judged together
    num_examples: Annotated[int, Range(1)] = 500  # rows scanned, and remembered by a descriptor
    descriptor_width: Annotated[int, Range(1)] = 128  # hidden units of the autoencoder
    descriptor_epochs: Annotated[int, Range(1)] = 20  # passes over the remembered rows
    descriptor_rate: Annotated[float, Range(0, open_low=True)] = 0.01  # of its plain descent, momentum 0.9
    descriptor_decay: Annotated[float, Range(0)] = 5e-4  # weight decay of the autoencoder
    same: Literal["continue", "freeze"] = "continue"  # last adapter, in a stage that expands nothing
    first_weight: Annotated[float, Range(0, 0.5, open_low=True)] = 0.1  # about, of a new adapter's column

    def attach(self, model: Model, state: State | None, seed: int) -> State:
        """State by block: tensors of "past" adapters and "descriptors" by number, the one in "training"."""
        trace, network = routing.watch(model.network), model.network
        network.requires_grad_(False)
        by_row, blocks = model.kind in ("encoder", "vision"), {}
        for names in routing.blocks(network).values():
            for index, name in enumerate(names):
                expands = index >= len(names) - self.layers
                fresh = {"past": {}, "training": "", "descriptors": {}, "expands": expands}
                kept = blocks[name] = state["blocks"][name] if state else fresh
                adapters = routing.Adapters(name, partial(_weigh, by_row), self.scale, trace)
                routing.put_beside(network.get_submodule(name), adapters)
                for number, tensors in kept["past"].items():
                    self._add(model, name, number, **tensors).requires_grad_(False)
                if kept["training"]:
                    self._add(model, name, kept["training"])
        return {"blocks": blocks}

    def begin_stage(self, context: Context, state: State) -> State:
        model, blocks = context.model, state["blocks"]
        first = not any(each["past"] for each in blocks.values())
        new = list(blocks) if first else self._strange(context, blocks)
        made = {}
        for name, kept in blocks.items():
            numbers, past, training = list(kept["past"]), dict(kept["past"]), ""
            if name in new:
                training = str(len(numbers))
                member = self._add(model, name, training, context.seed)
                if numbers:  # beside M even columns
                    odds = self.first_weight / (1 - self.first_weight)
                    nn.init.constant_(member.offset, math.log(odds * len(numbers)))
            elif not new and self.same == "continue" and name == list(blocks)[-1]:
                training = numbers[-1]
                routing.experts_of(model.network, name).members[training].requires_grad_(True)
                del past[training]
            made[name] = kept | {"past": past, "training": training}
        return {"blocks": made}

    def end_stage(self, context: Context, state: State) -> State:
        generator, made = torch.Generator().manual_seed(context.seed), {}
        features = routing.gathered(context, self.num_examples)
        for name, kept in state["blocks"].items():
            number, descriptors, past = kept["training"], dict(kept["descriptors"]), dict(kept["past"])
            if number:
                member = routing.experts_of(context.model.network, name).members[number]
                past[number] = member.requires_grad_(False).tensors()
            if number not in ("", *descriptors) and kept["expands"] and name in features:
                settings = (self.descriptor_width, self.descriptor_epochs, self.descriptor_rate)
                descriptors[number] = novelty.train_descriptor(
                    features[name], *settings, 0.9, self.descriptor_decay, 32, generator
                )
            made[name] = kept | {"past": past, "training": "", "descriptors": descriptors}
        return {"blocks": made}

    def fold(self, model: Model, state: State) -> None:
        return None

    def _add(self, model: Model, name: str, number: str, seed: int = 0, **tensors: Tensor) -> routing.Adapter:
        """An adapter beside a block, with its router column; new without `tensors`."""
        member = routing.experts_of(model.network, name).open(number, model, self.width, seed)
        member.route = nn.Parameter(torch.zeros(model.hidden_size, device=model.device))
        member.offset = nn.Parameter(torch.zeros((), device=model.device))
        member.load_state_dict(tensors, strict=bool(tensors))
        return member

    def _strange(self, context: Context, blocks: State) -> list[str]:
        """Blocks whose descriptors all find a batch of the stage's first rows new."""
        found = []
        for name, features in routing.gathered(context, self.num_examples).items():
            known = blocks[name]["descriptors"].values()
            batches = features.split(self.scan_batch) if known else ()
            least = [min(novelty.strangeness(each, rows).mean() for each in known) for rows in batches]
            found += [name] * (max(least, default=0.0) > self.threshold)
        return found


def _weigh(by_row: bool, adapters: routing.Adapters, hidden: Tensor, place: routing.Place) -> dict:
    listening, members = adapters.trace.listening, adapters.members
    means = routing.pooled(hidden, place.mask) if listening or by_row else hidden
    if listening:
        adapters.trace.seen[adapters.name] = means
    if not members:
        return {}
    features = hidden if not by_row else means[:, None] if hidden.dim() == 3 else means
    logits = [features @ member.route.to(features.dtype) + member.offset for member in members.values()]
    return dict(zip(members, torch.stack(logits, -1).float().softmax(-1).unbind(-1), strict=True))
