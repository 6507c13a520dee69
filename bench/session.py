"""What the measurements share: models of known size, rows, and a life ready to be trained."""

import json
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from accelerate import Accelerator
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from bench.timing import Block, now
from lifelong.core import engine
from lifelong.core.axes import Batch, Objective, Row
from lifelong.core.composition import Methods
from lifelong.core.feeding import items, lengths, next_rows, remember
from lifelong.core.gradients import gradients
from lifelong.core.life import Life
from lifelong.core.model import Model
from lifelong.core.plan import Plan
from lifelong.core.stream import Budget, Optimization, Stage, Stream
from lifelong.schedules.constant import Constant
from lifelong.store.run import RunFolder
from lifelong.streams.builtin import FOLDER, TEMPLATES

SEED = 0
RATE = 1e-4


class Size(NamedTuple):
    """A Llama of random weights, and the rows that it is trained on."""

    layers: int
    width: int
    words: int
    batch_size: int
    tokens: int  # of a row

    @property
    def name(self) -> str:
        return f"{self.layers} layers, width {self.width}, {self.batch_size} rows of {self.tokens} tokens"


MEDIUM = Size(4, 256, 4096, 8, 256)
SMALL = Size(2, 64, 512, 8, 64)


def llama(size: Size, device: str) -> Model:
    """Random weights, word and output embeddings tied; words are `w7`."""
    torch.manual_seed(SEED)
    config = LlamaConfig(
        vocab_size=size.words, hidden_size=size.width, intermediate_size=8 * size.width // 3 // 4 * 4,
        num_hidden_layers=size.layers, num_attention_heads=max(2, size.width // 64),
        max_position_embeddings=2048,
        tie_word_embeddings=True, pad_token_id=0, eos_token_id=1, bos_token_id=None,
    )  # fmt: skip
    words = {"<pad>": 0, "<eos>": 1} | {f"w{i}": i for i in range(2, size.words)}
    raw = Tokenizer(models.WordLevel(words, unk_token="<pad>"))
    raw.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=raw, pad_token="<pad>", eos_token="<eos>")
    network = LlamaForCausalLM(config).to(device)
    return Model(network, tokenizer, "decoder", window=2048, name=f"random {size.layers}-layer Llama")


def random_texts(size: Size, rows: int) -> list[Row]:
    """Texts that the `causal_lm` objective packs into exactly `rows` rows of `size.tokens`."""
    draw = np.random.default_rng(SEED)
    drawn = draw.integers(2, size.words, (rows, size.tokens - 1))  # the end token is added
    return [{"text": " ".join(f"w{word}" for word in row)} for row in drawn]


def prompts(names: Sequence[str] = ("reviews", "mail", "century")) -> list[Row]:
    """The embedded training rows as prompts with completions."""
    found = []
    for name in names:
        lines = (FOLDER / f"{name}.train.jsonl").read_text(encoding="utf-8").splitlines()
        for row in map(json.loads, lines):
            found.append({"prompt": TEMPLATES[name].format(**row), "completion": " " + row["label"]})
    return found


def stream_of(
    rows: Sequence[Row], objective: Objective, batch_size: int, steps: int, stages: int = 1
) -> Stream:
    """The same rows in every stage; nothing is evaluated."""
    optimization = Optimization(learning_rate=RATE, schedule=Constant(), batch_size=batch_size)
    made = [
        Stage(name=f"stage {i + 1}", rows=rows, evals=(), objective=objective, budget=Budget(steps=steps),
              optimization=optimization)
        for i in range(stages)
    ]  # fmt: skip
    return Stream(stages=tuple(made))


@contextmanager
def opened(
    model: Model, stream: Stream, methods: Methods, precision: str
) -> Iterator[tuple[Life, RunFolder]]:
    """A life with its methods attached and a run folder that is removed afterwards."""
    with tempfile.TemporaryDirectory() as place:
        folder = RunFolder(Path(place) / "run", {"name": "bench"}, [stage.name for stage in stream.stages])
        try:
            accelerator = Accelerator(cpu=model.device.type == "cpu")
            life = Life(model, stream, methods, SEED, precision, accelerator)
            life.restore(folder)
            yield life, folder
        finally:
            folder.close()


def attached(model: Model, stream: Stream, methods: Methods, precision: str) -> Life:
    """The same for a life that writes nothing."""
    with opened(model, stream, methods, precision) as (life, _):
        return life


def train(life: Life, folder: RunFolder, precision: str, listen: engine.Listener) -> None:
    """The first stage, by the loop that every run uses."""
    settings = engine.Settings(seed=SEED, precision=precision, checkpoint_seconds=1e9)
    engine.train_stage(life, 0, life.stream.stages[0], folder, settings, listen, engine.Stop())


def plan_of(life: Life, index: int) -> Plan:
    """The plan that the loop makes for a stage whose rows are encoded."""
    stage = life.stream.stages[index]
    return Plan(lengths(life), stage.optimization, stage.budget, SEED, index)


def batches_of(life: Life, plan: Plan) -> list[Batch]:
    """What the loop will collate, step by step."""
    return [life.batches(items(life, plan[step].rows), None)[0].batch for step in range(plan.num_steps)]


class Stepper:
    """Steps of a stage that has begun, where two lives take turns and neither can own the loop."""

    def __init__(self, life: Life, index: int) -> None:
        self.life, self.plan = life, plan_of(life, index)
        life.num_steps, life.learning_rate = self.plan.num_steps, RATE
        life.network.train()

    def __call__(self, steps: int) -> Block:
        life, device = self.life, self.life.accelerator.device
        begun = now(device)
        for _ in range(steps):
            rows, first_visit = next_rows(life, self.plan)
            taken = gradients(life, rows, None, first_visit)
            life.update(RATE, taken.loss)
            if first_visit:
                remember(life, rows, taken.logits)
            life.step += 1
        return Block(now(device) - begun, steps)


def linear_weights(network: nn.Module) -> int:
    """Weights of the body that take part in matrix products: no embeddings, no output head, no norms."""
    head = network.get_output_embeddings()
    return sum(
        module.weight.numel()
        for name, module in network.named_modules()
        if isinstance(module, nn.Linear) and module is not head and "lora_" not in name
    )


def head_weights(network: nn.Module) -> int:
    return network.get_output_embeddings().weight.numel()
