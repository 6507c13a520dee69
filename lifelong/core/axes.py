"""The contracts: six questions that a stage asks, one abstract class for each kind of answer.

A method is a frozen, keyword-only dataclass of hyper-parameters and a final subclass of one axis.
It keeps nothing on `self`: what it remembers is a `State` (nested dicts of tensors and plain
values) that it returns and the engine saves. Every class states its source (`paper`), what it
costs beside plain training (`cost`) and what its tests have shown (`verified`).
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor, nn
from torch.nn import functional

from lifelong.core.context import Context
from lifelong.core.model import Model
from lifelong.core.settings import check
from lifelong.core.state import State
from lifelong.core.values import (
    IGNORED,
    Answer,
    Batch,
    Encoded,
    Example,
    LowRank,
    Outputs,
    Params,
    Progress,
    Row,
    Subspace,
)
from lifelong.errors import UserError
from lifelong.numerics.interpolation import interpolate


@dataclass(frozen=True, kw_only=True)
class Method(ABC):  # noqa: B024 - abstract through its axes
    """Base of every axis."""

    paper: ClassVar[str] = ""  # where it comes from
    cost: ClassVar[str] = ""  # time, memory, bytes per task beyond plain training
    verified: ClassVar[tuple[str, ...]] = ()  # what its tests have shown

    def __post_init__(self) -> None:
        check(self)


class Objective(Method):
    """What a step minimises, and how its answers are read off the network."""

    kinds: ClassVar[tuple[str, ...]] = ()  # kinds of models that it can train (see core.model)
    columns: ClassVar[tuple[tuple[str, ...], ...]] = ()  # sets of columns that it accepts
    metric: ClassVar[str] = "accuracy"  # judged by this unless the stream says otherwise

    @abstractmethod
    def encode(self, rows: Sequence[Row], model: Model, labels: Sequence[str]) -> Encoded:
        """Examples of `rows`. `labels` are all labels known so far, in the order of their ids."""

    @abstractmethod
    def collate(self, examples: Sequence[Example], model: Model) -> Batch:
        """Pad and stack."""

    @abstractmethod
    def forward(self, network: nn.Module, batch: Batch) -> Outputs:
        """Logits at the labelled positions only."""

    def loss(self, outputs: Outputs) -> Tensor:
        """(N,) loss of each labelled position in nats, float32."""
        return functional.cross_entropy(outputs.logits.float(), outputs.targets, reduction="none")

    @abstractmethod
    def answer(self, rows: Sequence[Row], model: Model, labels: Sequence[str]) -> list[Answer]:
        """Answers to evaluation rows, in their order; `labels` are the candidates."""

    @property
    def packed_tokens(self) -> int | None:
        """Size of the blocks that rows are packed into; None where every row is one example."""
        return None

    @property
    def hides_old_labels(self) -> bool:
        """Are the logits of old labels absent from `Outputs` on new rows?"""
        return False

    def begin_stage(self, model: Model, labels: Sequence[str], seed: int) -> None:
        """Make room for the labels of a new stage. Called again, in order, on a resume."""

    def features(self, network: nn.Module, batch: Batch) -> Tensor:
        """(B, H) pooled features, for objectives that decide by a linear head."""
        raise UserError(f"{type(self).__name__} has no features; use classification with head: linear.")

    def has_linear_head(self, model: Model) -> bool:
        """Does it decide by the growing linear head of the network, on `features`?"""
        return False

    def labelled(self, batch: Batch) -> int:
        """Labelled positions of a batch: the N of its `Outputs`."""
        return int((batch["labels"] != IGNORED).sum())

    def length(self, example: Example) -> int:
        """Positions that the example occupies in a batch; batches are formed by it."""
        return len(example["input_ids"]) if "input_ids" in example else 1


class Active(Method):
    """A method that takes part in the steps and remembers a `State` between them.

    Every hook returns the state to keep. A step is: gradients of the loss - `after_backward` -
    gradients of penalties on weights - `before_update` - clipping - optimiser - `after_update`.
    Hooks that a class does not define cost nothing.
    """

    def begin_stage(self, context: Context, state: State) -> State:
        """Before the first step. `context.examples` are the stage's."""
        return state

    def after_backward(self, context: Context, state: State) -> State:
        """`.grad` holds the gradient of the task's loss (and of penalties on answers) alone."""
        return state

    def before_update(self, context: Context, state: State) -> State:
        """`.grad` is complete, not yet clipped; it may be changed in place."""
        return state

    def after_update(self, context: Context, state: State) -> State:
        """The weights have moved; they may be corrected in place."""
        return state

    def end_stage(self, context: Context, state: State) -> State:
        """After the last step; `context.examples` are still there."""
        return state


