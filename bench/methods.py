"""What every method costs beside plain training with the same tuner, and the least that it could cost.

Lives of one model in their second stage, so that there is a past, take turns with plain training of the
same rows. The least follows from what a method's mathematics ask for (bench/cases.py) and from what a plain
step is made of: seconds of its forward pass, backward pass and update, the rate at which its forward pass
multiplies, and the bytes that this machine streams in a second. A learner in closed form makes no steps: a
step is then the rows of one stage, and plain training one forward pass over them.

On a processor all of it has one thread: there times add up as arithmetic does, while thin products are
spread over threads less well than the thick ones of plain training.
"""

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import fields, replace
from functools import cache
from itertools import pairwise
from statistics import median
from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from bench.cases import Case, Need, cases, facts
from bench.figure import Figure, Settings
from bench.session import MEDIUM, RATE, Size, Stepper, llama, opened, random_texts, stream_of
from bench.step import Bare
from bench.timing import (
    Block,
    Worker,
    bandwidth,
    best_ratio,
    in_turns,
    middle,
    now,
    peak_memory,
    ratio,
    timed,
)
from lifelong.core import batching, closed_form
from lifelong.core import state as states
from lifelong.core.axes import Method
from lifelong.core.composition import Methods, snake
from lifelong.core.feeding import items, next_rows
from lifelong.core.life import Life
from lifelong.core.stream import Erasure, Stream
from lifelong.objectives.causal_lm import CausalLm
from lifelong.objectives.classification import Classification

SIZE = MEDIUM._replace(tokens=64)
LIMIT = 1.10
STEPS = 2000  # of the budget of a stage: more than are made
LABELS = tuple("abcdefgh")


class Shares(NamedTuple):
    """Of the time of a plain step."""

    forward: float
    backward: float
    update: float


class Side(NamedTuple):
    """One of the two that are compared."""

    life: Life
    worker: Worker
    between: float  # seconds between two stages
    operations: float  # matrix products of a step
    peak: float  # bytes held at most within a step


class Plain(NamedTuple):
    side: Side
    shares: Shares
    forward: float  # operations of the forward pass
    trained: int  # bytes


def measure(settings: Settings) -> list[Figure]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return compare(settings, SIZE)
    finally:
        torch.set_num_threads(threads)


def compare(settings: Settings, size: Size, only: tuple[str, ...] = ()) -> list[Figure]:
    block, repeats = settings.repeats(2, 4), settings.repeats(3, 8)
    every = cases(size, block, facts(size, llama(size, settings.device)))
    found: list[Figure] = []
    plains: dict[object, Plain] = {}
    with ExitStack() as kept:
        for name, case in every.items():
            if only and name not in only:
                continue
            key = (case.beside, case.labels, case.methods.analytic is not None)
            if key not in plains:
                plains[key] = plain_training(kept, settings, size, case)
            with ExitStack() as stack:
                ours = started(stack, settings, size, case.methods, case.labels)
                blocks = in_turns({"plain": plains[key].side.worker, "ours": ours.worker}, block, repeats)
                found.append(figure(settings, size, name, case, plains[key], ours, blocks))
    return found


def started(
    stack: ExitStack, settings: Settings, size: Size, methods: Methods, labels: bool, index: int = 1
) -> Side:
    """A life in its stage `index`, which has begun."""
    stream = stream_for(size, methods, labels)
    life, _ = stack.enter_context(opened(llama(size, settings.device), stream, methods, "float32"))
    device = life.accelerator.device
    life.begin_stage(0, stream.stages[0])
    for number in range(index):
        worker_of(life)(3)
        begun = now(device)
        life.end_stage()
        life.begin_stage(number + 1, stream.stages[number + 1])
        between = now(device) - begun
    worker = worker_of(life)
    worker(1)
    return Side(life, worker, between, counted(worker), held(life) + peak_memory(worker, device))


def worker_of(life: Life) -> Worker:
    if life.methods.analytic is not None and not life.learns_by_gradient():
        return Repeated(life, lambda: closed_form.learn(life))
    return Stepper(life, life.stage)


class Repeated:
    """A call as a step."""

    def __init__(self, life: Life, call: Callable[[], object]) -> None:
        self.life, self.call = life, call

    def __call__(self, steps: int) -> Block:
        device = self.life.accelerator.device
        begun = now(device)
        for _ in range(steps):
            self.call()
        return Block(now(device) - begun, steps)


def stream_for(size: Size, methods: Methods, labels: bool) -> Stream:
    """Four stages of the same rows. With a way to unlearn, all but the first are erased."""
    rows = random_texts(size, 4 * size.batch_size)
    objective = CausalLm(block_size=size.tokens)
    if labels:
        rows = [row | {"label": LABELS[i % len(LABELS)]} for i, row in enumerate(rows)]
        objective = Classification(head="linear")
    stream = stream_of(rows, objective, size.batch_size, STEPS, stages=4)
    erases = Erasure(stage=stream.stages[0].name, places=tuple(range(len(rows))))
    made = [
        replace(
            stage,
            labels=LABELS if labels else (),
            erases=erases if methods.unlearning is not None and i else None,
        )
        for i, stage in enumerate(stream.stages)
    ]
    return replace(stream, stages=tuple(made))


def plain_training(stack: ExitStack, settings: Settings, size: Size, case: Case) -> Plain:
    methods = case.beside or case.methods
    side = started(stack, settings, size, methods, case.labels)
    life = side.life
    trained = states.num_bytes(dict(life.params))
    if case.methods.analytic is not None:
        worker = Repeated(life, lambda: passed(life))
        made = counted(worker)
        return Plain(side._replace(worker=worker, operations=made), Shares(1, 0, 0), made, trained)
    shares, forward = divided(life, settings.repeats(5, 15))
    if case.beside is None:
        side = side._replace(worker=bare(settings, size, life))
    return Plain(side, shares, forward, trained)


