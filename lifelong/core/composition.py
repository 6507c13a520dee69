"""Which methods work together: one tuner, any number of penalties, at most one memory."""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from lifelong.core.axes import Active, Analytic, Merger, Method, Mixing, Penalty, Replay, Tuner, Unlearning
from lifelong.errors import UserError

Order = Literal["sequence", "joint", "per_task"]


@dataclass(frozen=True, kw_only=True)
class Methods:
    """What one run is trained with."""

    tuner: Tuner
    penalties: tuple[Penalty, ...] = ()
    replay: Replay | None = None
    mixing: Mixing | None = None
    mergers: tuple[Merger, ...] = ()
    analytic: Analytic | None = None
    unlearning: Unlearning | None = None
    stream: Order = "sequence"  # stages in order, all at once, or each from the start
    name: str = ""  # of the recipe, or of the parts joined by +

    @property
    def parts(self) -> tuple[Method, ...]:
        single = (self.replay, self.mixing, self.analytic, self.unlearning)
        return (self.tuner, *self.penalties, *self.mergers, *(part for part in single if part is not None))

    def actors(self) -> dict[str, Active]:
        """Every method by the role under which its state is kept."""
        found: dict[str, Active] = {"tuner": self.tuner}
        found |= {f"penalty.{snake(each)}": each for each in self.penalties}
        single = {"replay": self.replay, "mixing": self.mixing, "analytic": self.analytic,
                  "unlearning": self.unlearning}  # fmt: skip
        found |= {role: method for role, method in single.items() if method is not None}
        return found | {f"merger.{snake(each)}": each for each in self.mergers}

    def __post_init__(self) -> None:
        check_composition(self.parts)
        if self.stream == "joint" and self.mixing is not None and not self.mixing.draws:
            raise UserError(
                f"{snake(self.mixing)} takes a share of earlier stages, and joint training has none. "
                "Leave it out."
            )


def compose(parts: Sequence[Method], default: Tuner, stream: Order = "sequence", name: str = "") -> Methods:
    """Sort methods by axis; `default` is the tuner where `parts` has none."""
    if not any(isinstance(part, Tuner) for part in parts):
        parts = [default, *parts]
    check_composition(parts)
    return Methods(
        tuner=next(part for part in parts if isinstance(part, Tuner)),
        penalties=tuple(part for part in parts if isinstance(part, Penalty)),
        replay=next((part for part in parts if isinstance(part, Replay)), None),
        mixing=next((part for part in parts if isinstance(part, Mixing)), None),
        mergers=tuple(part for part in parts if isinstance(part, Merger)),
        analytic=next((part for part in parts if isinstance(part, Analytic)), None),
        unlearning=next((part for part in parts if isinstance(part, Unlearning)), None),
        stream=stream,
        name=name or "+".join(map(snake, parts)),
    )


def check_composition(parts: Sequence[Method]) -> None:
    """Raise UserError where `parts` cannot work together."""
    for part in parts:
        if not isinstance(part, Active):
            raise UserError(f"`{snake(part)}` is neither tuner nor penalty nor memory.")
    tuners = [part for part in parts if isinstance(part, Tuner)]
    once = ((Tuner, "tuner"), (Replay, "replay memory"), (Mixing, "mixing"), (Analytic, "analytic learner"),
            (Unlearning, "way to unlearn"))  # fmt: skip
    for kind, what in once:
        several = [part for part in parts if isinstance(part, kind)]
        if len(several) > 1:
            names = " and ".join(map(snake, several))
            raise UserError(f"{names} exclude each other: a run has one {what}. Name one of them.")
    if not tuners:
        raise UserError("a run needs a tuner, which says where the update lives.")
    tuner = tuners[0]
    _check_pairs(parts)
    if len({snake(part) for part in parts}) < len(parts):
        raise UserError("a method is named twice; name each once.")
    for part in parts:
        if isinstance(part, Merger) and not tuner.interpolates:
            raise UserError(
                f"{snake(part)} changes how much of a stage's update is kept, which {snake(tuner)} cannot "
                "express. Take a tuner that can (full, lora, o_lora), or leave the merger out."
            )
        if isinstance(part, Unlearning) and part.needs_zero_start and not tuner.starts_at_zero:
            raise UserError(
                f"{snake(part)} needs a tuner whose update is made of weights of its own in every stage and "
                f"begins at zero; that of {snake(tuner)} is not. Take another tuner (o_lora), or leave "
                f"{snake(part)} out."
            )
        if isinstance(part, Replay) and part.projects and tuner.pulls_old:
            raise UserError(
                f"{snake(tuner)} holds on to what it answers on remembered rows, but {snake(part)} trains on "
                "none: they only correct its steps. Take a memory that trains on its rows (reservoir, der)."
            )
        if isinstance(part, Penalty):
            _check_penalty(part, tuner)


def _check_penalty(part: Penalty, tuner: Tuner) -> None:
    """Raise UserError where the tuner does not give what the penalty needs."""
    if part.needs_persistent and not tuner.persistent:
        raise UserError(
            f"{snake(part)} compares a weight with its own earlier value, but {snake(tuner)} trains "
            "fresh weights in every stage. Take a tuner whose weights stay, or leave the penalty out."
        )
    if part.needs_same_params and tuner.exchanges:
        raise UserError(
            f"{snake(part)} keeps the weights of a stage's first step, but {snake(tuner)} may begin "
            "others inside a stage. Take another tuner, or leave the penalty out."
        )
    if part.moves_weights and type(tuner).serving is not Tuner.serving:
        raise UserError(
            f"{snake(part)} hands over averaged weights when a stage ends, and {snake(tuner)} answers with "
            "averaged weights of its own. Take another tuner, or leave the penalty out."
        )
    if part.needs_subspaces and not tuner.has_subspaces:
        raise UserError(
            f"{snake(part)} needs a tuner that keeps the directions of earlier stages apart; "
            f"{snake(tuner)} does not. Take another tuner, or leave the penalty out."
        )


def _check_pairs(parts: Sequence[Method]) -> None:
    """Raise UserError for two methods that undo each other."""

    def one(kind: type, holds: Callable[[Any], bool] = bool) -> Method | None:
        return next((part for part in parts if isinstance(part, kind) and holds(part)), None)

    merger, analytic, mixing, replay = one(Merger), one(Analytic), one(Mixing), one(Replay)
    unlearning = one(Unlearning)
    mover = one(Penalty, lambda part: part.moves_weights)
    for left, right, why in (
        (merger, analytic, "moves the body after the head was computed on it"),
        (merger, mover, "sets weights at a stage's end that the other replaces"),
        (mixing, replay, "draws rows of earlier stages itself, so that the memory would stay empty"),
        (mixing, analytic, "draws rows again and again, where the learner takes each row once"),
        (unlearning, analytic, "moves the body after the head was computed on it"),
    ):
        if left is not None and right is not None:
            raise UserError(
                f"{snake(left)} and {snake(right)} exclude each other: {snake(left)} {why}. Leave one out."
            )


BASES = {
    "tuners": Tuner, "penalties": Penalty, "replay": Replay, "mixing": Mixing, "mergers": Merger,
    "analytic": Analytic, "unlearning": Unlearning,
}  # fmt: skip


def axis_of(part: Active) -> str:
    """The axis that a method is an answer on."""
    return next(axis for axis, base in BASES.items() if isinstance(part, base))


def snake(part: Method) -> str:
    """The name of a method: its class, as its file is called."""
    return re.sub(r"(?<!^)(?=[A-Z])", "_", type(part).__name__).lower()