class Tuner(Active):
    """Where the update lives. `begin_stage` and `end_stage` leave the function as it was; where it is
    routed (`folds` is False) a new expert may take weight from the others there.
    """

    persistent: ClassVar[bool] = True  # a parameter's name means the same weight in every stage
    has_subspaces: ClassVar[bool] = False  # answers `subspaces`
    trains_base: ClassVar[bool] = False  # base weights move, so they are kept in float32
    rewrites_base: ClassVar[bool] = False  # a hook writes base weights, though no step trains them
    keeps_body: ClassVar[bool] = False  # below its label head the network stays what was loaded, at any time
    folds: ClassVar[bool] = True  # `fold` leaves a plain transformers model
    grows: ClassVar[bool] = False  # parameters may appear, grow or go in any hook
    interpolates: ClassVar[bool] = False  # `interpolate` leaves a share of the stage's update
    needs_outputs: ClassVar[bool] = False  # asks for `loss` in every micro batch
    needs_layers: ClassVar[bool] = False  # and reads `context.layers`
    pulls_old: ClassVar[bool] = False  # `loss` is about rows of earlier stages, also those a memory weighs
    optimizers: ClassVar[tuple[str, ...]] = ("adamw", "sgd")  # under which its rule holds
    exchanges: ClassVar[bool] = False  # trainable parameters may give way to others inside a stage
    starts_at_zero: ClassVar[bool] = False  # a stage's update is made of weights of its own, and 0 at first

    @abstractmethod
    def attach(self, model: Model, state: State | None, seed: int) -> State:
        """Freeze and add what the update needs. With a saved `state`, rebuild the same modules
        (values of trainable parameters are loaded by the engine afterwards).
        """

    def loss(self, context: Context, state: State) -> Tensor | None:
        """A term of its own (balance, orthogonality): scalar with gradient, or None."""
        return None

    def serving(self, model: Model, state: State) -> AbstractContextManager[None]:
        """Inside, the model answers as it is meant to be used (with averaged weights, say)."""
        return nullcontext()

    @abstractmethod
    def fold(self, model: Model, state: State) -> None:
        """Leave a plain transformers model that computes the same function (of `serving`). Where
        `folds` is False: leave the modules that compute it, for `lifelong.load`.
        """

    def low_rank(self, model: Model, state: State) -> dict[str, LowRank] | None:
        """The whole update by module name, where it is one of low rank; else None."""
        return None

    def subspaces(self, model: Model, state: State) -> dict[str, Subspace]:
        raise TypeError(f"{type(self).__name__} has no subspaces")

    def interpolate(
        self, context: Context, state: State, before: Mapping[str, Tensor], ratio: Callable[[str], float]
    ) -> State:
        """Keep the share `ratio(parameter name)` of what the stage changed in the weights; `before`
        holds the trainable parameters as the stage began. It may read each from the disk when asked.
        Here: parameter by parameter; to be overridden where a share of the update is found in another way.
        """
        interpolate(context.params, before, ratio)
        return state


