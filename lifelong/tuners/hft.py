"""Half fine-tuning (HFT): half of each block stands still, another half in every stage.

Before a stage, matrices of one category and size are drawn: attention (q, k, v, o), feed-forward,
norms. Of n such modules in a block half are frozen; where n is odd, (n + 1) / 2 in a random half of
the blocks and (n - 1) / 2 in the others. With 3 feed-forward matrices that is the paper's rule (Hui
et al. 2024, arXiv:2404.18466): two of three in half of the layers, one of three in the
rest. Embeddings, the last norm and heads are always trained.

Choices here: modules are drawn among those of equal size, so that with grouped-query attention one
of (q, o) and one of (k, v) is frozen and the share stays a half (two drawn of four are a fifth, half
or four fifths with groups of four heads). A fused matrix (GPT-2's q, k, v) is frozen in half of the
blocks. A bias goes with its matrix, a norm's bias with its weight. What is frozen gets no gradient
in training mode, no optimiser state and no decay; it stays a parameter of the run, so that penalties
and checkpoints see every weight. No code of the authors was at hand.
"""

import math
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

import torch
from torch import nn

from lifelong.core.axes import Context, Tuner
from lifelong.core.model import Model
from lifelong.core.settings import Range
from lifelong.core.state import State
from lifelong.errors import UserError
from lifelong.numerics.blocks import Unit, blocks

Groups = dict[str, list[list[Unit]]]  # by category: the units of each block


@dataclass(frozen=True, kw_only=True)
class Hft(Tuner):
    """Train one half of each block's matrices per stage, another half in the next."""

    paper: ClassVar[str] = "Hui et al. 2024, arXiv:2404.18466"
    cost: ClassVar[str] = "half the optimiser state and weight gradients of full fine-tuning within blocks"
    verified: ClassVar[tuple[str, ...]] = (
        "half of the attention weights of each block is frozen, with grouped-query attention as well",
        "frozen weights keep every bit under momentum and decay, and have no optimiser state",
        "other halves in other stages; all is trained in the long run",
        "fraction 0 equals full fine-tuning bit for bit",
    )
    trains_base: ClassVar[bool] = True
    interpolates: ClassVar[bool] = True

    fraction: Annotated[float, Range(0, 1)] = 0.5  # share that is frozen; the paper's best: 0.4 to 0.6
    level: Literal["category", "layer", "model"] = "category"  # halves of categories, blocks, or all modules
    alternate: bool = False  # freeze in every second stage what the stage before trained

    def attach(self, model: Model, state: State | None, seed: int) -> State:
        """State: {"frozen": names of the parameters that stand still in this stage}."""
        for parameter in model.network.parameters():
            parameter.requires_grad_(parameter.is_floating_point())
        frozen = list(state["frozen"]) if state else []
        _hold(model.network, frozen)
        return {"frozen": frozen}

    def begin_stage(self, context: Context, state: State) -> State:
        network, groups = context.model.network, _groups(context.model.network, self.level)
        if self.alternate and context.stage % 2:
            every = [
                name for blocks in groups.values() for units in blocks for unit in units for name in unit
            ]
            frozen = sorted(set(every) - set(state["frozen"]))
        else:
            frozen = _draw(groups, self.fraction, torch.Generator().manual_seed(context.seed))
        _hold(network, frozen)
        return {"frozen": frozen}

    def before_update(self, context: Context, state: State) -> State:
        for name in state["frozen"]:  # penalties and memories may have given it a gradient
            context.params[name].grad = None
        return state

    def fold(self, model: Model, state: State) -> None:
        for handle in model.network.half_hooks:
            handle.remove()
        del model.network.half_hooks


def _hold(network: nn.Module, names: list[str]) -> None:
    """No gradient for `names` in training mode: none is computed and none is stored."""
    params = dict(network.named_parameters())
    chosen = [params[name] for name in names]

    def begin(module: nn.Module, args: tuple[Any, ...]) -> None:
        if module.training:
            for parameter in chosen:
                parameter.requires_grad_(False)

    def end(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        if module.training:
            for parameter in chosen:
                parameter.requires_grad_(True)

    for handle in network.__dict__.get("half_hooks", ()):
        handle.remove()
    body = network.base_model
    network.half_hooks = (
        body.register_forward_pre_hook(begin),
        body.register_forward_hook(end, always_call=True),
    )


def _groups(network: nn.Module, level: str) -> Groups:
    found = blocks(network)
    if not found:
        raise UserError("Hft halves repeated blocks, and the network has none. Take the tuner full or lift.")
    if level == "model":
        return {"": [[u for stack in found.values() for block in stack for us in block.values() for u in us]]}
    groups: Groups = {}
    for stack, members in found.items():
        for block in members:
            if level == "layer":
                block = {"": [[name for units in block.values() for unit in units for name in unit]]}
            for kind, units in block.items():
                groups.setdefault(f"{stack}/{kind}", []).append(units)
    return groups


def _draw(groups: Groups, fraction: float, generator: torch.Generator) -> list[str]:
    """Names to freeze: the whole part of fraction * n in every block, the rest in random blocks."""
    frozen: list[str] = []
    for members in groups.values():
        counts = [math.floor(fraction * len(units) + 1e-9) for units in members]
        rest = sum(fraction * len(units) - count for units, count in zip(members, counts, strict=True))
        extra = math.floor(rest + float(torch.rand((), generator=generator)) * (1 - 1e-6) + 1e-9)
        for index in torch.randperm(len(members), generator=generator).tolist()[:extra]:
            counts[index] += 1
        for units, count in zip(members, counts, strict=True):
            for place in torch.randperm(len(units), generator=generator).tolist()[:count]:
                frozen += units[place]
    return sorted(frozen)
