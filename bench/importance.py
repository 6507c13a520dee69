"""How fast is EWC's importance, beside one backward pass for each example?

Importance is the mean of squared gradients of single examples. The plain way makes one forward pass
for a batch and one backward pass for each example; batches of one, forward and backward, are shown
too: on a processor that is saturated by a single row, an ordinary pass over a whole batch is itself
only about twice as fast as those. Ours (`numerics.fisher.diagonal_fisher`) makes one pass for a whole
batch and takes every example's gradient out of it; the results have to agree.
"""

from collections.abc import Callable
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor

from bench.figure import Figure, Settings, title
from bench.session import MEDIUM, Size, attached, linear_weights, llama, prompts, random_texts, stream_of
from bench.timing import Block, Worker, best_ratio, in_turns, middle, now, ratio, share
from lifelong.core.axes import Context, Objective, Row, Tuner
from lifelong.core.composition import Methods
from lifelong.core.model import Model
from lifelong.models.compute import set_attention
from lifelong.numerics.fisher import diagonal_fisher, log_likelihoods
from lifelong.numerics.swap import evaluating
from lifelong.objectives.causal_lm import CausalLm
from lifelong.objectives.sft import Sft
from lifelong.penalties.ewc import Ewc
from lifelong.tuners.full import Full
from lifelong.tuners.lora import Lora

LIMIT = 4.0
EQUAL = 1e-4  # relative, of ours in float32 to the plain way in float64
SPARSE = 4  # the plain ways take every fourth example: their cost per example is the same


def measure(settings: Settings) -> list[Figure]:
    sizes = (Ewc().batch_size,) if settings.quick else (Ewc().batch_size, 32)
    found = real(settings, sizes)
    for tokens in (60,) if settings.quick else (30, 60):
        found += random_llama(settings, MEDIUM._replace(tokens=tokens), sizes)
    return found


def real(settings: Settings, sizes: tuple[int, ...]) -> list[Figure]:
    name = title(settings.name)
    exact = context_of(settings.model(torch.float32), prompts()[::60], Sft(), Lora(rank=8), "float32")
    same = equality(f"{name} with LoRA", exact, settings)
    context = context_of(settings.model(), prompts()[::10], Sft(), Lora(rank=8), "bfloat16")
    return [*compare(settings, context, sizes, f"{name} with LoRA, bfloat16", "bfloat16"), same]


def random_llama(settings: Settings, size: Size, sizes: tuple[int, ...]) -> list[Figure]:
    objective, rows = CausalLm(block_size=size.tokens), random_texts(size, 128)
    name = f"{size.layers} layers, width {size.width}, rows of {size.tokens} tokens, all weights"
    context = context_of(llama(size, settings.device), rows, objective, Full(), "float32")
    found = compare(settings, context, sizes, f"{name}, float32", "float32")
    return [*found, equality(name, context, settings)]


def context_of(model: Model, rows: list[Row], objective: Objective, tuner: Tuner, precision: str) -> Context:
    """As a method gets it at the end of the first stage, with the low-rank pairs no longer zero."""
    stream = stream_of(rows, objective, 8, steps=1)
    set_attention(model, "auto", stream)
    life = attached(model, stream, Methods(tuner=tuner), precision)
    life.begin_stage(0, stream.stages[0])
    draw = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in life.params.items():
            if "lora_B" in name:
                parameter.copy_(torch.randn(parameter.shape, generator=draw) * 1e-2)
    return life.context(boundary=True)


