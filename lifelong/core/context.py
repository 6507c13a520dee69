"""What the engine shows to methods."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from lifelong.core.model import Model
from lifelong.core.state import State
from lifelong.core.values import Batch, Example, Outputs, Params

if TYPE_CHECKING:
    from lifelong.core.axes import Objective, Tuner
    from lifelong.core.stream import Stream


@dataclass(kw_only=True)
class Context:
    """What a method may look at. In a plain PyTorch loop `Context(params=...)` is enough for a
    penalty on weights; the engine fills in everything.
    """

    params: Params
    model: Model | None = None
    objective: "Objective | None" = None
    tuner: "Tuner | None" = None
    tuner_state: State = field(default_factory=dict)
    stage: int = 0  # index of the stage, from 0
    step: int = 0  # optimiser steps made in this stage
    num_steps: int = 0  # of this stage; an estimate where it ends by the clock
    learning_rate: float = 0.0  # of this step
    seed: int = 0  # of this stage
    num_old_labels: int | None = None  # labels of finished stages, where a head grows
    batch: Batch | None = None  # the current step's
    outputs: Outputs | None = None  # of the current batch, with gradient
    features: Tensor | None = None  # (N, H) what `outputs` were decided on, where a penalty `needs_features`
    layers: Mapping[str, Tensor] | None = None  # of each (B, L, H), where the tuner `needs_layers`
    tasks: tuple[int, ...] = ()  # of the current batch: index of the stage that each row came from
    loss: float | None = None  # of the step's rows, nats per labelled position, once it is known:
    # in `after_backward`, terms on weights, `before_update` and `after_update`
    examples: Sequence[Example] = ()  # the stage's encoded training rows
    labels: Sequence[str] = ()  # of the stage, where it has a closed set
    objectives: Sequence["Objective"] = ()  # of the stages, by index
    base: nn.Module | None = None  # the network before the first stage, for diagnostics that ask; read only
    stream: "Stream | None" = None  # all stages, for diagnostics alone
    history: Sequence[Mapping[str, Any]] = ()  # evaluations so far, see `Diagnostic`
    batches: Callable[[Sequence[Example]], Iterator[Batch]] | None = (
        None  # collates in the given order, on the device
    )
    autocast: Callable[[], AbstractContextManager[Any]] = nullcontext  # the run's compute type
    forget_moments: Callable[[], None] = lambda: None  # the optimiser begins anew; in `after_update`

    @property
    def routed(self) -> bool:
        """Is what the tuner adds chosen by row, so that there is no single weight that it changes?"""
        return self.tuner is not None and not self.tuner.folds