class Penalty(Active):
    """What holds the past: a scalar added to the loss."""

    needs_persistent: ClassVar[bool] = False  # compares a parameter with its own earlier value
    needs_subspaces: ClassVar[bool] = False
    needs_same_params: ClassVar[bool] = False  # keeps parameters by name from first to last step of a stage
    moves_weights: ClassVar[bool] = False  # writes other weights when a stage ends
    needs_outputs: ClassVar[bool] = False  # asks for `loss` in every micro batch, as a mean over its
    # labelled positions; else once per step
    needs_features: ClassVar[bool] = False  # and reads `context.features`

    @abstractmethod
    def init(self, context: Context) -> State:
        """State before the first stage."""

    @abstractmethod
    def loss(self, context: Context, state: State) -> Tensor | None:
        """Scalar with gradient; None where there is nothing to hold yet (the step then costs
        nothing and changes no bit)."""


class Replay(Active):
    """What is seen again. Items are dicts {"stage": index, "place": of the row in its stage, "example":
    encoded row} or, kept as text, "row" in place of "example"; with `keeps_logits` also {"logits": (N, C)}.
    """

    joins: ClassVar[bool] = True  # old rows are averaged with the new ones; else `loss` weighs them
    keeps_logits: ClassVar[bool] = False  # `add` gets the logits of each new row as the step saw them
    projects: ClassVar[bool] = False  # old rows give a gradient of their own to `project` with

    keep: Any  # "text" or "tokens"

    @abstractmethod
    def init(self, seed: int) -> State: ...

    @abstractmethod
    def add(self, state: State, items: Sequence[dict[str, Any]]) -> State:
        """Offer rows in the order in which they were first seen."""

    @abstractmethod
    def pick(self, state: State, num_rows: int, stage: int, step: int) -> list[dict[str, Any]]:
        """Items to train beside `num_rows` new rows; a pure function of its arguments."""

    def forget(self, state: State, gone: Callable[[dict[str, Any]], bool]) -> State:
        """Drop the items for which `gone` holds. To be overridden where a state has more than the list
        "items" to tell of a row.
        """
        return {**state, "items": [item for item in state["items"] if not gone(item)]}

    def loss(self, outputs: Outputs, items: Sequence[dict[str, Any]]) -> Tensor:
        """Scalar for picked `items`, in the order of `outputs.owners`; where `joins` is False."""
        raise TypeError(f"{type(self).__name__} joins the batch")

    def project(self, params: Params, reference: dict[str, Tensor]) -> None:
        """Correct `.grad` of the new rows by the gradient of the old ones; where `projects`."""
        raise TypeError(f"{type(self).__name__} does not project")


class Mixing(Active):
    """In which proportions the parts of a stage are drawn. With `past`, the parts are the rows of all
    stages so far, oldest first; else those of a joint stage.
    """

    past: ClassVar[bool] = True
    draws: ClassVar[bool] = True  # at every step, by `proportions`; else `take` picks rows once a stage

    @property
    def held_fraction(self) -> float:
        """Share of every part's training rows that is held out for `observe`; at least one row if > 0."""
        return 0.0

    @abstractmethod
    def init(self, context: Context) -> State:
        """State before the first stage."""

    def proportions(self, context: Context, state: State, num_parts: int) -> Sequence[float]:
        """Probabilities of the parts for the next step; they sum to 1. Where `draws`."""
        raise TypeError(f"{type(self).__name__} takes its rows when a stage begins")

    def take(self, num_rows: Sequence[int]) -> Sequence[int]:
        """Rows of each part that this stage sees, where not `draws`: drawn once, visited once an epoch."""
        raise TypeError(f"{type(self).__name__} draws its rows at every step")

    def asks(self, context: Context, state: State, num_parts: int) -> bool:
        """Are the losses of the held-out rows wanted before the next step?"""
        return False

    def observe(self, context: Context, state: State, losses: Sequence[float]) -> State:
        """Held-out loss of every part (nats per labelled position), as measured just now."""
        return state