def counted(worker: Callable[[int], object]) -> float:
    """Operations of matrix products in one step."""
    with FlopCounterMode(display=False) as counter:
        worker(1)
    return counter.get_total_flops()


def passed(life: Life) -> None:
    """One forward pass over the rows of the stage, as a learner in closed form makes it."""
    life.network.eval()
    with torch.no_grad():
        for part in batching.parts(
            life.pool, life.objectives, life.model, life.accelerator.device, closed_form.ROWS_AT_ONCE
        ):
            part.objective.features(life.network, part.batch)


def bare(settings: Settings, size: Size, life: Life) -> Bare:
    plan = Stepper(life, life.stage).plan
    few = [life.batches(items(life, plan[step].rows), None)[0].batch for step in range(4)]
    return Bare(llama(size, settings.device).network, Endless(few), "float32")


class Endless(list):
    """Begins again at its end."""

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return super().__getitem__(index % len(self))


def divided(life: Life, steps: int) -> tuple[Shares, float]:
    """What a plain step is made of, and the operations of its forward pass. Makes steps."""
    plan, device, found = Stepper(life, life.stage).plan, life.accelerator.device, []

    def forward() -> Tensor:
        rows, _ = next_rows(life, plan)
        (part,) = life.batches(items(life, rows), None)
        return part.objective.loss(part.objective.forward(life.network, part.batch)).mean()

    for _ in range(steps):
        times = [now(device)]
        loss = forward()
        times.append(now(device))
        loss.backward()
        times.append(now(device))
        life.update(RATE, loss.item())
        times.append(now(device))
        found.append([after - before for before, after in pairwise(times)])
        life.step += 1
    parts = [median(each) for each in zip(*found, strict=True)]
    return Shares(*(each / sum(parts) for each in parts)), counted(lambda once: forward())


def held(life: Life) -> int:
    """Bytes that lie in memory between two steps: weights, moments, states."""
    moments = {} if life.optimizer is None else list(life.optimizer.state.values())
    network = [*life.network.parameters(), *life.network.buffers()]
    return sum(states.num_bytes(each) for each in (network, moments, life.states))


def least(need: Need, plain: Plain, seconds: float, size: Size, device: str) -> float:
    """The least ratio to a plain step of that many seconds."""
    passes = sum(a * b for a, b in zip(plain.shares, (need.forward, need.backward, need.update), strict=True))
    products = need.products / plain.forward * plain.shares.forward
    frozen = need.frozen / pace(size, device) / seconds
    return passes + products - frozen + need.streamed / bandwidth(device) / seconds


@cache
def pace(size: Size, device: str, repeats: int = 50) -> float:
    """Operations per second of the product that gives a weight of this model its gradient."""
    tokens, where = size.batch_size * size.tokens, torch.device(device)
    slopes, inputs = (torch.randn(tokens, size.width, device=where) for _ in range(2))
    seconds = median(timed(lambda: slopes.T @ inputs, where).seconds for _ in range(repeats))
    return 2 * tokens * size.width**2 / seconds


def kept_bytes(life: Life) -> list[int]:
    """Bytes kept for the past after two stages and after four; ends the life's stages."""
    found = []
    for index in (1, 2, 3):
        if index > life.stage:
            life.begin_stage(index, life.stream.stages[index])
            worker_of(life)(2)
        life.end_stage()
        sizes = life.sizes()
        found.append(sizes["state_bytes"] + sizes["memory_bytes"])
    return [found[0], found[2]]


def called(method: Method) -> str:
    """Its name and the settings that are not the usual ones."""
    own = [f"{f.name}={value}" for f in fields(method) if (value := getattr(method, f.name)) != f.default]
    return f"{snake(method)}({', '.join(own)})" if own else snake(method)


def figure(
    settings: Settings, size: Size, name: str, case: Case, plain: Plain, ours: Side,
    blocks: dict[str, list[Block]],
) -> Figure:  # fmt: skip
    seconds = middle(blocks["plain"])
    measured, minimum = (
        ratio(blocks["ours"], blocks["plain"]),
        least(case.need, plain, seconds, size, settings.device),
    )
    two, four = (each / plain.trained for each in kept_bytes(ours.life))
    beside = " + ".join(map(called, case.beside.parts)) if case.beside else "a bare PyTorch loop"
    details = {
        "method": name, "beside": beside, "measured": measured, "least": minimum, "why": case.need.words,
        "products": ours.operations / plain.side.operations, "peak": ours.peak / plain.side.peak,
        "between": (ours.between - plain.side.between) / seconds, "kept": two, "grown": (four - two) / 2,
    }  # fmt: skip
    return Figure(
        question=f"A step with {name} beside {beside}, over the least that it must cost; {size.name}",
        ours=middle(blocks["ours"]) * 1e3, baseline=seconds * 1e3, unit="ms per step",
        value=measured / minimum, limit=LIMIT,
        spread=f"measured {measured:.3f}x (best against best "
        f"{best_ratio(blocks['ours'], blocks['plain']):.3f}x), least {minimum:.3f}x: {case.need.words}",
        arithmetic=f"matrix products {details['products']:.3f}x, peak memory {details['peak']:.2f}x; between "
        f"stages {details['between']:.2g} plain steps more; kept after two stages {two:.2f} times the bytes "
        f"of plain training's weights, {details['grown']:+.3f} with each further one",
        details=details,
    )  # fmt: skip
