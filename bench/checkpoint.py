"""What does a checkpoint of a LoRA stage cost, beside a minute of training?

Inside a stage it holds the trainable weights and both moments of the optimiser. It is written, flushed
to the disk, hashed and renamed while training waits, so its seconds are what training loses. The other
is the same bytes written and flushed as one file.
"""

import os
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from bench.figure import Figure, Settings, title
from bench.session import SEED, Stepper, opened, prompts, stream_of
from bench.timing import Block, in_turns, middle, timed
from lifelong.core import state as states
from lifelong.core.composition import Methods
from lifelong.objectives.sft import Sft
from lifelong.store.run import RunFolder
from lifelong.tuners.lora import Lora

LIMIT = 2.0  # % of a minute
RANK = 16
LARGE = {  # (out, in) of the linear modules of a layer: a Llama of 8 billion weights with 32 layers
    "q": (4096, 4096), "k": (1024, 4096), "v": (1024, 4096), "o": (4096, 4096), "gate": (14336, 4096),
    "up": (14336, 4096), "down": (4096, 14336),
}  # fmt: skip
LAYERS = 32

Snapshot = Callable[[], tuple[dict[str, Tensor], object]]


def measure(settings: Settings) -> list[Figure]:
    layers = 2 if settings.quick else LAYERS
    made = large(layers)
    return [real(settings), compare(settings, lambda: made, large_name(layers))]


def real(settings: Settings) -> Figure:
    stream = stream_of(prompts()[:16], Sft(), 8, steps=2)
    with opened(settings.model(), stream, Methods(tuner=Lora(rank=RANK)), "bfloat16") as (life, _):
        life.begin_stage(0, stream.stages[0])
        Stepper(life, 0)(1)
        return compare(settings, life.snapshot, f"{title(settings.name)} with LoRA of rank {RANK}")


def large_name(layers: int) -> str:
    return f"LoRA of rank {RANK} on {layers} layers of a Llama 8B"


def large(layers: int) -> tuple[dict[str, Tensor], object]:
    """Weights and moments of the pairs, without the model that they belong to."""
    generator, params = torch.Generator().manual_seed(SEED), {}
    for layer in range(layers):
        for name, (outside, inside) in LARGE.items():
            params[f"{layer}.{name}.a"] = torch.randn(RANK, inside, generator=generator)
            params[f"{layer}.{name}.b"] = torch.randn(outside, RANK, generator=generator)
    moments = {n: {"exp_avg": p * 0.1, "exp_avg_sq": p**2} for n, p in params.items()}
    return states.split({"params": params, "optimizer": moments})


def compare(settings: Settings, snapshot: Snapshot, name: str) -> Figure:
    tensors, tree = snapshot()
    num_bytes = states.num_bytes(tensors)
    content = [t.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy() for t in tensors.values()]
    with tempfile.TemporaryDirectory() as place:
        folder = RunFolder(Path(place) / "run", {"name": "bench"}, ["stage"])
        steps = iter(range(1, 1000))

        def ours(repeats: int) -> Block:
            return timed(lambda: folder.save(0, next(steps), *snapshot()), settings.torch_device)

        def other(repeats: int) -> Block:
            return timed(lambda: plain(Path(place) / "plain", content), settings.torch_device)

        try:
            blocks = in_turns({"ours": ours, "other": other}, 1, settings.repeats(2, 7))
        finally:
            folder.close()
    seconds, least = middle(blocks["ours"]), min(block.seconds for block in blocks["ours"])
    return Figure(
        question=f"Seconds of a checkpoint inside a stage, in % of a minute of training: {name}, "
        f"{num_bytes / 1e6:.0f} MB",
        ours=seconds, baseline=middle(blocks["other"]), unit="s", value=100 * seconds / 60,
        value_unit="% of a minute", limit=LIMIT,
        spread=f"best {least:.3f} s = {num_bytes / least / 1e6:.0f} MB/s; {len(blocks['ours'])} turns",
    )  # fmt: skip


def plain(file: Path, content: list[np.ndarray]) -> None:
    with file.open("wb") as out:
        for part in content:
            out.write(part)
        out.flush()
        os.fsync(out.fileno())
