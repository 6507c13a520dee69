"""Experts beside modules of a frozen network: where they stand, what passes through, how they add up.

An expert never replaces a module: it is part of a child module named `lifelong_experts`, whose output
a forward hook adds. Two kinds are here. A `Pool` stands beside a linear module and holds low-rank pairs;
an `Adapters` stands beside a transformer block and holds bottlenecks (Houlsby et al. 2019,
arXiv:1902.00751). Which expert counts how much is the method's to say, through a function that it gives.

The `Trace` of a network knows which positions of the running forward pass hold tokens, and keeps what
a method wants to remember of the pass. Weights are float32; under autocast products run in its type.
"""

import hashlib
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from lifelong.errors import UserError
from lifelong.numerics.swap import evaluating

CHILD = "lifelong_experts"
TRACE = "lifelong_trace"  # attribute of the network


class Place(NamedTuple):
    """Where an input of a module comes from."""

    mask: Tensor | None  # (B, L) 1 where a token stands; None where that is unknown or everywhere
    decodes: bool  # positions of a decoder that reads an encoder, whose pads only the labels show


class Trace:
    """What one forward pass says of its positions, and what is kept of it."""

    def __init__(self) -> None:
        self.mask: Tensor | None = None  # of the stack that runs
        self.memory: Tensor | None = None  # the encoder's states, while a decoder reads them
        self.memory_mask: Tensor | None = None
        self.targets: Tensor | None = None  # mask of a decoder's positions, where a caller knows it
        self.listening = False  # inside `listening`
        self.seen: dict[str, Any] = {}  # of the last pass, by module
        self.notes: dict[str, Any] = {}  # what a method hands to its modules; nothing here clears it

    def begin(self, kwargs: dict[str, Any], first: bool) -> None:
        mask, memory = kwargs.get("attention_mask"), kwargs.get("encoder_hidden_states")
        mask = mask if isinstance(mask, Tensor) and mask.dim() == 2 else None
        if first:
            self.seen = {}
        self.memory, self.memory_mask = memory, kwargs.get("encoder_attention_mask")
        self.mask = self.targets if memory is not None and mask is None else mask

    def place(self, inputs: Tensor) -> Place:
        """Of the very tensor that a module was given."""
        if self.memory is None:
            return Place(_fitting(self.mask, inputs), False)
        if inputs is self.memory:
            return Place(_fitting(self.memory_mask, inputs), False)
        return Place(_fitting(self.mask, inputs), True)


def _fitting(mask: Tensor | None, inputs: Tensor) -> Tensor | None:
    """None where the mask is of other positions (a cached past, a pooled row)."""
    return mask if mask is not None and mask.shape == inputs.shape[:-1] else None


