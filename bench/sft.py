"""Supervised fine-tuning on short rows: how many tokens a second, beside what people would use?

SmolLM2 with LoRA (rank 8, all linear layers), loss on the completion only, 16 rows of 40 to 90 tokens a
step, real tokens counted and pads not. Ours is the `sft` objective in the engine's own loop, set up as
`lifelong run` does it. Against it:
    TRL's SFTTrainer, completion_only_loss, its own bf16 default, no packing; gradient checkpointing is
    switched off (it is on by default, and slower); the base in bfloat16 as ours (its default is float32)
    a plain peft loop: random batches padded to the longest row, loss by the network, all logits
"""

import importlib.util
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from bench.figure import Figure, Settings, title
from bench.session import (
    RATE,
    SEED,
    head_weights,
    linear_weights,
    opened,
    plan_of,
    prompts,
    stream_of,
    train,
)
from bench.timing import Block, Turns, Worker, best_ratio, middle, now, ratio, share, steady
from lifelong.core.axes import Example, Row
from lifelong.core.composition import Methods
from lifelong.core.encoding import IGNORED, pad, tokenise
from lifelong.core.feeding import lengths
from lifelong.core.life import Life
from lifelong.core.model import Model
from lifelong.models.compute import autocast, set_attention
from lifelong.objectives.sft import Sft
from lifelong.tuners.lora import Lora

BATCH = 16
RANK = 8


def measure(settings: Settings) -> list[Figure]:
    size, repeats = settings.repeats(2, 3), settings.repeats(3, 5)
    warm_up, precision = 1, "bfloat16"
    model = settings.model()
    rows = short(prompts(), model)
    stream = stream_of(rows, Sft(), BATCH, warm_up + size * repeats)
    set_attention(model, "auto", stream)
    methods = Methods(tuner=Lora(rank=RANK, alpha=2 * RANK))
    with opened(model, stream, methods, precision) as (life, folder), tempfile.TemporaryDirectory() as place:
        plan: list[Any] = []

        def begin() -> dict[str, Worker]:
            plan.append(plan_of(life, 0))
            examples = [item.example for item in life.pool]
            return others(settings, examples, rows, place)

        def tokens(first: int, last: int) -> float:
            return sum(int(plan[0].lengths[plan[0][step].rows].sum()) for step in range(first, last))

        turns = Turns(begin, tokens, size, warm_up, settings.torch_device)
        with steady():
            train(life, folder, precision, turns)
        per_token = operations(life)
        sizes = [plan[0].lengths[step.rows] for step in (plan[0][i] for i in range(plan[0].num_steps))]
    shares = [round(100 * padded(each)) for each in (sizes, drawn(sizes))]
    pads = f"pads are {shares[0]} % of our positions, {shares[1]} % in random batches; "
    found = [
        figure(settings, name, turns.blocks["ours"], blocks, per_token, pads)
        for name, blocks in turns.blocks.items()
        if name != "ours"
    ]  # fmt: skip
    return found if "TRL" in turns.blocks else [*found, missing()]


def short(rows: list[Row], model: Model) -> list[Row]:
    """Rows of 40 to 90 tokens."""
    lengths = [
        len(ids) + 1 for ids in tokenise(model.processor, [r["prompt"] + r["completion"] for r in rows])
    ]
    return [row for row, length in zip(rows, lengths, strict=True) if 40 <= length <= 90]


def padded(batches: list[np.ndarray]) -> float:
    """Share of the positions that are pads, each batch as wide as its longest row."""
    return 1 - sum(map(np.sum, batches)) / sum(max(batch) * len(batch) for batch in batches)


def drawn(batches: list[np.ndarray]) -> list[np.ndarray]:
    """The same rows in random batches."""
    mixed = np.random.default_rng(SEED).permutation(np.concatenate(batches))
    return np.split(mixed, range(BATCH, len(mixed), BATCH))


LIMITS = {"TRL": 2.0, "plain peft, bfloat16": 1.4, "plain peft, float32": None}
SENTENCES = {
    "TRL": "TRL's SFTTrainer (bf16, no checkpointing)",
    "plain peft, bfloat16": "a plain peft loop in the same precision",
    "plain peft, float32": "a plain peft loop in float32",
}


def figure(
    settings: Settings, name: str, ours: list[Block], other: list[Block], per_token: float, pads: str
) -> Figure:
    quickest = min(block.cost for block in ours)
    return Figure(
        question=f"Fine-tuning {title(settings.name)} on instructions with LoRA, 16 rows a step, bfloat16: "
        f"real tokens per second of ours against {SENTENCES[name]}",
        ours=1 / middle(ours), baseline=1 / middle(other), unit="tokens/s",
        value=1 / ratio(ours, other), limit=LIMITS[name], at_most=False,
        spread=f"best against best {1 / best_ratio(ours, other):.3f}; {len(ours)} turns",
        arithmetic=pads + "per real token: " + share(per_token, quickest, settings.device, "bfloat16"),
    )  # fmt: skip


def missing() -> Figure:
    return Figure(
        question="TRL is not installed, so nothing is said about it: pip install 'lifelong[bench]'",
        ours=None, baseline=None, unit="", value=0.0, value_unit="comparisons",
    )  # fmt: skip


