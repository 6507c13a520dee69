"""Low-rank pairs beside the linear modules of a frozen network, of which every row passes through one.

Which one stands in the `Choice` of the network. A selector makes it where new rows enter, from the mean
last hidden state of the base alone; a call that goes on from a cache keeps the choice of the rows that
the cache is of.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from lifelong.errors import UserError
from lifelong.numerics import low_rank, routing, selector
from lifelong.numerics.swap import evaluating

CHOICE = "lifelong_choice"  # attribute of the network
OF_CACHE = ("past_key_values", "use_cache", "cache_position")


@dataclass
class Choice:
    """Numbers of pairs; "" is none."""

    training: str = ""  # pair of all rows in training mode, and of all where nothing can be chosen yet
    selector: dict[str, Any] = field(default_factory=dict)  # see numerics.selector; empty: none yet
    pinned: str | None = None  # pair of all rows inside `pinned`
    active: str | Tensor = ""  # of the running pass: for all rows, or (B,) one each


class Pair(nn.Module):
    """scale * up down x: a low-rank map that starts as zero."""

    def __init__(self, rank: int, inside: int, outside: int, generator: torch.Generator) -> None:
        super().__init__()
        self.down = nn.Parameter(routing.uniform(rank, inside, generator))
        self.up = nn.Parameter(torch.zeros(outside, rank))

    def forward(self, inputs: Tensor, scale: float) -> Tensor:
        return functional.linear(functional.linear(inputs, self.down) * scale, self.up)

    def tensors(self) -> dict[str, Tensor]:
        return {name: parameter.detach() for name, parameter in self.named_parameters()}


class Pairs(nn.Module):
    """The pairs of one linear module, by number."""

    def __init__(self, name: str, module: nn.Module, rank: int, scale: float, dropout: float) -> None:
        super().__init__()
        self.name, self.rank, self.scale, self.dropout = name, rank, scale, dropout
        self.dimensions, self.device = low_rank.dimensions(module), module.weight.device
        self.members = nn.ModuleDict()
        if rank > min(self.dimensions):
            raise UserError(f"rank must be at most {min(self.dimensions)} for `{name}`; got {rank}.")

    def open(self, number: str, seed: int = 0) -> Pair:
        generator = torch.Generator().manual_seed(routing.keyed(seed, f"{self.name},{number}"))
        self.members[number] = Pair(self.rank, *self.dimensions, generator).to(self.device)
        return self.members[number]

    def forward(self, inputs: Tensor) -> Tensor | None:
        active, inputs = self.choice.active, routing.computed(inputs)
        if isinstance(active, str):
            return self._through(active, inputs) if active else None
        if len(active) != len(inputs):
            raise UserError(
                f"`{self.name}` was given {len(inputs)} rows after a pair was chosen for each of "
                f"{len(active)}. Give the rows themselves first, and then what goes on from them."
            )
        made = inputs.new_empty(*inputs.shape[:-1], self.dimensions[1])
        for number in active.unique().tolist():
            rows = active == number
            made[rows] = self._through(str(number), inputs[rows]).to(made.dtype)
        return made

    def _through(self, number: str, inputs: Tensor) -> Tensor:
        dropped = functional.dropout(inputs, self.dropout, self.training) if self.dropout else inputs
        return self.members[number](dropped, self.scale)


def put_beside(network: nn.Module, modules: dict[str, nn.Module], *settings: Any) -> Choice:
    """Freeze the network and give each of `modules` its `Pairs`; `settings` are rank, scale, dropout."""
    routing.watch(network)  # refuses a network that has experts
    choice = network.__dict__[CHOICE] = Choice()
    network.requires_grad_(False)
    for name, module in modules.items():
        pairs = Pairs(name, module, *settings)
        pairs.choice = choice
        routing.put_beside(module, pairs)

    def enter(stack: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        cache = kwargs.get("past_key_values")
        if choice.pinned is not None:
            choice.active = choice.pinned
        elif stack.training or not choice.selector:
            choice.active = choice.training
        elif cache is None or not cache.get_seq_length():
            features = base_features(network, *args, **kwargs)
            choice.active = selector.chosen_numbers(choice.selector, features)

    routing.first_stack(network).register_forward_pre_hook(enter, with_kwargs=True)
    return choice


def choice_of(network: nn.Module) -> Choice:
    return network.__dict__[CHOICE]


def of(network: nn.Module) -> list[Pairs]:
    return [module for module in network.modules() if isinstance(module, Pairs)]


@contextmanager
def pinned(network: nn.Module, number: str) -> Iterator[None]:
    """Inside, every row passes through the pair of this number, "" through none."""
    choice = choice_of(network)
    before = choice.pinned, choice.active
    choice.pinned = number
    try:
        yield
    finally:
        choice.pinned, choice.active = before


@torch.no_grad()
def base_features(network: nn.Module, *args: Any, **kwargs: Any) -> Tensor:
    """(B, H) mean over positions of the last hidden states of what reads the input, without any pair."""
    stack = routing.first_stack(network)
    with evaluating(stack), pinned(network, ""):
        hidden = stack(*args, **{key: value for key, value in kwargs.items() if key not in OF_CACHE})[0]
    mask = kwargs.get("attention_mask")
    return routing.pooled(hidden, None if mask is None or mask.shape != hidden.shape[:2] else mask)
