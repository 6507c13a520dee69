"""Clocks, turns and the machine's own speed."""

import gc
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from itertools import accumulate
from typing import NamedTuple

import torch
from torch.profiler import ProfilerActivity, profile

from lifelong.core.engine import Event


class Block(NamedTuple):
    """A stretch of work: how long it took, and how much it was (steps, tokens, calls)."""

    seconds: float
    amount: float

    @property
    def cost(self) -> float:  # seconds per unit of work
        return self.seconds / self.amount


Worker = Callable[[int], Block]  # makes that many steps


def now(device: torch.device) -> float:
    """The wall clock, once the device has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


@contextmanager
def steady() -> Iterator[None]:
    """No garbage collection inside."""
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def timed(work: Callable[[], object], device: torch.device, amount: float = 1.0) -> Block:
    begun = now(device)
    work()
    return Block(now(device) - begun, amount)


def in_turns(workers: dict[str, Worker], size: int, repeats: int) -> dict[str, list[Block]]:
    """A, B, C, A, B, C, ...: blocks of `size` steps, after one block each to warm up."""
    found: dict[str, list[Block]] = {name: [] for name in workers}
    with steady():
        for worker in workers.values():
            worker(size)
        for _ in range(repeats):
            for name, worker in workers.items():
                found[name].append(worker(size))
    return found


class Turns:
    """A listener for our own training loop. After every block of its steps the others make a block
    of theirs while it waits, so nothing of the loop had to be rewritten to be timed.
    """

    def __init__(
        self,
        begin: Callable[[], dict[str, Worker]],  # the others, asked for after our first step
        amount: Callable[[int, int], float],  # of our steps from a first to a last, excluded
        size: int,
        warm_up: int,
        device: torch.device,
    ) -> None:
        self.begin, self.amount, self.size, self.warm_up, self.device = begin, amount, size, warm_up, device
        self.workers: dict[str, Worker] = {}
        self.blocks: dict[str, list[Block]] = {"ours": []}
        self.losses: list[float] = []
        self.since = 0.0

    def __call__(self, event: Event) -> None:
        if event.kind != "step":
            return
        reached = now(self.device)
        self.losses.append(event.loss)
        if event.step == 1:
            self.workers = self.begin()
            self.blocks |= {name: [] for name in self.workers}
        done = event.step - self.warm_up
        if done == 0:
            for worker in self.workers.values():
                worker(self.warm_up)
        elif done > 0 and done % self.size == 0:
            first = event.step - self.size
            self.blocks["ours"].append(Block(reached - self.since, self.amount(first, event.step)))
            for name, worker in self.workers.items():
                self.blocks[name].append(worker(self.size))
        else:
            return
        self.since = now(self.device)


def middle(blocks: Sequence[Block]) -> float:
    """Median seconds per unit of work."""
    return statistics.median(block.cost for block in blocks)


def ratio(blocks: Sequence[Block], others: Sequence[Block]) -> float:
    """Median over neighbours in time of (cost of ours / cost of the other)."""
    return statistics.median(a.cost / b.cost for a, b in zip(blocks, others, strict=True))


def best_ratio(blocks: Sequence[Block], others: Sequence[Block]) -> float:
    """The quickest of ours against the quickest of the other."""
    return min(a.cost for a in blocks) / min(b.cost for b in others)


@cache
def peak(device: str, dtype: torch.dtype, size: int = 2048, repeats: int = 12) -> float:
    """Operations per second of a square matrix product: the best of several, as nothing is faster."""
    where = torch.device(device)
    matrix = torch.randn(size, size, device=where).to(dtype)
    matrix @ matrix
    seconds = min(timed(lambda: matrix @ matrix, where).seconds for _ in range(repeats))
    return 2 * size**3 / seconds


@cache
def bandwidth(device: str, size: int = 2**24, repeats: int = 12) -> float:
    """Bytes per second that element-wise work reads and writes: the best of several sums of two tensors."""
    left, right, out = (torch.ones(size, device=device) for _ in range(3))
    where = torch.device(device)
    seconds = min(timed(lambda: torch.add(left, right, out=out), where).seconds for _ in range(repeats))
    return 3 * left.nbytes / seconds


def peak_memory(worker: Worker, device: torch.device) -> int:
    """Bytes that one step allocates at most beyond those that lay there before."""
    if device.type == "cuda":
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        worker(1)
        return torch.cuda.max_memory_allocated(device) - before
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
        worker(1)
    events = [each for each in profiled.profiler.kineto_results.events() if each.name() == "[memory]"]
    events.sort(key=lambda each: each.start_ns())
    return max(accumulate((each.nbytes() for each in events), initial=0))


def share(operations: float, seconds: float, device: str, precision: str) -> str:
    """How much of the machine's best a stretch of work reached, in words."""
    top = peak(device, getattr(torch, precision))
    return (
        f"{operations:.2e} operations in {seconds * 1e3:.4g} ms = {operations / seconds / 1e9:.4g} GFLOP/s, "
        f"{100 * operations / seconds / top:.0f} % of the {top / 1e9:.0f} that a 2048^3 {precision} "
        "product reaches here"
    )