def watch(network: nn.Module) -> Trace:
    """Follow the forward passes of a network's body."""
    if TRACE in network.__dict__:
        raise UserError(
            "the model carries routed experts already. Start from its base, or continue the run that "
            "taught it."
        )
    trace = Trace()
    network.__dict__[TRACE] = trace
    first = first_stack(network)
    stacks = (first,) if first is network.base_model else (first, network.get_decoder())

    def begin(stack: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        trace.begin(kwargs, first=stack is first)

    for stack in stacks:
        stack.register_forward_pre_hook(begin, with_kwargs=True)
    return trace


def first_stack(network: nn.Module) -> nn.Module:
    """What reads the input: the encoder where there is one beside a decoder, else the body."""
    two = network.main_input_name != "pixel_values" and network.config.is_encoder_decoder
    return network.get_encoder() if two else network.base_model


def trace_of(network: nn.Module) -> Trace:
    return network.__dict__[TRACE]


@contextmanager
def listening(network: nn.Module) -> Iterator[Trace]:
    """Inside, forward passes are evaluations without gradients, and modules keep what they see."""
    trace = trace_of(network)
    with evaluating(network), torch.no_grad():
        trace.listening = True
        try:
            yield trace
        finally:
            trace.listening, trace.seen, trace.targets = False, {}, None


def passes(context: Any, num_examples: int, batch_size: int) -> Iterator[tuple[dict[str, Any], int]]:
    """(what modules keep, rows) of forward passes over the stage's first examples; no label head is
    needed, so that a stage may be looked at before its labels have one.
    """
    network, objective = context.model.network, context.objective
    chosen = context.examples[:num_examples]
    with listening(network) as trace, context.autocast():
        for start in range(0, len(chosen), batch_size):
            some = chosen[start : start + batch_size]
            for batch in context.batches(some):
                labels = batch.get("labels")
                if labels is not None and labels.dim() == 1:
                    objective.features(network, batch)
                else:
                    trace.targets = None if labels is None else (labels >= 0).long()
                    objective.forward(network, batch)
                yield trace.seen, len(some)


def gathered(context: Any, num_examples: int) -> dict[str, Tensor]:
    """What modules keep of the stage's first examples, row by row, where each keeps one
    tensor a pass; float32, on the CPU.
    """
    found: dict[str, list[Tensor]] = {}
    for seen, _ in passes(context, num_examples, batch_size=16):
        for name, rows in seen.items():
            found.setdefault(name, []).append(rows)
    return {name: torch.cat(parts).float().cpu() for name, parts in found.items()}


def blocks(network: nn.Module) -> dict[str, list[str]]:
    """Names of the transformer blocks by stack, from the input on: the outermost lists of modules."""
    found: dict[str, list[str]] = {}
    for name, module in network.named_modules():
        if isinstance(module, nn.ModuleList) and not any(name.startswith(f"{stack}.") for stack in found):
            found[name] = [f"{name}.{index}" for index in range(len(module))]
    if not any(found.values()):
        raise UserError(f"{type(network).__name__} has no list of blocks to put adapters beside.")
    return found


def put_beside(module: nn.Module, experts: nn.Module) -> None:
    """Freeze the module and add to its output what `experts` makes of its input, unless that is None."""
    for parameter in module.parameters():
        parameter.requires_grad_(False)
    module.add_module(CHILD, experts.train(module.training))

    def add(owner: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
        update = getattr(owner, CHILD)(args[0] if args else kwargs["hidden_states"])
        if update is None:
            return output
        if isinstance(output, tuple):
            return (output[0] + update.to(output[0].dtype), *output[1:])
        return output + update.to(output.dtype)

    module.register_forward_hook(add, with_kwargs=True)


def experts_of(network: nn.Module, name: str) -> Any:
    return network.get_submodule(f"{name}.{CHILD}")


def pooled(states: Tensor, mask: Tensor | None) -> Tensor:
    """(B, H) mean of the positions (B, L, H) that hold a token; a row without positions is itself."""
    if states.dim() == 2:
        return states
    if mask is None:
        return states.mean(1)
    weights = mask.unsqueeze(-1).to(states.dtype)
    return (states * weights).sum(1) / weights.sum(1).clamp(min=1)


def uniform(rows: int, columns: int, generator: torch.Generator) -> Tensor:
    """(rows, columns) in +-1/sqrt(columns)."""
    bound = 1 / math.sqrt(columns)
    return torch.empty(rows, columns).uniform_(-bound, bound, generator=generator)


def keyed(seed: int, name: str) -> int:
    """A seed for one module."""
    digest = hashlib.blake2b(f"{seed},{name}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


def computed(inputs: Tensor) -> Tensor:
    return inputs if torch.is_autocast_enabled(inputs.device.type) else inputs.float()


# (pool, inputs (..., in), activations (..., R), place of the inputs) -> (..., R) weights of the rows of `up`
Mix = Callable[["Pool", Tensor, Tensor, Place], Tensor]


class Pool(nn.Module):
    """Low-rank pairs beside one linear module: scale * sum_i weight_i(x) up_i, where `down` scores x.

    Finished rows are buffers and never get a gradient; `down` and `up` are those that are trained.
    """

    def __init__(
        self,
        name: str,
        past_down: Tensor,
        past_up: Tensor,
        scale: float,
        dropout: float,
        mix: Mix,
        trace: Trace,
    ) -> None:
        super().__init__()
        self.name, self.scale, self.dropout, self.mix, self.trace = name, scale, dropout, mix, trace
        self.register_buffer("past_down", past_down, persistent=False)  # (R, in)
        self.register_buffer("past_up", past_up, persistent=False)  # (out, R)
        self.register_parameter("down", None)  # (r, in)
        self.register_parameter("up", None)  # (out, r)

    def open(self, down: Tensor) -> None:
        """New rows to train; their `up` is zero."""
        device = self.past_down.device
        self.down = nn.Parameter(down.to(device))
        self.up = nn.Parameter(torch.zeros(len(self.past_up), len(down), device=device))

    def close(self, kept: Tensor) -> None:
        """Move the trained rows where `kept` (r,) is true to the finished ones; the others are gone."""
        self.past_down = torch.cat([self.past_down, self.down.detach()[kept]])
        self.past_up = torch.cat([self.past_up, self.up.detach()[:, kept]], dim=1)
        self.down = self.up = None

    def factors(self) -> tuple[Tensor, Tensor]:
        if self.down is None:
            return self.past_down, self.past_up
        return torch.cat([self.past_down, self.down]), torch.cat([self.past_up, self.up], dim=1)

    def forward(self, inputs: Tensor) -> Tensor | None:
        down, up = self.factors()
        if not len(down):
            return None
        place, inputs = self.trace.place(inputs), computed(inputs)
        dropped = functional.dropout(inputs, self.dropout, self.training) if self.dropout else inputs
        weights = self.mix(self, inputs, functional.linear(dropped, down), place)
        return weights * self.scale @ up.t().contiguous()  # see low_rank.Up


class Adapter(nn.Module):
    """up relu(down h + b) + c: a bottleneck that starts as zero."""

    def __init__(self, size: int, width: int, generator: torch.Generator) -> None:
        super().__init__()
        self.down = nn.Parameter(uniform(width, size, generator))
        self.down_bias = nn.Parameter(torch.zeros(width))
        self.up = nn.Parameter(torch.zeros(size, width))
        self.up_bias = nn.Parameter(torch.zeros(size))

    def forward(self, hidden: Tensor) -> Tensor:
        inner = functional.relu(functional.linear(hidden, self.down, self.down_bias))
        return functional.linear(inner, self.up, self.up_bias)

    def tensors(self) -> dict[str, Tensor]:
        return {name: parameter.detach() for name, parameter in self.named_parameters()}


# (adapters, hidden (B, L, H) or (B, H), their place) -> weights (B, L), or of a shape that broadcasts to it,
# by the number of the adapter; those that are not named are not computed
Weigh = Callable[["Adapters", Tensor, Place], dict[str, Tensor]]


class Adapters(nn.Module):
    """Bottlenecks beside one transformer block, by number, weighted for every position."""

    def __init__(self, name: str, weigh: Weigh, scale: float, trace: Trace) -> None:
        super().__init__()
        self.name, self.weigh, self.scale, self.trace = name, weigh, scale, trace
        self.members = nn.ModuleDict()

    def open(self, number: str, model: Any, width: int, seed: int = 0) -> Adapter:
        generator = torch.Generator().manual_seed(keyed(seed, f"{self.name},{number}"))
        self.members[number] = Adapter(model.hidden_size, width, generator).to(model.device)
        return self.members[number]

    def forward(self, hidden: Tensor) -> Tensor | None:
        place, hidden = self.trace.place(hidden), computed(hidden)
        weights = self.weigh(self, hidden, place)
        if not weights:
            return None
        terms = [weight.unsqueeze(-1) * self.members[number](hidden) for number, weight in weights.items()]
        return self.scale * sum(terms[1:], start=terms[0])


def adapters_of(network: nn.Module) -> list[Adapters]:
    return [module for module in network.modules() if isinstance(module, Adapters)]
