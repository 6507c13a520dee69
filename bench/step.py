"""Does our training loop cost more than the shortest loop that trains the same?

Ours is `engine.train_stage` as every run calls it: plan, rows, collation, forward, penalties' place,
backward, clipping, AdamW, log line, event. The other is a bare PyTorch loop on batches that were
collated beforehand. Same weights, same batches in the same order; their losses are compared.
"""

import copy

import torch
from torch import nn

from bench.figure import Figure, Settings
from bench.session import (
    MEDIUM,
    RATE,
    SMALL,
    Size,
    batches_of,
    head_weights,
    linear_weights,
    llama,
    opened,
    plan_of,
    random_texts,
    stream_of,
    train,
)
from bench.timing import Block, Turns, best_ratio, middle, now, ratio, share, steady
from lifelong.core.composition import Methods
from lifelong.models.compute import autocast
from lifelong.objectives.causal_lm import CausalLm
from lifelong.tuners.full import Full

LIMITS = ((MEDIUM, 1.03), (SMALL, 1.10))


def measure(settings: Settings) -> list[Figure]:
    return [
        compare(size, precision, limit if precision == "float32" or size is MEDIUM else None, settings)
        for size, limit in LIMITS
        for precision in ("float32", "bfloat16")
    ]


def compare(size: Size, precision: str, limit: float | None, settings: Settings) -> Figure:
    long = size.width >= 128
    block, repeats = settings.repeats(2, 3) if long else settings.repeats(20, 40), settings.repeats(4, 15)
    warm_up = block
    steps = warm_up + block * repeats
    model = llama(size, settings.device)
    twin = copy.deepcopy(model.network)
    objective = CausalLm(block_size=size.tokens)
    stream = stream_of(random_texts(size, steps * size.batch_size), objective, size.batch_size, steps)
    bare: list[Bare] = []
    with opened(model, stream, Methods(tuner=Full()), precision) as (life, folder):

        def begin() -> dict:
            bare.append(Bare(twin, batches_of(life, plan_of(life, 0)), precision))
            return {"bare": bare[0]}

        turns = Turns(begin, lambda first, last: last - first, block, warm_up, settings.torch_device)
        with steady():
            train(life, folder, precision, turns)
    ours, other = turns.blocks["ours"], turns.blocks["bare"]
    apart = max(abs(a - b) for a, b in zip(turns.losses, bare[0].losses, strict=False))
    return Figure(
        question=f"One training step, {size.name}, all weights, {precision}: our loop against a bare "
        "PyTorch loop",
        ours=middle(ours) * 1e3, baseline=middle(other) * 1e3, unit="ms per step",
        value=ratio(ours, other), limit=limit,
        spread=f"best against best {best_ratio(ours, other):.3f}; {len(ours)} turns of {block} steps; "
        f"the two losses differ by at most {apart:.1e} over {len(bare[0].losses)} steps",
        arithmetic=share(
            operations(size, model.network), min(b.cost for b in ours), settings.device, precision
        ),
    )  # fmt: skip


def operations(size: Size, network: nn.Module) -> float:
    """Of one step: forward 2 per weight and token, backward twice as many; attention's products too."""
    tokens = size.batch_size * size.tokens
    weights = linear_weights(network) + head_weights(network)
    return 6 * tokens * weights + 3 * 4 * size.layers * tokens * size.tokens * size.width


class Bare:
    """The shortest loop: forward with labels, backward, clip, AdamW."""

    def __init__(self, network: nn.Module, batches: list[dict[str, torch.Tensor]], precision: str) -> None:
        self.network, self.batches, self.precision = network.train(), batches, precision
        self.params = list(network.parameters())
        self.device = self.params[0].device
        self.optimizer = torch.optim.AdamW(self.params, lr=RATE, weight_decay=0.0, fused=True)
        self.losses: list[float] = []

    def __call__(self, steps: int) -> Block:
        begun = now(self.device)
        for _ in range(steps):
            with autocast(self.device, self.precision):
                loss = self.network(**self.batches[len(self.losses)], use_cache=False).loss
            loss.backward()
            nn.utils.clip_grad_norm_(self.params, 1.0)
            self.optimizer.step()
            self.optimizer.zero_grad()
            self.losses.append(loss.item())
        return Block(now(self.device) - begun, steps)