def operations(life: Life) -> float:
    """Of a real token: forward and the gradients of activations through frozen weights, three passes
    through the low-rank pairs, the output head where a position is labelled. Attention's products and
    pads are left out.
    """
    network = life.network
    lora = sum(parameter.numel() for parameter in life.params.values())
    labelled = [sum(label != IGNORED for label in item.example["labels"]) for item in life.pool]
    part = sum(labelled) / sum(lengths(life))
    return 4 * linear_weights(network) + 6 * lora + 4 * part * head_weights(network)


def others(
    settings: Settings, examples: Sequence[Example], rows: Sequence[Row], place: str
) -> dict[str, Worker]:
    found: dict[str, Worker] = {
        "plain peft, bfloat16": Plain(settings.model(torch.bfloat16), examples, "bfloat16"),
        "plain peft, float32": Plain(settings.model(torch.float32), examples, "float32"),
    }
    if importlib.util.find_spec("trl"):
        found["TRL"] = Trl(settings.model(torch.bfloat16), rows, place)
    return found


def lora_config() -> Any:
    from peft import LoraConfig

    return LoraConfig(r=RANK, lora_alpha=2 * RANK, target_modules="all-linear", task_type="CAUSAL_LM")


class Plain:
    """What a careful person writes: peft, random batches, padded, labels, the network's own loss."""

    def __init__(self, model: Model, examples: Sequence[Example], precision: str) -> None:
        from peft import get_peft_model

        self.network = get_peft_model(model.network, lora_config()).train()
        self.params = [p for p in self.network.parameters() if p.requires_grad]
        self.optimizer = torch.optim.AdamW(self.params, lr=RATE, weight_decay=0.0, fused=True)
        self.examples, self.precision, self.device = examples, precision, self.params[0].device
        self.draw = np.random.default_rng(SEED)

    def __call__(self, steps: int) -> Block:
        begun, tokens = now(self.device), 0
        for _ in range(steps):
            chosen = [self.examples[i] for i in self.draw.choice(len(self.examples), BATCH, replace=False)]
            ids = [example["input_ids"] for example in chosen]
            batch = {
                "input_ids": pad(ids, 0),
                "attention_mask": pad([[1] * len(each) for each in ids], 0),
                "labels": pad([example["labels"] for example in chosen], IGNORED),
            }
            batch = {key: value.to(self.device) for key, value in batch.items()}
            with autocast(self.device, self.precision):
                loss = self.network(**batch).loss
            loss.backward()
            nn.utils.clip_grad_norm_(self.params, 1.0)
            self.optimizer.step()
            self.optimizer.zero_grad()
            loss.item()
            tokens += sum(map(len, ids))
        return Block(now(self.device) - begun, tokens)


@dataclass
class Seen:
    """Where TRL's loop stands: when its first step had ended, and the real tokens since."""

    begun: float = 0.0
    ended: float = 0.0
    tokens: int = 0
    steps: int = 0


class Trl:
    """Runs of SFTTrainer; the first step of each run warms up and is not counted."""

    def __init__(self, model: Model, rows: Sequence[Row], place: str) -> None:
        from datasets import Dataset, disable_progress_bars
        from transformers import PrinterCallback
        from trl import SFTConfig, SFTTrainer

        disable_progress_bars()
        seen, device = Seen(), model.device

        class Watched(SFTTrainer):
            def training_step(
                self, network: nn.Module, inputs: dict[str, Any], *args: Any, **kwargs: Any
            ) -> Any:
                if seen.steps == 1:
                    seen.begun = now(device)
                if seen.steps:
                    seen.tokens += int(inputs["attention_mask"].sum())
                loss = super().training_step(network, inputs, *args, **kwargs)
                seen.steps += 1
                return loss

            def _maybe_log_save_evaluate(self, *args: Any, **kwargs: Any) -> None:
                super()._maybe_log_save_evaluate(*args, **kwargs)
                seen.ended = now(device)

        config = SFTConfig(
            output_dir=place, per_device_train_batch_size=BATCH, completion_only_loss=True, packing=False,
            gradient_checkpointing=False, learning_rate=RATE, lr_scheduler_type="constant",
            save_strategy="no", report_to="none", disable_tqdm=True, max_steps=2,
            use_cpu=device.type == "cpu",
        )  # fmt: skip
        self.seen, self.runs = seen, 0
        self.trainer = Watched(
            model=model.network, args=config, train_dataset=Dataset.from_list([dict(row) for row in rows]),
            processing_class=model.processor, peft_config=lora_config(),
        )  # fmt: skip
        self.trainer.remove_callback(PrinterCallback)

    def __call__(self, steps: int) -> Block:
        seen = self.seen
        seen.begun = seen.ended = seen.tokens = seen.steps = 0
        self.runs += 1
        self.trainer.args.max_steps = steps + 1
        self.trainer.args.seed = self.trainer.args.data_seed = SEED + self.runs  # other rows every time
        self.trainer.train()
        return Block(seen.ended - seen.begun, seen.tokens)
