"""Stage and stream: what comes, in which order, and what is evaluated throughout."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Annotated, Literal

from lifelong.core.axes import AnswerMetric, Objective, Row, Schedule
from lifelong.core.settings import Range, check, misfit
from lifelong.errors import UserError


@dataclass(frozen=True, kw_only=True)
class Budget:
    """When a stage ends: at the first of the limits that are given."""

    epochs: Annotated[float, Range(0, open_low=True)] | None = None
    steps: Annotated[int, Range(1)] | None = None
    tokens: Annotated[int, Range(1)] | None = None  # positions of new rows, pads not counted
    seconds: Annotated[float, Range(0, open_low=True)] | None = None  # of training; not repeatable

    def __post_init__(self) -> None:
        check(self)
        if (self.epochs, self.steps, self.tokens, self.seconds) == (None,) * 4:
            raise UserError("a stage needs a budget: give epochs, steps, tokens or seconds.")


@dataclass(frozen=True, kw_only=True)
class Optimization:
    """How a stage is trained. The optimiser is begun afresh at every stage."""

    learning_rate: Annotated[float, Range(0, open_low=True)] = 1e-3
    schedule: Schedule
    batch_size: Annotated[int, Range(1)] | None = 16  # rows per optimiser step
    batch_tokens: Annotated[int, Range(1)] | None = None  # or positions per step, pads counted
    micro_batch_size: Annotated[int, Range(1)] | None = None  # rows per forward pass; None = all
    optimizer: Literal["adamw", "sgd"] = "adamw"
    weight_decay: Annotated[float, Range(0)] = 0.0
    momentum: Annotated[float, Range(0, 1, open_high=True)] = 0.0  # of sgd
    beta1: Annotated[float, Range(0, 1, open_high=True)] = 0.9  # of adamw
    beta2: Annotated[float, Range(0, 1, open_high=True)] = 0.999
    max_grad_norm: Annotated[float, Range(0, open_low=True)] | None = 1.0
    sort_by_length: bool = True  # batches of rows of like length: less padding

    def __post_init__(self) -> None:
        check(self)
        if (self.batch_size is None) == (self.batch_tokens is None):
            raise UserError("give exactly one of batch_size (rows) and batch_tokens (positions).")


@dataclass(frozen=True, kw_only=True)
class EvalSet:
    """Rows that judge the model."""

    name: str
    rows: Sequence[Row]
    objective: Objective
    metric: AnswerMetric
    labels: tuple[str, ...] = ()  # candidate answers, where the task has a closed set
    erased_by: str = ""  # name of the stage that erases what these rows ask for


@dataclass(frozen=True, kw_only=True)
class Erasure:
    """What an erase stage takes back: rows of an earlier stage."""

    stage: str  # its name
    places: tuple[int, ...]  # of the rows to be forgotten, among its rows


Drop = Annotated[float, Range(0, 1, open_low=True)]  # share of rows; of a perplexity, its relative growth


@dataclass(frozen=True, kw_only=True)
class Guard:
    """What must not be lost. A set without a budget (None) is not guarded."""

    allowed_drop_fraction: Drop | None = 0.02  # of each set whose stage has ended before
    general_drop_fraction: Drop | None = 0.03  # of each general set
    sets: Mapping[str, float | None] = field(default_factory=dict)  # budgets of single sets, by name
    otherwise: Literal["stop", "repair", "keep"] = "stop"  # what follows where a budget is broken
    undecided: Literal["refuse", "promote"] = "refuse"  # a set that is too small to tell
    reference: Literal["best", "before", "first"] = "best"  # drops are counted from this row of the matrix
    confidence: Annotated[float, Range(0.5, 1, open_high=True)] = 0.95  # of the interval of a drop
    layer_groups: Annotated[int, Range(1)] = 1  # that a repair moves apart, by depth; 1: the whole model
    trials: Annotated[int, Range(1)] = 6  # halvings in a repair, for each group

    def __post_init__(self) -> None:
        check(self)
        for name, value in self.sets.items():
            problem = misfit(value, Drop | None)
            if problem:
                raise UserError(f"Guard.sets: the budget of `{name}` must be {problem}; got {value!r}.")

    def budget(self, name: str, general: bool) -> float | None:
        """Allowed drop of a set."""
        usual = self.general_drop_fraction if general else self.allowed_drop_fraction
        return self.sets.get(name, usual)


@dataclass(frozen=True, kw_only=True)
class Stage:
    """One step of a life: training rows, what judges them, an objective, a budget. In an erase stage the
    rows are those to be forgotten: the rows at `erases.places`, and maybe others like them.
    """

    name: str
    rows: Sequence[Row]
    evals: tuple[EvalSet, ...]
    objective: Objective
    budget: Budget
    optimization: Optimization
    labels: tuple[str, ...] = ()
    parts: tuple["Stage", ...] = ()  # the stages that were joined into this one
    erases: Erasure | None = None


@dataclass(frozen=True, kw_only=True)
class Stream:
    """Stages in order. `columns` of the accuracy matrix are the evaluation sets of all stages."""

    stages: tuple[Stage, ...]
    general: tuple[EvalSet, ...] = ()  # never trained: what the model must keep
    candidates: str = "task"  # "task": a row is answered among its own task's labels; "seen":
    # among the labels of all stages trained so far; "all": among every label of the stream
    guard: Guard | None = None

    def columns(self) -> list[tuple[int, EvalSet]]:
        """(index of the stage that teaches it, evaluation set), in stream order."""
        return [(i, each) for i, stage in enumerate(self.stages) for each in stage.evals]

    def erased_from(self, each: EvalSet) -> int | None:
        """Index of the stage from which on an evaluation set asks for what was erased; 0 in a stream of
        which these rows never were a part.
        """
        names = [stage.name for stage in self.stages]
        if not each.erased_by:
            return None
        return names.index(each.erased_by) if each.erased_by in names else 0

    def current(self, row: int) -> list[str]:
        """Evaluation sets of what the first `row` stages teach and do not erase again."""
        gone = [self.erased_from(each) for _, each in self.columns()]
        columns = zip(self.columns(), gone, strict=True)
        return [each.name for (task, each), e in columns if task < row and (e is None or e >= row)]

    def known(self, row: int) -> list[EvalSet]:
        """Those sets and the general ones."""
        names = self.current(row)
        return [*(each for _, each in self.columns() if each.name in names), *self.general]

    def tasks(self, row: int) -> list["Stage"]:
        """What the first `row` stages teach and do not erase again: their parts, where stages were joined."""
        taught = [stage for stage in self.stages[:row] if stage.erases is None]
        gone, found = self.gone(row), []
        for part in (part for stage in taught for part in (stage.parts or (stage,))):
            rows = [each for i, each in enumerate(part.rows) if i not in gone.get(part.name, ())]
            found.append(replace(part, rows=rows))
        return [each for each in found if each.rows]

    def gone(self, row: int | None = None) -> dict[str, set[int]]:
        """Places of the rows that the first `row` stages erase, by the stage that taught them."""
        found: dict[str, set[int]] = {}
        for stage in self.stages[:row]:
            if stage.erases is not None:
                found.setdefault(stage.erases.stage, set()).update(stage.erases.places)
        return found

    def labels(self, stages: int | None = None) -> tuple[str, ...]:
        """All labels of the first `stages` stages, in the order in which they appear."""
        return tuple(dict.fromkeys(label for stage in self.stages[:stages] for label in stage.labels))


def without_erased(stream: Stream) -> Stream:
    """The stream as it would be if rows that it erases had never been in it: what retraining trains.

    The columns stay. Those of a stage that has no row left go to a neighbour, since no model is
    trained that is theirs.
    """
    gone = stream.gone()
    kept: list[Stage] = []
    homeless: tuple[EvalSet, ...] = ()
    for stage in stream.stages:
        rows = [row for i, row in enumerate(stage.rows) if i not in gone.get(stage.name, ())]
        if stage.erases is not None:
            continue
        if rows:
            kept.append(replace(stage, rows=rows, evals=homeless + stage.evals))
            homeless = ()
        elif kept:
            kept[-1] = replace(kept[-1], evals=kept[-1].evals + stage.evals)
        else:
            homeless += stage.evals
    if not kept:
        raise UserError("every row of the stream is erased in it, so that nothing is left to train.")
    return replace(stream, stages=tuple(kept))


def joined(stream: Stream) -> Stream:
    """One stage with the rows of all: the joint upper bound. Budgets in steps, tokens and seconds
    add up; epochs keep their meaning and must agree.
    """
    first = stream.stages[0]
    budgets = [stage.budget for stage in stream.stages]
    if len({(b.epochs, b.steps is None, b.tokens is None, b.seconds is None) for b in budgets}) > 1:
        raise UserError("joint training needs stages with the same kind of budget (and equal epochs).")

    def total(name: str) -> float | None:
        values = [getattr(b, name) for b in budgets]
        return None if values[0] is None else sum(values)

    budget = Budget(epochs=first.budget.epochs, **{n: total(n) for n in ("steps", "tokens", "seconds")})
    stage = replace(
        first,
        name="joint",
        rows=[row for each in stream.stages for row in each.rows],
        evals=tuple(each for _, each in stream.columns()),
        labels=stream.labels(),
        budget=budget,
        parts=stream.stages,
    )
    return replace(stream, stages=(stage,))