class Merger(Active):
    """What happens between stages: `begin_stage` sees the weights before, `end_stage` after. A merger
    that changes the tuner's state leaves the new one in `context.tuner_state`. It acts before all
    other methods take in the stage.
    """

    @abstractmethod
    def init(self, context: Context) -> State:
        """State before the first stage."""


class Analytic(Active):
    """Learns a stage in closed form, from features of the network and labels."""

    gradient_stages: ClassVar[int] = 0  # first stages that are trained by gradient as well
    forgets: ClassVar[bool] = False  # answers `forget`
    expansion: ClassVar[int] = 0  # fixed random features that it learns from; 0: the network's own

    @abstractmethod
    def init(self, num_features: int) -> State: ...

    @abstractmethod
    def learn(self, state: State, features: Tensor, labels: Tensor) -> State:
        """Take in rows: features (B, H) float64, labels (B,) int64. Exact: the order of rows and
        their division into batches change rounding only.
        """

    def forget(self, state: State, features: Tensor, labels: Tensor) -> State:
        """The state had these rows, learned before, never been there; exact up to rounding."""
        raise TypeError(f"{type(self).__name__} does not forget")

    @abstractmethod
    def head(self, state: State, num_labels: int) -> tuple[Tensor, Tensor]:
        """Weight (C, H) and bias (C,) of the linear head that decides alike."""


class Unlearning(Active):
    """What a step of an erase stage minimises: its rows are those to be forgotten. Rows that remain come
    from the memory and are trained as in any stage. Takes no part in other stages.
    """

    needs_zero_start: ClassVar[bool] = False  # of the tuner, see `Tuner.starts_at_zero`
    needs_outputs: ClassVar[bool] = False  # `loss` is a term on weights

    @abstractmethod
    def init(self, context: Context) -> State:
        """State before the first stage."""

    @abstractmethod
    def row_losses(self, context: Context, state: State) -> Tensor | None:
        """(B,) terms of the rows of `context.batch`, to be forgotten; the step minimises their mean over
        its rows. None where there is nothing to minimise.
        """

    def loss(self, context: Context, state: State) -> Tensor | None:
        """A term on weights, once per step: scalar with gradient, or None."""
        return None


class Diagnostic(Method):
    """Looks inside after a stage; changes nothing. `context.examples` are the stage's training rows;
    `context.history` the evaluations up to now, oldest first, those inside stages included: dicts
    {"stage": index, "step": optimiser steps made in it, "values": {set: figure, more is better}} of
    the sets whose stage has begun. `context.stream` has all stages, with the rows of earlier ones."""

    title: ClassVar[str] = ""
    better: ClassVar[str] = ""  # "higher", "lower", or "" where neither is
    needs_base: ClassVar[bool] = False  # compares with `context.base`

    @abstractmethod
    def measure(self, context: Context) -> dict[str, float]:
        """Figures by name."""

    def brief(self, figures: dict[str, float]) -> dict[str, float]:
        """What a table of many methods shows of them."""
        return figures


class Schedule(Method):
    """How fast: a factor on the learning rate."""

    @abstractmethod
    def scale(self, progress: Progress) -> float: ...


class AnswerMetric(Method):
    """Judges answers of one evaluation set."""

    formula: ClassVar[str] = ""
    unit: ClassVar[str] = "%"

    @abstractmethod
    def scores(self, answers: Sequence[Answer]) -> list[float]:
        """One number per answer, for intervals and comparisons."""

    def value(self, answers: Sequence[Answer]) -> float:
        """The figure of the set: mean score unless the metric says otherwise."""
        return sum(self.scores(answers)) / len(answers)

    def benefit(self, value: float) -> float:
        """The figure on a scale where more is better, as it enters the accuracy matrix."""
        return value


class MatrixMetric(Method):
    """Says one thing about a whole run, from its accuracy matrix."""

    title: ClassVar[str] = ""
    formula: ClassVar[str] = ""
    better: ClassVar[str] = "higher"

    @abstractmethod
    def value(self, matrix: "Any") -> float | None:
        """None where the matrix does not define it (one task, no general sets)."""
