"""How fast is EWC's importance, beside one backward pass for each example?

Importance is the mean of squared gradients of single examples. The plain way makes a batch of one of
each example, forward and backward. Ours (`numerics.fisher.diagonal_fisher`) makes one pass for a whole
batch and takes every example's gradient out of it; the results have to agree.
"""

import copy
from collections.abc import Callable

import torch
from torch import Tensor

from bench.figure import Figure, Settings, title
from bench.session import MEDIUM, Size, linear_weights, llama, new_life, prompts, random_texts, stream_of
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
EQUAL = 1e-4  # relative, in float32


def measure(settings: Settings) -> list[Figure]:
    sizes = (Ewc().batch_size,) if settings.quick else (8, 16, 32, 64)
    found = real(settings, sizes)
    for tokens in (60,) if settings.quick else (30, 60):
        found += random_llama(settings, MEDIUM._replace(tokens=tokens), sizes)
    return found


def real(settings: Settings, sizes: tuple[int, ...]) -> list[Figure]:
    model, rows, tuner = settings.model(), prompts()[:: 960 // 64], Lora(rank=8)
    exact = copy.deepcopy(model)
    exact.network.to(torch.float32)
    apart = deviation(context_of(exact, rows, Sft(), tuner, "float32"), settings)
    del exact
    context = context_of(model, rows, Sft(), tuner, "bfloat16")
    return compare(settings, context, sizes, f"{title(settings.name)} with LoRA, bfloat16", "bfloat16", apart)


def random_llama(settings: Settings, size: Size, sizes: tuple[int, ...]) -> list[Figure]:
    model, rows = llama(size, settings.device), random_texts(size, 64)
    context = context_of(model, rows, CausalLm(block_size=size.tokens), Full(), "float32")
    name = f"{size.layers} layers, width {size.width}, rows of {size.tokens} tokens, all weights, float32"
    return compare(settings, context, sizes, name, "float32", deviation(context, settings))


def context_of(model: Model, rows: list[Row], objective: Objective, tuner: Tuner, precision: str) -> Context:
    """As a method gets it at the end of the first stage, with the low-rank pairs no longer zero."""
    stream = stream_of(rows, objective, 8, steps=1)
    set_attention(model, "auto", stream)
    life = new_life(model, stream, Methods(tuner=tuner), precision)
    life.tuner_state = tuner.attach(model, None, 0)
    life.begin_stage(0, stream.stages[0])
    draw = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in life.params.items():
            if "lora_B" in name:
                parameter.copy_(torch.randn(parameter.shape, generator=draw) * 1e-2)
    return life.context()


def compare(
    settings: Settings, context: Context, sizes: tuple[int, ...], name: str, precision: str, apart: float
) -> list[Figure]:
    count = min(len(context.examples), settings.repeats(8, 64))
    workers: dict[str, Worker] = {f"ours {size}": worker(context, lambda c, size=size: ours(c, count, size), count)
                                  for size in sizes}  # fmt: skip
    workers["one by one"] = worker(context, lambda c: one_by_one(c, count), count)
    workers["one forward"] = worker(context, lambda c: one_forward(c, count, sizes[0]), count)
    blocks = in_turns(workers, 1, settings.repeats(1, 5))
    tokens = sum(map(context.objective.length, context.examples[:count])) / count
    passes = 4 if any("lora" in n for n in context.params) else 6
    work = passes * linear_weights(context.model.network) * tokens
    trained = sum(p.numel() for p in context.params.values())
    found = []
    for size in sizes:
        for other in ("one by one", "one forward") if size == sizes[0] else ("one by one",):
            mine, theirs = blocks[f"ours {size}"], blocks[other]
            default = size == Ewc().batch_size and other == "one by one"
            found.append(Figure(
                question=f"Importance of every weight for EWC, {name}: {size} examples a pass against "
                + ("one forward and one backward pass for each example" if other == "one by one"
                   else f"one forward pass for {sizes[0]} and one backward pass for each"),
                ours=middle(mine) * 1e3, baseline=middle(theirs) * 1e3, unit="ms per example",
                value=1 / ratio(mine, theirs), limit=LIMIT if default else None, at_most=False,
                spread=f"best against best {1 / best_ratio(mine, theirs):.2f}; {len(mine)} turns of {count} examples "
                f"of {tokens:.0f} tokens",
                arithmetic=f"per example {4 * trained / 1e6:.3g} MB of gradient; "
                + share(work, min(b.cost for b in mine), settings.device, precision),
            ))  # fmt: skip
    return [*found, equality(name, apart)]


def equality(name: str, apart: float) -> Figure:
    return Figure(
        question=f"The same importance, {name.replace('bfloat16', 'float32')}: largest difference of a weight's "
        "importances from one backward pass per example, relative to their norm",
        ours=None, baseline=None, unit="", value=apart, value_unit="relative", limit=EQUAL,
    )  # fmt: skip


def worker(context: Context, work: Callable[[Context], dict[str, Tensor]], count: int) -> Worker:
    def times(number: int) -> Block:
        device = context.model.device
        begun = now(device)
        for _ in range(number):
            work(context)
        return Block(now(device) - begun, number * count)

    return times


def ours(context: Context, count: int, batch_size: int) -> dict[str, Tensor]:
    with context.autocast():
        return diagonal_fisher(context, "empirical", count, batch_size, context.seed)


def one_by_one(context: Context, count: int) -> dict[str, Tensor]:
    """A batch of one, forward and backward, for each example."""
    total, params = zeros(context), list(context.params.values())
    with evaluating(context.model.network):
        for example in context.examples[:count]:
            with context.autocast():
                batch = next(context.batches([example]))
                score = log_likelihoods(context.objective.forward(context.model.network, batch), 1).sum()
            for square, gradient in zip(total.values(), torch.autograd.grad(score, params), strict=True):
                square.addcmul_(gradient.float(), gradient.float())
    return {name: value / count for name, value in total.items()}


def one_forward(context: Context, count: int, batch_size: int) -> dict[str, Tensor]:
    """One forward pass for a batch, then a backward pass for each of its examples."""
    total, params = zeros(context), list(context.params.values())
    with evaluating(context.model.network):
        for start in range(0, count, batch_size):
            part = context.examples[start : min(start + batch_size, count)]
            with context.autocast():
                batch = next(context.batches(part))
                scores = log_likelihoods(context.objective.forward(context.model.network, batch), len(part))
            for score in scores:
                gradients = torch.autograd.grad(score, params, retain_graph=True)
                for square, gradient in zip(total.values(), gradients, strict=True):
                    square.addcmul_(gradient.float(), gradient.float())
    return {name: value / count for name, value in total.items()}


def zeros(context: Context) -> dict[str, Tensor]:
    return {name: torch.zeros_like(p, dtype=torch.float32) for name, p in context.params.items()}


def deviation(context: Context, settings: Settings) -> float:
    """Of all examples, so that no draw enters; the worst parameter."""
    count = min(len(context.examples), settings.repeats(8, 64))
    context.examples = context.examples[:count]
    made, plain = ours(context, count, Ewc().batch_size), one_by_one(context, count)
    return max(float((made[n] - plain[n]).norm() / plain[n].norm().clamp(min=1e-30)) for n in plain)
