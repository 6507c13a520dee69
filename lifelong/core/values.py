"""The plain values that contracts pass around: rows, batches, outputs, answers, shapes of an update."""

from collections.abc import Mapping
from typing import Any, NamedTuple

from torch import Tensor, nn

IGNORED = -100  # label of a position that is not learned

Row = Mapping[str, Any]  # one row of the user's data, as read
Example = dict[str, Any]  # one encoded row: lists of ints or tensors, keys chosen by the objective
Batch = dict[str, Tensor]  # collated examples
Params = dict[str, nn.Parameter]  # trainable parameters by name


class Outputs(NamedTuple):
    """What the network says where an answer is known; N positions over the B examples of a batch."""

    logits: Tensor  # (N, C) C = vocabulary or known labels
    targets: Tensor  # (N,) int64 in [0, C)
    owners: Tensor  # (N,) int64 in [0, B): the example that each position belongs to


class Encoded(NamedTuple):
    examples: list[Example]
    truncated: int  # rows whose text was cut to fit the window


class Answer(NamedTuple):
    """The model's answer to one evaluation row."""

    prediction: str | None  # None where only likelihood was asked for
    references: tuple[str, ...]
    log_likelihood: float  # nats, of the reference (first one) given the prompt
    tokens: int  # labelled positions behind log_likelihood


class Progress(NamedTuple):
    """Where a stage stands. For a stage that ends by the clock `num_steps` is an estimate."""

    step: int  # optimiser steps already made in this stage
    num_steps: int
    steps_before: int = 0  # made in earlier stages


class LowRank(NamedTuple):
    """weight update of one linear module, out x in = scale * up @ down; float32."""

    down: Tensor  # (rank, in), peft's lora_A
    up: Tensor  # (out, rank), peft's lora_B
    scale: float


class Subspace(NamedTuple):
    """Input directions of finished updates of one module, and those now being trained."""

    past: Tensor  # (R, in) no gradient; R = 0 in the first stage
    current: Tensor  # (r, in) trainable