def compare(
    settings: Settings, context: Context, sizes: tuple[int, ...], name: str, precision: str
) -> list[Figure]:
    by_length = sorted(context.examples, key=context.objective.length)
    context.examples = by_length[:: max(1, len(by_length) // settings.repeats(32, 96))]
    count, few = len(context.examples), replace(context, examples=context.examples[::SPARSE])
    workers: dict[str, Worker] = {}
    for size in sizes:
        workers[f"ours {size}"] = worker(context, partial(ours, batch_size=size))
    workers["one by one"] = worker(few, one_by_one)
    workers["one forward"] = worker(few, partial(one_forward, batch_size=sizes[0]))
    blocks = in_turns(workers, 1, settings.repeats(1, 3))
    tokens = sum(map(context.objective.length, context.examples)) / count
    passes = 4 if any("lora" in n for n in context.params) else 6
    work = passes * linear_weights(context.model.network) * tokens
    trained = sum(p.numel() for p in context.params.values())
    found = []
    for size in sizes:
        for other in ("one by one", "one forward") if size == sizes[0] else ("one by one",):
            mine, theirs = blocks[f"ours {size}"], blocks[other]
            default = size == Ewc().batch_size and other == "one forward"
            found.append(Figure(
                question=f"Importance of every weight for EWC, {name}: {size} examples a pass against "
                + ("one forward and one backward pass for each example" if other == "one by one"
                   else f"one forward pass for {sizes[0]} and one backward pass for each"),
                ours=middle(mine) * 1e3, baseline=middle(theirs) * 1e3, unit="ms per example",
                value=1 / ratio(mine, theirs), limit=LIMIT if default else None, at_most=False,
                spread=f"best against best {1 / best_ratio(mine, theirs):.2f}; {len(mine)} turns of {count} "
                f"examples of {tokens:.0f} tokens",
                arithmetic=f"per example {4 * trained / 1e6:.3g} MB of gradient; "
                + share(work, min(b.cost for b in mine), settings.device, precision),
            ))  # fmt: skip
    return found


def equality(name: str, context: Context, settings: Settings) -> Figure:
    """Of all examples, so that no draw enters; the worst parameter. Leaves the network in float64."""
    context.examples = context.examples[: settings.repeats(8, 16)]
    made, plain = ours(context, batch_size=Ewc().batch_size), one_by_one(context)
    context.model.network.to(torch.float64)
    exact = one_by_one(context)
    return Figure(
        question=f"The same importance, {name}: largest distance of a weight's importances in float32 from "
        "one backward pass per example in float64, relative to their norm",
        ours=worst(made, exact), baseline=worst(plain, exact), unit="relative", value=worst(made, exact),
        value_unit="relative", limit=EQUAL,
        arithmetic="`other` is one backward pass per example in float32; ours is "
        f"{worst(made, plain):.1e} from it",
    )  # fmt: skip


def worst(made: dict[str, Tensor], exact: dict[str, Tensor]) -> float:
    return max(float((made[n] - exact[n]).norm() / exact[n].norm().clamp(min=1e-30)) for n in exact)


def worker(context: Context, work: Callable[[Context], dict[str, Tensor]]) -> Worker:
    device = context.model.device

    def times(number: int) -> Block:
        begun = now(device)
        for _ in range(number):
            work(context)
        return Block(now(device) - begun, number * len(context.examples))

    return times


def ours(context: Context, batch_size: int) -> dict[str, Tensor]:
    """As `Ewc.end_stage` calls it."""
    return diagonal_fisher(context, "empirical", len(context.examples), batch_size, context.seed)


def one_by_one(context: Context) -> dict[str, Tensor]:
    """A batch of one, forward and backward, for each example."""
    return one_forward(context, batch_size=1)


def one_forward(context: Context, batch_size: int) -> dict[str, Tensor]:
    """One forward pass for a batch, then a backward pass for each of its examples."""
    params, count = context.params, len(context.examples)
    dtype = torch.promote_types(torch.float32, next(iter(params.values())).dtype)
    total = {name: torch.zeros_like(p, dtype=dtype) for name, p in params.items()}
    with evaluating(context.model.network):
        for start in range(0, count, batch_size):
            part = context.examples[start : start + batch_size]
            with context.autocast():
                outputs = context.objective.forward(context.model.network, next(context.batches(part)))
            scores = log_likelihoods(outputs, len(part))
            for score in scores:
                gradients = torch.autograd.grad(score, list(params.values()), retain_graph=len(part) > 1)
                for square, gradient in zip(total.values(), gradients, strict=True):
                    square.addcmul_(gradient.to(dtype), gradient.to(dtype))
    return {name: value / count for name, value in total.items()}
